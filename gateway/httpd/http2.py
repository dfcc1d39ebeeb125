"""HTTP/2 connections: stock Hypercorn with deadlines for the client's unfinished frames, and bounded sends.

Hypercorn passes on events of `h2`, which do not reveal a client that sends a frame byte by byte. `FrameWatch` reads the
frame headers (RFC 9113, 4.1) as well, and so knows which frame is incomplete and since when.
"""

from __future__ import annotations

import math
from collections import UserDict
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import h2.events
import trio
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import StreamBuffer
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import ConnectionState
from priority.priority import MissingStreamError

from gateway.httpd.connection_limit import Rank
from gateway.httpd.exchange import ClientGone
from gateway.httpd.wire import MAX_RECEIVE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from hypercorn.config import Config
    from hypercorn.protocol.h2 import H2Protocol
    from hypercorn.trio.worker_context import WorkerContext

    from gateway.budget import Share
    from gateway.httpd.connection_limit import Limits
    from gateway.httpd.exchange import App, Message, Receive, Send

MAX_UNSENT: Final = 2**24
"""Bytes of responses that may wait for one client: a result of the largest default size. Above it, its requests wait
too.

The connection is read all the same, since a window update may be waiting. A stream whose client reads nothing for
`Limits.send` s is reset.
"""
TLS_RECORDS: Final = 2**16
"""A TLS stream does not report how much the peer has read, so it is written in slices of this size, each with a
deadline."""
PREFACE_BYTES: Final = 24
FRAME_HEADER_BYTES: Final = 9
DATA, HEADERS, RST_STREAM, CONTINUATION = 0, 1, 3, 9
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


@dataclass
class Body:
    """The body of an incomplete request."""

    since: float
    window_end: float
    received: int = 0
    is_first_window: bool = True


class FrameWatch:
    """A client's unfinished frames, from the bytes of the connection alone."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._limits = limits
        self.opened = now
        self.requests = 0
        """The number of complete heads."""
        self.bodies: dict[int, Body] = {}
        self.unit_since: float | None = None
        """Since when a frame outside of bodies, or a block of headers, is incomplete."""
        self._header = bytearray()
        self._skip = PREFACE_BYTES
        self._type = self._flags = self._stream = self._padding = -1
        self._ends_stream = False

    def feed(self, data: bytes, now: float) -> None:
        """Feed received bytes."""
        at = 0
        while at < len(data):
            if self._skip:
                part = data[at : at + self._skip]
                at += len(part)
                self._skip -= len(part)
                if self._type == DATA and (body := self.bodies.get(self._stream)) is not None:
                    body.received += len(part)
                    if self._flags & PADDED and self._padding < 0:  # padding is not part of the body
                        self._padding = part[0]
                        body.received -= 1 + self._padding
                if not self._skip:
                    self._end_frame(now)
                continue
            if not self._header and self.unit_since is None:
                self.unit_since = now
            part = data[at : at + FRAME_HEADER_BYTES - len(self._header)]
            at += len(part)
            self._header += part
            if len(self._header) < FRAME_HEADER_BYTES:
                continue
            header, self._header = self._header, bytearray()
            self._skip = int.from_bytes(header[:3], "big")
            self._type, self._flags = header[3], header[4]
            self._stream = int.from_bytes(header[5:9], "big") & 0x7FFF_FFFF
            self._padding = -1
            if self._type == HEADERS:
                self._ends_stream = bool(self._flags & END_STREAM)
            if not self._skip:
                self._end_frame(now)

    def _end_frame(self, now: float) -> None:
        kind, flags, stream = self._type, self._flags, self._stream
        ends_block = kind in {HEADERS, CONTINUATION} and flags & END_HEADERS
        if kind not in {HEADERS, CONTINUATION} or ends_block:
            self.unit_since = None
        if ends_block:
            self.requests += 1
            if self._ends_stream:
                self.bodies.pop(stream, None)  # trailers, or a request without a body
            elif stream not in self.bodies:
                self.bodies[stream] = Body(now, now + self._limits.window)
        elif kind == RST_STREAM or (kind == DATA and flags & END_STREAM):
            self.bodies.pop(stream, None)

    @property
    def head_since(self) -> float | None:
        """Since when a head, or the rest of a non-body frame, has been due."""
        if not self.requests:
            return self.opened
        in_body = self._type == DATA and self._skip and self._stream in self.bodies
        return None if in_body else self.unit_since

    def deadline(self) -> float:
        """Return when the client must have sent more."""
        since = self.head_since
        head = math.inf if since is None else since + self._limits.head
        return min([head, *(body.window_end for body in self.bodies.values())])

    def pause(self, seconds: float) -> None:
        """Extend all deadlines: the app did not read the received data."""
        for body in self.bodies.values():
            body.since += seconds
            body.window_end += seconds
        if self.unit_since is not None:
            self.unit_since += seconds

    def slow_bodies(self, now: float) -> list[int]:
        """Return the streams whose bodies were too slow, and begin new windows for the others."""
        late = [stream for stream, body in self.bodies.items() if body.window_end <= now]
        least = self._limits.rate * self._limits.window
        slow: list[int] = []
        for stream in late:
            body = self.bodies[stream]
            if not body.is_first_window and body.received < least:
                slow.append(stream)
                del self.bodies[stream]
            else:
                body.window_end, body.received, body.is_first_window = now + self._limits.window, 0, False
        return slow


class _Ended:
    """A stand-in for an answered stream whose client still sends: drops its data."""

    idle = True

    async def handle(self, event: object) -> None:
        """Drop it."""


class _Streams(UserDict[int, Any]):
    """The streams of a connection. Hypercorn looks one up for data after the response, too."""

    def __missing__(self, stream: int) -> _Ended:
        return _Ended()


class _Buffer(StreamBuffer):
    """Unsent data of one stream; Hypercorn's wakes the app even without progress."""

    async def pop(self, max_length: int) -> bytes:
        """Return up to this many bytes, within the client's window.

        Without a window it returns none, and the app still waits.
        """
        if max_length <= 0 and self.buffer:
            await trio.lowlevel.checkpoint()
            return b""
        return await super().pop(max_length)


class _Buffers(UserDict[int, StreamBuffer]):
    """The buffers of a connection; each that Hypercorn adds is replaced by ours."""

    def __setitem__(self, stream: int, buffer: StreamBuffer) -> None:
        super().__setitem__(stream, _Buffer(EventWrapper))


def _slices(message: Message) -> Iterator[Message]:
    """Cut the body of a message into messages of at most `TLS_RECORDS` bytes."""
    body = message.get("body", b"")
    if len(body) <= TLS_RECORDS:
        yield message
        return
    for start in range(0, len(body), TLS_RECORDS):
        end = start + TLS_RECORDS
        yield {**message, "body": body[start:end], "more_body": message.get("more_body", False) or end < len(body)}


def _is_servable(head: Mapping[bytes, bytes]) -> bool:
    """Return whether a request has an ASCII method and path, and is not CONNECT."""
    method, path = head[b":method"], head.get(b":path", b"")
    return method.isascii() and method != b"CONNECT" and path.isascii() and bool(path)


class BoundedTCPServer(TCPServer):
    """Hypercorn's connection, for HTTP/2 only, with deadlines for its client in both directions."""

    def __init__(
        self,
        app: App,
        config: Config,
        context: WorkerContext,
        limits: Limits,
        stream: trio.SSLStream[Any],
        on_request: Callable[[], None],
        unsent: Share,
    ) -> None:
        """Make a connection; `on_request` is called after the first head.

        `unsent` counts the apps' unsent bytes.
        """
        super().__init__(ASGIWrapper(cast("Any", self._run_app)), config, context, ConnectionState({}), stream)
        self._bounded_app = app
        self._on_request = on_request
        self._unsent = unsent
        self._room = trio.lowlevel.ParkingLot()
        self._limits = limits
        self._has_ended = False
        self._idle_since = trio.current_time()
        self._watch = FrameWatch(limits, self._idle_since)

    @property
    def _h2(self) -> H2Protocol:
        return cast("H2Protocol", self.protocol.protocol)  # chosen by ALPN

    def waits(self) -> tuple[Rank, float] | None:
        """Return the state that the client must end, and its start; None while busy."""
        watch = self._watch
        streams = self._h2.streams if watch.requests else {}  # Hypercorn makes it only in `run`
        if not streams:
            since = watch.head_since
            return (Rank.IDLE, self._idle_since) if since is None else (Rank.SILENT, since)
        begun = [watch.bodies[stream].since if stream in watch.bodies else math.inf for stream in streams]
        latest = max(begun)
        return (Rank.SLOW, latest) if latest + self._limits.window <= trio.current_time() else None

    async def _read_data(self) -> None:
        """Pass on received data; end a stream, or the connection, that is overdue."""
        self._h2.streams = cast("Any", _Streams())
        self._h2.stream_buffers = cast("Any", _Buffers())
        read = self._h2.connection.receive_data
        self._h2.connection.receive_data = cast("Any", partial(self._read_events, read))
        while True:
            data = b""
            with trio.CancelScope(deadline=self._watch.deadline()) as scope:
                try:
                    data = bytes(await self.stream.receive_some(MAX_RECEIVE))
                except (trio.ClosedResourceError, trio.BrokenResourceError):
                    break
            now = trio.current_time()
            if scope.cancelled_caught:
                since = self._watch.head_since
                if since is not None and since + self._limits.head <= now:
                    break
                with trio.move_on_after(self._limits.send) as patience:  # the app may be slow to read the end
                    for stream in self._watch.slow_bodies(now):
                        await self._reset(stream)
                if patience.cancelled_caught:
                    break
                continue
            had_request = self._watch.requests
            self._watch.feed(data, now)
            if self._watch.requests and not had_request:
                self._on_request()
            await self.protocol.handle(RawData(data))
            self._watch.pause(trio.current_time() - now)
            if not data:
                break
        self._has_ended = True
        await self.idle_task.stop()  # Hypercorn would wait for it, as for a connected client
        await self.protocol.handle(Closed())
        for buffer in list(self._h2.stream_buffers.values()):  # Hypercorn would leave the apps that send waiting
            await buffer.close()
        self.stream.transport_stream.socket.close()

    def _read_events(self, read: Callable[[bytes], list[h2.events.Event]], data: bytes) -> list[h2.events.Event]:
        """Return the events of `h2` without those that make Hypercorn fail.

        Such an event must not end the other streams. A request that cannot be passed to the app is reset; tunnels are
        not served. Priorities are advice that fails when there is too much of it (and deprecated: RFC 9113, 5.3.2).
        """
        events: list[h2.events.Event] = []
        for event in read(data):
            if isinstance(event, h2.events.RequestReceived) and not _is_servable(dict(event.headers)):
                self._watch.bodies.pop(event.stream_id, None)
                with suppress(ProtocolError):  # it has ended already
                    self._h2.connection.reset_stream(event.stream_id, ErrorCodes.PROTOCOL_ERROR)
            elif not isinstance(event, h2.events.PriorityUpdated):
                events.append(event)
        return events

    async def _reset(self, stream: int) -> None:
        """End one stream, and its app."""
        h2 = self._h2
        with suppress(ProtocolError):  # it has ended already
            h2.connection.reset_stream(stream, ErrorCodes.CANCEL)
        await h2.stream_send(StreamClosed(stream_id=stream))
        with suppress(MissingStreamError):
            h2.priority.unblock(stream)  # the sending task finds it ended, and drops the rest
        await h2.has_data.set()
        await self.protocol_send(RawData(h2.connection.data_to_send()))

    async def _run_app(self, scope: Message, receive: Receive, send: Send) -> None:
        """Run the app with a `send` that raises ClientGone if the client stops reading."""

        async def bounded_send(message: Message) -> None:
            size = len(message.get("body", b""))
            self._unsent.add(size)
            try:
                for part in _slices(message):
                    with trio.move_on_after(self._limits.send) as patience:
                        await send(part)
                    if patience.cancelled_caught:
                        streams = self._h2.streams.items()
                        for stream in [number for number, served in streams if getattr(served, "scope", None) is scope]:
                            await self._reset(stream)
                        raise ClientGone("the client has stopped reading")
            finally:
                self._unsent.remove(size)
                if self._unsent.size < MAX_UNSENT:
                    self._room.unpark_all()

        while self._unsent.size >= MAX_UNSENT:
            if len(self._room) >= self.config.h2_max_concurrent_streams:
                return  # noqa: ASYNC910 - most of those that wait were reset, and this client opens more and more
            await self._room.park()
        with suppress(ClientGone):
            await self._bounded_app(scope, receive, bounded_send)

    async def protocol_send(self, event: Event) -> None:
        """Send a slice within `Limits.send` s, or close; Hypercorn handles everything but data."""
        if not isinstance(event, RawData):
            if isinstance(event, Updated):
                self._idle_since = trio.current_time()
            if not (isinstance(event, Updated) and self._has_ended):
                await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                for start in range(0, len(event.data), TLS_RECORDS):
                    with trio.fail_after(self._limits.send):
                        await self.stream.send_all(event.data[start : start + TLS_RECORDS])
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
