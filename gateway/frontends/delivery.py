"""The delivery of a call's events and outcome to its client, for every frontend.

Most calls have no task. `Delivery` is the sink of its pending call: the backend's reader ends the call, and in that
same step the response is encoded for the client's era and written without waiting. Anything else (an event before the
outcome, another round of input, a keep-alive) starts the call's task in the frontend's nursery, which runs the one loop
that delivers events, `Delivery.deliver`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

import trio

from gateway import jsonrpc
from gateway.calls import Era, InputRequired, Notification, ServerRequest, StreamClosed, Withdrawn
from gateway.eras import meta
from gateway.errors import GatewayError
from gateway.frontends.call_stream import CallStream
from gateway.frontends.request_handler import encode_notice, is_wanted
from gateway.large import joined

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gateway.calls import Call, Event, Outcome
    from gateway.frontends.legacy.sessions import InFlight, LegacySession
    from gateway.frontends.request_handler import RequestHandler
    from gateway.inflight.pending import PendingCall
    from gateway.jsonrpc import Body, Id


class Delivery(ABC):
    """One call of a client until its response is written. Implements `gateway.inflight.pending.ClientSink`.

    `session` is the client's legacy session; a modern client has none. `in_flight` is the table of its requests by id;
    over HTTP a modern client has none either. Subclasses are the transports.
    """

    __slots__ = ("_handler", "_in_flight", "_pending", "call", "request_id", "session")

    def __init__(
        self,
        handler: RequestHandler,
        call: Call,
        request_id: Id,
        session: LegacySession | None,
        in_flight: InFlight | None,
    ) -> None:
        self._handler = handler
        self._in_flight = in_flight
        self._pending: PendingCall | None = None
        self.call = call
        self.request_id = request_id
        self.session = session

    # Without a task.

    def begin(self) -> bool:
        """Submit the call, or respond with its refusal; return False if the response must wait."""
        caller = self.call.caller
        if caller.era is Era.MODERN and ("requestState" in self.call.params or caller.log_level is not None):
            return False
        if self._in_flight is not None:
            self._in_flight.replace(self.request_id, self)
        if self._handler.tracing is not None:
            self.call.trace = self._handler.tracing.begin_call(self.call, self.request_id)
        try:
            self._pending = self._handler.router.submit_now(self.call, sink=self, patience=self.patience())
        except GatewayError as exc:
            self._forget()
            self.respond(*self._handler.encode_error(self.request_id, exc, caller.era, self.call))
            return True
        if self._pending is None:
            self._forget()
        return self._pending is not None

    def finish(self, pending: PendingCall, outcome: Outcome) -> None:
        """Write the response."""
        if isinstance(outcome, InputRequired) and self.call.caller.era is Era.LEGACY:
            self.start_task(pending)  # another round
            return
        self._handler.router.release(pending)
        if self._in_flight is not None:
            self._in_flight.remove(self.request_id)
        self.respond(*self._handler.encode_outcome(self.call, self.request_id, outcome))

    def start_task(self, pending: PendingCall) -> None:
        """Deliver the rest in a task."""
        self.spawn(CallStream(self._handler.router, pending))

    def give_task(self) -> None:
        """Deliver the rest in a task, without an event to begin with."""
        if self._pending is not None and self._pending.detach_sink() is not None:
            self.start_task(self._pending)

    def cancel(self, *, reason: str) -> None:
        """Cancel the call while it has no task; it gets no response."""
        if self._pending is not None:
            self._handler.router.release(self._pending, reason)
        if self.call.trace is not None:
            self.call.trace.cancelled(reason)
        self._forget()

    def fail(self, problem: Exception) -> None:
        """End the client's connection because of a bug."""
        Delivery.cancel(self, reason="the gateway has failed")  # a subclass may respond to a cancellation
        self.disconnect(problem)

    def _forget(self) -> None:
        if self._in_flight is not None:
            self._in_flight.remove(self.request_id)

    # In a task.

    async def deliver(self, stream: CallStream, item: Event | Outcome | None = None) -> tuple[Body, int | None] | None:
        """Deliver events, `item` first; return the response and its error code.

        Return None if the call was closed.

        The caller releases the stream.
        """
        while True:
            if item is None:
                item = await self._next(stream)
            if isinstance(item, ServerRequest):
                answer = await self.ask(stream, item)
                if isinstance(answer, bytes):
                    return answer, None
                item = answer
                if item is None:
                    continue
            match item:
                case None:
                    return None
                case Notification():
                    level = stream.level if self.session is None else self.session.log_level or meta.LOG_LEVELS[0]
                    if is_wanted(item, level):
                        await self.send(encode_notice(item, stream.token))
                case Withdrawn():
                    if (
                        self.session is not None
                        and (cancel := self.session.server_requests.withdraw(item.ask)) is not None
                    ):
                        await self.send(cancel)
                case StreamClosed():
                    await self.pause_stream(item.retry_ms)
                case _:
                    response = self._handler.encode_outcome(self.call, self.request_id, item)
                    stream.drop_outcome()
                    return response
            item = None

    async def response(self, stream: CallStream) -> bytes:
        """Deliver events; return the response, and release the stream."""
        holder = stream.acquire()
        try:
            response = await self.deliver(stream)
        finally:
            stream.release_by(holder)
        if response is None:
            return jsonrpc.error_response(self.request_id, jsonrpc.INTERNAL_ERROR, "the request was cancelled")
        body = response[0]
        return body if isinstance(body, bytes) else await joined(body)

    async def _next(self, stream: CallStream) -> Event | Outcome | None:
        """Return the next event; meanwhile, keep the client's stream alive."""
        while True:
            with trio.move_on_after(self.patience()):
                try:
                    return await stream.next()
                except GatewayError as exc:  # another round of the call was refused
                    return exc
            await self.keep_alive()

    async def ask(self, stream: CallStream, request: ServerRequest) -> bytes | Outcome | None:
        """Pass a server request to the client; return the response if its request ends."""
        if self.session is None:
            return await self._handler.ask_modern(stream, self.request_id, request)
        await self.send(self.session.server_requests.request(request))
        return None

    # Implemented by the transports.

    @abstractmethod
    def respond(self, body: Body, code: int | None) -> None:
        """Write the response, without waiting; `code` is the error's."""

    @abstractmethod
    def spawn(self, stream: CallStream) -> None:
        """Start the task that delivers the rest."""

    @abstractmethod
    def disconnect(self, problem: Exception) -> None:
        """End the client's connection because of a bug. It must not raise."""

    @abstractmethod
    async def send(self, message: bytes) -> None:
        """Write a message before the response; wait while the client does not read."""

    def patience(self) -> float:
        """Seconds without an event after which `keep_alive` is due."""
        return float("inf")

    async def keep_alive(self) -> None:  # ruff: ignore[empty-method-without-abstract-decorator] - most need none
        """Tell the client that the call is still running."""

    async def pause_stream(self, retry_ms: int) -> None:  # ruff: ignore[empty-method-without-abstract-decorator]
        """Close the client's stream for a time, as the backend did; optional for transports."""


class MessageStream(Protocol):
    """The one stream of all messages to a client: stdio's or an SSE client's."""

    def respond(self, request_id: Id, body: bytes) -> None:
        """Write a response without waiting, within the bounds of the stream."""
        ...

    def start_request(self, request_id: Id, era: Era, response: Coroutine[Any, Any, bytes]) -> None:
        """Start a task that writes a response, in a scope of the request table."""
        ...

    def fail(self, problem: Exception) -> None:
        """End the client's connection because of a bug."""
        ...

    async def send(self, message: bytes) -> None:
        """Write a message; wait while the client does not read."""
        ...


class StreamDelivery(Delivery):
    """One call of a client with a single stream for all messages."""

    __slots__ = ("_stream",)

    def __init__(
        self,
        stream: MessageStream,
        handler: RequestHandler,
        call: Call,
        request_id: Id,
        session: LegacySession | None,
        in_flight: InFlight,
    ) -> None:
        super().__init__(handler, call, request_id, session, in_flight)
        self._stream = stream

    def respond(self, body: Body, code: int | None) -> None:
        """Write the response."""
        del code
        if isinstance(body, bytes):
            self._stream.respond(self.request_id, body)
        else:
            self._stream.start_request(self.request_id, self.call.caller.era, joined(body))

    def spawn(self, stream: CallStream) -> None:
        """Start the task that delivers the rest."""
        self._stream.start_request(self.request_id, self.call.caller.era, self.response(stream))

    def disconnect(self, problem: Exception) -> None:
        """End the stream because of a bug."""
        self._stream.fail(problem)

    async def send(self, message: bytes) -> None:
        """Write a message; wait while the client does not read."""
        await self._stream.send(message)
