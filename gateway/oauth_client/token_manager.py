"""One backend's tokens and their renewal, one at a time, shared by all waiting requests.

All renewals happen in one task, `run`, which `Logins` owns. A renewal is a token stored by another process, a refresh,
client credentials, or an interactive login; the last three use the SDK (`sdk_flow`), which is imported only then. Every
renewal is bounded, and its outcome goes to all waiting requests. A token is sent only to its backend and its issuer,
and never logged.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import httpx2
import msgspec
import trio

from gateway.errors import BackendError, BackendUnavailable
from gateway.oauth_client.login_prompt import LoginRequired
from gateway.oauth_client.redirect_listener import PortTaken, RedirectListener, open_redirect_listener
from gateway.oauth_client.token_store import RefreshLock, Saved

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.oauth_client.answers import Challenge
    from gateway.oauth_client.http import OAuthHttp
    from gateway.oauth_client.login_prompt import LoginPrompt
    from gateway.oauth_client.token_store import TokenFiles

RENEWAL_TIMEOUT: Final = 60.0
"""Seconds for a non-interactive renewal: a few requests, and another gateway's refresh."""
REFUSED: Final = "refuses the token that its authorization server has just issued"
STORED, RENEWED, BY_PERSON = range(3)
"""Sources of a token. When the server refuses it, the next one must come from a later source."""

log = logging.getLogger("gateway.backend")


class _Renewal:
    """One renewal in progress, with its waiting requests."""

    def __init__(
        self, challenge: Challenge, used: str | None, least: int, pending_calls: Sequence[PendingCall]
    ) -> None:
        self.challenge = challenge
        self.used = used
        self.least = least
        self.pending_calls = list(pending_calls)
        self.done = trio.Event()
        self.outcome: tuple[str, int] | BackendError | None = None

    @property
    def by_person(self) -> bool:
        return self.least == BY_PERSON

    async def result(self) -> tuple[str, int]:
        await self.done.wait()
        if isinstance(self.outcome, tuple):
            return self.outcome
        assert self.outcome is not None  # ruff: ignore[assert] - `done` says so
        raise self.outcome


class TokenManager:
    """One backend's tokens, for the life of the gateway."""

    def __init__(self, config: ServerConfig, files: TokenFiles, prompt: LoginPrompt) -> None:
        self.config = config
        self.token: str | None = None
        self.prompt = prompt
        self.login_required: Challenge | None = None
        """The challenge of a request without a waiting call, so that no login was started."""
        self._files = files
        self._renewal: _Renewal | None = None
        self._wanted = trio.Event()

    async def load(self) -> bool:
        """Load the stored token if it differs from the present one; return whether it did."""
        saved = await trio.to_thread.run_sync(self._files.load, abandon_on_cancel=True)
        if saved is None or saved.access_token in {None, self.token}:
            return False
        self.token = saved.access_token
        return True

    async def renew(
        self, challenge: Challenge, used: str | None, least: int, pending_calls: Sequence[PendingCall]
    ) -> tuple[str, int]:
        """Wait for a token other than `used`, from the source `least` or a later one.

        Equal requests share a renewal. An interactive login is only started for a call.

        Raises:
            LoginRequired: an interactive login is necessary and did not happen.
            BackendUnavailable: the renewal failed.
        """
        if self.token is not None and self.token != used:
            return self.token, STORED
        if least < BY_PERSON and (self._credentials or not challenge.step_up):
            try:
                return await self._join(_Renewal(challenge, used, least, ()))
            except LoginRequired:
                if self._credentials:
                    raise
        if self._credentials:
            raise BackendUnavailable(self.config.name, REFUSED)
        if not pending_calls:
            self.login_required = challenge
            raise LoginRequired(self.config.name)
        return await self.log_in(challenge, used, pending_calls)

    async def log_in(
        self, challenge: Challenge, used: str | None, pending_calls: Sequence[PendingCall]
    ) -> tuple[str, int]:
        """Wait for an interactive login, even without a waiting call. Raises the errors of `renew`."""
        settings = self.config.oauth
        if settings is not None:
            for pending in pending_calls:  # interactive, so it may take long
                pending.extend(settings.login_timeout)
        return await self._join(_Renewal(challenge, used, BY_PERSON, pending_calls))

    @property
    def _credentials(self) -> bool:
        return self.config.oauth is not None and self.config.oauth.grant == "client_credentials"

    async def _join(self, wanted: _Renewal) -> tuple[str, int]:
        while (present := self._renewal) is not None:
            if (present.by_person, present.challenge.step_up) == (wanted.by_person, wanted.challenge.step_up):
                present.pending_calls += wanted.pending_calls
                return await present.result()
            if present.by_person and not wanted.by_person:
                raise LoginRequired(self.config.name, "a login is already in progress")
            await present.done.wait()
            if self.token is not None and self.token != wanted.used:
                return self.token, STORED
        self._renewal = wanted
        self._wanted.set()
        return await wanted.result()

    async def run(self) -> None:
        """Carry out renewals, one at a time, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            renewal = self._renewal
            assert renewal is not None  # ruff: ignore[assert] - see `_join`
            try:
                if renewal.by_person:
                    way, saved = await self._renew_by_person(renewal)
                else:
                    with trio.fail_after(RENEWAL_TIMEOUT):
                        way, saved = await self._renew_quietly(renewal)
                if saved.access_token is None:
                    raise LoginRequired(self.config.name)
                self.token = saved.access_token
                self.login_required = None
                renewal.outcome = self.token, way
            except BackendError as problem:
                renewal.outcome = problem
            except trio.TooSlowError:
                renewal.outcome = LoginRequired(self.config.name, "renewing the token took too long")
            finally:
                self._renewal = None
                renewal.outcome = renewal.outcome or BackendUnavailable(self.config.name, "was stopped")
                renewal.done.set()

    async def _renew_quietly(self, renewal: _Renewal) -> tuple[int, Saved]:
        """Renew non-interactively: another process's token, a refresh or client credentials."""
        saved = await self._load()
        if self._is_news(saved, renewal):
            return STORED, saved
        sdk = await _import_sdk() if self._credentials or saved.refresh_token else None
        if sdk is None:
            raise LoginRequired(self.config.name)
        if self._credentials:
            return RENEWED, await sdk.log_in(self.config, saved, renewal.challenge, keep=self._keep)
        async with RefreshLock(self._files):
            saved = await self._load()
            if self._is_news(saved, renewal):
                return STORED, saved
            fresh = await sdk.refresh(self.config, saved, keep=self._keep)
        if fresh is None:
            raise LoginRequired(self.config.name)
        return RENEWED, fresh

    def _is_news(self, saved: Saved, renewal: _Renewal) -> bool:
        """Return whether another process has stored a token that the server has not refused yet."""
        return saved.access_token not in {None, renewal.used} and not renewal.challenge.step_up

    async def _renew_by_person(self, renewal: _Renewal) -> tuple[int, Saved]:
        """Log in interactively."""
        settings = self.config.oauth
        wait = settings.login_timeout if settings is not None else RENEWAL_TIMEOUT
        saved = await self._load()
        sdk = await _import_sdk()
        problem: BackendError | None = None

        def make_visit(http: OAuthHttp) -> _Visit:
            return _Visit(self, listener, http, renewal)

        try:
            async with open_redirect_listener(settings and settings.redirect_port, _port_of(saved)) as listener:
                try:
                    with trio.fail_after(wait):
                        saved = await sdk.log_in(
                            self.config, saved, renewal.challenge, keep=self._keep, make_visit=make_visit
                        )
                except trio.TooSlowError:
                    problem = LoginRequired(self.config.name, f"it was not completed within {wait:g} s")
                except BackendError as exc:  # raised outside the listener's nursery, which would wrap it
                    problem = exc
                listener.report(None if problem is None else str(problem))
        except PortTaken as exc:
            problem = BackendUnavailable(self.config.name, f"needs a login, and {exc}")
        if problem is not None:
            raise problem
        return BY_PERSON, saved

    async def _load(self) -> Saved:
        return await trio.to_thread.run_sync(self._files.load, abandon_on_cancel=True) or Saved()

    async def _keep(self, saved: Saved) -> None:
        try:
            await trio.to_thread.run_sync(self._files.save, saved, abandon_on_cancel=True)
        except OSError as exc:
            log.warning("the login of %r could not be saved: %s", self.config.name, exc)


class _Visit:
    """Implements `gateway.oauth_client.sdk_flow.Visit`."""

    def __init__(
        self, authorizer: TokenManager, listener: RedirectListener, http: OAuthHttp, renewal: _Renewal
    ) -> None:
        self.uri = listener.uri
        self._authorizer = authorizer
        self._listener = listener
        self._http = http
        self._renewal = renewal

    async def show(self, url: str, state: str) -> None:
        """Check the page's URL and show it to the user."""
        self._http.check_page(httpx2.URL(url))
        self._listener.expect(state)
        await self._authorizer.prompt.show(url, self._listener, self._renewal.pending_calls)

    async def answer(self) -> dict[str, str]:
        """Wait for the browser; the renewal's deadline bounds it."""
        await self._listener.wait()
        if self._listener.refusal is not None:
            raise LoginRequired(self._authorizer.config.name, self._listener.refusal)
        return self._listener.answer


def _port_of(saved: Saved) -> int | None:
    """Return the port of the stored client's registration, since many servers accept no other."""
    if saved.client is None:
        return None
    try:
        uris = msgspec.json.decode(saved.client, type=_Registered).redirect_uris
        return httpx2.URL(uris[0]).port if uris else None
    except (msgspec.DecodeError, httpx2.InvalidURL):
        return None


class _Registered(msgspec.Struct):
    redirect_uris: list[str] = []


async def _import_sdk() -> ModuleType:
    """Import the SDK flow in a thread, since that half second would delay all calls."""

    def load() -> ModuleType:
        from gateway.oauth_client import sdk_flow

        return sdk_flow

    return await trio.to_thread.run_sync(load)
