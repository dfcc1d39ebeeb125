"""The response of one HTTP exchange, made from one call's events and outcome.

JSON if the outcome arrives before any event, written in the step that reads the backend's response; a stream from the
first event on, or after `sse_after` seconds of silence, with comments to keep it alive. A client that accepts no stream
gets JSON and no events. The modern era is below, the legacy one in `frontends/legacy/resumable.py`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from gateway.calls import Notification, ServerRequest, StreamClosed, Withdrawn
from gateway.eras import errors as wire_errors
from gateway.frontends.delivery import Delivery
from gateway.frontends.http.exchange import ClientGone, Exchange
from gateway.jsonrpc import INTERNAL_ERROR

if TYPE_CHECKING:
    from gateway.calls import Call, Event, Outcome
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.legacy.sessions import LegacySession
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Body, Id

WATCH_AFTER: Final = 0.02
"""Seconds a call may run in a task before another task watches for its client's disconnect, which quick calls do not
need: an earlier disconnect is not lost, it waits in the server's queue."""
HUNG_UP: Final = "the client hung up"


class HttpDelivery(Delivery):
    """The response to one call; with `can_stream` false its events are dropped."""

    __slots__ = ("_can_stream", "_exchange", "_streaming")

    def __init__(
        self,
        exchange: Exchange,
        handler: RequestHandler,
        call: Call,
        request_id: Id,
        session: LegacySession | None = None,
        *,
        can_stream: bool = True,
    ) -> None:
        super().__init__(handler, call, request_id, session, None if session is None else session.in_flight)
        self._exchange = exchange
        self._can_stream = can_stream and exchange.accepts_stream
        self._streaming = not exchange.accepts_json

    # Without a task.

    def respond(self, body: Body, code: int | None) -> None:
        """Write the response."""
        self._exchange.respond_nowait(self.status(code), body)

    def disconnect(self, problem: Exception) -> None:
        """Have the connection's task report the bug and answer 500."""
        self._exchange.start_task(partial(_raise, problem))

    def spawn(self, stream: CallStream) -> None:
        """Have a task of the connection deliver the rest."""
        self._exchange.start_task(partial(self.run, stream))

    def status(self, code: int | None) -> int:
        """Return the HTTP status of a response, from its error code."""
        return 200 if code is None else wire_errors.http_status(code)

    # In a task.

    async def run(self, stream: CallStream, first: Event | Outcome | None = None) -> None:
        """Deliver events, `first` before the others, until the response is complete. Raises ClientGone."""
        response = await self.deliver(stream, first)
        if response is None:  # closed: the client cancelled, and gets no response
            await self._exchange.end_stream()
        else:
            await self.end(*response)

    async def end(self, body: Body, code: int | None) -> None:
        """Send the response, and complete the exchange."""
        if self._streaming:
            await self._exchange.event(body)
            await self._exchange.end_stream()
        else:
            await self._exchange.json(self.status(code), body)

    async def send(self, message: bytes) -> None:
        """Send an event, which makes the response a stream."""
        if self._can_stream:
            self._streaming = True
            await self._exchange.event(message)

    def patience(self) -> float:
        """Return the seconds of silence after which a keep-alive is due."""
        settings = self._handler.settings
        return settings.keep_alive_interval if self._streaming else settings.sse_after

    async def keep_alive(self) -> None:
        """Send a comment, which makes the response a stream."""
        if self._can_stream:
            self._streaming = True
            await self._exchange.keep_alive()

    async def ask(self, stream: CallStream, request: ServerRequest) -> bytes | Outcome | None:
        """Pass a server request to the client, if it accepts a stream."""
        if self.session is None or self._can_stream:
            return await super().ask(stream, request)
        request.refuse(INTERNAL_ERROR, "the client accepts no event stream, so server requests cannot reach it")
        return None


class ModernDelivery(HttpDelivery):
    """The response to a modern call: a disconnect cancels, a server request suspends it."""

    __slots__ = ()

    def spawn(self, stream: CallStream) -> None:
        """Have a task of the connection deliver the rest."""
        self._exchange.start_task(partial(self.carry, stream))

    def begin(self) -> bool:
        """Submit the call without a task, until the client disconnects."""
        self._exchange.on_disconnect(partial(self.cancel, reason=HUNG_UP))
        return super().begin()

    async def carry(self, stream: CallStream) -> None:
        """Deliver the response to its end, or until the client disconnects. Raises ClientGone."""
        holder = stream.acquire()
        try:
            first: Event | Outcome | None = None
            with trio.move_on_after(WATCH_AFTER):
                first = await stream.next()
            if first is not None and not isinstance(first, Notification | ServerRequest | Withdrawn | StreamClosed):
                response = self._handler.encode_outcome(self.call, self.request_id, first)
                first = None  # neither the pending call nor this task keeps it alive while it is sent
                stream.drop_outcome()
                await self.end(*response)
                return
            gone = False
            async with trio.open_nursery() as nursery:

                async def watch_client() -> None:
                    nonlocal gone
                    await self._exchange.hung_up()
                    gone = True
                    nursery.cancel_scope.cancel(reason=HUNG_UP)

                nursery.start_soon(watch_client)
                await self.run(stream, first)
                nursery.cancel_scope.cancel(reason="the response is complete")
            if gone:
                raise ClientGone
        finally:
            stream.release_by(holder, HUNG_UP)


async def _raise(problem: Exception) -> None:
    await trio.lowlevel.checkpoint()
    raise problem
