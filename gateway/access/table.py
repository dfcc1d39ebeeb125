"""`Access`: everybody who may use the gateway, now. One table, changed in one step between two checkpoints.

Asked twice about each call: by the entrance of the HTTP frontends who sends the request, and by the router whether that
principal may have the call. What it refuses is a value (`Refusal`), for the entrance to send.
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

HINT: Final = "send it as 'Authorization: Bearer KEY' (or 'X-API-Key: KEY'); who runs this gateway gives keys out"

log = logging.getLogger("gateway.access")


class AccessObserver(Protocol):
    """Follows changes of who may use the gateway, for what its clients have open. Nothing in it may wait."""

    def apply_access(self) -> None:
        """Follow the settings: they have changed, or the observer has just been attached."""
        ...

    def update_principal(self, principal: Principal) -> None:
        """Go by other rules of a principal, as far as they say what it may see and use."""
        ...

    def end_principal(self, principal: Principal) -> None:
        """End the sessions of a principal that may not use the gateway any longer."""
        ...


class Access:
    """Who may use the gateway. With neither keys nor OAuth it guards nothing: everybody is nobody in particular."""

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
        """Make one.

        `send` is how an authorization server is asked, over HTTP unless it is given. `end_calls` is called with each
        principal that may not use the gateway any longer, after its exchanges and sessions have been ended.
        `note_denied` is called for each request that is refused: status, code, text, principal, address, path.
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
        """Whether a request must say who sends it."""
        self._fill(settings)

    # The entrance.

    def find(self, headers: Mapping[bytes, bytes]) -> Principal | None:
        """Who sends a request with these headers, if it bears a key; else `ask`."""
        credential = credential_in(headers)
        if not credential or len(credential) > MAX_CREDENTIAL:
            return None
        return self._by_digest.get(digest_of(credential))

    async def authenticate_token(
        self, headers: Mapping[bytes, bytes], address: str | None = None
    ) -> tuple[Principal, float] | Refusal:
        """The same for one that bears no key: perhaps a token. `address` is the client's, for a fair share of checks.

        Returns who it is and until when the token is good, on the loop's clock, or why the request may not come in.
        """
        credential = credential_in(headers)
        subjects = self._subjects
        if subjects is None or b"authorization" not in headers or not 0 < len(credential) <= MAX_CREDENTIAL:
            return self._refuse(headers)
        found = await subjects.identify(credential, address)
        if subjects is not self._subjects:  # the settings have changed meanwhile
            return self._refuse(headers)
        return found

    def _refuse(self, headers: Mapping[bytes, bytes]) -> Refusal:
        wrong = b"authorization" in headers or b"x-api-key" in headers
        text = "the key is not one that this gateway knows" if wrong else "this gateway needs a key"
        code = "invalid_token" if wrong else "missing_credentials"
        error = "invalid_token" if wrong else ""  # RFC 6750, 3.1: no error where nothing was tried
        if self.settings.oauth is not None:
            from gateway.access.resource import challenge

            if not self.settings.keys:
                text = "the token is not accepted" if wrong else "this gateway needs a token"
            return Refusal(401, code, text, challenge=challenge(self.settings.oauth, error))
        return Refusal(401, code, text, HINT, f'Bearer error="{error}"' if error else "Bearer")

    # The router.

    def begin(self, caller: Caller, *, again: bool = False) -> Principal | None:
        """Count a call of this caller; `again` for one that goes on with another, which is still counted.

        Returns who must be told `end_call`, None for a caller that is nobody in particular.

        Raises:
            Busy: its principal has used up what it may have; `retry_after` says when there is more.
            Revoked: its key was taken away meanwhile.
        """
        if caller.principal is None:
            return None
        principal = self._get(caller.principal)
        if principal is None:
            raise Revoked
        principal.begin_call(again=again)
        return principal

    def takes_note(self, caller: Caller) -> bool:
        """Whether a notification of this caller may go to a server; it counts to the rate of its principal."""
        if caller.principal is None:
            return True
        principal = self._get(caller.principal)
        return principal is not None and principal.takes_note()

    def _get(self, name: str) -> Principal | None:
        found = self._by_name.get(name)
        return self._subjects.get(name) if found is None and self._subjects is not None else found

    # Changes.

    def apply(self, settings: AccessSettings) -> None:
        """Go by other settings; who is not let in by them any more is ended at once, with all that it has open."""
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
                    "%s was revoked: its sessions and calls end",
                    principal.name,
                    extra={"event": "principal_revoked", "principal": principal.name},
                )
                principal.end()  # its exchanges, then its sessions, then its calls
                for observer in self._observers:
                    observer.end_principal(principal)
                self._end_calls(principal)

    def attach(self, observer: AccessObserver) -> None:
        """Have an observer follow the settings, beginning with those of now."""
        self._observers.append(observer)
        observer.apply_access()

    def detach(self, observer: AccessObserver) -> None:
        """Undo `attach`."""
        self._observers.remove(observer)

    def _all(self) -> list[Principal]:
        return [*self._by_name.values(), *(() if self._subjects is None else self._subjects.all())]

    def _fill(self, settings: AccessSettings) -> None:
        """Make the tables anew. Who keeps its name and its key stays the same principal."""
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
                from gateway.access.subjects import Subjects  # gateways with keys alone do without

                self._subjects = Subjects(settings.oauth, self._send)
