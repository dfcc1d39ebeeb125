"""All supervisors under one nursery, and the catalog of their offers.

The fleet owns the supervisors' tasks and one task that announces list changes, coalesced. `apply` replaces the config:
new backends start beside the old ones, both tables are swapped between two checkpoints, then the old backends drain and
stop. `catalog` builds the catalog and caches it for the next run.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.catalog.snapshot import ListNews, Snapshot
from gateway.config import diff_configs
from gateway.config.shown import secrets_of
from gateway.errors import ShuttingDown
from gateway.inflight.deadlines import Deadlines
from gateway.masking import SECRETS
from gateway.store import OVERDUE
from gateway.supervisor.catalog import KEEP_INTERVAL, CatalogBuilder, CatalogCache
from gateway.supervisor.lifecycle import State
from gateway.supervisor.per_client import PerClientSupervisors
from gateway.supervisor.start_limiter import StartLimiter
from gateway.supervisor.state_log import StateLog
from gateway.supervisor.subscriptions import ClientNotifications, SubscriptionRegistry
from gateway.supervisor.supervisor import Supervisor
from gateway.telemetry import works_for

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping

    from gateway.backends.session.interface import Opener
    from gateway.backends.session.session_state import DesiredState
    from gateway.calls import Era, Scope
    from gateway.catalog.listing import Listing
    from gateway.catalog.offers import Offer
    from gateway.config import Config, GatewaySettings, ServerConfig
    from gateway.eras.methods import Kind
    from gateway.inflight.pending import PendingCall
    from gateway.store import Store
    from gateway.supervisor.lifecycle import Status

    ChangeListener = Callable[[ListNews], None]
    Observer = Callable[[Supervisor, PendingCall | None, float], None]

INITIALIZE_WAIT: Final = 1.0
"""Maximum seconds that `initialize` waits for first starts. Capabilities unknown by then are promised, but a list
cannot promise entries: the rest of a client's patience is for lists."""
NEW_BACKEND_TIMEOUT: Final = 30.0
"""Maximum seconds that a new config waits for its new backends, whatever their `connect_timeout`."""
MAX_RETIRING: Final = 64
"""Replaced backends that may drain at the same time: configs that arrive faster have to wait."""

log = logging.getLogger("gateway.supervisor")


class Applied(msgspec.Struct, frozen=True):
    """The changes of a new config, as names of servers."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    not_ready: dict[str, str] = {}
    """Started servers that were not ready in time, and the reasons; their starts continue."""


class Fleet:
    """All backends of one config: the `SupervisorEvents` of their supervisors."""

    def __init__(
        self, config: Config, opener: Opener, store: Store | None = None, *, keep_interval: float = KEEP_INTERVAL
    ) -> None:
        self.config = config
        self._opener = StartLimiter(opener)
        self._catalog_cache = CatalogCache(store, keep_interval)
        self._observers: set[Observer] = set()
        self.states = StateLog()
        self.supervisors = {
            name: self._make(server, self._catalog_cache.load(server))
            for name, server in config.servers.items()
            if not server.disabled
        }
        """All supervisors by backend, in the order of the config. Read only; replaced with each config."""
        self._fresh: dict[str, Supervisor] = {}  # started by a config that is not in effect yet
        self._retiring: set[Supervisor] = set()
        self._retired = trio.lowlevel.ParkingLot()
        self._turn = trio.Lock()
        self._catalog_builder = CatalogBuilder(config, self.supervisors)
        self._announced = Snapshot()
        self._dirty = trio.Event()
        self._said_changed: set[tuple[str, str]] = set()
        self.wish_list = SubscriptionRegistry()
        self.mailboxes = ClientNotifications()
        self.deadlines = Deadlines()
        self._listeners: set[ChangeListener] = set()
        self._stopped = trio.Event()
        self.ended = trio.Event()
        """Set when every supervisor has ended."""

    @property
    def settings(self) -> GatewaySettings:
        """The settings of the current config."""
        return self.config.gateway

    def _make(self, server: ServerConfig, kept: Listing | None) -> Supervisor:
        is_alone = server.session == "shared" and server.command is not None and server.era != "each"
        owner = Supervisor if is_alone else PerClientSupervisors
        is_overdue = kept is OVERDUE
        last_good = None if is_overdue else kept
        supervisor = owner(server, self._opener, self, last_good=last_good, is_overdue=is_overdue)
        if self._observers:
            self._report(supervisor)
        return supervisor

    def statuses(self) -> dict[str, Status]:
        """The status of every backend."""
        return {name: supervisor.status() for name, supervisor in self.supervisors.items()}

    def snapshot(self, scope: Scope | None = None) -> Snapshot:
        """Return the present catalog for a caller of this scope; None sees everything."""
        snapshot = self._catalog_builder.snapshot()
        return snapshot if scope is None else snapshot.within(scope)

    def gateways(self) -> tuple[str, ...]:
        """The gateways among the backends."""
        listings = [one.listing for one in self.supervisors.values() if one.listing is not None]
        return tuple(dict.fromkeys(each for listing in listings for each in listing.gateways))

    def is_limited(self, scope: Scope | None) -> bool:
        """Return whether a caller of this scope may use less than the backends offer."""
        return scope is not None or self._catalog_builder.leaves_out

    def seen(self, scope: Scope | None) -> list[Supervisor]:
        """Return the supervisors of the backends that a caller of this scope can see."""
        if scope is None:
            return list(self.supervisors.values())
        return [one for name in self.snapshot(scope).backends if (one := self.supervisors.get(name)) is not None]

    def backend_changed(self, supervisor: Supervisor, feature: str | None = None) -> None:
        """Note a change; the snapshot is rebuilt at the next request."""
        if not self.is_replaced(supervisor):
            self.states.note(supervisor)
        self._catalog_builder.note_change(supervisor)
        if feature is not None:
            self._said_changed.add((supervisor.name, feature))
        self._catalog_cache.note_change()
        self._dirty.set()
        if self._observers:
            self._notify(supervisor, None, 0.0)

    def is_replaced(self, supervisor: Supervisor) -> bool:
        """Return whether another backend has replaced this one, whose states no longer count."""
        return supervisor in self._retiring and supervisor.name in self.supervisors

    def _report(self, supervisor: Supervisor) -> None:
        """Report the supervisor's calls to the observers, if there are any: each report costs time."""
        supervisor.history.observer = partial(self._notify, supervisor)

    def _notify(self, supervisor: Supervisor, pending: PendingCall | None, seconds: float) -> None:
        for observer in tuple(self._observers):
            observer(supervisor, pending, seconds)

    def observe(self, observer: Observer) -> None:
        """Have `observer(supervisor, pending, seconds)` called. It must not wait.

        It is called at the end of each call, and without a pending call when a backend's state or lists change.
        """
        if not self._observers:
            for supervisor in (*self.supervisors.values(), *self._fresh.values(), *self._retiring):
                self._report(supervisor)
        self._observers.add(observer)

    def unobserve(self, observer: Observer) -> None:
        """Undo `observe`."""
        self._observers.discard(observer)
        if not self._observers:
            for supervisor in (*self.supervisors.values(), *self._fresh.values(), *self._retiring):
                supervisor.history.observer = None

    def offer(self, offers: Mapping[str, Offer] | None) -> list[str]:
        """Restrict the offer to these tools, or None for all.

        Return the unknown names; if there are any, nothing changes.
        """
        unknown = self._catalog_builder.offer(offers)
        if not unknown:
            self._dirty.set()
        return unknown

    def resource_updated(
        self, supervisor: Supervisor, uri: str, params: dict[str, msgspec.Raw], key: str | None = None
    ) -> None:
        """Pass a resource update to its watchers; with a key, to that client only."""
        if self.supervisors.get(supervisor.name) is not supervisor:
            return  # while one replaces the other both are subscribed, and one update is enough
        self.wish_list.updated(supervisor.name, uri, params, key)

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass a message to one client's receivers."""
        self.mailboxes.deliver(key, method, params)

    def desired_state(self, backend: str, key: str | None = None) -> DesiredState:
        """Return the desired state of a backend's session; with a key, of that client's."""
        return self.wish_list.of(backend, key)

    def apply_subscriptions(self, backends: Iterable[str] | None = None) -> None:
        """Apply the clients' subscriptions to these backends, or to all."""
        for name in self.supervisors if backends is None else backends:
            if name in self.supervisors:  # it may have been removed
                self.supervisors[name].apply_subscriptions()

    def roots_changed(self, key: str) -> None:
        """Tell backends that a client's roots have changed; `key` identifies its session."""
        for supervisor in self.supervisors.values():
            supervisor.pass_on("notifications/roots/list_changed", jsonrpc.ABSENT, key)

    def client_gone(self, key: str) -> None:
        """End the backend sessions of one client; `key` identifies its session."""
        for supervisor in self.supervisors.values():
            if isinstance(supervisor, PerClientSupervisors):
                supervisor.client_gone(key)

    def forget(self, client: object) -> None:
        """Drop the subscriptions of a client that has disconnected."""
        self.wish_list.forget(client)
        self.apply_subscriptions()

    def subscribe(self, listener: ChangeListener) -> None:
        """Have `listener(features)` called once per change, with the lists that changed. It must not wait."""
        self._listeners.add(listener)

    def unsubscribe(self, listener: ChangeListener) -> None:
        """Undo `subscribe`; unknown listeners are ignored."""
        self._listeners.discard(listener)

    def awaits_more(self, scope: Scope | None = None) -> bool:
        """Return whether this scope includes a backend without a known catalog that may still start."""
        return any(one.listing is None and not one.known.is_set() for one in self.seen(scope))

    def starting_first(self, scope: Scope | None = None) -> list[Supervisor]:
        """Return the scope's backends without a known catalog whose first start is in progress."""
        return [one for one in self.seen(scope) if one.listing is None and not one.settled.is_set()]

    def awaited(self, scope: Scope | None = None, era: Era | None = None) -> list[Supervisor]:
        """Return those of `starting_first` that a client waits for.

        With its era, also the sessions for that era.
        """
        found = self.starting_first(scope)
        if era is not None:
            owners = [one for one in self.seen(scope) if isinstance(one, PerClientSupervisors)]
            found += [second for one in owners if (second := one.starting_for(era)) is not None]
        return [one for one in found if not one.is_overdue]

    async def before_initialize(self, scope: Scope | None = None) -> None:
        """Wait for first starts before `initialize` is answered, at most `INITIALIZE_WAIT`.

        Backends that are not ready by then are recorded as overdue, so that no list waits for them at later starts,
        until they list something: some clients end the gateway after 2 s, and would do so each time.
        """
        awaited = self.awaited(scope)
        with trio.move_on_after(min(INITIALIZE_WAIT, self.settings.start_grace)):
            for supervisor in awaited:
                await supervisor.settled.wait()
        self._catalog_cache.note_late(one.name for one in awaited if not one.settled.is_set())

    async def first_starts(
        self, scope: Scope | None = None, patience: float | None = None, era: Era | None = None
    ) -> None:
        """Wait until backends without a known catalog are ready or have failed to start.

        For a caller with a scope, only backends that it can see count. Later lists do not wait for backends that were
        not ready in time, or when the caller was cancelled, since its client has stopped waiting.

        Args:
            scope: of the caller; None sees everything.
            patience: seconds to wait at most, at least `start_grace`; None: `start_grace`.
            era: of the caller, to wait also for the first lists of a session for that era.
        """
        awaited = self.awaited(scope, era)
        deadline = trio.current_time() + (self.settings.start_grace if patience is None else patience)
        try:
            await self.before_initialize(scope)
            with trio.move_on_at(deadline):
                for supervisor in awaited:
                    await supervisor.settled.wait()
                late = self.awaited(scope, era)  # of backends whose eras were unknown before
                awaited += late
                for supervisor in late:
                    await supervisor.settled.wait()
        finally:
            for supervisor in awaited:
                supervisor.is_overdue = not supervisor.settled.is_set()

    def strangers(self, name: str, kind: Kind | None = None, scope: Scope | None = None) -> Iterator[Supervisor]:
        """Return the scope's backends without a known catalog that might own this public name."""
        snapshot = self.snapshot(scope)
        for supervisor in self.seen(scope):
            namespace = supervisor.config.effective_namespace
            if supervisor.listing is not None:
                continue
            if namespace and not name.startswith(namespace + snapshot.naming.separator):
                continue
            if kind is None or snapshot.may_own(kind, supervisor.config, name):
                yield supervisor

    def disabled_owner(self, name: str, kind: Kind, scope: Scope | None = None) -> str | None:
        """Return the scope's disabled server that would own this public name."""
        snapshot = self.snapshot(scope)
        for server in self.config.servers.values():
            prefix = server.effective_namespace + snapshot.naming.separator
            is_named = server.disabled and server.effective_namespace and name.startswith(prefix)
            if is_named and snapshot.may_own(kind, server, name):
                return server.name
        return None

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run every supervisor; return when all have ended after `stop`."""
        async with trio.open_nursery() as services:
            services.start_soon(self._announce)
            await services.start(self.deadlines.run)
            services.start_soon(self.wish_list.run, self.apply_subscriptions)
            services.start_soon(self._catalog_cache.run, lambda: self.supervisors)
            async with trio.open_nursery() as self._owners_nursery:
                for supervisor in self.supervisors.values():
                    self._start(supervisor)
                task_status.started()
                await self._stopped.wait()
                await self._catalog_cache.save_last(self.supervisors)
            services.cancel_scope.cancel(reason="all supervisors have ended")
        self.ended.set()

    def _start(self, supervisor: Supervisor) -> None:
        SECRETS.hold(supervisor, secrets_of(supervisor.config))
        self._owners_nursery.start_soon(self._own, supervisor, name=f"supervisor of {supervisor.name}")

    async def _own(self, supervisor: Supervisor) -> None:
        works_for(backend=supervisor.name)
        try:
            await supervisor.run()
        finally:
            SECRETS.release(supervisor)  # not before: a process of theirs may have written until now
            self._retiring.discard(supervisor)
            if self.supervisors.get(supervisor.name) is not supervisor:
                supervisor.listing = None  # it may be long, and the garbage collector seldom runs
            if not any(one.name == supervisor.name for one in self._retiring):
                supervisor.forget_successor()
            self._retired.unpark_all()

    def login_owed(self, name: str, reason: str) -> None:
        """Note that a backend, current or about to be swapped in, waits for a login."""
        for supervisor in (self.supervisors.get(name), self._fresh.get(name)):
            if supervisor is not None:
                supervisor.login_owed(reason)

    def stop(self) -> None:
        """Ask every supervisor to stop."""
        self._stopped.set()
        for supervisor in (*self.supervisors.values(), *self._fresh.values()):
            supervisor.stop()

    async def apply(self, config: Config, *, restart: Container[str] = ()) -> Applied:
        """Replace the config; servers named in `restart` are replaced in any case.

        One replacement at a time; others wait. New backends get until their `connect_timeout` to become ready, all
        together `NEW_BACKEND_TIMEOUT`; then the config takes effect, ready or not, and removed backends drain (calls in
        flight have `drain_grace`) while this returns. Unchanged servers are not touched. Cancelled before the change,
        it changes nothing.

        Raises:
            ShuttingDown: the gateway is stopping.
        """
        async with self._turn:
            while len(self._retiring) >= MAX_RETIRING:
                await self._retired.park()
            self._refuse_when_stopped()
            diff = diff_configs(self.config, config)
            again = tuple(name for name in (*diff.unchanged, *diff.retouched) if name in restart)
            changed = {*diff.added, *diff.changed, *again}
            try:
                for server in config.servers.values():
                    if server.name not in changed or server.disabled:
                        continue
                    last_good = await self._catalog_cache.load_in_thread(server)
                    self._refuse_when_stopped()
                    old = self.supervisors.get(server.name)
                    if (last_good is None or last_good is OVERDUE) and old is not None and server.start == "eager":
                        last_good = old.listing or last_good  # a known name stays known while its new backend starts
                    self._fresh[server.name] = self._make(server, last_good)
                    self._start(self._fresh[server.name])
                not_ready = await self._wait_for_new()
                self._refuse_when_stopped()
            except BaseException:
                for supervisor in self._fresh.values():
                    supervisor.stop()
                self._fresh = {}
                raise
            self._swap(config)
            return Applied(
                added=diff.added,
                removed=diff.removed,
                changed=tuple(name for name in config.servers if name in {*diff.changed, *diff.retouched, *again}),
                unchanged=tuple(name for name in diff.unchanged if name not in again),
                not_ready=not_ready,
            )

    def _refuse_when_stopped(self) -> None:
        if self._stopped.is_set():
            text = "the gateway is shutting down and accepts no new config"
            raise ShuttingDown(text)

    async def _wait_for_new(self) -> dict[str, str]:
        """Wait for the new backends; return the ones that are not ready, with the reasons."""
        began = trio.current_time()
        for supervisor in self._fresh.values():
            with trio.move_on_at(began + min(NEW_BACKEND_TIMEOUT, supervisor.config.connect_timeout)):
                await supervisor.settled.wait()
        return {
            name: supervisor.last_error or f"is still {supervisor.state}"
            for name, supervisor in self._fresh.items()
            if not (supervisor.state is State.READY or (supervisor.state is State.STOPPED and supervisor.offered))
        }

    def _swap(self, config: Config) -> None:
        """Put the new config into effect, in one step without a checkpoint."""
        old, fresh, self._fresh = self.supervisors, self._fresh, {}
        self.config = config
        self.supervisors = {
            name: fresh.get(name) or old[name] for name, server in config.servers.items() if not server.disabled
        }
        kept = {name for name in old if self.supervisors.get(name) is old[name]}
        retouched = {name for name in kept if old[name].config.tools != config.servers[name].tools}
        for name in kept:  # settings that do not concern its session take effect now
            old[name].config = config.servers[name]
            SECRETS.hold(old[name], secrets_of(config.servers[name]))
        self._catalog_builder.change(config, self.supervisors, kept - retouched)
        self._catalog_cache.forget_others(kept)
        self.states.retain(config.servers)
        self._dirty.set()
        for name, supervisor in old.items():
            if name not in kept:
                self._retiring.add(supervisor)
                supervisor.stop(drain_grace=config.gateway.drain_grace, successor=fresh.get(name))

    async def _announce(self) -> None:
        """Announce list changes, once for all changes within `list_change_delay`."""
        while True:
            await self._dirty.wait()
            await trio.sleep(self.settings.list_change_delay)
            if self._stopped.is_set():  # clients have stopped reading
                return
            self._dirty = trio.Event()
            fresh, previous = self.snapshot(), self._announced
            self._announced = fresh
            news = ListNews(previous, fresh, self._said_changed)
            self._said_changed = set()
            if news:
                for listener in tuple(self._listeners):
                    listener(news)
