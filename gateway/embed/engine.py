"""The service in a `ProxyManager`'s loop: its connections and, once mounted, a whole gateway.

Owns the guard of all child processes and every task of the manager. Everything here is called in the loop's thread; the
manager's side is `gateway.embed.manager`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.opener import SessionOpener
from gateway.embed.connections import Connections
from gateway.embed.errors import CallFailed, Closed, InvalidTools
from gateway.embed.native import EmbeddedGateway
from gateway.errors import BackendError, GatewayError
from gateway.processes.guard import open_guard

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.calls import Outcome
    from gateway.catalog.offers import Offer
    from gateway.embed.connections import Connection
    from gateway.embed.frontends import AsgiFrontends
    from gateway.embed.records import Record, Registry
    from gateway.frontends.http.mcp_app import Paths
    from gateway.processes.guard import ChildGuard

FIRST_RETRY: Final = 0.5
"""Seconds between the first two attempts of a connection test; each further wait is twice as long."""
LONGEST_RETRY: Final = 30.0
"""Upper bound of such a wait in seconds."""
OWNERS_WITHIN: Final = 10.0
"""Seconds that a selection of tools waits for starting servers that may own one of them."""


class _Held:
    """A session and its users."""

    def __init__(self, holder: object, connection: Connection) -> None:
        self.holder = holder
        self.connection = connection
        self.users: set[object] = set()


class Engine:
    """Implements `gateway.embed.thread.Service`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._connections = Connections()
        self._held: dict[object, _Held] = {}  # by holder
        self._holds: dict[object, _Held] = {}  # by token
        self._opener: SessionOpener
        self._guard: ChildGuard
        self._nursery: trio.Nursery  # of the gateway; opened and left by run
        self._gateway: EmbeddedGateway | None = None
        self._gateway_ended = trio.Event()
        self._one_at_a_time = trio.Lock()
        self._stop = trio.Event()

    async def run(self, started: Callable[[], object]) -> None:
        """Serve until `stop`."""
        async with open_guard(subreaper=False) as self._guard, trio.open_nursery() as self._nursery:
            self._opener = SessionOpener(
                self._guard,
                name=self._registry.settings.name,
                note_login_required=self._connections.note_login_required,
            )
            await self._nursery.start(self._opener.run)
            await self._nursery.start(self._connections.run)
            started()
            await self._stop.wait()
            async with trio.open_nursery() as closing:
                closing.start_soon(self._close_gateway)
                closing.start_soon(self._connections.close_all)
            for record in self._registry.records.values():
                record.connected = False
            self._nursery.cancel_scope.cancel(reason="the manager was closed")

    def stop(self) -> None:
        """Request the end. Idempotent."""
        self._stop.set()

    # Connections.

    def open(self, record: Record) -> Connection:
        """Start a connection; see `Connections.open`."""
        if self._stop.is_set():
            raise Closed("the gateway is being closed")
        return self._connections.open(record, self._opener)

    async def call_tool(
        self, record: Record, tool: str, arguments: Mapping[str, object] | None, timeout: float | None
    ) -> Outcome | None:
        """Call a tool in a separate session. Raises GatewayError."""
        connection = self.open(record)
        try:
            limit = connection.config.call_timeout if timeout is None else timeout
            return await connection.call_tool(tool, arguments, limit)
        finally:
            connection.close()

    async def list_tools(self, record: Record) -> list[bytes]:
        """List tools in a separate session. Raises GatewayError."""
        connection = self.open(record)
        try:
            return await connection.tools()
        finally:
            connection.close()

    async def acquire_session(self, holder: object, token: object, record: Record) -> None:
        """Open or share this holder's session; `token` releases it. Raises GatewayError."""
        held = self._held.get(holder)
        if held is None or held.connection.ended.is_set():
            held = self._held[holder] = _Held(holder, self.open(record))
        held.users.add(token)
        self._holds[token] = held
        try:
            await held.connection.ready()
        except BaseException:
            self.release(token)
            raise

    def release(self, token: object) -> Connection | None:
        """Release a session; close and return it if it has no further users. Idempotent."""
        held = self._holds.pop(token, None)
        if held is None:
            return None
        held.users.discard(token)
        if held.users:
            return None
        held.connection.close()
        if self._held.get(held.holder) is held:
            del self._held[held.holder]
        return held.connection

    async def release_session(self, token: object) -> None:
        """Release a session; after its last user wait until its server has stopped."""
        connection = self.release(token)  # before anything can be cancelled
        if connection is not None:
            await connection.ended.wait()

    def held(self, holder: object) -> Connection:
        """Return the open session of this holder. Raises CallFailed."""
        held = self._held.get(holder)
        if held is None:
            raise CallFailed("the client is not connected; use it inside `async with client:`")
        return held.connection

    async def call_held(
        self, holder: object, tool: str, arguments: Mapping[str, object] | None, timeout: float | None
    ) -> Outcome | None:
        """Call a tool in the session of this holder. Raises GatewayError."""
        connection = self.held(holder)
        limit = connection.config.call_timeout if timeout is None else timeout
        return await connection.call_tool(tool, arguments, limit)

    async def list_held(self, holder: object) -> list[bytes]:
        """List tools in the session of this holder. Raises GatewayError."""
        return await self.held(holder).tools()

    async def test(self, record: Record, timeout: float, attempts: int) -> bool:
        """Try several times to connect and list the tools; the record has the result."""
        pause = FIRST_RETRY
        for attempt in range(attempts):
            if attempt:
                await trio.sleep(pause)
                pause = min(2 * pause, LONGEST_RETRY)
            with trio.move_on_after(timeout) as scope:
                try:
                    await self.list_tools(record)
                except GatewayError as exc:
                    reason = exc.reason if isinstance(exc, BackendError) else str(exc)
                    record.connected, record.error = False, reason
                else:
                    return True
            if scope.cancelled_caught:
                record.connected, record.error = False, f"did not answer within {timeout:g} s"
        return False

    # Configuration.

    async def adopt(self, registry: Registry) -> None:
        """Apply another configuration; unchanged servers are not affected."""
        async with self._one_at_a_time:
            if self._gateway is not None:
                await self._gateway.adopt(registry.config())
            self._retire(self._registry.replace_with(registry))

    async def restart_with_registry(self, gone: list[str]) -> None:
        """Apply a configuration that the registry already has."""
        async with self._one_at_a_time:
            if self._gateway is not None:
                await self._gateway.adopt(self._registry.config())
            self._retire(gone)

    def _retire(self, gone: list[str]) -> None:
        for name in gone:
            self._connections.retire(name, self._registry.settings.drain_grace)

    # The mounted gateway.

    async def open_asgi_frontends(self, paths: Paths, origins: tuple[str, ...]) -> AsgiFrontends:
        """Open another set of the gateway's frontends; the first one starts the gateway."""
        async with self._one_at_a_time:
            served = await self._started_gateway()
            return await served.open_asgi_frontends(paths, origins)

    async def offer(self, offers: Mapping[str, Offer]) -> None:
        """Offer exactly these tools.

        Raises:
            InvalidTools: no server owns some names; nothing has changed.
        """
        async with self._one_at_a_time:
            served = await self._started_gateway()
            with trio.move_on_after(OWNERS_WITHIN):
                for name in offers:
                    for supervisor in list(served.fleet.strangers(name)):
                        supervisor.request_start()
                        await supervisor.known.wait()
            unknown = served.offer(offers)
        if unknown:
            raise InvalidTools([f"no server offers a tool {name!r}" for name in unknown])

    async def _started_gateway(self) -> EmbeddedGateway:
        if self._stop.is_set():
            raise Closed("the gateway is being closed")
        if self._gateway is None:
            made = EmbeddedGateway(self._registry.config(), self._guard)
            await self._nursery.start(self._run_gateway, made)
            self._gateway = made
        return self._gateway

    async def _run_gateway(  # noqa: ASYNC128 - `run` does
        self, made: EmbeddedGateway, *, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            await made.run(task_status=task_status)
        finally:
            self._gateway_ended.set()

    async def _close_gateway(self) -> None:
        if self._gateway is not None:
            self._gateway.stop()
            await self._gateway_ended.wait()
