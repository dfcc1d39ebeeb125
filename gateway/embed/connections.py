"""Sessions opened by a program: one for each call, or for each client held.

Each `Connection` has its own task in the nursery of `Connections`, from enter to exit: the opener only requests its end
and need not wait for the shutdown sequence of a stubborn child.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.calls import Call, Caller, Era
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.config.shown import secrets_of
from gateway.embed.errors import CallFailed
from gateway.eras.methods import Kind
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import BackendError, BackendTooSlow, BackendUnavailable, InvalidParams, first_in_group
from gateway.inflight.pending import PendingCall
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

    from gateway.backends.session.interface import Opener, Session
    from gateway.calls import Outcome
    from gateway.config import ServerConfig
    from gateway.embed.records import Record

CALLER: Final = Caller(era=Era.LEGACY, version=LATEST_LEGACY)
"""The calling program, without capabilities for server requests."""
NO_REQUESTS: Final = "the calling program takes no server requests"

log = logging.getLogger("gateway.embed")


class Connection:
    """One session with one server."""

    def __init__(self, record: Record, config: ServerConfig, opener: Opener) -> None:
        self.config = config
        self.calls = 0
        """Active calls and lists, including those waiting for the session."""
        self.ended = trio.Event()
        self._record = record
        self._opener = opener
        self._scope = trio.CancelScope()
        self._session: Session | None = None
        self._settled = trio.Event()
        self._problem: BackendError | None = None
        self._idle = trio.lowlevel.ParkingLot()

    # For the tasks of calls.

    async def ready(self) -> Session:
        """Wait until the session is open. Raises BackendError."""
        await self._settled.wait()
        if self._session is None:
            raise self._problem or BackendUnavailable(self.config.name, "was closed")
        return self._session

    async def tools(self) -> list[bytes]:
        """List the server's tools. Raises BackendError."""
        with _Counted(self):
            session = await self.ready()
            return [item.raw for item in session.listing.items.get(Kind.TOOLS, ())]

    async def call_tool(self, tool: str, arguments: Mapping[str, object] | None, timeout: float) -> Outcome | None:
        """Call a tool; cancelling it sends a cancellation. Raises BackendError, InvalidParams."""
        call = make_call(tool, tool, arguments)
        began = trio.current_time()
        with _Counted(self):
            session: Session | None = None
            with trio.move_on_after(timeout):
                session = await self.ready()
            if session is None:
                raise self._too_slow(timeout)
            left = max(0.0, timeout - (trio.current_time() - began))
            part = make_part(self.config.name, "", session.listing, Naming(max_length=1 << 20))
            route = Snapshot([part]).route(Kind.TOOLS, tool)
            as_task = route is not None and route.task
            pending = PendingCall(call, backend=self.config.name, own_name=tool, timeout=left, as_task=as_task)
            try:
                await session.wait_writable()
                if not session.can_send:
                    raise self._problem or BackendUnavailable(self.config.name, "was closed")
                session.send([pending])
                outcome = await pending.wait_outcome(NO_REQUESTS)
            finally:
                pending.close("the program has stopped waiting")
            return self._too_slow(timeout) if isinstance(outcome, BackendTooSlow) else outcome

    def _too_slow(self, timeout: float) -> BackendTooSlow:
        return BackendTooSlow(self.config.name, f"did not answer within {timeout:g} s, including its start")

    def close(self) -> None:
        """Request the end. Idempotent."""
        self._scope.cancel(reason="the connection was closed")

    async def drain(self, grace: float) -> None:
        """Let calls finish, at most `grace` seconds, then close."""
        with trio.move_on_after(grace):
            while self.calls:
                await self._idle.park()
        self.close()

    def fail(self, problem: BackendError) -> None:
        """Close, and fail all waiting calls with this error."""
        self._problem = self._problem or problem
        self.close()

    def count(self, change: int) -> None:
        """Count the start or end of a call."""
        self.calls += change
        if not self.calls:
            self._idle.unpark_all()

    # The task.

    async def run(self) -> None:
        """Own the session until `close` or until the server ends."""
        try:
            with self._scope:
                async with self._opener(self.config, self, capabilities=jsonrpc.EMPTY_OBJECT) as session:
                    self._session = session
                    self._record.connected, self._record.error = True, ""
                    self._settled.set()
                    await trio.sleep_forever()
        except* (BackendError, OSError, trio.TooSlowError) as group:
            problem, name = first_in_group(group), self.config.name
            if isinstance(problem, BackendError):
                self._problem = problem
            elif isinstance(problem, trio.TooSlowError):
                text = f"was not ready within {self.config.connect_timeout:g} s (connect_timeout)"
                self._problem = BackendTooSlow(name, text)
            else:
                self._problem = BackendUnavailable(name, f"failed: {problem}")
        finally:
            self._session = None
            if self._problem is not None:
                self._record.connected, self._record.error = False, self._problem.reason
            self._settled.set()
            self.ended.set()

    # `gateway.backends.session.contracts.SessionObserver`: server messages outside calls are ignored here.

    def list_changed(self, feature: str) -> None:
        """Ignore a change of a list."""

    def resource_updated(self, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Ignore a change of a resource."""

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Reject a message for a client, since there is none."""

    def freed(self) -> None:
        """Ignore the end of a call."""

    def wrote_stderr(self, line: bytes) -> None:
        """Ignore a line of stderr, which is already logged."""


class _Counted:
    """Counts a call while it is active."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.count(1)

    def __exit__(self, *_: object) -> None:
        self._connection.count(-1)


class Connections:
    """All open sessions of the program."""

    def __init__(self) -> None:
        self._open: dict[str, set[Connection]] = {}
        self._nursery: trio.Nursery  # of the connections; opened and left by run

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the connections until cancelled, which closes them all concurrently."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def open(self, record: Record, opener: Opener) -> Connection:
        """Start a connection; the caller awaits `ready` and calls `close`.

        Raises:
            NotInitialized: the server cannot be used.
            CallFailed: too many sessions with it are open.
        """
        config = record.check_usable()
        mine = self._open.setdefault(config.name, set())
        if len(mine) >= config.max_client_sessions:
            text = f"server {config.name!r} has {len(mine)} sessions (max_client_sessions); try again"
            raise CallFailed(text)
        connection = Connection(record, config, opener)
        mine.add(connection)
        self._nursery.start_soon(self._own, connection, name=f"connection to {config.name}")
        return connection

    async def _own(self, connection: Connection) -> None:
        SECRETS.hold(connection, secrets_of(connection.config))
        try:
            await connection.run()
        finally:
            SECRETS.release(connection)
            self._open[connection.config.name].discard(connection)

    def retire(self, name: str, grace: float) -> None:
        """Drain the connections to a removed or changed server; calls get `grace` seconds."""
        for connection in self._open.get(name, ()):
            self._nursery.start_soon(connection.drain, grace)

    async def close_all(self) -> None:
        """Close all connections concurrently; return when the last server has stopped."""
        connections = [one for several in self._open.values() for one in several]
        for connection in connections:
            connection.close()
        for connection in connections:
            await connection.ended.wait()

    def note_login_required(self, name: str, reason: str) -> None:
        """Fail the connections to a server that waits for an interactive login."""
        for connection in self._open.get(name, ()):
            connection.fail(BackendUnavailable(name, reason))


def make_call(public: str, own: str, arguments: Mapping[str, object] | None, caller: Caller = CALLER) -> Call:
    """Return a program's `tools/call`.

    Raises:
        InvalidParams: the arguments cannot be written as JSON.
    """
    try:
        span = jsonrpc.raw(dict(arguments or {}))
    except (TypeError, ValueError) as exc:
        text = f"the arguments cannot be written as JSON: {exc}"
        raise InvalidParams(text) from None
    return Call(
        method="tools/call",
        name=public,
        params={"name": jsonrpc.raw(own), "arguments": span},
        meta={},
        caller=caller,
    )
