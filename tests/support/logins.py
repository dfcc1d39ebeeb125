"""Logins to a backend behind OAuth, with a user who follows every page."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.http.detect import HttpOpener
from gateway.calls import Caller, Era, ServerRequest, Withdrawn
from gateway.config import ServerConfig, parse_server
from gateway.eras.requests import Hop
from gateway.errors import BackendError
from gateway.inflight.pending import PendingCall
from gateway.oauth_client.login_prompt import LoginPrompt
from gateway.oauth_client.logins import Logins
from gateway.oauth_client.token_store import TokenFiles
from gateway.store import Store
from tests.peers.oauth_peer import OAuthPeer, open_oauth_peer
from tests.support.fakes import SOON, make_call
from tests.support.gateway_process import bare_nursery

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from gateway.backends.session.interface import Session
    from gateway.calls import Outcome

HOP = Hop(era=Era.LEGACY, client_info=jsonrpc.raw({"name": "test", "version": "1"}))
ABLE = Caller(era=Era.LEGACY, version="2025-11-25", capabilities=msgspec.Raw(b'{"elicitation":{"url":{}}}'))


class Deaf:
    """A listener that ignores everything."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


class Harness:
    """One backend config's logins, a user who follows every page, and the events received."""

    def __init__(self, peer: OAuthPeer, nursery: trio.Nursery, state: Path) -> None:
        self.peer = peer
        self.state = state
        self.nursery = nursery
        self.waiting: list[PendingCall] = []
        self.required: list[str] = []
        self.was_required = trio.Event()
        self.pages: list[str] = []
        self.seen: list[str] = []
        """What the browser showed in the end."""
        self.obedient = True
        self.has_display = True
        self.logins = self.make_logins()

    def make_logins(self) -> Logins:
        return Logins(
            Store(self.state),
            waiting=lambda _: [one for one in self.waiting if not one.over],
            owed=self.note_required,
            make_ways=lambda config: LoginPrompt(config, can_open=lambda: self.has_display, open_page=self.open_page),
        )

    def note_required(self, _: str, reason: str) -> None:
        self.required.append(reason)
        self.was_required.set()

    async def open_page(self, url: str) -> bool:
        self.pages.append(url)
        if self.obedient:
            self.nursery.start_soon(self.browse, url)
        return True

    async def browse(self, url: str) -> None:
        self.seen.append((await self.peer.browse(url)).text)

    def config(self, **fields: Any) -> ServerConfig:
        return parse_server("s", {"url": self.peer.url, "era": "legacy", **fields}, environ={})

    @asynccontextmanager
    async def open(self, **fields: Any) -> AsyncGenerator[Session]:
        config = self.config(**fields)
        listener: Any = Deaf()
        try:
            async with self.logins.open(config, partial(HttpOpener().open, config, listener, hop=HOP)) as session:
                yield session
        except* BackendError as group:
            problem: BaseException = group
            while isinstance(problem, BaseExceptionGroup):
                problem = problem.exceptions[0]
            raise problem from None

    def files(self, **fields: Any) -> TokenFiles:
        return TokenFiles(Store(self.state), self.config(**fields))

    def restart(self) -> None:
        """Behave as if the gateway had been stopped and started."""
        self.logins = self.make_logins()


@asynccontextmanager
async def open_harness(tmp_path: Path) -> AsyncGenerator[Harness]:
    with trio.fail_after(3 * SOON):
        async with open_oauth_peer() as peer, bare_nursery() as nursery:
            harness = Harness(peer, nursery, tmp_path / "state")
            await nursery.start(harness.logins.run)
            yield harness  # ruff: ignore[fallible-context-manager]
            nursery.cancel_scope.cancel()


def pending_for(name: str, caller: Caller = ABLE) -> PendingCall:
    return PendingCall(make_call(name, caller=caller), backend="s", own_name=name, timeout=SOON)


async def outcome(pending: PendingCall) -> Outcome:
    while True:
        item = await pending.next()
        assert item is not None
        if not isinstance(item, ServerRequest | Withdrawn):
            return item  # type: ignore[return-value] - anything but an event is an outcome


async def call(session: Session, name: str = "echo") -> Outcome:
    pending = pending_for(name)
    session.send([pending])
    return await outcome(pending)
