"""`Access`: the table of principals, changed in one step between two checkpoints.

It is used twice for each call: the HTTP frontends authenticate the request, and the router asks whether the principal
may start the call. A refusal is a value (`Refusal`) for the frontend to send.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

from gateway.access.keys import MAX_CREDENTIAL, credential_in, digest_in, digest_of
from gateway.access.principals import Principal
from gateway.access.refusal import Refusal
from gateway.errors import Revoked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.access.authority import Fetch
    from gateway.access.subjects import Subjects
    from gateway.calls import Caller
    from gateway.config.access import AccessSettings

HINT: Final = "send it as 'Authorization: Bearer KEY' (or 'X-API-Key: KEY'); ask the gateway's operator for a key"

log = logging.getLogger("gateway.access")


class AccessObserver(Protocol):
    """A follower of access changes, on behalf of open client state.

    Its methods must not block.
    """

    def apply_access(self) -> None:
        """Apply the settings after a change, or when the observer has just been attached."""
        ...

    def update_principal(self, principal: Principal) -> None:
        """Apply a principal's new rules to what it may see and use."""
        ...

    def end_principal(self, principal: Principal) -> None:
        """End the sessions of a principal whose access has been revoked."""
        ...


class Access:
    """Authentication and admission control. Without keys or OAuth, all callers are anonymous."""

    def __init__(
        self,
        settings: AccessSettings,
        send: Fetch | None = None,
        *,
        end_calls: Callable[[Principal], None] = lambda _principal: None,
        note_denied: Callable[[int, str, str, str | None, str | None, str], None] = (
            lambda _status, _code, _text, _principal, _address, _path: None
        ),
    ) -> None:
        """Create the table.

        `send` sends requests to an authorization server (default: over HTTP). `end_calls` is called with each revoked
        principal, after its exchanges and sessions have been ended. `note_denied` is called for each request that is
        refused: status, code, text, principal, address, path.
        """
        self.settings = settings
        self.note_denied = note_denied
        self._end_calls = end_calls
        self._observers: list[AccessObserver] = []
        self._send = send
        self._by_digest: dict[bytes, Principal] = {}
        self._by_name: dict[str, Principal] = {}
        self._subjects: Subjects | None = None
        self.requires_credentials = False
        """True if requests must carry credentials."""
        self._fill(settings)

    # For the HTTP frontends.

    def find(self, headers: Mapping[bytes, bytes]) -> Principal | None:
        """Return the principal of a request's API key; without a valid key use `authenticate_token`."""
        credential = credential_in(headers)
        if not credential or len(credential) > MAX_CREDENTIAL:
            return None
        return self._by_digest.get(digest_of(credential))

    async def authenticate_token(
        self, headers: Mapping[bytes, bytes], address: str | None = None
    ) -> tuple[Principal, float] | Refusal:
        """Authenticate a request without a valid key by its token; `address` is the client's.

        Returns the principal and the token's expiry on the loop's clock, or the reason for refusing the request.
        """
        credential = credential_in(headers)
        subjects = self._subjects
        if subjects is None or b"authorization" not in headers or not 0 < len(credential) <= MAX_CREDENTIAL:
            return self._refuse(headers)
        found = await subjects.identify(credential, address)
        if subjects is not self._subjects:  # the settings have changed
            return self._refuse(headers)
        return found

    def _refuse(self, headers: Mapping[bytes, bytes]) -> Refusal:
        wrong = b"authorization" in headers or b"x-api-key" in headers
        text = "the API key is unknown" if wrong else "an API key is required"
        code = "invalid_token" if wrong else "missing_credentials"
        error = "invalid_token" if wrong else ""  # RFC 6750, 3.1: no error without credentials
        if self.settings.oauth is not None:
            from gateway.access.resource import challenge

            if not self.settings.keys:
                text = "the token is not accepted" if wrong else "a token is required"
            return Refusal(401, code, text, challenge=challenge(self.settings.oauth, error))
        return Refusal(401, code, text, HINT, f'Bearer error="{error}"' if error else "Bearer")

    # For the router.

    def begin(self, caller: Caller, *, again: bool = False) -> Principal | None:
        """Count a call of this caller; `again` continues one that is still counted.

        Returns the principal on which to call `end_call`, or None for an anonymous caller.

        Raises:
            Busy: a limit of its principal is reached; `retry_after` says when to retry.
            Revoked: its key has been revoked meanwhile.
        """
        if caller.principal is None:
            return None
        principal = self._get(caller.principal)
        if principal is None:
            raise Revoked
        principal.begin_call(again=again)
        return principal

    def takes_note(self, caller: Caller) -> bool:
        """Return whether this caller's notification may be forwarded; it counts towards the rate limit."""
        if caller.principal is None:
            return True
        principal = self._get(caller.principal)
        return principal is not None and principal.takes_note()

    def _get(self, name: str) -> Principal | None:
        found = self._by_name.get(name)
        return self._subjects.get(name) if found is None and self._subjects is not None else found

    # Changes.

    def apply(self, settings: AccessSettings) -> None:
        """Apply new settings; immediately end everything that belongs to principals they revoke."""
        before = self._all()
        rules = {id(principal): principal.rules for principal in before}
        self.settings = settings
        self._fill(settings)
        for observer in self._observers:
            observer.apply_access()
        for principal in self._all():
            if rules.get(id(principal), principal.rules) != principal.rules:
                for observer in self._observers:
                    observer.update_principal(principal)
        after = set(map(id, self._all()))
        for principal in before:
            if id(principal) not in after:
                log.info(
                    "access revoked for %s: ending its sessions and calls",
                    principal.name,
                    extra={"event": "principal_revoked", "principal": principal.name},
                )
                principal.end()  # its exchanges, then its sessions, then its calls
                for observer in self._observers:
                    observer.end_principal(principal)
                self._end_calls(principal)

    def attach(self, observer: AccessObserver) -> None:
        """Attach an observer and pass it the present settings."""
        self._observers.append(observer)
        observer.apply_access()

    def detach(self, observer: AccessObserver) -> None:
        """Undo `attach`."""
        self._observers.remove(observer)

    def _all(self) -> list[Principal]:
        return [*self._by_name.values(), *(() if self._subjects is None else self._subjects.all())]

    def _fill(self, settings: AccessSettings) -> None:
        """Rebuild the tables. An unchanged name and key keep their principal."""
        self.requires_credentials = settings.requires_credentials
        known = self._by_digest
        self._by_digest, self._by_name = {}, {}
        for key in settings.keys:
            digest = digest_in(key.hash)
            principal = known.get(digest)
            if principal is None or principal.name != key.name:
                principal = Principal(key.name, key.rules)
            principal.update_rules(key.rules)
            self._by_digest[digest] = self._by_name[key.name] = principal
        if self._subjects is None or not self._subjects.update_settings(settings.oauth):
            self._subjects = None
            if settings.oauth is not None:
                from gateway.access.subjects import Subjects  # not needed with keys alone

                self._subjects = Subjects(settings.oauth, self._send)
