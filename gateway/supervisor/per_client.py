"""Backends with more than one session: for each client, each call, or each era.

`PerClientSupervisors` (`session: client` or `call`, or a server of both eras) supervises the shared session, which
lists and subscribes for all clients, and further sessions for calls: one for each client (a stdio process, a legacy
session, an authenticated principal), opened on first use and closed with the client or when idle, or one for each call.
Each declares exactly the capabilities of its client. A shared backend of both eras has one further session, for the
clients of the era that the first one does not speak: it is opened for their first list or call, and what it lists
differently is part of the backend's listing. Bounded in number; all are tasks of this supervisor's own nursery.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from gateway.backends.session.session_state import DesiredState
from gateway.catalog.listing import merge_eras
from gateway.eras.methods import WATCHED, Kind
from gateway.errors import BackendUnavailable, Busy
from gateway.supervisor.lifecycle import State
from gateway.supervisor.supervisor import Supervisor
from gateway.telemetry import works_for

if TYPE_CHECKING:
    from gateway.backends.session.interface import Opener, Session
    from gateway.calls import Caller, Era
    from gateway.catalog.listing import Listing
    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.supervisor.lifecycle import SupervisorEvents
    from gateway.supervisor.queue import CallQueue

CLIENT_IDLE: Final = 300.0
"""Seconds without a call after which a client's session ends, if the config has no `idle_timeout`."""
CALL_LINGER: Final = 0.05
"""Seconds between two checks whether the only call of a session has ended."""

log = logging.getLogger("gateway.supervisor")


class ClientSupervisor(Supervisor):
    """The owner of one client's or call's session; ends once that is idle or failed."""

    alone = False
    """Whether no further call can arrive, so that a start is of no use once its calls have been cancelled."""

    async def run(self) -> None:
        """Own the session; see `Supervisor.run`."""
        works_for(backend=self.name)  # started in the context of a client's task
        await super().run()

    def call_ended(self, pending: PendingCall) -> None:
        """Note the end of a call; stop a start that was only for this call."""
        super().call_ended(pending)
        if self.alone and self.state in {State.STARTING, State.BACKOFF}:
            self.stop()

    def _failed(self, problem: BaseException | None, healthy_for: float) -> float | None:
        """Note the end of the session; the backend's status covers both its sessions."""
        delay = super()._failed(problem, healthy_for)
        if self._sibling is not None:
            self._sibling.last_error = self.last_error
            self._sibling.restarts += delay is not None
        return delay

    def freed(self) -> None:
        """Note the end of a call; the backend is idle if both its sessions are."""
        super().freed()
        if self._sibling is not None:
            self._sibling._used_at = self._used_at

    def is_over(self, delay: float | None) -> bool:
        """Return whether no session is to follow: no call is queued, and none can arrive."""
        return (delay is None or self.alone) and not self._queue.tidy()

    async def _serve(self, session: Session) -> None:
        """Feed the session; hand its calls over if the server has refused the session's era."""
        if self._sibling is not None and session.greeting.era is not self._eras.preferred:
            self._sibling.take_over(self._queue)
            self.stop()
        else:
            await super()._serve(session)


class PerClientSupervisors(Supervisor):
    """The owner of one backend with a separate session for each client or call."""

    nursery: trio.Nursery

    def __init__(
        self, config: ServerConfig, opener: Opener, events: SupervisorEvents[Supervisor], **kwargs: Any
    ) -> None:
        super().__init__(config, opener, events, **kwargs)
        self._private: dict[object, ClientSupervisor] = {}
        self._was_listed_for: set[Era] = set()
        """Eras for whose lists a session was started; after a failure only calls start one."""

    def submit(self, pending: PendingCall) -> None:
        """Queue a call for its client's session; see `Supervisor.submit`.

        Subscriptions go to the shared session, which exists before the client's own; that one is updated from it.
        """
        if pending.call.method in WATCHED:
            super().submit(pending)
            return
        key = self._key(pending.call.caller)
        if key is None:
            super().submit(pending)
            return
        self.gate.check_strikes(pending, pending.opened_at)  # before a session is opened for it
        private = self._private.get(key)
        if private is None:
            if self._stopping.is_set():
                raise BackendUnavailable(self.name, "was stopped")
            private = self._make(key, pending.call.caller.era, pending.call.caller.capabilities)
        private.submit(pending)

    def _key(self, caller: Caller) -> object | None:
        """Return the key of a caller's session; None for the shared one.

        Anonymous modern requests have no session in common.
        """
        if self.config.session == "shared":
            has_own = caller.era is self._eras.other or (caller.era,) in self._private  # also while the first is away
            return (caller.era,) if has_own else None
        if self.config.session == "call":
            return object()
        return caller.session or caller.principal or object()

    def _change_era(self, era: Era) -> None:
        """Keep the session: each era has its own."""

    def _sort_queue(self) -> None:
        """Move the other era's calls, queued before the server's eras were known."""
        other = self._eras.other
        if self.config.session == "shared" and other is not None and not self._stopping.is_set():
            for pending in self._queue.take(math.inf):
                is_own = pending.call.caller.era is not other
                owner = self if is_own else self._private.get((other,)) or self._make((other,), other)
                pending.queued(owner)
                owner._queue.put_back(pending)

    def starting_for(self, era: Era) -> Supervisor | None:
        """Return the owner of the session for this era until it has listed.

        The first list starts it.
        """
        is_wanted = self.listing is not None and not self.listing.has_both_eras
        if not is_wanted or era is not self._eras.other or self.config.session != "shared" or self._stopping.is_set():
            return None
        private = self._private.get((era,))
        if private is None and era not in self._was_listed_for:
            private = self._make((era,), era)
        self._was_listed_for.add(era)
        return None if private is None or private.settled.is_set() else private

    def _keep_listing(self, listing: Listing, feature: str | None) -> None:
        """Publish the first session's lists, merged with the other era's (present or cached)."""
        known, other = self.listing, self._eras.other
        if self.config.session == "shared" and other is not None:
            private = self._private.get((other,))
            if private is not None and private._session is not None:
                listing = merge_eras(listing, other.other, private._session.listing)
            elif known is not None and known.has_both_eras:
                listing = merge_eras(listing, other.other, known.in_other_era(listing, other.other))
        super()._keep_listing(listing, feature)

    def take_over(self, queue: CallQueue) -> None:
        """Queue the calls of the other era, which the server refused; forget its lists."""
        self._private.pop((self._eras.other,), None)
        super().take_over(queue)
        if self._session is not None:
            self._keep_listing(self._session.listing, None)

    def listed_for(self, era: Era, listing: Listing, feature: str | None) -> None:
        """Publish the lists of the other era's session; `feature` is one that it has announced."""
        if self._session is None:
            first = self.listing and self.listing.in_era(era.other)
        else:
            first = self._session.listing if self._eras.other is era else None  # else it is of this era itself
        if first is not None:
            super()._keep_listing(merge_eras(first, era.other, listing), feature)

    def list_changed(self, feature: str) -> None:
        """Have a feature's lists read again in every session, though only one may be notified."""
        super().list_changed(feature)
        if self._eras.other is not None and (private := self._private.get((self._eras.other,))) is not None:
            private._relister.mark(feature, is_announced=False)

    def relist(self, feature: str) -> None:
        """Read a feature's lists again after a change that this session was not notified of."""
        self._relister.mark(feature, is_announced=False)

    def _make(self, key: object, era: Era, capabilities: msgspec.Raw | None = None) -> ClientSupervisor:
        if len(self._private) >= self.config.max_client_sessions:
            text = (
                f"backend {self.name!r} has {len(self._private)} sessions (max_client_sessions);"
                " try again when a client has gone"
            )
            raise Busy(text)
        is_shared = self.config.session == "shared"
        alone = not is_shared and not isinstance(key, str)
        idle_timeout = CALL_LINGER if alone else self.config.idle_timeout or CLIENT_IDLE
        private = ClientSupervisor(
            msgspec.structs.replace(self.config, idle_timeout=idle_timeout, start="eager"),
            self._opener if is_shared else partial(self._opener, capabilities=capabilities),
            _ClientEvents(self, key, era if is_shared else None),
            last_good=self.listing,
            era=era,
            sibling=self if is_shared else None,
            is_overdue=is_shared and era in self._was_listed_for,
        )
        private.alone = alone
        private.gate, private.history = self.gate, self.history  # limits are those of the server, not of a session
        self._private[key] = private
        self.nursery.start_soon(private.run, name=f"session of {self.name}")
        private.wake()
        return private

    def pass_on(self, method: str, params: msgspec.Raw, key: str) -> None:
        """Pass a client's notification to its own session, if there is one."""
        private = self if self.config.session == "shared" else self._private.get(key)
        if private is self:
            super().pass_on(method, params, key)
        elif private is not None:
            private.pass_on(method, params, key)

    def apply_subscriptions(self) -> None:
        """Update every session: a log level set later applies to existing sessions too."""
        super().apply_subscriptions()
        for private in self._private.values():
            private.apply_subscriptions()

    def client_gone(self, key: str) -> None:
        """Close the sessions of a client that has disconnected."""
        private = self._private.pop(key, None)  # a client that comes back immediately gets another
        if private is not None:
            private.stop()

    def gone(self, key: object, private: Supervisor) -> None:
        """Forget a session that is over."""
        if self._private.get(key) is private:
            del self._private[key]

    def updated_for(self, key: str, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass a resource update to one client."""
        self._events.resource_updated(self, uri, params, key)

    def desired_state_of(self, key: str | None) -> DesiredState:
        """Return the desired state of a client's session; a single call has no subscriptions."""
        return (
            DesiredState(self.desired_state().log_level) if key is None else self._events.desired_state(self.name, key)
        )

    @property
    def in_flight(self) -> int:
        """The number of calls in flight in all sessions."""
        return super().in_flight + sum(private.in_flight for private in self._private.values())

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems of its lists, and of the tools that the config names."""
        return tuple(text for text in super().warnings if text != self._eras.warning)

    @property
    def queued(self) -> int:
        """Calls that wait for any of the sessions."""
        return super().queued + sum(private.queued for private in self._private.values())

    @property
    def sessions(self) -> int:
        """Sessions that belong to single clients or calls."""
        return len(self._private)

    def stop(self, *, drain_grace: float = 0.0, successor: Supervisor | None = None) -> None:
        """Ask all sessions to stop; see `Supervisor.stop`."""
        for private in list(self._private.values()):
            private.stop(drain_grace=drain_grace, successor=successor)
        super().stop(drain_grace=drain_grace, successor=successor)

    async def run(self) -> None:
        """Own all sessions until `stop`."""
        async with trio.open_nursery() as self.nursery:
            await super().run()


class _ClientEvents:
    """The `SupervisorEvents` of one private session, for its client only."""

    def __init__(self, owner: PerClientSupervisors, key: object, era: Era | None) -> None:
        """With an era, the session is for all its clients."""
        self._owner = owner
        self._key = key
        self._era = era
        self._client = key if isinstance(key, str) else None
        self._listed: Listing | None = None

    def backend_changed(self, supervisor: Supervisor, feature: str | None = None) -> None:
        """Handle the session's end, or a change of its lists after the first."""
        if supervisor.ended:
            self._owner.gone(self._key, supervisor)
        elif (self._client or self._era) is not None and supervisor.state is State.READY:
            before, self._listed = self._listed, supervisor.listing
            if self._listed is None:
                return
            if self._era is not None:
                self._owner.listed_for(self._era, self._listed, feature)
            if before is None:
                return
            after = self._listed.items
            changed = {kind.feature for kind in Kind if before.items.get(kind) != after.get(kind)}
            for one in sorted(changed if feature is None else changed | {feature}):
                if self._client is not None:
                    self._owner.for_client(self._client, f"notifications/{one}/list_changed", {})
                    self._owner.list_changed(one)  # the lists of the shared session may have changed too
                else:
                    self._owner.relist(one)

    def resource_updated(
        self, supervisor: Supervisor, uri: str, params: dict[str, msgspec.Raw], key: str | None = None
    ) -> None:
        """Pass an update to the client, if it is subscribed to the resource."""
        del supervisor, key
        if self._client is not None:
            self._owner.updated_for(self._client, uri, params)

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass a notification to the client only."""
        self._owner.for_client(key, method, params)

    def desired_state(self, backend: str, key: str | None = None) -> DesiredState:
        """Return the log level that clients set, and this client's subscriptions."""
        del backend, key
        return self._owner.desired_state_of(self._client)
