"""The owner of one backend: opens its session, sends or queues calls, restarts, drains, stops.

The backend's whole life happens inside `Supervisor.run`, one task under the fleet's nursery; other tasks only submit
calls, set events and read fields. `BackendError`, `OSError` and a start that exceeds its timeout lead to a restart;
anything else is a bug and reaches the root.
"""

from __future__ import annotations

import logging
import math
import random
from types import NoneType
from typing import TYPE_CHECKING

import trio

from gateway import errors
from gateway.catalog.listing import Listing
from gateway.config import NEVER_RESTART
from gateway.errors import BackendError, BackendExited, BackendUnavailable, BackendUnfit, Busy, GatewayError, code_of
from gateway.masking import SECRETS
from gateway.supervisor.health import Relister, ping_periodically
from gateway.supervisor.history import CallStats
from gateway.supervisor.lifecycle import LISTED, Backoff, EraPreference, State, Status, check
from gateway.supervisor.limits import CallLimits
from gateway.supervisor.queue import CallQueue, may_resend
from gateway.telemetry import now_iso

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.backends.session.interface import Opener, Session
    from gateway.backends.session.session_state import DesiredState
    from gateway.calls import Era, Outcome
    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.supervisor.lifecycle import SupervisorEvents

log = logging.getLogger("gateway.supervisor")


class Supervisor:
    """The owner of one backend."""

    def __init__(
        self,
        config: ServerConfig,
        opener: Opener,
        events: SupervisorEvents[Supervisor],
        *,
        last_good: Listing | None = None,
        era: Era | None = None,
        sibling: Supervisor | None = None,
        is_overdue: bool = False,
        jitter: Callable[[], float] = random.random,  # ruff: ignore[suspicious-non-cryptographic-random-usage] - it spreads restarts, it protects nothing
    ) -> None:
        self.config = config
        self.name = config.name
        self.state = State.STOPPED
        self.since = now_iso()
        self.restarts = 0
        self.last_error: str | None = None
        self.loose_ends: tuple[str, ...] = ()
        """Problems of the tools that the config names but the server does not list."""
        self.listing: Listing | None = last_good
        """The backend's last lists, perhaps from an earlier run of the gateway; None if there are none."""
        self.is_overdue = is_overdue
        """Whether a client has waited too long for its first start, perhaps in an earlier run; no later list waits."""
        self.settled = trio.Event()
        """Set when the first start has ended, successfully or not."""
        self.known = trio.Event()
        """Set when the backend has listed once, or has failed for good."""
        self.ended = False
        """Whether `run` has returned, so that no call can be submitted."""
        self.gate = CallLimits(config)
        self.history = CallStats()
        self._opener = opener
        self._events = events
        self._backoff = Backoff(config.restart, jitter)
        self._session: Session | None = None
        self._queue = CallQueue(config.queue_size)
        # The pump and a drain may wait at the same time; the two sessions of a backend of both eras share its slots.
        self._freed = trio.lowlevel.ParkingLot() if sibling is None else sibling._freed
        self._sibling = sibling
        self._starting = self._serving = trio.CancelScope()
        self._eras = EraPreference(era)
        self._woken = trio.Event()
        self._wanted = self._tries_again = self._failed_for_good = self._has_served = False
        self._stopping = trio.Event()
        self._drain_grace = 0.0
        self._successor: Supervisor | None = None
        self._first_wait, last_wait = config.restart.initial_delay, config.restart.max_delay
        self._start_waits = {State.STOPPED: 0.0, State.BACKOFF: self._first_wait, State.FAILED: last_wait}
        self._relister = Relister(self.name)
        self._entered_at = self._used_at = trio.current_time()

    # Called by other tasks. None of it waits.

    def submit(self, pending: PendingCall) -> None:
        """Send a call if nothing is queued and a slot is free; else queue it.

        Raises:
            BackendUnavailable: the backend has failed, is stopped or draining, or its circuit breaker is open.
            Busy: the queue is full, the rate limit is exceeded, or calls of this client keep crashing the backend.
        """
        gate = self.gate
        gate.check_strikes(pending, pending.opened_at)
        if self._eras.note_call(pending, is_busy=bool(self._queue)) and not self.in_flight:
            self._change_era(pending.call.caller.era)
        if self.state is not State.READY:
            self.request_start()
            if not self.offered:
                reason = self.last_error or "it was stopped"
                raise BackendUnavailable(self.name, f"is not available ({self.state}): {reason}")
        if gate.limits:
            gate.admit(pending, pending.opened_at)
        session = self._session if self.state is State.READY and not self._queue else None
        if session is not None and self.free_slots > 0 and session.can_send:
            pending.queued(self)
            session.send([pending])
            return
        try:
            self._queue.put(pending)
        except trio.WouldBlock:
            gate.ended(pending, None, pending.opened_at)
            counts = f"{self.in_flight} calls in flight and {self.queued} queued (max_concurrency, queue_size)"
            raise Busy(f"backend {self.name!r} is busy: {counts}; try again") from None
        pending.queued(self)

    def call_ended(self, pending: PendingCall) -> None:
        """Record the end of a call, whatever its cause."""
        now = pending.ended_at
        if isinstance(pending.outcome, BackendExited):
            self.gate.blame(pending.outcome, now)  # immediately: its client may call again before the session is closed
        self.history.ended(pending, now - pending.opened_at)
        if (strikes := self.gate.strikes) or not self._has_served:
            is_answered = not isinstance(pending.outcome, (GatewayError, NoneType))
            self._has_served = self._has_served or is_answered
            if strikes and is_answered:
                strikes.answered(pending.call.caller.origin)
        if self.gate.limits:
            self.gate.ended(pending, pending.outcome, now)

    def take_back(self, pending: PendingCall, outcome: Outcome) -> bool:
        """Return a call to the queue after the backend died, if `retry` permits another attempt."""
        if not self.config.retry or self._stopping.is_set() or not may_resend(pending, outcome, self.listing):
            return False
        ids = {} if pending.call.trace is None else pending.call.trace.ids
        sent = {"event": "call_resent", "backend": self.name, "call": pending.number, **ids}
        log.info("backend %r: %s is sent once more", self.name, pending.own_name, extra=sent)
        self._queue.put_back(pending)
        return True

    def _change_era(self, era: Era) -> None:
        """End the session, so that the backend restarts in the era of the queued calls."""
        self._eras.change(era)
        self._session = None
        extra = {"event": "era_changed", "backend": self.name, "era": era}
        log.info("backend %r is restarted in the %s era, which its clients speak", self.name, era, extra=extra)
        self._serving.cancel(reason="its clients speak the other era")

    def _sort_queue(self) -> None:
        """Sort the calls queued before the backend's era was known."""
        if self.queued and self._eras.other is not None and self._eras.preferred is self._eras.other:
            self._change_era(self._eras.other)

    def take_over(self, queue: CallQueue) -> None:
        """Queue the calls of the other era's session, which the server has refused."""
        self._eras.other = None
        calls = queue.take(math.inf)
        for pending in calls:
            pending.queued(self)
        self._queue.put_back(*calls)

    def request_start(self) -> None:
        """Note a caller's need: start a stopped backend, cut a backoff to its first step.

        A failed backend is tried again after `max_delay`, since it may have recovered. Callers, however many, must not
        use up the quick failures: only `wake` starts it immediately.
        """
        self._wanted = True
        if trio.current_time() - self._entered_at >= self._start_waits.get(self.state, math.inf):
            self.wake()

    def login_owed(self, reason: str) -> None:
        """Note that the start waits for a login: callers do not; the status shows it."""
        self.last_error = reason
        self.settled.set()
        self.known.set()

    def wake(self) -> None:
        """Start now, whatever the task is waiting for."""
        self._woken.set()

    def stop(self, *, drain_grace: float = 0.0, successor: Supervisor | None = None) -> None:
        """Stop: calls in flight get `drain_grace` seconds, then the session is closed. Safe to repeat.

        Calls not sent by then go to the `successor`, if there is one.
        """
        self._drain_grace = drain_grace
        self._successor = successor
        self._stopping.set()
        self._woken.set()
        if self.state is State.STARTING:
            self._starting.cancel(reason="the backend is being stopped")

    @property
    def heir(self) -> Supervisor:
        """The backend's present supervisor: a successor may have been replaced itself during this drain."""
        heir = self
        while heir._successor is not None:
            heir = heir._successor
        return heir

    def forget_successor(self) -> None:
        """Drop the reference: objects made during the start are never collected (`gateway.app.spare_collector`)."""
        self._successor = None

    def apply_subscriptions(self) -> None:
        """Apply the clients' subscriptions to the backend as soon as it is ready."""
        if self._session is not None:
            self._session.upkeep.set_desired(self.desired_state())

    def subscribed(self, uri: str) -> None:
        """Note that a client's own request has subscribed the session to a resource."""
        if self._session is not None:
            self._session.upkeep.subscribed(uri)

    def pass_on(self, method: str, params: msgspec.Raw, key: str) -> None:
        """Pass on a client's notification unchanged, if the backend is ready."""
        del key
        if self._session is not None:
            self._session.upkeep.pass_on(method, params)

    @property
    def greeting(self) -> ServerIntroduction | None:
        """The backend's description of itself, while its session is open."""
        return None if self._session is None else self._session.greeting

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of its lists, and of the tools that the config names."""
        found = self.loose_ends if self.listing is None else (*self.listing.warnings, *self.loose_ends)
        return found if self._eras.warning is None else (*found, self._eras.warning)

    @property
    def offered(self) -> bool:
        """Whether its entries are listed: it is ready, briefly away, or started by a call."""
        if self._failed_for_good:
            return False  # a new start after a final failure lists nothing until it has succeeded
        return self.state in LISTED or (self.state is State.STOPPED and not self._stopping.is_set())

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return 0 if self._session is None else self._session.in_flight

    @property
    def free_slots(self) -> int:
        """The number of further calls that may be in flight."""
        return self.config.max_concurrency - self.in_flight if self._sibling is None else self._sibling.free_slots

    @property
    def wanted(self) -> bool:
        """Whether a caller waits for the backend, if only for its lists."""
        return self._wanted or bool(self._queue)

    @property
    def sessions(self) -> int:
        """Sessions that belong to single clients or calls."""
        return 0

    @property
    def queued(self) -> int:
        """The number of queued calls."""
        return len(self._queue)

    def status(self) -> Status:
        """Return the status as an immutable value."""
        return Status.of(self, self._session)

    # `gateway.backends.session.contracts.SessionObserver`: called by the session, synchronously.

    def list_changed(self, feature: str) -> None:
        """Have a feature's lists read again."""
        self._relister.mark(feature)

    def resource_updated(self, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass on a resource update."""
        self._events.resource_updated(self, uri, params)

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass a notification to one client only."""
        self._events.for_client(key, method, params)

    def freed(self) -> None:
        """Note that a call has ended."""
        self._used_at = trio.current_time()
        if self._freed:
            self._freed.unpark_all()

    def wrote_stderr(self, line: bytes) -> None:
        """Keep a line of its child's stderr, for the status."""
        self.history.stderr.append(line)

    # The task.

    async def run(self) -> None:
        """Own the backend until `stop`; return once its session is closed and its queue empty."""
        try:
            if self.config.start == "lazy" and self.listing is not None:
                self.settled.set()
                await self._woken.wait()
            # A lazy backend without a known catalog is started once: otherwise no client could find its tools.
            while not self._stopping.is_set():
                delay = await self._live()
                if self.is_over(delay):
                    break
                await self._wait_backoff(delay)
        finally:
            self.ended = True
            self._to(State.DRAINING)
            if self._successor is None:
                self._queue.finish_all(BackendUnavailable(self.name, "was stopped"))
            else:
                self._queue.hand_over(self.heir.submit)
            self._to(State.STOPPED)

    def is_over(self, delay: float | None) -> bool:
        """Return whether no session is to follow even without `stop`; never for a shared backend."""
        del delay
        return False

    def desired_state(self) -> DesiredState:
        """Return the clients' subscriptions and log level for this backend."""
        return self._events.desired_state(self.name)

    async def _live(self) -> float | None:
        """Run one session; return the delay before the next, or None to stop restarting."""
        self._woken = trio.Event()
        self._has_served = False
        ready_at: float | None = None
        problem: BaseException | None = None
        self._to(State.STARTING)
        try:
            with trio.CancelScope() as self._starting:
                async with self._opener(self.config, self, era=self._eras.preferred) as session:
                    ready_at = trio.current_time()
                    await self._serve(session)
        except* (BackendError, OSError, trio.TooSlowError) as group:
            problem = errors.first_in_group(group)
        finally:
            if self._session is not None:  # the garbage collector seldom runs: free lists of thousands now
                self._session.listing = Listing()
            self._session = None
            self._eras.closed()
        if self._stopping.is_set() or self.state is State.STOPPED:
            return None
        healthy_for = 0.0 if ready_at is None else trio.current_time() - ready_at
        return self._failed(problem, healthy_for)

    def _failed(self, problem: BaseException | None, healthy_for: float) -> float | None:
        if problem is None:
            self.last_error = "ended"
        elif isinstance(problem, BackendError):
            self.last_error = problem.reason
        elif isinstance(problem, trio.TooSlowError):
            self.last_error = f"was not ready within {self.config.connect_timeout:g} s (connect_timeout)"
        else:
            self.last_error = SECRETS.mask(f"failed: {problem}")
        fields = {"backend": self.name, "code": code_of(problem)}
        self.history.broke(self.last_error, fields["code"])
        self._woken, self._wanted = trio.Event(), False  # requests to the last start do not apply to the next
        # A remote server that cannot be reached has not crashed: it is being redeployed, or the network is down. Calls
        # get the error of a failed backend immediately, but it is tried again without a request.
        self._tries_again = isinstance(problem, BackendUnavailable) and self.config.command is None
        if isinstance(problem, BackendExited) and problem.suspects:
            self.gate.blame(problem, now := trio.current_time())
            self._tries_again = self.config.restart != NEVER_RESTART
            self._queue.recheck(lambda pending: self.gate.check_strikes(pending, now))
        is_unfit = isinstance(problem, BackendUnfit)  # another start does not help if the config itself is at fault
        delay = None if is_unfit else self._backoff.failed(healthy_for, has_served=self._has_served)
        if delay is None:
            extra = {"event": "backend_failed", **fields}
            log.error("backend %r is marked failed: %s", self.name, self.last_error, extra=extra)
            self._to(State.FAILED)
            self._queue.finish_all(BackendUnavailable(self.name, f"is not available (failed): {self.last_error}"))
        else:
            restart = {"event": "backend_restart", "retry_in": round(delay, 3), **fields}
            log.warning("backend %r: %s; next start in %.1f s", self.name, self.last_error, delay, extra=restart)
            self._to(State.BACKOFF)
        return delay

    async def _wait_backoff(self, delay: float | None) -> None:
        """Wait before the next start: for the backoff, or for a caller."""
        if self._stopping.is_set():
            return
        if delay is None:  # failed or idle
            with trio.move_on_after(self.config.restart.max_delay if self._tries_again else math.inf):
                await self._woken.wait()
                self._backoff.reset()
        else:
            # Callers cut the backoff short, but not below its first step: a client that retries must not be able to
            # use up the quick failures.
            with trio.move_on_after(min(delay, self._first_wait)):
                await self._woken.wait()
            if not self._queue and not self._wanted:
                with trio.move_on_after(max(0.0, delay - self._first_wait)):
                    await self._woken.wait()
        if not self._stopping.is_set():
            self.restarts += 1

    async def _serve(self, session: Session) -> None:
        """Feed the session until `stop`, then let its calls finish."""
        self._session = session
        self._serving = trio.CancelScope()
        self._eras.opened(None if self.config.pins_era else session.greeting.other_era)
        self._sort_queue()
        session.listing = session.listing.after(self.listing, session.greeting.era)
        self._keep_listing(session.listing, None)
        self.known.set()
        self._to(State.READY)
        self._queue.note_started()
        self.apply_subscriptions()
        with self._serving:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, session)
                nursery.start_soon(self._relister.run, session, self._keep_listing)
                if self.config.ping_interval is not None:
                    nursery.start_soon(ping_periodically, session, self.config, self.config.ping_interval)
                await self._wait_until_idle_or_stopping(session)
                if self._stopping.is_set():
                    self._to(State.DRAINING)
                    with trio.move_on_after(self._drain_grace):
                        while session.in_flight or self._queue:
                            await self._freed.park()
                else:
                    self._woken = trio.Event()
                    self._to(State.STOPPED)  # a call that arrives while the session closes wakes the next one
                nursery.cancel_scope.cancel(reason="the backend is idle or is being stopped")
        if self.state is State.READY:  # the session has ended for one of the other era
            self._to(State.STOPPED)
            self.wake()

    async def _wait_until_idle_or_stopping(self, session: Session) -> None:
        """Wait for `stop`, or until no call was in flight or queued for `idle_timeout` seconds."""
        idle_timeout = self.config.idle_timeout
        if idle_timeout is None:
            await self._stopping.wait()
            return
        self._used_at = trio.current_time()
        while not self._stopping.is_set():
            if self.in_flight or self.queued or session.upkeep.wishes.uris:
                self._used_at = trio.current_time()
            elif trio.current_time() >= self._used_at + idle_timeout:
                return
            with trio.move_on_at(self._used_at + idle_timeout):
                await self._stopping.wait()

    async def _pump(self, session: Session) -> None:
        """Move calls from the queue to the session, as `max_concurrency` and the transport permit."""
        while not self._serving.cancel_called:  # otherwise its calls are for a session of another era
            if (room := self.free_slots) <= 0:
                await self._freed.park()
            elif not self._queue:
                await self._queue.wait()
            elif not session.can_send:
                await session.wait_writable()
                if not session.can_send:
                    await trio.sleep_forever()  # the session has ended and cancels this task
            elif batch := self._queue.take(room):
                session.send(batch)
            else:
                self.freed()  # all were cancelled; the drain may be waiting for an empty queue

    def _keep_listing(self, listing: Listing, feature: str | None) -> None:
        self.listing = listing
        self._events.backend_changed(self, feature)

    def _to(self, new: State) -> None:
        """Change the state: the only place that does."""
        if new is self.state:
            return
        self.state = check(self.state, new)
        self.since = now_iso()
        self._entered_at = trio.current_time()
        if new in {State.READY, State.BACKOFF, State.FAILED, State.STOPPED}:
            self.settled.set()
        if new in {State.FAILED, State.STOPPED}:
            self.known.set()
        if new in {State.READY, State.FAILED}:
            self._failed_for_good = new is State.FAILED
            self._tries_again = self._tries_again and self._failed_for_good
        extra = {"event": "backend_state", "backend": self.name, "state": new}
        log.info("backend %r is %s", self.name, new, extra=extra)
        self._events.backend_changed(self)
