"""The tasks of one backend session, driven so that their tools work like any other.

A call that began a task stays in flight until the task has ended: the driver polls it with `tasks/get`, passes its
requests to the client, and turns a cancellation into `tasks/cancel`. It uses only the conversation, so it works over
every transport. Owned by the session, which runs `run`; each driven call is a task of its nursery and ends with its
pending call, whose deadline bounds every wait.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure, ServerRequest
from gateway.eras import asks, tasks
from gateway.eras.methods import CAPABILITY
from gateway.errors import BackendError, BackendProtocol, BackendTooSlow, BackendUnavailable, GatewayError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from gateway.backends.session.contracts import PendingRequest
    from gateway.calls import Outcome
    from gateway.eras.requests import Hop
    from gateway.inflight.pending import PendingCall

POLL_TIMEOUT: Final = 30.0
"""Seconds for the response to `tasks/get`, which must not depend on the task's progress."""
CANCEL_TIMEOUT: Final = 5.0
"""Seconds for the response to `tasks/cancel`, which only our own bookkeeping needs."""
MAX_ORPHANS: Final = 64
"""Remembered calls that were cancelled before their task had an id; the task is cancelled once it has one."""
MAX_JOBS: Final = 1_024
"""Queued starts of drivers and cancellations; calls in flight are bounded by `max_concurrency` anyway."""
MAX_KNOWN: Final = 1_024
"""Remembered tools of a modern server that run only as tasks."""

log = logging.getLogger("gateway.backend")


class RequestSender(Protocol):
    """The part of the conversation that sends the driver's own requests."""

    backend: str
    hop: Hop

    def begin(
        self, method: str, params: dict[str, object] | None = None, *, pending: PendingCall | None = None
    ) -> tuple[int, PendingRequest]:
        """Send a request; `pending` is the call whose task it is about."""
        ...

    def end(self, request_id: int, *, reason: str | None = None) -> None:
        """Stop waiting for a response; with a reason, tell the backend to cancel."""
        ...


class _Driven:
    """Carries a call that has become a task (`gateway.inflight.pending.CallCarrier`)."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self._scope = scope

    def withdraw(self, request_id: int, pending: PendingCall, reason: str) -> None:
        """End the driver of the call, which then notifies the backend."""
        del request_id, pending
        self._scope.cancel(reason=reason)


class TaskDriver:
    """The tasks of one session."""

    def __init__(self, conversation: RequestSender, freed: Callable[[], None]) -> None:
        self.driven: dict[int, PendingCall] = {}
        """Calls that are tasks now, by the id (and progress token) that began them. Read only."""
        self._conversation = conversation
        self._freed = freed
        self._by_task: dict[str, PendingCall] = {}
        self._orphans: dict[int, None] = {}
        self._known: dict[str, None] = {}
        self._send, self._receive = trio.open_memory_channel["Callable[[], Awaitable[object]]"](MAX_JOBS)

    # Called by the conversation; none of it waits.

    def needs_task(self, pending: PendingCall) -> bool:
        """Return whether to send this call as a possible task, even to an unmarked tool."""
        if pending.call.method != "tools/call":
            return False
        # A client may declare the extension although the gateway does not; its call may then become a task too.
        return tasks.EXTENSION.encode() in bytes(pending.call.caller.capabilities) or pending.own_name in self._known

    def orphan(self, request_id: int) -> None:
        """Note that a call was cancelled before its task had an id.

        `tasks/cancel` is sent once it has one.
        """
        while len(self._orphans) >= MAX_ORPHANS:
            del self._orphans[next(iter(self._orphans))]
        self._orphans[request_id] = None

    def adopt(self, request_id: int, pending: PendingCall | None, result: msgspec.Raw) -> bool:
        """Take over a call whose response is a task; return False for an ordinary result."""
        if pending is None:
            if request_id not in self._orphans:
                return False
            del self._orphans[request_id]
        elif not pending.as_task:
            return False
        state = tasks.read_created(result, self._conversation.hop.era)
        if state is None:
            return pending is None
        if pending is None:
            self._begin(partial(self._cancel, state.taskId, None))
            return True
        self.driven[request_id] = self._by_task[state.taskId] = pending
        scope = trio.CancelScope()
        pending.sent(_Driven(scope), request_id, as_task=True, task_id=state.taskId)
        if not self._begin(partial(self._drive, request_id, pending, state, scope)):
            self._end(request_id, BackendUnavailable(self._conversation.backend, "has too many tasks in progress"))
        return True

    def wants(self, pending: PendingCall, outcome: Outcome) -> bool:
        """Return whether a call was refused for not being a task, and to resend it."""
        if (
            pending.as_task
            or pending.over
            or self._conversation.hop.era is not Era.MODERN
            or not tasks.is_wanted(outcome)
        ):
            return False
        while len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[pending.own_name] = None
        return True

    def owner(self, params: msgspec.Raw) -> PendingCall | None:
        """Return the call whose task a message belongs to."""
        if not self.driven or b"related-task" not in bytes(params):
            return None
        try:
            return self._by_task.get(tasks.related(jsonrpc.decode_object(params)))
        except ValueError:
            return None

    def close(self, problem: BackendError) -> None:
        """Finish every driven call: the session is over."""
        for request_id in list(self.driven):
            self._end(request_id, problem)

    # The driver.

    async def run(self) -> None:
        """Start queued drivers and cancellations, until cancelled."""
        async with trio.open_nursery() as nursery:
            async for job in self._receive:
                nursery.start_soon(job)

    def _begin(self, job: Callable[[], Awaitable[object]]) -> bool:
        try:
            self._send.send_nowait(job)
        except trio.WouldBlock:
            return False
        return True

    def _end(self, request_id: int, outcome: Outcome) -> None:
        pending = self.driven.pop(request_id, None)
        if pending is None:
            return
        self._by_task.pop(pending.task_id, None)
        pending.finish(outcome)
        self._freed()

    async def _drive(self, request_id: int, pending: PendingCall, state: tasks.State, scope: trio.CancelScope) -> None:
        outcome: Outcome | None = None
        backend = self._conversation.backend
        with scope:
            poll = self._poll_legacy if self._conversation.hop.era is Era.LEGACY else self._poll_modern
            outcome = await poll(pending, state)
        if pending.over or isinstance(outcome, GatewayError):
            self._begin(partial(self._cancel, state.taskId, pending))
        self._end(request_id, outcome or BackendProtocol(backend, "was asked to cancel the task of this call"))

    async def _poll_legacy(self, pending: PendingCall, state: tasks.State) -> Outcome:
        """Wait until the task ends or needs input, then for `tasks/result`, which carries its requests."""
        while state.status == "working":
            await trio.sleep(state.pause)
            fetched = await self._fetch_status(pending)
            if not isinstance(fetched, tasks.State):
                return fetched
            state = fetched
        outcome = await self._request(pending, "tasks/result")
        if isinstance(outcome, Complete):
            return Complete(tasks.unrelated_result(outcome.result), outcome.era)
        return outcome

    async def _poll_modern(self, pending: PendingCall, state: tasks.State) -> Outcome:
        """Poll the task until it has ended, and give it the client's input."""
        answered: set[str] = set()
        if state.status == "working":
            await trio.sleep(state.pause)
        while True:
            fetched = await self._fetch_status(pending)
            if not isinstance(fetched, tasks.State):
                return fetched
            if fetched.status in tasks.ENDED:
                return tasks.modern_outcome(fetched, self._conversation.backend)
            wanted = {key: one for key, one in (fetched.inputRequests or {}).items() if key not in answered}
            if wanted:
                answered |= wanted.keys()
                problem = await self._answer_input_requests(pending, wanted)
                if problem is not None:
                    return problem
            else:
                await trio.sleep(fetched.pause)

    async def _fetch_status(self, pending: PendingCall) -> tasks.State | Outcome:
        with trio.move_on_after(POLL_TIMEOUT):
            outcome = await self._request(pending, "tasks/get")
            if not isinstance(outcome, Complete):
                return outcome
            state = tasks.read_state(outcome.result)
            return state or BackendProtocol(self._conversation.backend, "answered tasks/get without a task")
        return BackendTooSlow(self._conversation.backend, f"did not answer tasks/get within {POLL_TIMEOUT:g} s")

    async def _request(self, pending: PendingCall, method: str, **params: object) -> Outcome:
        """Send a request about a call's task, and wait until the call's deadline."""
        conversation = self._conversation
        request_id, waiter = conversation.begin(method, {"taskId": pending.task_id, **params}, pending=pending)
        try:
            while waiter.outcome is None and trio.current_time() < pending.deadline:
                with trio.move_on_at(pending.deadline):  # which is extended while the client is asked
                    await waiter.event.wait()
        finally:
            conversation.end(request_id, reason=None if waiter.outcome else "the call is over")
        return waiter.outcome or BackendTooSlow(conversation.backend, f"did not answer {method} in time")

    async def _answer_input_requests(
        self, pending: PendingCall, wanted: dict[str, asks.InputRequest]
    ) -> Outcome | None:
        """Have the client answer a task's requests; return the outcome if that ends the call."""
        answers: dict[str, msgspec.Raw] = {}
        refused: list[Failure] = []
        changed = trio.Event()

        def taker(key: str, method: str) -> Callable[[bytes | Failure], None]:
            def take(reply: bytes | Failure) -> None:
                answer = asks.answer_to_refusal(method) if isinstance(reply, Failure) else reply
                if answer is not None:
                    answers[key] = msgspec.Raw(answer)
                elif isinstance(reply, Failure):
                    refused.append(reply)
                if len(answers) + len(refused) == len(wanted):
                    changed.set()

            return take

        caller = pending.call.caller
        for key, one in wanted.items():
            method = one.method
            request = ServerRequest(method, one.params, taker(key, method))
            request.trace = None if pending.call.trace is None else pending.call.trace.ask(method)
            if method not in CAPABILITY:
                request.refuse(jsonrpc.METHOD_NOT_FOUND, f"{method!r} is not an input request")
                continue
            missing = asks.missing_capability(caller, method, one.params)
            if missing is not None:
                request.refuse(jsonrpc.METHOD_NOT_FOUND, f"the client has not declared the capability {missing}")
                continue
            try:
                request.params = asks.for_version(method, one.params, caller.version)
            except ValueError as exc:
                request.refuse(jsonrpc.INVALID_PARAMS, str(exc))
                continue
            if caller.era is Era.LEGACY:
                request.params = asks.for_legacy_client(method, request.params)
            pending.ask(request)
        while not changed.is_set() and trio.current_time() < pending.deadline:
            with trio.move_on_at(pending.deadline):
                await changed.wait()
        if refused:
            self._begin(partial(self._cancel, pending.task_id, pending))  # it waits for a response that will not come
            return refused[0]
        if not changed.is_set():
            return BackendProtocol(self._conversation.backend, "asked for input that the client did not give in time")
        outcome = await self._request(pending, "tasks/update", inputResponses=answers)
        return None if isinstance(outcome, Complete) else outcome

    async def _cancel(self, task_id: str, pending: PendingCall | None) -> None:
        """Cancel a task at the backend; an error because it has already ended is ignored."""
        with trio.move_on_after(CANCEL_TIMEOUT):
            request_id, waiter = self._conversation.begin("tasks/cancel", {"taskId": task_id}, pending=pending)
            try:
                await waiter.event.wait()
            finally:
                self._conversation.end(request_id)
            if isinstance(waiter.outcome, Failure):
                log.debug("backend %r: tasks/cancel: %s", self._conversation.backend, waiter.outcome.message)
