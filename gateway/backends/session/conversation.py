"""One session's messages: this hop's ids and progress tokens; matching responses to requests.

Transport-independent and without I/O of its own: it sends messages with `post` and is fed each message in order of
arrival. It also needs `exchanges` if each request travels in an exchange of its own (HTTP), and `reply` if responses to
the backend's own requests are sent in another way. Only `request` waits. Invariant: every call that was sent is
finished exactly once: by its response, by the withdrawal of its pending call, by `finish`, or by `close`.
"""

from __future__ import annotations

import contextlib
import logging
import re
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.session.contracts import PendingRequest
from gateway.backends.session.server_requests import ServerRequestRouter
from gateway.backends.session.tasks import TaskDriver
from gateway.backends.stderr import ONE_LINE, SPREAD
from gateway.calls import Complete, Era, Notification
from gateway.catalog.salvage import salvage
from gateway.eras import meta, requests, results
from gateway.eras.methods import LIST_CHANGED, LISTED_KIND, LISTEN, OPENING
from gateway.errors import BackendError, BackendProtocol, BackendTooSlow, BuffersFull
from gateway.large import set_aside
from gateway.masking import SECRETS
from gateway.rates import LogRate

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.backends.session.contracts import Exchanges, SessionObserver
    from gateway.backends.stderr import StrayLines
    from gateway.calls import Outcome
    from gateway.eras.requests import Hop
    from gateway.errors import Suspect
    from gateway.inflight.pending import PendingCall
    from gateway.lines import OversizedLine

MAX_BATCH: Final = 1_000
"""Maximum messages of one batch, which is handled in one step; no client has more calls in flight at a backend."""
MAX_WITHDRAWN: Final = 64
"""Cancelled calls that the backend may still work on, remembered as suspects in case it dies."""
SUSPECT_FOR: Final = 10.0
"""Seconds for which they are remembered: a client must not escape suspicion by cancelling a call or disconnecting."""
MAX_LOGGED: Final = 200
"""Bytes of an invalid message that are shown in the log."""

log = logging.getLogger("gateway.backend")


class Conversation:
    """The correlation of requests and responses of one backend session.

    A transport drives it: it sends what `post` (or `exchanges`) gets, passes each message that arrives to `feed`, sends
    calls as `encode_call` returns them, runs `tasks`, and calls `close` with the reason when the connection has ended::

        line = conversation.encode_call(pending)  # pending is sent, and waits under conversation.last_id
        conversation.feed(answer)                 # finishes pending, whose supervisor and sink are notified
        conversation.close(BackendExited(...))    # finishes everything else
    """

    def __init__(
        self,
        backend: str,
        *,
        post: Callable[[bytes], None],
        listener: SessionObserver,
        hop: Hop,
        exchanges: Exchanges | None = None,
        reply: Callable[[bytes], None] | None = None,
        stray: StrayLines | None = None,
    ) -> None:
        self.backend = backend
        self.hop = hop
        self.unmatched = 0
        """Responses without a request: late ones after a cancellation, or to unknown ids."""
        self._post = post
        self._reply = reply or post
        self._stray = stray
        self._exchanges = exchanges
        self._listener = listener
        self._calls: dict[int, PendingCall] = {}
        self._withdrawn: dict[int, tuple[Suspect, float]] = {}
        self._waiters: dict[int, PendingRequest] = {}
        self._last_id = 0
        self._closed: BackendError | None = None
        self._rate = LogRate()
        self.tasks = TaskDriver(self, listener.freed)
        """The tasks that the session must `run`."""
        self._server_requests = ServerRequestRouter(
            backend, post=self._reply, calls=self._calls_under_way, for_client=listener.for_client
        )

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return len(self._calls) + len(self.tasks.driven)

    @property
    def last_id(self) -> int:
        """The latest id."""
        return self._last_id

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods of the backend's requests to clients so far."""
        return tuple(self._server_requests.asked)

    @property
    def shares_pipe(self) -> bool:
        """Whether all messages share one pipe, so that they end together."""
        return self._exchanges is None

    @property
    def is_closed(self) -> bool:
        """Whether the process or connection has ended, so that no request can be answered."""
        return self._closed is not None

    def _calls_under_way(self) -> Collection[PendingCall]:
        return [*self._calls.values(), *self.tasks.driven.values()] if self.tasks.driven else self._calls.values()

    def waits_for(self, request_id: int) -> bool:
        """Return whether a request with this id is pending."""
        waiter = self._waiters.get(request_id)
        return request_id in self._calls or (waiter is not None and waiter.outcome is None)

    def pending(self) -> set[int]:
        """The ids of all pending requests."""
        own = {request_id for request_id, waiter in self._waiters.items() if waiter.outcome is None}
        return own | self._calls.keys()

    def encode_call(self, pending: PendingCall) -> bytes:
        """Encode a call as one line, under a new id (then `last_id`), to be posted."""
        request_id = self._last_id = self._last_id + 1
        call = pending.call
        # The id is also the progress token: both must be unique among this sender's active requests.
        token = request_id if call.progress_token is not None else None
        as_task = pending.as_task or (self.hop.era is Era.MODERN and self.tasks.needs_task(pending))
        keys, hop = None, self.hop
        if hop.tracing is not None:
            keys = hop.tracing.begin_call(call, pending.own_name, request_id, era=hop.era, version=hop.modern_version)
        params = requests.backend_params(call, pending.own_name, token, hop, as_task=as_task, trace_keys=keys)
        self._calls[request_id] = pending
        pending.sent(self, request_id, as_task=as_task)
        return jsonrpc.request(request_id, call.method, params) + b"\n"

    def suspects(self) -> list[Suspect]:
        """Return the calls in flight, the latest first."""
        since = trio.current_time() - SUSPECT_FOR
        suspects = {number: suspect for number, (suspect, at) in self._withdrawn.items() if at >= since}
        suspects |= {number: pending.as_suspect() for number, pending in {**self._calls, **self.tasks.driven}.items()}
        return [suspects[number] for number in sorted(suspects, reverse=True)]

    def withdraw(self, request_id: int, pending: PendingCall, reason: str) -> None:
        """Tell the backend to cancel a call (`gateway.inflight.pending.CallCarrier`)."""
        if self._calls.pop(request_id, None) is None:
            return
        self._withdrawn[request_id] = pending.as_suspect(), trio.current_time()
        if len(self._withdrawn) > MAX_WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]
        if pending.as_task and self.hop.era is Era.LEGACY:
            self.tasks.orphan(request_id)
        else:
            self._cancel(request_id, reason)
        self._listener.freed()

    def _cancel(self, request_id: int, reason: str) -> None:
        params = jsonrpc.encode({"requestId": request_id, "reason": reason})
        line = jsonrpc.notification("notifications/cancelled", params) + b"\n"
        if self._exchanges is None:
            self._post(line)
        else:
            self._exchanges.drop(request_id, line)

    def begin(
        self,
        method: str,
        params: dict[str, object] | None = None,
        *,
        pending: PendingCall | None = None,
        on_problem: Callable[[str], None] | None = None,
    ) -> tuple[int, PendingRequest]:
        """Send one of the gateway's own requests; return its id and the pending request.

        `pending` is the call whose task the request is about.
        """
        request_id = self._last_id = self._last_id + 1
        waiter = PendingRequest(LISTED_KIND.get(method), on_problem, opens=method in OPENING)
        self._waiters[request_id] = waiter
        if self._closed is not None:
            waiter.finish(self._closed)
        members, own = dict(params or {}), dict[str, object]()
        if self.hop.era is Era.MODERN:
            caller = None if pending is None else pending.call.caller
            members["_meta"] = own = requests.modern_meta(self.hop, caller, as_task=pending is not None)
        if self.hop.gateways and (method in OPENING or (own and method in LISTED_KIND)):
            members["_meta"] = own = {**own, meta.GATEWAYS: self.hop.gateways}
        if self.hop.tracing is not None and method != LISTEN:
            call = pending and pending.call
            waiter.trace = self.hop.tracing.begin(method, request_id, version=self.hop.modern_version, call=call)
            members["_meta"] = {**own, **waiter.trace.keys}
        line = jsonrpc.request(request_id, method, members) + b"\n"
        if self._closed is None:
            self._send(request_id, method, line, pending)
        return request_id, waiter

    def _send(self, request_id: int, method: str, line: bytes, pending: PendingCall | None) -> None:
        if self._exchanges is None:
            self._post(line)
        else:
            self._exchanges.open(request_id, method, line, pending)

    def end(self, request_id: int, *, reason: str | None = None) -> None:
        """Stop waiting for a response; with a reason, tell the backend to cancel."""
        waiter = self._waiters.pop(request_id, None)
        if waiter is not None and waiter.trace is not None:
            waiter.trace.ended(waiter.outcome)
        if waiter is None or self._closed is not None:
            return
        if reason is not None:
            self._cancel(request_id, reason)
        elif self._exchanges is not None and waiter.outcome is None:
            self._exchanges.drop(request_id, None)

    async def request(
        self,
        method: str,
        params: dict[str, object] | None = None,
        *,
        timeout: float,
        on_problem: Callable[[str], None] | None = None,
    ) -> Outcome:
        """Send one of the gateway's own requests; wait `timeout` seconds for its response.

        After that the outcome is `BackendTooSlow`. On a timeout, or if the wait is cancelled, the request is cancelled
        at the backend (except for `initialize`, which must not be cancelled). `on_problem` receives the entries left
        out of a list.
        """
        request_id, waiter = self.begin(method, params, on_problem=on_problem)
        try:
            with trio.move_on_after(timeout) as patience:
                await waiter.event.wait()
            if patience.cancelled_caught and waiter.trace is not None:
                waiter.trace.ended(BackendTooSlow(self.backend, f"did not answer within {timeout:g} s"))
        finally:
            answered = waiter.outcome is not None
            reason = None if answered or method == "initialize" else "the gateway stopped waiting"
            self.end(request_id, reason=reason)
        return waiter.outcome or BackendTooSlow(self.backend, f"did not answer {method} within {timeout:g} s")

    def notify(self, method: str, params: dict[str, object] | None = None) -> None:
        """Send a notification."""
        self._post(jsonrpc.notification(method, None if params is None else jsonrpc.encode(params)) + b"\n")

    def pass_on(self, method: str, params: msgspec.Raw) -> None:
        """Forward a client's notification; bounded like responses, since clients may send any number."""
        self._reply(jsonrpc.notification(method, None if params is jsonrpc.ABSENT else bytes(params)) + b"\n")

    def feed(self, data: bytes, pending: PendingCall | None = None) -> None:
        """Handle a message; `pending` is the call on whose own stream it arrived.

        In the legacy era it may be a batch: at 2025-03-26 receiving them is a MUST (basic, "Batching").
        """
        if not data.startswith(b"{") and self.hop.era is Era.LEGACY and jsonrpc.is_batch(data):
            try:
                parts = jsonrpc.decode_batch(data, most=MAX_BATCH)
            except jsonrpc.Malformed as exc:
                self._malformed(exc, data)
                return
            for part in parts:
                self._handle_message(part, pending)
        else:
            self._handle_message(data, pending)

    async def feed_large(self, data: bytes, pending: PendingCall | None = None) -> None:
        """Handle a large message as `feed` does, in several steps, between which other tasks run."""
        found = await set_aside(data)
        if found is None or (response := self._read_result(*found, len(data))) is None:
            await trio.lowlevel.checkpoint()
            response = self._read_result(data)
            await trio.lowlevel.checkpoint()
        if response is None:
            self.feed(data, pending)
        else:
            self._handle_response(*response)

    def _read_result(
        self, data: bytes, strings: jsonrpc.LongStrings | None = None, size: int = 0
    ) -> tuple[jsonrpc.Message, Outcome] | None:
        """Read a response with a result; None for others, or if it needs its `strings`."""
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed:
            return None
        if message.method is not msgspec.UNSET or message.result is jsonrpc.ABSENT:
            return None
        outcome: Outcome | None = self.outcome_of(message)
        if strings is not None:
            is_call = isinstance(message.id, int) and message.id not in self._waiters
            outcome = results.with_strings(outcome, strings, size) if is_call else None
        return None if outcome is None else (message, outcome)

    def _handle_message(self, data: bytes, pending: PendingCall | None) -> None:
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed as exc:
            self._malformed(exc, data)
            return
        method, params = message.method, message.params
        if method is msgspec.UNSET:
            self._handle_response(message)
            return
        if message.id is not msgspec.UNSET:
            self._server_requests.request(message, pending or self.tasks.owner(params))
            return
        match method:
            case "notifications/progress":
                self._handle_progress(params)
            case "notifications/message":
                self._server_requests.message(params, pending)
            case "notifications/resources/updated":
                self._handle_resource_updated(params)
            case "notifications/subscriptions/acknowledged":
                self._handle_acknowledged(params)
            case "notifications/elicitation/complete":
                self._server_requests.completed(params)
            case "notifications/cancelled":
                self._server_requests.cancelled(params)
            case "notifications/tasks/status":
                pass  # the gateway polls the state of tasks; clients do not know them
            case _ if method in LIST_CHANGED:
                self._listener.list_changed(LIST_CHANGED[method])
            case _:
                self._server_requests.vendor(method, params, pending)

    def feed_overlong(self, line: OversizedLine, limit: int) -> None:
        """Handle a skipped message: fail its call, or all without an id."""
        first = jsonrpc.recover_id(line.head)
        request_id = jsonrpc.recover_id(line.tail) if first is None else first
        text = f"sent a message of {line.size} bytes; the limit is {limit} (max_line_bytes)"
        problem = BuffersFull(self.backend) if line.unbuffered else BackendProtocol(self.backend, text)
        self._warn("%s", problem)
        if request_id is not None:
            self.finish(request_id, problem)
            return
        if self._stray is not None:
            self._stray.note(line.head)
        for number in list(self._calls):
            self.finish(number, problem)

    def close(self, problem: BackendError) -> None:
        """Finish every pending request, and every later one, with this error."""
        self._closed = problem
        self._server_requests.close()
        self.tasks.close(problem)
        calls, self._calls = self._calls, {}
        for pending in calls.values():
            pending.finish(problem)
        for waiter in list(self._waiters.values()):
            waiter.finish(problem)

    def _malformed(self, problem: jsonrpc.Malformed, data: bytes) -> None:
        """Salvage a list's valid entries; else fail the request with the message's id."""
        known = _number(problem.id) if isinstance(problem.id, str) else problem.id
        waiter = None if known is None else self._waiters.get(known)
        if waiter is not None and waiter.kind is not None and (kept := salvage(data, waiter.kind)) is not None:
            answer, left_out = kept
            for text in left_out:
                if waiter.on_problem is not None:
                    waiter.on_problem(text)
            self._handle_response(jsonrpc.decode(answer))
            return
        stray = self._stray
        if stray is not None and (whole := stray.join(data)) is not None:
            with contextlib.suppress(jsonrpc.Malformed):
                message = jsonrpc.decode(whole)
                spread = BackendProtocol(self.backend, SPREAD)
                self._warn("%s", spread)
                if message.method is msgspec.UNSET and message.id is not msgspec.UNSET and message.id is not None:
                    self.finish(message.id, spread)
                stray.note(data)
                return
        reason = f"answered with a message that is {problem.reason}"
        if stray is not None and stray.is_open:
            reason = f"{reason}; {ONE_LINE}"
        if problem.id is not None and self.finish(problem.id, BackendProtocol(self.backend, reason)):
            return
        if stray is not None:
            stray.note(data)
        shown = data[:MAX_LOGGED].decode(errors="replace")
        text = "backend %r wrote %d bytes that are not an MCP message, skipped: %r"
        self._warn(text, self.backend, len(data), shown)

    def _warn(self, text: str, *args: object) -> None:
        """Log a fault of the backend, rate-limited: it may recur without end."""
        if not self._rate.allows():
            return
        extra = {"backend": self.backend}
        if unreported := self._rate.pop_suppressed():
            log.warning("backend %r: %d warnings not logged: too many", self.backend, unreported, extra=extra)
        log.warning(text, *(SECRETS.mask(arg) if isinstance(arg, str) else arg for arg in args), extra=extra)

    def finish(self, request_id: jsonrpc.Id, outcome: Outcome) -> bool:
        """Finish the request with this id; return whether there is one."""
        if isinstance(request_id, str):
            request_id = _number(request_id)
        pending = self._calls.pop(request_id, None)
        if pending is not None:
            if type(outcome) is not Complete and self.tasks.wants(pending, outcome):
                if pending.call.trace is not None:
                    pending.call.trace.retried(outcome)
                line = self.encode_call(pending)
                self._send(self._last_id, pending.call.method, line, pending)
                return True
            if self._exchanges is not None and not isinstance(outcome, Complete):
                self._exchanges.call_failed(outcome)
            pending.finish(outcome)
            self._listener.freed()
            return True
        waiter = self._waiters.get(request_id)
        if waiter is not None:
            waiter.finish(outcome)
        return waiter is not None

    def _handle_response(self, message: jsonrpc.Message, outcome: Outcome | None = None) -> None:
        """Finish the request of a response; `outcome` is its outcome, if already known."""
        request_id = message.id
        if request_id is msgspec.UNSET or request_id is None:
            if message.error is jsonrpc.ABSENT:
                return
            # While the session is being opened, an error without an id can only be about the request that opens it.
            waiters = self._waiters.values()
            opening = next((waiter for waiter in waiters if waiter.opens and waiter.outcome is None), None)
            if opening is not None:
                opening.finish(self.outcome_of(message))
                return
            error = jsonrpc.decode_error(message.error)
            self._warn("backend %r reported an error without an id: %s", self.backend, error.message[:MAX_LOGGED])
            return
        number = request_id if isinstance(request_id, int) else _number(request_id)
        pending = self._calls.get(number)
        may_be_task = message.result is not jsonrpc.ABSENT and (pending is None or pending.as_task)
        if may_be_task and self.tasks.adopt(number, pending, message.result):
            self._calls.pop(number, None)
            return
        if not self.finish(number, self.outcome_of(message) if outcome is None else outcome):
            self._withdrawn.pop(number, None)
            self.unmatched += 1
            log.debug("backend %r answered an unknown id: %r", self.backend, request_id)

    def outcome_of(self, message: jsonrpc.Message) -> Outcome:
        """Read a response in the era of this hop."""
        return results.read_response(message, self.hop.era, self.backend)

    def _handle_resource_updated(self, params: msgspec.Raw) -> None:
        try:
            members = jsonrpc.decode_object(params)
            uri = jsonrpc.decode_string(members["uri"])
            meta.drop_nulls("notifications/resources/updated", members)
        except (ValueError, KeyError):
            log.debug("backend %r sent an update without a uri", self.backend)
            return
        meta.drop_key(members, meta.SUBSCRIPTION_ID)  # its id is valid on one hop only
        self._listener.resource_updated(uri, members)

    def _handle_acknowledged(self, params: msgspec.Raw) -> None:
        try:
            own = jsonrpc.decode_object(jsonrpc.decode_object(params)["_meta"])
            request_id = jsonrpc.decode_id(own[meta.SUBSCRIPTION_ID])
        except (ValueError, KeyError):
            return
        waiter = self._waiters.get(request_id) if isinstance(request_id, int) else None
        if waiter is not None:
            waiter.acknowledged.set()

    def _handle_progress(self, params: msgspec.Raw) -> None:
        """Route progress to its call, under the token that the client gave."""
        try:
            members = jsonrpc.decode_object(params)
            token = jsonrpc.decode_id(members[meta.PROGRESS_TOKEN])
            meta.drop_nulls("notifications/progress", members)
        except (ValueError, KeyError):
            log.debug("backend %r sent progress without a token", self.backend)
            return
        pending = self._calls.get(token) or self.tasks.driven.get(token) if isinstance(token, int) else None
        if pending is None or pending.call.progress_token is None:
            self.unmatched += 1
            return
        members[meta.PROGRESS_TOKEN] = jsonrpc.raw(pending.call.progress_token)
        pending.notify(Notification("notifications/progress", members))


def _number(request_id: str) -> int:
    """Return our id, which some servers turn into a string; -1 for others."""
    return int(request_id) if re.fullmatch(r"[0-9]{1,18}", request_id) else -1
