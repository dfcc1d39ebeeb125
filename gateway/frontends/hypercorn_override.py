"""Serve an ASGI app with Hypercorn on trio, with the HTTP/1.1 side of it replaced where stock Hypercorn falls short.

``serve_http`` stands in place of ``hypercorn.trio.run.worker_serve``. It is an equivalent built from Hypercorn's public
parts (config, sockets, TLS, logging, its HTTP/2), not a patch: other users of Hypercorn in the process notice nothing.
Its invariant: every connection is a task of its one nursery, which ends within ``graceful_timeout`` of the trigger.

What differs from Hypercorn 0.18, and why (each has a test that fails on stock, so that one sees when it can go):

- *A send is bounded.* Hypercorn sends in a shield without a deadline: against a client that stops reading, the app's
  own timeouts never fire and shutdown never ends. Here a peer that takes nothing for ``send_timeout`` s is reset, the
  app's ``send`` raises ``ClientGone`` (an OSError) and its ``receive`` says ``http.disconnect``.
- *Reading goes on while a response is pending.* Hypercorn stops reading once a further request is pipelined, and so
  misses the hang-up. Here up to 64 KiB (and one read of 64 KiB) wait, then reading pauses, and hang-ups wait with it.
- *Speed.* One write a message, head included; no timer, channel or log call that a request does not need; one idle
  deadline a connection; header lines are checked once and remembered. About four times Hypercorn's calls a second.
- *A head without a body yet is held back*: a stream that wants its head out at once sends an empty body message with
  ``more_body``. An app that fails while its head is held still gets to say 500.
- *``100 Continue`` is sent when the app asks for the body*, so that an app can refuse first.
- *The rest of an unread request is dropped for up to 2 s* before closing, or the client would lose the answer to RST.

EOF is a hang-up, as for Hypercorn, also after a complete request: MCP clients do not half-close, and a vanished one
must be seen. Upgrades (WebSocket, h2c) are not granted: the app sees an ordinary request. HTTP/2 over TLS (ALPN) is
stock Hypercorn with bounded sends. There is no lifespan, no HTTP/3, no statsd, and no ``max_requests``, which is for
workers that a parent replaces.
"""

from __future__ import annotations

import operator
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import Closed, Event, RawData
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr, repr_socket_addr  # pyright: ignore[reportUnknownVariableType] - bare tuple

from gateway.frontends.hypercorn_h11 import Connection, Service
from gateway.frontends.hypercorn_places import MOST_CONNECTIONS, BoundedListener, Places
from gateway.frontends.hypercorn_wire import PlainWire, TLSWire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config, Sockets

    from gateway.frontends.hypercorn_h11 import App

    TLSStream = trio.SSLStream[trio.SocketStream]
    Listener = trio.SocketListener | trio.SSLListener[trio.SocketStream]


async def serve_http(  # noqa: ASYNC114 - a task to be started, nothing to be opened
    app: App,
    config: Config,
    *,
    sockets: Sockets | None = None,
    shutdown_trigger: Callable[[], Awaitable[None]],
    send_timeout: float = 10.0,
    most: int = MOST_CONNECTIONS,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``app`` until ``shutdown_trigger`` returns, then end: idle connections at once, busy ones within the grace.

    ``task_status`` is given the bound addresses ("http://127.0.0.1:8080") once they accept. ``send_timeout`` is in
    seconds. At most ``most`` connections are open: over it the one that was idle longest makes room, and where none is
    idle, accepting waits. OSError when an address cannot be bound. Requests still busy ``config.graceful_timeout`` s
    after the trigger are cancelled and their connections reset; cancelling ``serve_http`` does so at once. Sockets
    given are closed too.
    """
    if sockets is None:
        sockets = config.create_sockets()
    if sockets.quic_sockets:
        raise ValueError("HTTP/3 is not served")
    listeners, addresses = _listen(config, sockets)
    house = _House(app, config, send_timeout, most)
    bounded = [BoundedListener(listener, house.places) for listener in listeners]
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            await accepting.start(partial(trio.serve_listeners, handler_nursery=connections), house.handle, bounded)
            task_status.started(addresses)
            await shutdown_trigger()
            accepting.cancel_scope.cancel(reason="the server is shutting down")
        connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout
        await house.drain()


def _listen(config: Config, sockets: Sockets) -> tuple[list[Listener], list[str]]:
    listeners: list[Listener] = []
    addresses: list[str] = []
    context = config.create_ssl_context()
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        sock.listen(config.backlog)  # harmless where the caller did it already
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        address = repr_socket_addr(sock.family, sock.getsockname())
        if context is not None and sock in sockets.secure_sockets:
            listeners.append(trio.SSLListener(listener, context, https_compatible=True))
            addresses.append(f"https://{address}")
        else:
            listeners.append(listener)
            addresses.append(f"http://{address}")
    return listeners, addresses


class _House:
    """The connections of one server."""

    def __init__(self, app: App, config: Config, send_timeout: float, most: int) -> None:
        self.places = Places(most, self._make_room)
        self._service = Service(app, config)
        self._config = config
        self._send_timeout = send_timeout
        self._connections: set[Connection] = set()
        self._stock_app = ASGIWrapper(cast("Any", app))
        self._stock_context = WorkerContext(None)

    async def drain(self) -> None:
        """End what is idle, and let the rest end with its response."""
        await self._stock_context.terminated.set()
        for connection in tuple(self._connections):
            connection.drain()

    def _make_room(self) -> None:
        """End the connection that was idle longest, if any is idle."""
        idle = [(since, connection) for connection in self._connections if (since := connection.idle_since) is not None]
        if idle:
            min(idle, key=operator.itemgetter(0))[1].drain()

    async def handle(self, stream: trio.SocketStream | TLSStream) -> None:
        """Serve one client to its end; the listener's task closes what is left of the stream."""
        try:
            await self._handle(stream)
        finally:
            self.places.free()

    async def _handle(self, stream: trio.SocketStream | TLSStream) -> None:
        if isinstance(stream, trio.SocketStream):
            await self._handle_http1(stream.socket, "http", lambda: PlainWire(stream, self._send_timeout))
            return
        try:
            with trio.fail_after(self._config.ssl_handshake_timeout):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass  # no TLS, or not ours; `serve_listeners` closes the stream
        else:
            await self._handle_tls(stream)
        await trio.lowlevel.checkpoint()

    async def _handle_tls(self, stream: TLSStream) -> None:
        if stream.selected_alpn_protocol() == "h2":
            state = ConnectionState({})
            stock = BoundedTCPServer(self._stock_app, self._config, self._stock_context, state, stream)
            stock.send_timeout = self._send_timeout
            await stock.run()
        else:
            wire = partial(TLSWire, stream, self._send_timeout)
            await self._handle_http1(stream.transport_stream.socket, "https", wire)

    async def _handle_http1(
        self, socket: trio.socket.SocketType, scheme: str, make_wire: Callable[[], PlainWire | TLSWire]
    ) -> None:
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
        except OSError:  # reset between accept and here
            await trio.lowlevel.checkpoint()
            return
        connection = Connection(self._service, make_wire(), scheme=scheme, client=client, server=server)
        self._connections.add(connection)
        try:
            if self._stock_context.terminated.is_set():  # accepted just before, or its handshake took that long
                connection.drain()
            await connection.run()
        finally:
            self._connections.discard(connection)


class BoundedTCPServer(TCPServer):
    """Hypercorn's own connection, used for HTTP/2 only, whose sends neither wait nor hold cancellation for ever."""

    send_timeout = 10.0

    async def protocol_send(self, event: Event) -> None:
        """Send within ``send_timeout`` s a slice, or close; everything but data is Hypercorn's business."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                await TLSWire(self.stream, self.send_timeout).send_all(memoryview(event.data))
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
