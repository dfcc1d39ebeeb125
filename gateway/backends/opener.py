"""The opener of backend sessions: chooses each server's transport, and signs requests with OAuth.

Modules that only some transports need are imported when the first such server is opened: they cost 0.1 s or more, which
a gateway with only stdio servers saves.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.opening import EraRecords
from gateway.backends.stdio import open_stdio
from gateway.budget import MAX_BUFFERED_BYTES, Budget
from gateway.calls import Era
from gateway.eras.requests import Hop
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from gateway.backends.http.detect import HttpOpener
    from gateway.backends.opening import Attempts
    from gateway.backends.session.interface import Session, SessionObserver
    from gateway.backends.stdio import StdioSession
    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.oauth_client.logins import Logins
    from gateway.processes.guard import ChildGuard
    from gateway.store import Store
    from gateway.tracing.conventions import Network
    from gateway.tracing.spans import BackendSpans, Tracing

DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class SessionOpener:
    """Implements `gateway.backends.session.interface.Opener`. Owns the tasks that renew tokens.

    `name` is the gateway's name, as servers see it; `gateways` and `marker` are those of its `Lineage`. Eras and tokens
    are kept in `store`, or in memory without one. `buffers` counts the bytes of arriving messages. `waiting` returns
    the calls that wait for a backend and whose clients can be asked to log in; `note_login_required` is called with a
    backend that waits for a person, and the reason; `tracing`, if any, begins the spans of requests to backends.
    """

    def __init__(
        self,
        guard: ChildGuard,
        *,
        name: str,
        store: Store | None = None,
        records: EraRecords | None = None,
        buffers: Budget | None = None,
        gateways: tuple[str, ...] = (),
        marker: str = "",
        waiting: Callable[[str], Sequence[PendingCall]] = lambda _backend: (),
        note_login_required: Callable[[str, str], None] = lambda _backend, _reason: None,
        tracing: Tracing | None = None,
    ) -> None:
        self._guard = guard
        self._store = store
        self._records = EraRecords(store) if records is None else records
        self._buffers = Budget(MAX_BUFFERED_BYTES) if buffers is None else buffers
        self._waiting = waiting
        self._note_login_required = note_login_required
        self._tracing = tracing
        client_info = jsonrpc.raw({"name": name, "version": VERSION})
        self._hop = Hop(era=Era.LEGACY, client_info=client_info, gateways=gateways, marker=marker)
        self._http: HttpOpener | None = None
        self._logins: Logins | None = None
        self._adding_logins = trio.Lock()
        self._nursery: trio.Nursery  # for the logins; opened and closed by `run`

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled. Only servers that may want OAuth need it."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @asynccontextmanager
    async def __call__(
        self,
        config: ServerConfig,
        listener: SessionObserver,
        *,
        capabilities: msgspec.Raw | None = None,
        era: Era | None = None,
    ) -> AsyncGenerator[Session]:
        """Open a session; see `gateway.backends.session.interface.Opener`."""
        hop = self._hop if capabilities is None else msgspec.structs.replace(self._hop, capabilities=capabilities)
        traced: BackendSpans | None = None
        if self._tracing is not None:
            from gateway.tracing.spans import BackendSpans

            traced = BackendSpans(self._tracing, config.name, network_of(config))
            hop = msgspec.structs.replace(hop, tracing=traced)
        opened: AbstractAsyncContextManager[Session]
        if config.transport == "stdio":

            def attempt(attempts: Attempts) -> AbstractAsyncContextManager[StdioSession]:
                return open_stdio(
                    config, listener, guard=self._guard, hop=hop, attempts=attempts, buffers=self._buffers
                )

            opened = self._records.open(config, attempt, era)
        else:
            if self._http is None:
                from gateway.backends.http.detect import HttpOpener

                self._http = HttpOpener(self._records, self._buffers)
            if config.uses_oauth:
                if self._logins is None:
                    from gateway.oauth_client.logins import Logins

                    async with self._adding_logins:
                        if self._logins is None:
                            logins = Logins(self._store, waiting=self._waiting, owed=self._note_login_required)
                            await self._nursery.start(logins.run)
                            self._logins = logins
                opened = self._logins.open(config, partial(self._http.open, config, listener, hop=hop, era=era))
            else:
                opened = self._http.open(config, listener, hop=hop, era=era)
        if traced is None:
            async with opened as session:
                yield session
            return
        with traced.session() as begun:
            async with opened as session:
                begun(session.greeting.version)
                yield session


def network_of(config: ServerConfig) -> Network:
    """Return what carries the requests to a server."""
    from gateway.tracing.conventions import PIPE, Network

    if config.url is None:
        return PIPE
    if config.unix_socket is not None:
        return Network("unix", "http", "1.1", str(config.unix_socket))
    try:
        url = urlsplit(config.url)
        return Network("tcp", "http", "1.1", url.hostname or "", url.port or DEFAULT_PORTS.get(url.scheme, 0))
    except ValueError:  # which its start reports
        return Network("tcp", "http", "1.1")
