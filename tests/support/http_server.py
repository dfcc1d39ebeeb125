"""The HTTP server on loopback, ours or Hypercorn's, and raw clients of it."""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import hypercorn.trio.run
import pytest
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config

from gateway.httpd.connection_limit import Limits
from gateway.httpd.server import serve_http

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from gateway.budget import Budget
    from gateway.httpd.exchange import Exchange

    Message = dict[str, Any]
    App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

PATIENCE = 15
"""Seconds that any wait of a test may take before the test fails."""
GRACE = 0.4
BIG = b"x" * 2**20
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
quiet = logging.getLogger("tests.hypercorn")


@dataclass
class Server:
    address: tuple[str, int]
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)


def make_config(**settings: object) -> Config:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.include_server_header = False
    config.errorlog = quiet
    config.graceful_timeout = GRACE
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def without_lifespan(app: App) -> ASGIWrapper:
    async def wrapped(scope: Message, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            raise RuntimeError("no lifespan")
        await app(scope, receive, send)

    return ASGIWrapper(wrapped)


@asynccontextmanager
async def serving(
    kind: str,
    app: App,
    *,
    limits: Limits | None = None,
    send_timeout: float = 10.0,
    handle_nowait: Callable[[Exchange], bool] | None = None,
    unsent: Budget | None = None,
    **settings: object,
) -> AsyncGenerator[Server]:
    server = Server(("", 0))
    config = make_config(**settings)

    async def run(task_status: trio.TaskStatus[list[str]]) -> None:
        if kind == "stock":
            serve = partial(hypercorn.trio.run.worker_serve, without_lifespan(app), config)
        else:
            limited = limits or Limits(send=send_timeout)
            serve = partial(serve_http, app, config, limits=limited, handle_nowait=handle_nowait, unsent=unsent)
        await serve(shutdown_trigger=server.stop.wait, task_status=task_status)
        server.ended.set()

    async with trio.open_nursery() as nursery:
        (address,) = await nursery.start(run)
        host, port = address.split("//")[1].rsplit(":", 1)
        server.address = (host, int(port))
        try:
            yield server
        finally:
            server.stop.set()
        with trio.fail_after(PATIENCE):
            await server.ended.wait()


class Client:
    """A raw connection that reads up to what the test waits for."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.data = b""

    async def send(self, data: bytes) -> None:
        with trio.fail_after(PATIENCE):
            await self.stream.send_all(data)

    async def until(self, end: bytes) -> bytes:
        """Return everything up to and with ``end``; keep the rest for the next call."""
        with trio.fail_after(PATIENCE):
            while end not in self.data:
                more = await self.stream.receive_some()
                assert more, f"closed before {end!r} in {self.data!r}"
                self.data += more
        found, _, self.data = self.data.partition(end)
        return found + end

    async def rest(self) -> bytes:
        """Return everything up to EOF; a reset raises BrokenResourceError."""
        with trio.fail_after(PATIENCE):
            async for more in self.stream:
                self.data += more
        found, self.data = self.data, b""
        return found

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a response with content-length or chunks."""
        head = (await self.until(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = b""
        if "content-length" in headers:
            with trio.fail_after(PATIENCE):
                while len(self.data) < int(headers["content-length"]):
                    self.data += await self.stream.receive_some() or pytest.fail("closed in the body")
            length = int(headers["content-length"])
            body, self.data = self.data[:length], self.data[length:]
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.until(b"\r\n"), 16):
                while len(self.data) < size + 2:
                    with trio.fail_after(PATIENCE):
                        self.data += await self.stream.receive_some() or pytest.fail("closed in a chunk")
                body, self.data = body + self.data[:size], self.data[size + 2 :]
            await self.until(b"\r\n")
        return int(first.split()[1]), headers, body


@asynccontextmanager
async def connected(server: Server, *, receive_buffer: int | None = None) -> AsyncGenerator[Client]:
    sock = trio.socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    with trio.fail_after(PATIENCE):
        await sock.connect(server.address)
    async with trio.SocketStream(sock) as stream:
        yield Client(stream)


def post(body: bytes = b"", path: str = "/", *, extra: str = "", method: str = "POST") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(path: str = "/", extra: str = "", method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: a\r\n{extra}\r\n".encode()


async def read_body(receive: Any) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


async def respond(send: Any, body: bytes, *, status: int = 200, length: bool = True) -> None:
    headers = [(b"content-length", str(len(body)).encode())] if length else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Message, receive: Any, send: Any) -> None:
    body = await read_body(receive)
    await respond(send, scope["method"].encode() + b" " + scope["raw_path"] + b" " + body)


def echo_nowait(exchange: Exchange) -> bool:
    body = exchange.scope["method"].encode() + b" " + exchange.scope["raw_path"] + b" " + exchange.body
    return exchange.respond_nowait(200, [(b"content-length", b"%d" % len(body))], body)


class Watched:
    """An app that perhaps starts a stream, then waits for and reports the disconnect."""

    def __init__(self, *, starts: bool = False) -> None:
        self.starts = starts
        self.running = trio.Event()
        self.disconnected = trio.Event()
        self.cancelled = trio.Event()
        self.release = trio.Event()

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        if scope["raw_path"] == b"/quick":
            await echo(scope, receive, send)
            return
        await read_body(receive)
        if self.starts:
            await send(START)
            await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        self.running.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._listen, receive, nursery.cancel_scope)
                await self.release.wait()
                nursery.cancel_scope.cancel()
        finally:
            if not self.release.is_set() and not self.disconnected.is_set():
                self.cancelled.set()
        if self.release.is_set():
            await respond(send, b"released")

    async def _listen(self, receive: Any, scope: trio.CancelScope) -> None:
        message = await receive()
        assert message == {"type": "http.disconnect"}
        self.disconnected.set()
        scope.cancel()


async def happens(event: trio.Event) -> None:
    with trio.fail_after(PATIENCE):
        await event.wait()


@asynccontextmanager
async def by_tls(server: Server, certificate: dict[str, str], protocol: str) -> AsyncGenerator[Client]:
    context = ssl.create_default_context(cafile=certificate["certfile"])
    context.set_alpn_protocols([protocol])
    raw = await trio.open_tcp_stream(*server.address)
    async with trio.SSLStream(raw, context, server_hostname="localhost", https_compatible=True) as stream:
        with trio.fail_after(PATIENCE):
            await stream.do_handshake()
        assert stream.selected_alpn_protocol() == protocol
        yield Client(stream)


LONG = 1000.0
QUICK = Limits(handshake=0.2, head=0.2, window=0.1, rate=1000)
PATIENT = Limits(handshake=LONG, head=LONG, window=0.05, rate=0, settle=0.05, connections=1)


async def drip_until_closed(client: Client, drop: bytes) -> None:
    """Send again and again until the server ends the connection."""

    async def send() -> None:
        try:
            while drop:
                await client.stream.send_all(drop)
                await trio.sleep(0.02)  # the dripping itself
        except trio.BrokenResourceError:
            nursery.cancel_scope.cancel()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            try:
                while await client.stream.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def keep_dripping(client: Client, drop: bytes) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip_until_closed, client, drop)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()
