"""How one call's events and outcome become the response of one HTTP exchange.

JSON when the outcome comes with nothing before it; a stream from the first event, or after `sse_after` seconds of
silence, with comments to keep it alive. A client that takes no stream gets JSON and no events. What the two eras do
differently is left to subclasses: the modern one below, the legacy one in `resumable`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final

import trio

from gateway.calls import Notification, ServerRequest, StreamClosed, Withdrawn
from gateway.eras import errors as wire_errors
from gateway.errors import GatewayError
from gateway.frontends.http.exchange import ClientGone, Exchange
from gateway.frontends.request_handler import RequestHandler, encode_notice, is_wanted

if TYPE_CHECKING:
    from gateway.calls import Event, Outcome
    from gateway.frontends.call_stream import CallStream
    from gateway.jsonrpc import Id

WATCH_AFTER: Final = 0.02
"""Seconds a call may run before a task watches for its client's hang-up: quick calls do without. A hang-up that comes
earlier is not lost, it waits in the server's queue."""


class CallResponse(ABC):
    """The response to one call."""

    def __init__(self, exchange: Exchange, answers: RequestHandler, flow: CallStream, request_id: Id) -> None:
        self._exchange = exchange
        self._answers = answers
        self._flow = flow
        self._id = request_id
        self._can_stream = exchange.accepts(b"text/event-stream")
        self._streaming = not exchange.accepts(b"application/json")

    def level(self) -> str | None:
        """The least severe log messages that the client wants to see."""
        return self._flow.call.caller.log_level

    @abstractmethod
    async def on_ask(self, ask: ServerRequest) -> bool:
        """Bring a request to the client; returns whether the response ends with that."""

    @abstractmethod
    async def on_withdrawn(self, ask: ServerRequest) -> None:
        """Take a request back."""

    async def on_stream_closed(self, closed: StreamClosed) -> None:
        """The backend wants to be asked again later; most clients need not know."""
        del closed

    async def run_watched(self) -> None:
        """Carry the response to its end, unless the client hangs up: modern clients cancel that way.

        Raises:
            ClientGone: the client hung up; the caller closes the flow.
        """
        item: Event | Outcome | None = None
        with trio.move_on_after(WATCH_AFTER):
            item = await self._flow.next()
        if (
            item is not None
            and not isinstance(item, Notification | ServerRequest | Withdrawn | StreamClosed)
            and not self._streaming
        ):
            await self._finish(item)
            return
        gone = False
        async with trio.open_nursery() as nursery:

            async def watch_client() -> None:
                nonlocal gone
                await self._exchange.hung_up()
                gone = True
                nursery.cancel_scope.cancel(reason="the client hung up")

            nursery.start_soon(watch_client)
            await self.run(item)
            nursery.cancel_scope.cancel(reason="the response is complete")
        if gone:
            raise ClientGone

    async def run(self, item: Event | Outcome | None = None) -> None:
        """Send what comes until the outcome. Raises ClientGone."""
        settings = self._answers.settings
        while True:
            if item is None:
                patience = settings.keep_alive_interval if self._streaming else settings.sse_after
                with trio.move_on_after(patience) as silence:
                    try:
                        item = await self._flow.next()
                    except GatewayError as exc:  # a further round of the call was refused
                        item = exc
                if silence.cancelled_caught:
                    await self._pass_time()
                    continue
                if item is None:  # closed: the client cancelled, and gets no answer
                    await self._exchange.end_stream()
                    return
            if isinstance(item, Notification):
                if is_wanted(item, self.level()):
                    await self._event(encode_notice(item, self._flow.token))
            elif isinstance(item, ServerRequest):
                if await self.on_ask(item):
                    return
            elif isinstance(item, Withdrawn):
                await self.on_withdrawn(item.ask)
            elif isinstance(item, StreamClosed):
                await self.on_stream_closed(item)
            else:
                await self._finish(item)
                return
            item = None

    async def _event(self, message: bytes) -> None:
        if self._can_stream:
            self._streaming = True
            await self._exchange.event(message)

    async def _pass_time(self) -> None:
        if self._can_stream:
            self._streaming = True
            await self._exchange.keep_alive()

    async def _finish(self, outcome: Outcome) -> None:
        body, code = self._answers.encode_outcome(self._flow.call, self._id, outcome)
        await self._end(body, 200 if code is None else wire_errors.http_status(code))

    async def _end(self, body: bytes, status: int = 200) -> None:
        if self._streaming:
            await self._exchange.event(body)
            await self._exchange.end_stream()
        else:
            await self._exchange.json(status, body)


class ModernCallResponse(CallResponse):
    """A request to the client ends the response with `input_required`; the call is parked (basic/patterns/mrtr)."""

    def level(self) -> str | None:
        """What this request asked for; a retry may ask for another level than the first request."""
        return self._flow.level

    async def on_ask(self, ask: ServerRequest) -> bool:
        """Park the call."""
        answer = await self._answers.ask_modern(self._flow, self._id, ask)
        if answer is None:
            return False
        if isinstance(answer, bytes):
            await self._end(answer)
        else:
            await self._finish(answer)
        return True

    async def on_withdrawn(self, ask: ServerRequest) -> None:
        """Nothing was sent."""
        del ask
