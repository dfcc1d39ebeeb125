"""Serve an ASGI app with Hypercorn on trio, with its HTTP/1.1 side replaced.

`serve_http` replaces `hypercorn.trio.run.worker_serve`. It is an equivalent built from Hypercorn's public parts
(config, sockets, TLS, logging, its HTTP/2), not a patch: other users of Hypercorn in the process are not affected. Its
invariant: every connection is a task of its one nursery, which ends within `graceful_timeout` of the trigger.

Differences from Hypercorn 0.18, with reasons (each has a test that fails on stock, which shows when it can be removed):

- *A send is bounded.* Hypercorn sends in a shield without a deadline: against a client that stops reading, the app's
  own timeouts never fire and shutdown never ends. Here a peer that reads nothing for `send_timeout` s is reset, the
  app's `send` raises `ClientGone` (an OSError) and its `receive` returns `http.disconnect`.
- *Reading continues while a response is pending.* Hypercorn stops reading once a further request is pipelined, and so
  misses a disconnect. Here up to 64 KiB (and one read of 64 KiB) are buffered before reading, and with it the
  detection of disconnects, pauses.
- *Speed.* One write a message, head included; no timer, channel or log call that a request does not need; one idle
  deadline a connection; header lines are checked once and cached. About four times Hypercorn's calls a second.
- *A head without a body yet is held back*: a stream that needs its head sent immediately sends an empty body message
  with `more_body`. If an app fails while its head is held, the response is still a 500.
- *`100 Continue` is sent when the app asks for the body*, so that an app can refuse first.
- *The rest of an unread request is dropped for up to 2 s* before closing, since RST could cost a client the response.

EOF is a disconnect, as for Hypercorn, also after a complete request: MCP clients do not half-close, and their loss must
be detected. Each state of a connection has a deadline (`Limits`). Upgrades (WebSocket, h2c) are not granted: the app
sees an ordinary request. HTTP/2 over TLS (ALPN) is stock Hypercorn with the same bounds (`httpd.http2`). There is no
lifespan, no HTTP/3, no statsd, and no `max_requests`, which is for workers that a parent replaces.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr, repr_socket_addr  # pyright: ignore[reportUnknownVariableType] - bare tuple

from gateway.budget import MAX_BUFFERED_BYTES, Budget, Share
from gateway.httpd.connection import Connection
from gateway.httpd.connection_limit import ConnectionLimit, Limits, Slot
from gateway.httpd.exchange import Service
from gateway.httpd.http2 import BoundedTCPServer
from gateway.httpd.listening import is_listening
from gateway.httpd.wire import TLSWire, Wire

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config, Sockets

    from gateway.httpd.exchange import App, Message, NowaitHandler, Receive, Send

    TLSStream = trio.SSLStream[trio.SocketStream]
    Listener = trio.SocketListener | trio.SSLListener[trio.SocketStream]

ACCEPT_CAPACITY_ERRNOS: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
ACCEPT_PAUSE: Final = 0.1
"""Seconds until the next attempt if the system has no free descriptors."""
LOOPBACK_PREFIXES: Final = ("127.", "::ffff:127.")
OVERLOADED: Final = b"too many connections; retry in 1 s\n"
OVERLOADED_HEADERS: Final = (
    (b"content-type", b"text/plain"),
    (b"content-length", b"%d" % len(OVERLOADED)),
    (b"retry-after", b"1"),
)


async def serve_http(  # noqa: ASYNC114 - a task to be started, nothing to be opened
    app: App,
    config: Config,
    *,
    sockets: Sockets | None = None,
    tls: ssl.SSLContext | None = None,
    accept_until: Callable[[], Awaitable[None]] | None = None,
    shutdown_trigger: Callable[[], Awaitable[None]],
    limits: Limits | None = None,
    handle_nowait: NowaitHandler | None = None,
    unsent: Budget | None = None,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `shutdown_trigger` returns, then end: idle connections immediately, busy ones within the grace.

    `tls` replaces the context that `config` describes. New connections are accepted until `accept_until` returns,
    which comes first, or else until the trigger. `task_status` is given the bound addresses ("http://127.0.0.1:8080")
    once they accept. `limits` bounds the open connections, and the time in each of their states
    (`httpd.connection_limit`). `handle_nowait` is offered small requests of HTTP/1.1 before the app is, without a task
    (`httpd.exchange`). `unsent` bounds the bytes waiting for clients; it may be shared with other transports. OSError
    when an address cannot be bound. Requests still busy `config.graceful_timeout` s after the trigger are cancelled and
    their connections reset; cancelling `serve_http` does so immediately. The given sockets are closed too.
    """
    if sockets is None:
        sockets = config.create_sockets()
    if sockets.quic_sockets:
        raise ValueError("HTTP/3 is not served")
    unsent = unsent or Budget(MAX_BUFFERED_BYTES)
    listeners: list[Listener] = []
    addresses: list[str] = []
    context = tls or config.create_ssl_context()
    for sock in (*sockets.secure_sockets, *sockets.insecure_sockets):
        if not is_listening(sock):  # or it would change the caller's backlog
            sock.listen(config.backlog)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        address = repr_socket_addr(sock.family, sock.getsockname())
        if context is not None and sock in sockets.secure_sockets:
            listeners.append(trio.SSLListener(listener, context, https_compatible=True))
            addresses.append(f"https://{address}")
        else:
            listeners.append(listener)
            addresses.append(f"http://{address}")
    async with trio.open_nursery() as connections:
        server = _Server(app, handle_nowait, Service(config, limits or Limits(), unsent), connections)
        async with trio.open_nursery() as accepting:
            for each in listeners:
                accepting.start_soon(server.accept, each)
            task_status.started(addresses)
            await (accept_until or shutdown_trigger)()
            accepting.cancel_scope.cancel(reason="the server is shutting down")
        if accept_until is not None:
            await shutdown_trigger()
        connections.cancel_scope.deadline = trio.current_time() + config.graceful_timeout
        await server.drain()


class _Server:
    """The connections of one server."""

    def __init__(
        self, app: App, handle_nowait: NowaitHandler | None, service: Service, connections: trio.Nursery
    ) -> None:
        self._places = ConnectionLimit(service.limits)
        self._app, self._handle_nowait = app, handle_nowait
        self._service, self._config, self._limits = service, service.config, service.limits
        self._connections_nursery = connections
        self._connections: set[Connection] = set()
        self._stock_context = WorkerContext(None)

    async def drain(self) -> None:
        """End idle connections now, and the others with their response."""
        await self._stock_context.terminated.set()
        for connection in tuple(self._connections):
            connection.drain()

    async def accept(self, listener: Listener) -> None:
        """Serve each client of a listener in its own task until cancelled; then close it."""
        async with listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in ACCEPT_CAPACITY_ERRNOS:
                        raise
                    await self._config.log.error("accepting connections failed: %s", error)
                    self._places.make_room()
                    await trio.sleep(ACCEPT_PAUSE)
                    continue
                try:
                    slot = await self._places.enter(_address_of(stream))
                except trio.Cancelled:
                    await trio.aclose_forcefully(stream)
                    raise
                self._connections_nursery.start_soon(self._handle, stream, slot)

    async def _handle(self, stream: trio.SocketStream | TLSStream, slot: Slot) -> None:
        """Serve one client to its end."""
        try:
            if isinstance(stream, trio.SocketStream):
                wire = partial(Wire, stream, send_timeout=self._limits.send, least_rate=self._limits.rate)
                await self._handle_http1(stream.socket, "http", wire, slot)
            else:
                with slot.scope:
                    await self._handle_tls(stream, slot)
        except* Exception as group:  # ruff: ignore[blind-except] - what one client sends must not end the server
            await self._config.log.error("a connection ended with an error", exc_info=group)
        finally:
            self._places.leave(slot)
            await trio.aclose_forcefully(stream)

    async def _handle_tls(self, stream: TLSStream, slot: Slot) -> None:
        try:
            with trio.fail_after(self._limits.handshake):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.TooSlowError):  # no TLS, or an incompatible one
            await trio.lowlevel.checkpoint()
            return
        if stream.selected_alpn_protocol() != "h2":
            wire = partial(TLSWire, stream, send_timeout=self._limits.send)
            await self._handle_http1(stream.transport_stream.socket, "https", wire, slot)
            return
        app = self._app if slot.placed else partial(self._run_in_reserve, slot)
        on_request = partial(self._places.note_request, slot)
        unsent = Share(self._service.unsent, slot.end)
        stock = BoundedTCPServer(app, self._config, self._stock_context, self._limits, stream, on_request, unsent)
        slot.waits = stock.waits
        try:
            await stock.run()
        finally:
            unsent.release()

    async def _handle_http1(
        self, socket: trio.socket.SocketType, scheme: str, make_wire: Callable[[Share], Wire], slot: Slot
    ) -> None:
        try:
            client = parse_socket_addr(socket.family, socket.getpeername())
            server = parse_socket_addr(socket.family, socket.getsockname())
        except OSError:  # reset between accept and here
            await trio.lowlevel.checkpoint()
            return
        connection = Connection(
            self._service,
            make_wire,
            scheme=scheme,
            client=client,
            server=server,
            app=self._app if slot.placed else partial(self._run_in_reserve, slot),
            handle_nowait=self._handle_nowait if slot.placed else None,
            on_request=partial(self._places.note_request, slot),
        )
        slot.waits, slot.end = connection.waits, connection.make_room
        self._connections.add(connection)
        try:
            if self._stock_context.terminated.is_set():  # accepted just before, or its handshake took that long
                connection.drain()
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def _run_in_reserve(self, slot: Slot, scope: Message, receive: Receive, send: Send) -> None:
        """Run the app directly for a probe, else when the connection has a slot."""

        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["http_version"] != "2":
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if slot.placed:
            await self._app(scope, receive, send)
        elif scope["path"] in self._limits.probes:
            await self._app(scope, receive, send_last)  # which frees the place in the reserve
        elif await self._places.wait_for_place(slot):
            await self._app(scope, receive, send)
        else:
            await send_last({"type": "http.response.start", "status": 503, "headers": OVERLOADED_HEADERS})
            await send_last({"type": "http.response.body", "body": OVERLOADED})


def _address_of(stream: trio.SocketStream | TLSStream) -> str | None:
    """Return the address that a limit applies to; None for this machine's shared one."""
    socket = (stream if isinstance(stream, trio.SocketStream) else stream.transport_stream).socket
    if socket.family not in {trio.socket.AF_INET, trio.socket.AF_INET6}:
        return None
    try:
        address = str(socket.getpeername()[0])
    except OSError:  # it has already disconnected
        return None
    return None if address.startswith(LOOPBACK_PREFIXES) or address == "::1" else address
