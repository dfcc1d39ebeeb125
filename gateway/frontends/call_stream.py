"""A call as its client sees it: events, then one outcome, however many rounds.

For a legacy client of a modern backend, `input_required` is not an outcome: the stream asks the client for the input,
and sends the call again with the answers, under the same keys, and the byte-exact `requestState` (2026-07-28
basic/patterns/mrtr). For all others it only passes on the events of its pending call. Its holder closes it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import Era, Failure, InputRequired, Notification, ServerRequest, StreamClosed
from gateway.eras import asks
from gateway.eras.methods import CAPABILITY
from gateway.errors import BackendProtocol, GatewayError
from gateway.inflight.pending import MAX_NOTICES

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls import Call, Event, Outcome, Withdrawn
    from gateway.inflight.pending import PendingCall
    from gateway.router import Router

MAX_ROUNDS: Final = 10
"""Rounds of input that a backend may ask for in one call."""
EMPTY_ROUND_DELAY: Final = 0.2
"""Seconds before a call is sent again without new input; grows with each round."""


class CallStream:
    """A pending call as its frontend sees it."""

    def __init__(self, router: Router, pending: PendingCall) -> None:
        self.call = pending.call
        self._router = router
        self._pending = pending
        self._holder = object()
        self.token = pending.call.progress_token
        self.level = pending.call.caller.log_level
        self.caller = pending.call.caller
        """The present caller: each request of a modern client declares its capabilities again."""
        self._kept: deque[Notification] = deque(maxlen=MAX_NOTICES)
        self._asked = 0
        self._rounds = 0
        self._in_round = False
        """Whether the backend waits for answers: its call has ended, and the next one is not sent yet."""
        self._asks: list[ServerRequest] = []
        self._answers: dict[str, msgspec.Raw] = {}
        self._refused: Failure | None = None
        self._open = 0
        self._answers_by = self._send_again_at = 0.0
        self._answered = trio.Event()
        self._state = jsonrpc.NULL

    async def next(self) -> Event | Outcome | None:
        """Wait for the next event or the outcome; return None if the call was closed.

        Cancelling the wait leaves the stream open.
        """
        if self._kept:
            return self._kept.popleft()
        return await self.next_fresh()

    async def next_fresh(self) -> Event | Outcome | None:
        """Like `next`, ignoring kept notifications."""
        if self._asks:
            return self._asks.pop(0)
        while True:
            if self._in_round:
                problem = await self._answer_round()
                if problem is not None:
                    return problem
            item = await self._pending.next()
            if not isinstance(item, InputRequired) or self.call.caller.era is Era.MODERN:
                return item
            problem = self._begin_round(item)
            if problem is not None:
                return problem
            self._in_round = True
            if self._asks:
                return self._asks.pop(0)

    async def next_but_notices(self) -> ServerRequest | Withdrawn | Outcome | None:
        """Like `next`, but keep notifications for later, the newest `MAX_NOTICES` of them."""
        while True:
            item = await self.next_fresh()
            if isinstance(item, Notification):
                self._kept.append(item)
            elif not isinstance(item, StreamClosed):
                return item

    def number_ask(self) -> int:
        """Return a number for a server request, unique within the call."""
        self._asked += 1
        return self._asked

    def acquire(self) -> object:
        """Become the holder of the stream; return the token for `release_by`.

        The previous holder loses it: the response that suspends a call may still be on its way when the retry arrives.
        """
        self._holder = object()
        return self._holder

    def release_by(self, holder: object, reason: str = "the client cancelled the request") -> None:
        """Close the stream, unless it has another holder by now."""
        if self._holder is holder:
            self.close(reason)

    def resume(self, retry: Call) -> None:
        """Continue the call for another request of its client, with that request's progress token."""
        self.token = retry.progress_token
        self.level = retry.caller.log_level
        self.caller = retry.caller
        self._pending.extend()

    def close(self, reason: str = "the client cancelled the request") -> None:
        """Release the call; cancel it at its backend unless it has ended. Safe to repeat."""
        self._router.release(self._pending, reason)
        if self.call.trace is not None:
            self.call.trace.cancelled(reason)

    def drop_outcome(self) -> None:
        """Free the outcome, which has been encoded."""
        self._pending.drop_outcome()

    def _begin_round(self, required: InputRequired) -> GatewayError | None:
        """Turn the backend's input requests into server requests to the client."""
        self._rounds += 1
        backend = self._pending.backend
        if self._rounds > MAX_ROUNDS:
            return BackendProtocol(backend, f"asked for input more than {MAX_ROUNDS} times in one call")
        try:
            body = asks.read_input_required(required.result)
        except ValueError as exc:
            return BackendProtocol(backend, f"asked for input in an invalid form: {exc}")
        now = trio.current_time()
        self._answers_by, self._send_again_at = now + self._pending.timeout, now + EMPTY_ROUND_DELAY * self._rounds
        requests = body.wanted or {}
        self._state, self._answers, self._open = body.state, {}, len(requests)
        for key, wanted in requests.items():
            if wanted.method not in CAPABILITY:
                return BackendProtocol(backend, f"asked for {wanted.method!r}, which is not an input request")
            try:
                params = asks.for_version(wanted.method, wanted.params, self.call.caller.version)
            except ValueError as exc:
                return BackendProtocol(backend, f"asked for input that this client does not support: {exc}")
            params = asks.for_legacy_client(wanted.method, params)
            ask = ServerRequest(wanted.method, params, self._answer_callback(key, wanted.method))
            ask.trace = None if self.call.trace is None else self.call.trace.ask(wanted.method)
            missing = asks.missing_capability(self.call.caller, wanted.method, params)
            if missing is not None:
                ask.refuse(jsonrpc.METHOD_NOT_FOUND, f"the client has not declared the capability {missing}")
            else:
                self._asks.append(ask)
        return None

    def _answer_callback(self, key: str, method: str) -> Callable[[bytes | Failure], None]:
        def record_answer(reply: bytes | Failure) -> None:
            answer = asks.answer_to_refusal(method) if isinstance(reply, Failure) else reply
            if answer is None:
                self._refused = self._refused or (reply if isinstance(reply, Failure) else None)
            else:
                self._answers[key] = msgspec.Raw(answer)
            self._open -= 1
            self._answered.set()

        return record_answer

    async def _answer_round(self) -> Failure | GatewayError | None:
        """Send the call again with the client's answers; return the failure that ends it instead."""
        with trio.move_on_at(self._answers_by) as scope:
            while self._open:
                self._answered = trio.Event()
                await self._answered.wait()
        if scope.cancelled_caught and trio.current_time() >= self._answers_by:
            return BackendProtocol(self._pending.backend, "asked for input that the client did not give in time")
        if self._refused is not None:
            return self._refused
        if not self._answers:
            await trio.sleep_until(self._send_again_at)
        params = dict(self.call.params)
        if self._answers:
            params["inputResponses"] = jsonrpc.raw(self._answers)
        if self._state != jsonrpc.NULL:
            params["requestState"] = self._state
        call = msgspec.structs.replace(self.call, params=params)
        try:
            old, self._pending = self._pending, await self._router.submit(call, again=True)
        except GatewayError as problem:
            return problem
        self._in_round = False
        self._router.release(old)
        return None
