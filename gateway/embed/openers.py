"""Opens backend sessions as `app` does; what only some transports need is loaded when the first of them is opened."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from gateway.app import make_opener
from gateway.backends.opening import EraRecords

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    import msgspec

    from gateway.backends.session.interface import Opener, Session, SessionObserver
    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.oauth_client.logins import Logins
    from gateway.processes.guard import ChildGuard
    from gateway.store import Store


class LoginObserver:
    """Who hears that a server waits for a person to log in; opening such a server must not go on for ever."""

    def waiting(self, name: str) -> Sequence[PendingCall]:
        """Calls that wait for this server and whose clients can be asked: none, here no client can be."""
        del name
        return ()

    def note_login_required(self, name: str, reason: str) -> None:
        """Hear that a server cannot be used until somebody has logged in."""


class Openers:
    """Implements `gateway.backends.session.interface.Opener`. Owns the tasks in which tokens are renewed."""

    def __init__(self, guard: ChildGuard, name: str, book: LoginObserver, store: Store | None = None) -> None:
        self._guard = guard
        self._name = name
        self._book = book
        self._logins: Logins | None = None
        self._lock = trio.Lock()
        self._records = EraRecords(store)
        self._opener: Opener = make_opener(guard, self._records, name=name)
        self._nursery: trio.Nursery  # of the logins; opened and left by run

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @asynccontextmanager
    async def __call__(
        self, config: ServerConfig, listener: SessionObserver, *, capabilities: msgspec.Raw | None = None
    ) -> AsyncGenerator[Session]:
        """Open a session; see `gateway.backends.session.interface.Opener`."""
        if config.uses_oauth and self._logins is None:
            await self._add_logins()
        async with self._opener(config, listener, capabilities=capabilities) as session:
            yield session

    async def _add_logins(self) -> None:
        from gateway.oauth_client.logins import Logins

        async with self._lock:
            if self._logins is None:
                logins = Logins(None, waiting=self._book.waiting, owed=self._book.note_login_required)
                await self._nursery.start(logins.run)
                self._logins = logins
                self._opener = make_opener(self._guard, self._records, name=self._name, logins=logins)
