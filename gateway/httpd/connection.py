"""One HTTP/1.1 connection: the app answers through an `Exchange`, and reading never stops for long.

Invariant: at most one exchange is current; requests are served in order of arrival. The connection's own task reads
until the peer disconnects, so a disconnect is seen while an app works; pipelined data waits in a buffer of `MAX_AHEAD`
bytes. Each app runs in a task of the connection's nursery, which ends with the connection. State changes are
synchronous: between two checkpoints trio is a lock. `httpd.server` gives the reasons why this replaces Hypercorn's
`TCPServer`, `H11Protocol` and `HTTPStream`.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.utils import valid_server_name

from gateway.budget import Share
from gateway.httpd.connection_limit import Rank
from gateway.httpd.exchange import MAX_WHOLE_BODY, ClientGone, Exchange, ResponseState, refusal
from gateway.httpd.request_parser import ProtocolError, RequestHead, RequestParser

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gateway.httpd.exchange import App, NowaitHandler, Service
    from gateway.httpd.wire import Wire

MAX_AHEAD = 2**16
"""Unparsed bytes (pipelined requests, or a body that the app does not read) before reading pauses.

One more read (64 KiB) can be added. While reading pauses, a disconnect is not detected: the price of the bound.
"""

LINGER = 2.0
"""Seconds for which an unread request is read and dropped after the response.

Closing with unread data sends RST, and a client that is still sending would lose the response (such as a 413).
"""

SHORTEST_LOOK = 0.05
"""Seconds; minimum between two idle checks of a busy connection, however short `keep_alive_timeout` is."""


class Connection:
    """One client's connection: `run` serves it, `drain` ends it, cancelling aborts it."""

    def __init__(
        self,
        service: Service,
        make_wire: Callable[[Share], Wire],
        *,
        scheme: str,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        app: App,
        handle_nowait: NowaitHandler | None,
        on_request: Callable[[], None],
    ) -> None:
        """Make a connection; `on_request` is called after the first head, `handle_nowait` as in `httpd.exchange`.

        `make_wire` is given the share in which the wire counts unsent bytes.
        """
        self.service, self.config = service, service.config
        self.scheme, self.client, self.server = scheme, client, server
        self.keeps_alive = True
        """False if the current exchange is to be the last one."""
        self._wire = wire = make_wire(Share(service.unsent, lambda: self._shut(wire.abort)))
        self._limits = service.limits
        self._app, self._handle_nowait, self._on_request = app, handle_nowait, on_request
        self._nursery: trio.Nursery
        self._parser = RequestParser(self.config.h11_max_incomplete_size)
        self._exchange: Exchange | None = None
        self._requests = 0
        self._sending = trio.Lock()
        self._patience = trio.CancelScope()  # around `_read`; `run` renews it
        self._since = trio.current_time()  # when the connection became idle, or a body last moved
        self._head_since: float | None = self._since  # when an incomplete head began; the first one on connecting
        self._window_end: float | None = None  # when the rate of a body is next checked
        self._window_bytes = 0
        self._body_since = 0.0
        self._paused_at: float | None = None  # when the app stopped reading the body
        self._deaf = False  # the peer has broken the protocol: nothing more is parsed
        self._ending = False  # the reader is to end
        self._lingers = False  # ... and to drop further data
        self._closed = False

    # --- lifecycle

    async def run(self) -> None:
        """Serve until the connection ends and all apps have returned.

        It ends by a disconnect, a deadline, `drain` or a fault.
        """
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while not self._ending:
                    with trio.CancelScope(deadline=self._next_look()) as self._patience:
                        await self._read()
                    if self._is_overdue():
                        break
                if self._lingers:
                    self._wire.send_eof()
                    with trio.move_on_after(LINGER):
                        while await self._wire.receive():
                            pass
                self._shut(self._wire.close)
        finally:
            self._shut(self._wire.abort)
            self._exchange = None

    def waits(self) -> tuple[Rank, float] | None:
        """Return the state that the client must end, and its start.

        None while the connection is busy or ending.
        """
        if self._ending or self._closed:
            return None
        exchange = self._exchange
        if exchange is None:
            return (Rank.IDLE, self._since) if self._head_since is None else (Rank.SILENT, self._head_since)
        slow = self._window_end is not None and not exchange.complete and self._paused_at is None
        if slow and trio.current_time() - self._body_since >= self._limits.window:
            return Rank.SLOW, self._body_since
        return None

    def make_room(self) -> None:
        """End a connection that waits for its client; no complete request is lost."""
        if self._exchange is None:
            self.keeps_alive = False
            self._end(lingers=False)
        else:
            self._shut(self._wire.abort)

    def drain(self) -> None:
        """End now if idle, else after the response; a new connection may send a request."""
        self.keeps_alive = False
        if self._exchange is None and not self._deaf:
            if self._requests:
                self._end(lingers=False)
            else:
                self._patience.deadline = min(self._patience.deadline, self._next_look())

    def _end(self, *, lingers: bool) -> None:
        """Have the reader end the connection in an orderly way."""
        self._ending, self._lingers = True, lingers
        self._patience.cancel(reason="the connection has served its last request")

    def _shut(self, close: Callable[[], None]) -> None:
        """Close the wire, wake the reader, notify the app; safe to repeat."""
        if not self._closed:
            self._closed = True
            close()
            self._end(lingers=False)
            if self._exchange is not None:
                self._exchange.put_disconnect()

    # --- reading

    def _next_look(self) -> float:
        """Return the time of the next check for an overdue client; one deadline serves all."""
        exchange = self._exchange
        if exchange is None:
            idle = self._since + self.config.keep_alive_timeout
            head = self._limits.head if self.keeps_alive else min(self._limits.head, self._limits.settle)  # draining
            return idle if self._head_since is None else min(idle, self._head_since + head)
        if not exchange.complete:
            silent = self._since + (self.config.read_timeout or math.inf)
            return silent if self._window_end is None or self._paused_at is not None else min(silent, self._window_end)
        # Busy: no deadline can pass before the response has ended and the connection was idle for this long.
        return trio.current_time() + max(self.config.keep_alive_timeout, SHORTEST_LOOK)

    def _is_overdue(self) -> bool:
        """Return whether the client has missed a deadline."""
        now = trio.current_time()
        if self._next_look() > now:
            return False
        if self._exchange is None or self._window_end is None or self._window_end > now:
            return True
        first = self._window_end - self._body_since < 1.5 * self._limits.window
        if not first and self._window_bytes < self._limits.rate * self._limits.window:
            return True
        self._window_end, self._window_bytes = now + self._limits.window, 0
        return False

    async def _read(self) -> None:
        self._parse()
        while not self._ending:
            if self._parser.buffered >= MAX_AHEAD:
                await trio.sleep_forever()  # until `_wake`, `_end` or a deadline
            data = await self._wire.receive()
            if not data:
                self._ending = True  # EOF is a disconnect, even after a complete request: see `httpd.server`
            elif not (self._deaf or self._ending):
                if self._exchange is not None:
                    self._since = trio.current_time()
                self._parser.receive(data)
                self._parse()
                if self._exchange is not None and not self._exchange.complete:  # the deadlines that may move closer
                    self._patience.deadline = min(self._patience.deadline, self._next_look())
        await trio.lowlevel.checkpoint()

    def resume(self) -> None:
        """Continue to parse the body; the app has read a piece."""
        self._since = trio.current_time()
        if self._paused_at is not None:
            self._body_since += self._since - self._paused_at
            if self._window_end is not None:
                self._window_end += self._since - self._paused_at
            self._paused_at = None
        self._wake()

    def _wake(self) -> None:
        """Have the reader parse buffered data.

        Another task would handle a request in the middle of its own step.
        """
        if self._parser.buffered:
            self._patience.cancel(reason="more can be parsed")

    def _parse(self) -> None:
        """Handle data up to the end of one request or a full queue."""
        while not (self._deaf or self._ending):
            exchange = self._exchange
            if exchange is not None and (exchange.complete or exchange.full):
                if not exchange.complete and self._paused_at is None:
                    self._paused_at = trio.current_time()
                break
            try:
                event = self._parser.next_event()
            except ProtocolError as error:
                self._refuse(error.status)
                break
            if isinstance(event, RequestHead):
                if self._begin(event):
                    break
            elif exchange is None:
                if self._head_since is None and self._parser.buffered:  # the rest of a head must arrive in time
                    self._head_since = trio.current_time()
                self._patience.deadline = min(self._patience.deadline, self._next_look())
                break
            elif event is None:  # part of a body has arrived: the rest must arrive at `Limits.rate`
                if self._window_end is None:
                    self._body_since = trio.current_time()
                    self._window_end, self._window_bytes = self._body_since + self._limits.window, 0
                break
            else:
                self._window_bytes += len(event)
                exchange.put(event)
                if not event and not exchange.started and self._handle_nowait is not None:
                    self._offer(exchange, self._handle_nowait)
                    break

    def _begin(self, head: RequestHead) -> bool:
        """Make a request's exchange; return whether it was complete and has been offered."""
        self._head_since = self._window_end = self._paused_at = None
        self._requests += 1
        if self._requests == 1:
            self._on_request()
        if self._requests >= self.config.keep_alive_max_requests or not head.keeps_alive:
            self.keeps_alive = False
        # Hypercorn's function takes its own event, but only iterates over its headers.
        if self.config.server_names and not valid_server_name(self.config, cast("Any", head)):
            self._refuse(404)
            return False
        exchange = self._exchange = Exchange(self, head)
        is_small = head.length is not None and head.length <= MAX_WHOLE_BODY and not head.expects_continue
        if self._handle_nowait is None or not is_small:
            exchange.start(self._app)
            return False
        body = self._parser.take_body()
        if body is None:
            return False
        exchange.body, exchange.complete = body, True
        self._offer(exchange, self._handle_nowait)
        return True

    def _offer(self, exchange: Exchange, handle_nowait: NowaitHandler) -> None:
        """Have a request with a complete body answered without a task, or by the app."""
        try:
            if not handle_nowait(exchange):
                exchange.start(self._app)
        except Exception as error:  # ruff: ignore[blind-except] - the boundary between an app's bugs and the server
            self._nursery.start_soon(partial(self.config.log.error, "Error in ASGI Framework", exc_info=error))
            if exchange.state is not ResponseState.DONE:
                self._refuse(500)

    # --- the app

    def start(self, exchange: Exchange, app: App) -> None:
        """See `ExchangeOwner`."""
        self._nursery.start_soon(self._run_app, exchange, app)

    async def _run_app(self, exchange: Exchange, app: App) -> None:  # noqa: ASYNC910 - nothing waits for this task
        try:
            await app(exchange.scope, exchange.receive, exchange.send)
        except* ClientGone:
            pass
        except* Exception as group:  # ruff: ignore[blind-except] - the boundary between an app's bugs and the server
            await self.config.log.error("Error in ASGI Framework", exc_info=group)
        if exchange.state is ResponseState.DONE:
            return
        if self.service.logs_access:
            await self.service.note_end(exchange)
        if exchange.gone:
            return
        if exchange.state is ResponseState.STREAMING:  # the client must see that the body is incomplete
            self._break_off(exchange)
        else:
            await self._answer(500)

    def _break_off(self, exchange: Exchange) -> None:
        """Close in the middle of a body so that the client sees it is incomplete."""
        self._shut(self._wire.abort if exchange.ends_by_close else self._wire.close)

    def _refuse(self, status: int) -> None:
        """Respond to a request that breaks the protocol, without the app."""
        self._deaf = True
        exchange = self._exchange
        if exchange is not None and exchange.state is ResponseState.STREAMING:
            self._break_off(exchange)
            return
        if exchange is not None:
            exchange.put_disconnect()
            if exchange.state is ResponseState.DONE:
                return  # its last bytes are being sent, and the connection ends after them
        self._nursery.start_soon(self._answer, status)

    async def _answer(self, status: int) -> None:
        with contextlib.suppress(ClientGone):  # then there is no client to answer
            await self.write(refusal(status, self.service.common_lines()))
        await trio.lowlevel.checkpoint()
        unread = self._exchange is not None and not self._exchange.complete
        self._end(lingers=self._deaf or unread or bool(self._parser.buffered))

    def finished(self, exchange: Exchange) -> None:
        """Handle the end of a response: serve the next request, or close."""
        exchange.put_disconnect()
        self._exchange = None
        if self.keeps_alive and exchange.complete and not exchange.close_after:
            self._since = trio.current_time()
            if self._parser.buffered:
                self._wake()
        else:
            self._end(lingers=not exchange.complete or bool(self._parser.buffered))

    # --- writing

    def finish_nowait(self, exchange: Exchange, pieces: Sequence[bytes | memoryview]) -> bool:
        """Send an exchange's last message without waiting; a task sends the rest."""
        try:
            for data in pieces:
                self._wire.send_nowait(data)
        except OSError:
            self._shut(self._wire.abort)
        if self._closed:
            return False
        if self._wire.unsent or self.service.logs_access:
            self._nursery.start_soon(self._finish, exchange)
        else:
            self.finished(exchange)
        return True

    async def _finish(self, exchange: Exchange) -> None:
        with contextlib.suppress(ClientGone):
            await self.write()
            self.finished(exchange)
        if self.service.logs_access:
            await self.service.note_end(exchange)

    async def write(self, *pieces: bytes | memoryview) -> None:  # noqa: ASYNC910 - a reschedule costs 4 us a message
        """Send a message; wait for the peer at most `send_timeout` s at a time.

        Messages never interleave. Raises ClientGone when the peer has disconnected or read nothing for that time (the
        connection is then aborted). A cancelled partial write aborts the connection too: nothing sensible can follow
        half a message. Data that fits into the kernel's buffer is sent without a checkpoint.
        """
        if self._sending.locked():
            await self._sending.acquire()
        else:
            self._sending.acquire_nowait()
        try:
            if self._closed:
                raise ClientGone("the client has gone")
            for data in pieces:
                self._wire.send_nowait(data)
            if self._closed:
                raise ClientGone("too much waits for clients that do not read")
            if self._wire.unsent:
                await self._wire.flush()
        except (OSError, trio.ClosedResourceError) as error:
            self._shut(self._wire.abort)
            raise ClientGone("the client has gone") from error
        except trio.TooSlowError as error:
            self._shut(self._wire.abort)
            raise ClientGone("the client has stopped reading") from error
        except trio.Cancelled:
            self._shut(self._wire.abort)
            raise
        finally:
            self._sending.release()
