"""Principals of OAuth tokens: one for each subject, in a bounded table."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.access.authority import AuthorityDown
from gateway.access.principals import Principal
from gateway.access.refusal import Refusal
from gateway.access.resource import challenge
from gateway.access.tokens import Invalid, Tokens
from gateway.errors import Busy

if TYPE_CHECKING:
    from gateway.access.authority import Fetch
    from gateway.config.access import ResourceServer

MAX_SUBJECTS: Final = 4_096
"""Limit of known subjects. Idle ones are evicted, least recently used first."""
TRY_AGAIN: Final = 5
"""Retry hint in seconds when the token cannot be checked."""

log = logging.getLogger("gateway.access")


class Subjects:
    """The principals of OAuth tokens."""

    def __init__(
        self, settings: ResourceServer, send: Fetch | None = None, *, max_subjects: int = MAX_SUBJECTS
    ) -> None:
        self.settings = settings
        self._max_subjects = max_subjects
        self._tokens = Tokens(settings, send)
        self._principals: OrderedDict[str, Principal] = OrderedDict()

    async def identify(self, token: bytes, address: str | None = None) -> tuple[Principal, float] | Refusal:
        """Return the token's principal and expiry (loop time), or the refusal."""
        try:
            known = await self._tokens.check(token, address)
        except Invalid as exc:
            text = f"the token is not accepted: {exc}"
            return Refusal(401, "invalid_token", text, challenge=challenge(self.settings, "invalid_token"))
        except AuthorityDown as exc:
            log.warning("tokens cannot be checked: %s", exc, extra={"event": "tokens_not_checked", "code": exc.code})
            return Refusal(503, exc.code, "tokens cannot be checked now; retry later", retry_after=TRY_AGAIN)
        except Busy as exc:
            return Refusal(503, exc.code, str(exc), retry_after=TRY_AGAIN)
        missing = [scope for scope in self.settings.scopes if scope not in known.scopes]
        if missing:
            text = f"the token lacks the scope {' '.join(missing)}"
            return Refusal(403, "insufficient_scope", text, challenge=challenge(self.settings, "insufficient_scope"))
        name = known.principal
        if name not in self._principals:
            if len(self._principals) >= self._max_subjects:
                idle = next((other for other, principal in self._principals.items() if principal.idle), None)
                if idle is None:
                    text = f"too many active OAuth subjects ({self._max_subjects}); retry later"
                    return Refusal(503, Busy.code, text, retry_after=TRY_AGAIN)
                del self._principals[idle]
            self._principals[name] = Principal(name, self.settings.rules)
        self._principals.move_to_end(name)
        return self._principals[name], known.until

    def get(self, name: str) -> Principal | None:
        """Return the principal of this name, if it is known."""
        return self._principals.get(name)

    def all(self) -> list[Principal]:
        """Return all known principals."""
        return list(self._principals.values())

    def update_settings(self, settings: ResourceServer | None) -> bool:
        """Apply settings that differ only in rules; return False, unchanged, for any others."""
        if settings is None or msgspec.structs.replace(settings, rules=self.settings.rules) != self.settings:
            return False
        self.settings = settings
        for principal in self._principals.values():
            principal.update_rules(settings.rules)
        return True
