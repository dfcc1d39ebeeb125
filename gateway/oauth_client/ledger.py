"""The SDK's `TokenStorage` on top of the gateway's login state."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from pydantic import ValidationError

from gateway.config.oauth import is_same_issuer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mcp.client.auth.oauth2 import OAuthContext

    from gateway.oauth_client.token_store import Saved

    Keep = Callable[[Saved], Awaitable[None]]


class Ledger:
    """State of a login, saved after each step."""

    def __init__(self, saved: Saved, keep: Keep, *, with_tokens: bool) -> None:
        self.saved = saved
        self.context: OAuthContext
        self._keep = keep
        self._with_tokens = with_tokens

    async def get_tokens(self) -> OAuthToken | None:
        """Return the tokens, if the flow should use them."""
        saved = self.saved
        if not self._with_tokens or saved.access_token is None:
            return None
        return OAuthToken(access_token=saved.access_token, refresh_token=saved.refresh_token, scope=saved.scope)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return the registered client."""
        if self.saved.client is None:
            return None
        try:
            return OAuthClientInformationFull.model_validate_json(self.saved.client)
        except ValidationError:
            return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Save a newly registered client."""
        client = client_info.model_dump_json(exclude_none=True)
        if not is_same_issuer(self._issuer(), self.saved.issuer):
            self.saved = type(self.saved)(issuer=self._issuer(), client=client)
        else:
            self.saved = msgspec.structs.replace(self.saved, client=client)
        # Not saved while there are tokens, which were issued to the previous client; the new tokens save both.
        if self.saved.access_token is None:
            await self._keep(self.saved)

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Save new tokens and their origin."""
        context = self.context
        metadata, resource = context.oauth_metadata, context.protected_resource_metadata
        self.saved = type(self.saved)(
            issuer=self._issuer(),
            access_token=tokens.access_token,
            refresh_token=tokens.refresh_token,
            scope=tokens.scope,
            expires_at=None if tokens.expires_in is None else time.time() + tokens.expires_in,
            client=self.saved.client,
            server_metadata=None if metadata is None else metadata.model_dump_json(exclude_none=True),
            resource_metadata=None if resource is None else resource.model_dump_json(exclude_none=True),
        )
        await self._keep(self.saved)

    def _issuer(self) -> str:
        metadata = self.context.oauth_metadata
        return self.context.auth_server_url or "" if metadata is None else str(metadata.issuer)
