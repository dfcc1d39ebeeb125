"""OAuth for backends over HTTP, from the first 401 on: one login for all calls.

`BackendSigner` signs a backend's requests and, when one is refused, waits for another token. `Logins.open` opens a
session with it: the backend remains starting until the login, however long that takes; each call in the meantime waits
for a login in progress, has its client asked to log in, or fails with the command to run. `Logins` owns the tasks that
renew tokens.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

import trio

from gateway.errors import BackendError, BackendUnavailable
from gateway.oauth_client.answers import challenge_of
from gateway.oauth_client.login_prompt import LoginPrompt, LoginRequired
from gateway.oauth_client.token_manager import BY_PERSON, REFUSED, STORED, TokenManager
from gateway.oauth_client.token_store import TokenFiles

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from gateway.config import ServerConfig
    from gateway.http_client.body import Response
    from gateway.http_client.client import Signer
    from gateway.inflight.pending import PendingCall
    from gateway.oauth_client.answers import Challenge
    from gateway.store import Store

POLL: Final = 0.5
"""Seconds between two checks for a completed login or a waiting call whose client can be asked."""

_S_co = TypeVar("_S_co", covariant=True)

log = logging.getLogger("gateway.backend")


class OpenSession(Protocol[_S_co]):
    """Opener of a session with requests signed by `signer`; see `gateway.backends.http.detect.HttpOpener.open`."""

    def __call__(self, *, signer: Signer) -> AbstractAsyncContextManager[_S_co]:
        """Connect, initialize and list."""
        ...


class BackendSigner:
    """Implements `gateway.http_client.client.Signer`: signs a backend's requests with its token."""

    def __init__(self, authorizer: TokenManager) -> None:
        self._authorizer = authorizer

    async def send(self, send: Callable[[str], Awaitable[Response]], pending: PendingCall | None) -> Response:
        """Send a request, and repeat a refused one with another token. Raises what `TokenManager.renew` raises."""
        authorizer = self._authorizer
        used, least = authorizer.token, STORED
        while True:
            response = await send(used or "")
            challenge = challenge_of(response)
            if challenge is None or (challenge.step_up and (pending is None or least > BY_PERSON)):
                return response
            await response.aclose()  # the connection must not stay open during a login
            if least > BY_PERSON:
                raise BackendUnavailable(authorizer.config.name, REFUSED)
            used, way = await authorizer.renew(challenge, used, least, () if pending is None else (pending,))
            least = way + 1


class Logins:
    """The authorizers of all backends, and the opener of their sessions.

    `waiting` returns the calls that wait for a backend; `owed` is called with the reason when a backend waits for a
    login.
    """

    def __init__(
        self,
        store: Store | None,
        *,
        waiting: Callable[[str], Sequence[PendingCall]],
        owed: Callable[[str, str], None],
        make_ways: Callable[[ServerConfig], LoginPrompt] = LoginPrompt,
    ) -> None:
        self._store = store
        self._waiting = waiting
        self._owed = owed
        self._make_ways = make_ways
        self._authorizers: dict[str, TokenManager] = {}

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Carry out renewals until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def authorizer(self, config: ServerConfig) -> TokenManager:
        """Return the backend's authorizer, which lasts until its config changes. Needs `run`."""
        known = self._authorizers.get(config.name)
        if known is None or known.config != config:
            known = TokenManager(config, TokenFiles(self._store, config), self._make_ways(config))
            self._authorizers[config.name] = known
            self._nursery.start_soon(known.run)
        return known

    @asynccontextmanager
    async def open(self, config: ServerConfig, open_session: OpenSession[_S_co]) -> AsyncGenerator[_S_co]:
        """Open a session, with tokens if the server requires them.

        Raises:
            BackendError, trio.TooSlowError: as `open_session`, perhaps grouped; and if no login can help.
        """
        authorizer = self.authorizer(config)
        signer = BackendSigner(authorizer)
        await authorizer.load()
        way = STORED
        while True:
            opened = False
            required: Challenge | None = None
            try:
                async with open_session(signer=signer) as session:
                    opened = True
                    yield session
            except* LoginRequired:
                required = authorizer.login_required
                if opened or required is None:
                    raise
            if required is None:
                return
            if way == BY_PERSON:
                raise BackendUnavailable(config.name, REFUSED)
            way = await self._wait_for_login(authorizer, required)

    async def _wait_for_login(self, authorizer: TokenManager, challenge: Challenge) -> int:
        """Wait for a login while the backend is in use; return the token's source.

        Raises:
            BackendUnavailable: the server offers no login that could work.
        """
        name, used = authorizer.config.name, authorizer.token
        calls = self._waiting(name)
        try:
            return (await authorizer.log_in(challenge, used, calls))[1]
        except LoginRequired as required:
            problem: BackendError = required
        log.warning(
            "backend %r %s",
            name,
            problem.reason,
            extra={"event": "login_required", "backend": name, "code": problem.code},
        )
        while True:
            self._owed(name, problem.reason)
            for pending in calls:
                pending.finish(problem)
            await trio.sleep(POLL)
            if await authorizer.load():
                return STORED
            calls = self._waiting(name)
            if calls and authorizer.prompt.passable(calls):
                try:
                    return (await authorizer.log_in(challenge, used, calls))[1]
                except BackendUnavailable as again:
                    problem = again
