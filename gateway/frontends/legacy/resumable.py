"""One call of a legacy session over streamable HTTP, with a resumable stream.

It is carried by the POST first, without a task until there is an event; when that connection breaks, by a task of the
session; then by the GET with which the client reconnects (2025-11-25 basic/transports). A task that takes over cancels
the previous one and begins when that has ended. A disconnect is not a cancellation in this era. Invariant: an event is
kept before it is sent, so events lost with a connection are available to the next one, and each message goes to one
stream only.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.frontends.http.exchange import EVENT_STREAM, ClientGone, Exchange, NullExchange
from gateway.frontends.http.response import HttpDelivery
from gateway.frontends.legacy.event_store import RESUME_WITHIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.calls import Call
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.legacy.event_store import EventStore, Log
    from gateway.frontends.legacy.sessions import LegacySession
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Body, Id

    Keep = Callable[[Callable[[trio.CancelScope], Awaitable[None]], trio.CancelScope], None]

FIRST_PRIMED: Final = "2025-11-25"
"""The first version whose clients accept events without data; older ones would treat them as broken messages."""
MAX_RETRY_MS: Final = 30_000
"""The maximum wait that a client is asked for: its events must still be kept by then (`RESUME_WITHIN`)."""
NOWHERE: Final = NullExchange()


class StreamPaused(Exception):
    """The stream was closed for now; its client will resume it."""


class ResumableDelivery(HttpDelivery):
    """The response to one call, with a stream that outlives its connection."""

    __slots__ = ("_busy", "_ended", "_freed", "_keep", "_log", "_scope", "_session", "_stream")

    def __init__(
        self,
        exchange: Exchange,
        handler: RequestHandler,
        call: Call,
        request_id: Id,
        session: LegacySession,
        keep: Keep,
    ) -> None:
        super().__init__(exchange, handler, call, request_id, session)
        self._session = session
        self._keep = keep
        self._stream: CallStream
        self._scope: trio.CancelScope | None = None  # of the carrying task, or of the next one
        self._log: Log | None = None
        self._ended = False
        self._busy = True
        self._freed: trio.Event | None = None

    # Without a task.

    def begin(self) -> bool:
        """Submit the call without a task; the client may disconnect meanwhile."""
        self._exchange.on_disconnect(self._lose_client)
        return super().begin()

    def _lose_client(self) -> None:
        self._exchange = NOWHERE

    def cancel(self, *, reason: str) -> None:
        """Cancel the call while it has no task; end the exchange without a response."""
        super().cancel(reason=reason)
        self._exchange.respond_nowait(200, b"", (EVENT_STREAM,))

    def respond(self, body: Body, code: int | None) -> None:
        """Write the response."""
        del code
        self._session.touch()
        self._exchange.respond_nowait(200, body)

    def status(self, code: int | None) -> int:
        """Return 200 always, since 404 would tell a legacy client that its session ended."""
        del code
        return 200

    def spawn(self, stream: CallStream) -> None:
        """Deliver the rest in a task of the connection, or else of the session."""
        self._stream = stream
        self._scope = scope = self._session.in_flight.open_scope(self.request_id)
        if self._exchange is NOWHERE:
            self._keep(self._carry_alone, scope)
        else:
            self._exchange.start_task(partial(self.carry, stream, scope))

    # The carrying tasks.

    async def carry(self, stream: CallStream, scope: trio.CancelScope) -> None:
        """Carry the call on the exchange of its POST; hand it over when that ends."""
        self._stream, self._scope = stream, scope
        try:
            with scope:
                await self.run(stream)
        except (ClientGone, StreamPaused):
            self._hand_over(scope)
        finally:
            self._release(scope)
        if scope.cancelled_caught:  # by the client, or by the GET that has taken over
            await self._exchange.end_stream()

    async def resume(self, exchange: Exchange, after: int) -> None:
        """Continue the stream after event number `after`, on the exchange of a GET."""
        before, scope = self._scope, trio.CancelScope()
        self._give(scope)
        if before is not None:
            before.cancel(reason="the client has resumed the stream on another connection")
        mine = False
        try:
            with scope:
                while self._busy:  # until the predecessor, which has been cancelled, has ended
                    self._freed = trio.Event()
                    await self._freed.wait()
                self._busy = True
                mine, self._exchange = True, exchange
                await replay(exchange, self._session.events, self._log, after)
                if self._ended:
                    await exchange.end_stream()
                else:
                    await self.run(self._stream)
        except (ClientGone, StreamPaused):
            self._hand_over(scope)
        finally:
            self._release(scope, mine=mine)
        if scope.cancelled_caught:
            await exchange.end_stream()

    async def _carry_alone(self, scope: trio.CancelScope) -> None:
        """Continue without a client until the call ends; drop events not fetched in time."""
        if self._scope is not scope:
            return  # the client had reconnected before this task ran
        self._busy, self._exchange = True, NOWHERE
        try:
            with scope:
                if self._log is not None:
                    with trio.move_on_after(RESUME_WITHIN):
                        await self.run(self._stream)
                if not self._ended and self._scope is scope:
                    self._drop_log()
                    self._can_stream = self._streaming = False
                    await self.run(self._stream)
        finally:
            self._release(scope)

    def _hand_over(self, scope: trio.CancelScope) -> None:
        """Have the session carry a call without an exchange, unless another connection does."""
        if not self._ended and self._scope is scope:
            scope = trio.CancelScope()
            self._give(scope)
            self._keep(self._carry_alone, scope)

    def _give(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._session.in_flight.replace(self.request_id, scope)

    def _release(self, scope: trio.CancelScope, *, mine: bool = True) -> None:
        """End a task's turn; unless another one follows, the call is over."""
        if mine:
            self._busy = False
            if self._freed is not None:
                self._freed.set()
        if self._scope is scope:
            self._session.in_flight.remove(self.request_id)
            self._stream.close()
            if not self._ended:
                self._drop_log()
            elif self._log is not None:
                self._session.replies.pop(self._log.number, None)
            self._session.touch()

    # The stream.

    def _open(self) -> tuple[EventStore, Log, bytes]:
        """Make the response a stream; return the id of a priming event, if any."""
        self._streaming = True
        store = self._session.events
        if self._log is not None:
            return store, self._log, b""
        self._log = log = store.open()
        self._session.replies[log.number] = self
        return store, log, store.mark(log) if self._session.caller.version >= FIRST_PRIMED else b""

    def _drop_log(self) -> None:
        """Drop the kept events of the stream."""
        if self._log is not None:
            self._session.events.drop(self._log)
            self._session.replies.pop(self._log.number, None)
            self._log = None

    async def send(self, message: bytes) -> None:
        """Keep an event, and send it."""
        if self._can_stream:
            store, log, prime = self._open()
            await self._send(message, store.add(log, message), prime)

    async def _send(self, message: bytes, event_id: bytes, prime: bytes) -> None:
        if prime:
            await self._exchange.mark(prime)
        await self._exchange.event(message, event_id)

    async def keep_alive(self) -> None:
        """Send a comment, or the event that primes the client."""
        if self._can_stream:
            _, _, prime = self._open()
            await (self._exchange.mark(prime) if prime else self._exchange.keep_alive())

    async def end(self, body: Body, code: int | None) -> None:
        """Send the response, and keep it if there is a stream."""
        self._ended = True
        if not self._streaming:
            await super().end(body, code)
            return
        store, log, prime = self._open()
        text = "the response was too large to keep for a reconnecting client; send the request again"
        lost = jsonrpc.error_response(self.request_id, jsonrpc.INTERNAL_ERROR, text)
        body = body if isinstance(body, bytes) else b"".join(body)  # not in steps: a cancellation would lose it
        event_id = store.end(log, body, lost, now=trio.current_time())
        await self._send(body, event_id, prime)
        await self._exchange.end_stream()

    async def pause_stream(self, retry_ms: int) -> None:
        """Close the stream as the backend did; the client resumes it later.

        2025-11-25 basic/transports, "Sending Messages to the Server", 6.

        Raises:
            StreamPaused: it was closed.
        """
        if not self._can_stream or self._session.caller.version < FIRST_PRIMED or self._exchange is NOWHERE:
            return
        store, log, prime = self._open()
        last = store.mark(log)
        if prime:
            await self._exchange.mark(prime)
        await self._exchange.mark(last, retry=min(retry_ms, MAX_RETRY_MS))
        await self._exchange.end_stream()
        raise StreamPaused


async def replay(exchange: Exchange, store: EventStore, log: Log | None, after: int) -> None:
    """Open a stream; send another one's kept events after `after`, under their own ids."""
    await exchange.keep_alive()
    if log is not None:
        for number, message in log.after(after):
            await exchange.event(message, store.id(log, number))
