"""A TCP or Unix server whose connections are scripted by the test, byte by byte."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Script = Callable[["RawConnection"], Awaitable[None]]

PATIENCE = 15
"""Seconds that any wait of a test may take before the test fails."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class RawConnection:
    """One accepted connection; `number` counts from 1."""

    def __init__(self, server: RawServer, stream: trio.abc.Stream, number: int) -> None:
        self.server = server
        self.stream = stream
        self.number = number

    async def request(self) -> bytes:
        """Return the next request, whole; empty after the end of the connection."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            try:
                part = await self.stream.receive_some()
            except trio.BrokenResourceError:
                part = b""
            if not part:
                assert not data, f"the connection ended within {data!r}"
                return b""
            data += part
        head, _, _ = bytes(data).partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:])
        while len(data) < len(head) + 4 + int(fields.get(b"content-length", 0)):
            data += await self.stream.receive_some()
        self.server.requests.append(bytes(data))
        return self.server.requests[-1]

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send_all(data)


class RawServer:
    """All connections so far, and their requests."""

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []
        self._changed = trio.Event()

    def change(self) -> None:
        """Wake all waiters."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds after a connection has been accepted or closed."""
        with trio.fail_after(PATIENCE):
            while not condition():
                await self._changed.wait()


async def answer_ok(connection: RawConnection) -> None:
    """Answer every request with `OK`."""
    while await connection.request():
        await connection.send(OK)


@asynccontextmanager
async def open_raw_server(
    script: Script = answer_ok, *, tls: ssl.SSLContext | None = None
) -> AsyncGenerator[RawServer]:
    """Serve on loopback; a connection is closed when its script returns."""
    server = RawServer()

    async def handle(stream: trio.abc.Stream) -> None:
        server.connections += 1
        server.open += 1
        server.change()
        try:
            await script(RawConnection(server, stream, server.connections))
        except trio.BrokenResourceError:
            pass  # the client has closed the connection
        finally:
            await trio.aclose_forcefully(stream)
            server.open -= 1
            server.change()

    async with trio.open_nursery() as nursery:
        if tls is None:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, handle, [listener])
        else:
            (secured,) = await trio.open_ssl_over_tcp_listeners(0, tls, host="127.0.0.1", https_compatible=True)
            port = secured.transport_listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, handle, [secured])
        server.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}/mcp"
        yield server  # ruff: ignore[fallible-context-manager] - where the block raised, that matters
        nursery.cancel_scope.cancel()
