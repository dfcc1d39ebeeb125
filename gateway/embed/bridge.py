"""Bridge for HTTP exchanges between the host's loop and the gateway's.

An exchange is a value: its head and body are passed together, frames return one by one through a bounded window, and
the host then reports sent frames and a disconnect. The host's side uses anyio, so that it runs on asyncio and trio;
each side accesses only its own state and posts calls to the other loop for the rest.
"""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import anyio
import trio

from gateway.budget import Share
from gateway.embed.errors import Closed
from gateway.embed.host import poster

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.budget import Budget
    from gateway.embed.frontends import AsgiFrontends
    from gateway.embed.thread import LoopThread
    from gateway.frontends.http.exchange import Receive, Scope, Send

MAX_UNSENT: Final = 262_144
"""Unsent bytes of one exchange (plus one frame) before the gateway's side waits."""
SEND_TIMEOUT: Final = 30.0
"""Seconds for a client to accept a frame before it is dropped."""
BODY_WITHIN: Final = 60.0
"""Seconds for a request's body to arrive."""
HEAD: Final = ("type", "asgi", "http_version", "method", "scheme", "path", "root_path", "query_string", "client")
"""The members of the ASGI scope that are passed to the gateway, besides headers and body."""

log = logging.getLogger("gateway.embed")


class BridgedExchange:
    """One exchange on the gateway's side, served by an ASGI application.

    `deliver` and `close` make the host's loop send a frame and end the exchange; neither blocks.
    """

    def __init__(
        self,
        scope: dict[str, Any],
        body: bytes,
        unsent: Budget,
        *,
        deliver: Callable[[dict[str, Any]], None],
        close: Callable[[], None],
    ) -> None:
        self._scope = scope
        self._body: bytes | None = body
        self._deliver = deliver
        self._unsent = Share(unsent, close)
        self._writable = trio.lowlevel.ParkingLot()
        self._gone = trio.Event()

    async def serve(self, app: AsgiFrontends) -> None:
        """Run the application. A bug in it is logged, and the client gets no response."""
        try:
            await app.serve(self._scope, self._receive, self._send)
        except Exception:
            log.exception("exchange failed because of a bug")

    def hang_up(self) -> None:
        """Record that the client has disconnected or the exchange has ended."""
        self._gone.set()
        self._unsent.release()
        self._writable.unpark_all()

    def sent(self, size: int) -> None:
        """Record that this many bytes were sent."""
        if not self._gone.is_set():
            self._unsent.remove(size)
            self._writable.unpark_all()

    async def _receive(self) -> dict[str, Any]:
        body, self._body = self._body, None
        if body is None:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": body, "more_body": False}

    async def _send(self, message: Any) -> None:
        size = len(message.get("body", b""))
        if not self._gone.is_set():
            self._unsent.add(size)
        while self._unsent.size - size >= MAX_UNSENT and not self._gone.is_set():
            await self._writable.park()
        if self._gone.is_set():
            raise BrokenPipeError("the client hung up")
        self._deliver(message)


class _Frames:
    """The frames of one exchange, on the host's side."""

    def __init__(self) -> None:
        self._waiting: deque[dict[str, Any]] = deque()
        self._news = anyio.Event()
        self._ended = False

    def put(self, message: dict[str, Any]) -> None:
        """Queue a frame; the other side bounds the queue."""
        self._waiting.append(message)
        self._news.set()

    def end(self) -> None:
        """Mark the end of the frames."""
        self._ended = True
        self._news.set()

    async def next(self) -> dict[str, Any] | None:
        """Return the next frame; None at the end."""
        while not self._waiting:
            if self._ended:
                return None
            self._news = anyio.Event()
            await self._news.wait()
        return self._waiting.popleft()


class Bridge:
    """The gateway as an ASGI application in the host's loop; `most` bounds a request's body."""

    def __init__(
        self, thread: LoopThread, app: AsgiFrontends, most: int, *, send_timeout: float = SEND_TIMEOUT
    ) -> None:
        self._thread = thread
        self._app = app
        self._most = most
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body: bytes | None = None
        with anyio.move_on_after(BODY_WITHIN):
            body = await self._read(receive)
        if body is None:  # the client has disconnected or stalled, so no response is possible
            return
        frames, post = _Frames(), poster()
        head = {key: scope[key] for key in HEAD if key in scope} | {"headers": list(scope["headers"])}
        relaying = anyio.CancelScope()
        exchange = BridgedExchange(
            head,
            body,
            self._app.unsent,
            deliver=lambda message: post(partial(frames.put, message)),
            close=lambda: post(relaying.cancel),
        )
        try:
            self._thread.spawn(exchange.serve, self._app, ended=lambda: post(frames.end))
        except Closed:
            await answer(send, 503)
            return
        try:
            with relaying:
                async with anyio.create_task_group() as group:
                    group.start_soon(self._watch, receive, exchange)
                    await self._relay(frames, exchange, send)
                    group.cancel_scope.cancel()
        finally:
            self._thread.post(exchange.hang_up)

    async def _read(self, receive: Receive) -> bytes | None:
        """Read the body, up to just over the limit; None if the client disconnected."""
        parts: list[bytes] = []
        size, more = 0, True
        while more and size <= self._most:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            more = message.get("more_body", False)
        return b"".join(parts)

    async def _watch(self, receive: Receive, exchange: BridgedExchange) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._thread.post(exchange.hang_up)

    async def _relay(self, frames: _Frames, exchange: BridgedExchange, send: Send) -> None:
        """Send the response frames."""
        begun = False
        while (message := await frames.next()) is not None:
            with anyio.move_on_after(self._send_timeout) as patience:
                try:
                    await send(message)
                except OSError:
                    return
            if patience.cancelled_caught:
                log.warning("client dropped: it has not read for %g s", self._send_timeout)
                return
            begun = True
            if message.get("more_body"):
                self._thread.post(partial(exchange.sent, len(message["body"])))
            elif message["type"] == "http.response.body":
                return
        if not begun:
            await answer(send, 503)


async def answer(send: Send, status: int, *headers: tuple[bytes, bytes], body: bytes = b"") -> None:
    """Answer a request on the host's side."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})
