"""`Access`: everybody who may use the gateway, now. One table, changed in one step between two checkpoints.

Asked twice about each call: by the entrance of the HTTP faces who sends the request, and by the router whether that
principal may have the call. What it refuses is a value (`Refusal`), for the entrance to send.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.access.keys import MAX_CREDENTIAL, credential_in, digest_in, digest_of
from gateway.access.principals import Principal
from gateway.errors import Denied

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.calls import Caller
    from gateway.config.access_model import AccessSettings

HINT: Final = "send it as 'Authorization: Bearer KEY' (or 'X-API-Key: KEY'); who runs this gateway gives keys out"

log = logging.getLogger("gateway.access")


class Refusal(msgspec.Struct, frozen=True):
    """How a request is turned away that may not come in; `challenge` is its `WWW-Authenticate`, if it has one."""

    status: int
    text: str
    hint: str = ""
    challenge: str = ""
    retry_after: int | None = None


class Access:
    """Who may use the gateway. With neither keys nor OAuth it guards nothing: everybody is nobody in particular."""

    def __init__(self, settings: AccessSettings) -> None:
        self.on_end: list[Callable[[Principal], None]] = []
        """Told of each principal whose key was taken away, once its exchanges have been ended."""
        self.on_change: list[Callable[[], None]] = []
        """Told when other settings hold, for those which belong to faces."""
        self.settings = settings
        self._by_digest: dict[bytes, Principal] = {}
        self._by_name: dict[str, Principal] = {}
        self._fill(settings)

    @property
    def guards(self) -> bool:
        """Whether a request must say who sends it."""
        return self.settings.guards

    # The entrance.

    def find(self, headers: Mapping[bytes, bytes]) -> Principal | Refusal:
        """Who sends a request with these headers, or why it may not come in."""
        credential = credential_in(headers)
        if credential and len(credential) <= MAX_CREDENTIAL:
            principal = self._by_digest.get(digest_of(credential))
            if principal is not None:
                return principal
        return self._refuse(headers)

    def _refuse(self, headers: Mapping[bytes, bytes]) -> Refusal:
        if b"authorization" in headers or b"x-api-key" in headers:
            return Refusal(401, "the key is not one that this gateway knows", HINT, 'Bearer error="invalid_token"')
        return Refusal(401, "this gateway needs a key", HINT, "Bearer")

    # The router.

    def begin(self, caller: Caller, *, again: bool = False) -> Principal | None:
        """Count a call of this caller; `again` for one that goes on with another, which is still counted.

        Returns who must be told `end_call`, None for a caller that is nobody in particular.

        Raises:
            Busy: its principal has used up what it may have; `retry_after` says when there is more.
            Denied: its key was taken away meanwhile.
        """
        if caller.principal is None:
            return None
        principal = self._by_name.get(caller.principal)
        if principal is None:
            text = "the key that this was asked with was taken away"
            raise Denied(text)
        principal.begin_call(again=again)
        return principal

    # Changes.

    def apply(self, settings: AccessSettings) -> None:
        """Go by other settings; who is not let in by them any more is ended at once, with all that it has open."""
        before = list(self._by_name.values())
        self.settings = settings
        self._fill(settings)
        for follow in self.on_change:
            follow()
        for principal in before:
            if self._by_name.get(principal.name) is not principal:
                log.info("%s may not use the gateway any more: its sessions and calls end", principal.name)
                principal.end()
                for tell in self.on_end:
                    tell(principal)

    def _fill(self, settings: AccessSettings) -> None:
        """Make the tables anew. Who keeps its name and its key stays the same principal."""
        known = self._by_digest
        self._by_digest, self._by_name = {}, {}
        for key in settings.keys:
            digest = digest_in(key.hash)
            principal = known.get(digest)
            if principal is None or principal.name != key.name:
                principal = Principal(key.name, key.rules)
            principal.follow(key.rules)
            self._by_digest[digest] = self._by_name[key.name] = principal
