"""One call of a legacy session over streamable HTTP, and whoever carries its stream (2025-11-25 basic/transports).

First the POST that asked, in its own task; when its connection breaks, a task of the session; then the GET with which
the client comes back. One at a time: who comes next cancels who was before and begins when that one has let go.
Invariant: an event is kept before it is sent, so what a broken connection has swallowed is there for the next one, and
each message goes to one stream only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.eras import meta
from gateway.frontends.http.exchange import ClientGone, Exchange, NullExchange
from gateway.frontends.http.response import CallResponse
from gateway.frontends.legacy.event_store import RESUME_WITHIN

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.calls import ServerRequest, StreamClosed
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.legacy.event_store import EventStore, Log
    from gateway.frontends.legacy.sessions import LegacySession
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id

    Keep = Callable[[Callable[[trio.CancelScope], Awaitable[None]], trio.CancelScope], None]

FIRST_PRIMED: Final = "2025-11-25"
"""The first version whose clients know events without data; older ones would take them for broken messages."""
MAX_RETRY_MS: Final = 30_000
"""The longest that a client is told to wait: by then its events must still be there (`RESUME_WITHIN`)."""
NOWHERE: Final = NullExchange()


class StreamPaused(Exception):
    """The stream was closed for now; its client will come back for the rest."""


class ResumableResponse(CallResponse):
    """The response to one call, with a stream that outlives its connection."""

    def __init__(
        self,
        exchange: Exchange,
        answers: RequestHandler,
        flow: CallStream,
        request_id: Id,
        *,
        session: LegacySession,
        scope: trio.CancelScope,
        keep: Keep,
    ) -> None:
        super().__init__(exchange, answers, flow, request_id)
        self._session = session
        self._scope = scope  # of whoever carries, or will as soon as its predecessor has let go
        self._keep = keep
        self._log: Log | None = None
        self._ended = False
        self._busy = True
        self._freed: trio.Event | None = None

    # Who carries.

    async def carry(self) -> None:
        """Carry the call on the exchange of its POST, inside the scope that was given; see to it that it goes on."""
        scope = self._scope
        try:
            await self.run()
        except (ClientGone, StreamPaused):
            self._hand_over(scope)
        finally:
            self._release(scope)

    async def resume(self, exchange: Exchange, after: int) -> None:
        """Carry on with the stream behind event number `after`, on the exchange of a GET."""
        before, scope = self._scope, trio.CancelScope()
        self._give(scope)
        before.cancel(reason="the client has come back on another connection")
        mine = False
        try:
            with scope:
                while self._busy:  # the predecessor, which has been cancelled, lets go
                    self._freed = trio.Event()
                    await self._freed.wait()
                self._busy = True
                mine, self._exchange = True, exchange
                await replay(exchange, self._session.events, self._log, after)
                if self._ended:
                    await exchange.end_stream()
                else:
                    await self.run()
        except (ClientGone, StreamPaused):
            self._hand_over(scope)
        finally:
            self._release(scope, mine=mine)
        if scope.cancelled_caught:
            await exchange.end_stream()

    async def _carry_alone(self, scope: trio.CancelScope) -> None:
        """Go on while there is no client; what it does not fetch in time is dropped, but the call goes on to its end.

        A disconnect is no cancellation in this era.
        """
        if self._scope is not scope:
            return  # the client was back before this task ran
        self._busy, self._exchange = True, NOWHERE
        try:
            with scope:
                if self._log is not None:
                    with trio.move_on_after(RESUME_WITHIN):
                        await self.run()
                if not self._ended and self._scope is scope:
                    self._forget()
                    await self._answers.wait(self._flow, self._id)
        finally:
            self._release(scope)

    def _hand_over(self, scope: trio.CancelScope) -> None:
        """Have the session go on with a call that has lost its exchange, unless somebody else has it already."""
        if not self._ended and self._scope is scope:
            self._give(trio.CancelScope())
            self._keep(self._carry_alone, self._scope)

    def _give(self, scope: trio.CancelScope) -> None:
        self._scope = scope
        self._session.in_flight.replace(self._id, scope)

    def _release(self, scope: trio.CancelScope, *, mine: bool = True) -> None:
        """Let go; where nobody carries on, the call is over."""
        if mine:
            self._busy = False
            if self._freed is not None:
                self._freed.set()
        if self._scope is scope:
            self._session.in_flight.remove(self._id)
            self._flow.close()
            if not self._ended:
                self._forget()
            elif self._log is not None:
                self._session.replies.pop(self._log.number, None)
            self._session.touch()

    # The stream.

    def _open(self) -> tuple[EventStore, Log, bytes]:
        """Make the response a stream; the id returned primes the client for coming back, if it is to be sent."""
        self._streaming = True
        store = self._session.events
        if self._log is not None:
            return store, self._log, b""
        self._log = log = store.open()
        self._session.replies[log.number] = self
        return store, log, store.mark(log) if self._session.caller.version >= FIRST_PRIMED else b""

    def _forget(self) -> None:
        """Keep nothing of the stream any more."""
        if self._log is not None:
            self._session.events.drop(self._log)
            self._session.replies.pop(self._log.number, None)

    async def _event(self, message: bytes) -> None:
        if self._can_stream:
            store, log, prime = self._open()
            event_id = store.add(log, message)
            await self._send(message, event_id, prime)

    async def _send(self, message: bytes, event_id: bytes, prime: bytes) -> None:
        if prime:
            await self._exchange.mark(prime)
        await self._exchange.event(message, event_id)

    async def _pass_time(self) -> None:
        if self._can_stream:
            _, _, prime = self._open()
            await (self._exchange.mark(prime) if prime else self._exchange.keep_alive())

    async def _end(self, body: bytes, status: int = 200) -> None:
        """Send the answer; its status is always 200, since 404 would tell a legacy client that its session ended."""
        del status
        self._ended = True
        if not self._streaming:
            await self._exchange.json(200, body)
            return
        store, log, prime = self._open()
        text = "the answer was too large to be kept for a client that comes back; ask again"
        lost = jsonrpc.error_response(self._id, jsonrpc.INTERNAL_ERROR, text)
        event_id = store.end(log, body, lost, now=trio.current_time())
        await self._send(body, event_id, prime)
        await self._exchange.end_stream()

    def level(self) -> str | None:
        """What `logging/setLevel` said; everything until then, since the server may decide."""
        return self._session.log_level or meta.LOG_LEVELS[0]

    async def on_ask(self, ask: ServerRequest) -> bool:
        """Send the request; its answer comes in another exchange and is found by the session's desk."""
        if self._can_stream:
            await self._event(self._session.desk.request(ask))
        else:
            ask.refuse(jsonrpc.INTERNAL_ERROR, "the client takes no event stream, so it cannot be asked anything")
        return False

    async def on_withdrawn(self, ask: ServerRequest) -> None:
        """Cancel the request at the client."""
        message = self._session.desk.withdraw(ask)
        if message is not None:
            await self._event(message)

    async def on_stream_closed(self, closed: StreamClosed) -> None:
        """Close the stream as the backend did, and have the client poll ("Sending Messages to the Server", 6).

        Raises:
            StreamPaused: it was closed.
        """
        if not self._can_stream or self._session.caller.version < FIRST_PRIMED or self._exchange is NOWHERE:
            return
        store, log, prime = self._open()
        last = store.mark(log)
        if prime:
            await self._exchange.mark(prime)
        await self._exchange.mark(last, retry=min(closed.retry_ms, MAX_RETRY_MS))
        await self._exchange.end_stream()
        raise StreamPaused


async def replay(exchange: Exchange, store: EventStore, log: Log | None, after: int) -> None:
    """Open a stream and send what was kept of another one behind an event, under the ids that it had."""
    await exchange.keep_alive()
    if log is not None:
        for number, message in log.after(after):
            await exchange.event(message, store.id(log, number))
