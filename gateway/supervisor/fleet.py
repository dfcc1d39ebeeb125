"""All supervisors under one nursery, and the catalog of what they offer.

The fleet owns the supervisors' tasks and one task that announces list changes, coalesced. The snapshot is immutable and
swapped whole; it is rebuilt when somebody looks after a change, so a hundred backends that start at once cost one
rebuild, not a hundred.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.catalog.kinds import Kind
from gateway.catalog.snapshot import Naming, Part, Snapshot, make_part
from gateway.supervisor.private import PrivateFleet
from gateway.supervisor.supervisor import Supervisor
from gateway.supervisor.wishes import WishList

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    import msgspec

    from gateway.backends.session import Opener
    from gateway.backends.upkeep import Wishes
    from gateway.config import Config, ServerConfig
    from gateway.store import Store
    from gateway.supervisor.supervisor import Status

    ChangeListener = Callable[[frozenset[str]], None]

KEEP_INTERVAL: Final = 1.0
"""Seconds between two looks for catalogs to keep: a server that lists something new every moment costs one write."""

LAST_KEEP_BOUND: Final = 1.0
"""Seconds at most for keeping, at the end, what was listed since the last look: short runs teach the next ones too."""

log = logging.getLogger("gateway.supervisor")


class Fleet:
    """Implements `gateway.supervisor.supervisor.Upward` for every backend of one config."""

    def __init__(self, config: Config, opener: Opener, store: Store | None = None) -> None:
        settings = config.gateway
        self.settings = settings
        self._naming = Naming(settings.separator, settings.max_name_length)
        self._store = store
        self._supervisors = {
            name: _owner_of(server)(
                server, opener, self, last_good=None if store is None else store.load_catalog(server)
            )
            for name, server in config.servers.items()
            if not server.disabled
        }
        self._stale = any(one.listing is not None for one in self._supervisors.values())
        self._kept = {name: one.listing for name, one in self._supervisors.items()}
        self._parts: dict[str, Part] = {}
        self._snapshot = Snapshot()
        self._announced = self._snapshot
        self._dirty = trio.Event()
        self.wish_list = WishList()
        self._listeners: set[ChangeListener] = set()
        self._grace_over = trio.current_time() + settings.start_grace
        self._stopped = trio.Event()
        self.ended = trio.Event()
        """Set when every supervisor has ended."""

    @property
    def supervisors(self) -> dict[str, Supervisor]:
        """All supervisors by backend, in the config's order. Read only."""
        return self._supervisors

    def statuses(self) -> dict[str, Status]:
        """Every backend as people see it."""
        return {name: supervisor.status() for name, supervisor in self._supervisors.items()}

    def snapshot(self) -> Snapshot:
        """The catalog as it is now."""
        if self._stale:
            self._stale = False
            self._snapshot = self._build()
        return self._snapshot

    def backend_changed(self, supervisor: Supervisor) -> None:
        """Note a change; the snapshot is rebuilt when next asked for."""
        del supervisor
        self._stale = True
        self._dirty.set()

    def resource_updated(self, supervisor: Supervisor, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Hand a resource's update to the clients that watch it."""
        self.wish_list.updated(supervisor.name, uri, params)

    def wishes_for(self, backend: str) -> Wishes:
        """What clients want of a backend beyond single calls."""
        return self.wish_list.of(backend)

    def wish(self, backends: Iterable[str] | None = None) -> None:
        """Bring backends (all, if none are named) in line with the wish list."""
        for name in self._supervisors if backends is None else backends:
            self._supervisors[name].wish()

    def roots_changed(self, key: str) -> None:
        """Tell backends that a client's roots have changed; `key` is its session's."""
        for supervisor in self._supervisors.values():
            supervisor.roots_changed(key)

    def client_gone(self, key: str) -> None:
        """End what backends keep for one client alone; `key` is its session's."""
        for supervisor in self._supervisors.values():
            if isinstance(supervisor, PrivateFleet):
                supervisor.client_gone(key)

    def forget(self, client: object) -> None:
        """Drop the wishes of a client that has gone."""
        self.wish_list.forget(client)
        self.wish()

    def subscribe(self, listener: ChangeListener) -> None:
        """Have `listener(features)` called, once a change, with the features whose lists changed. It must not wait."""
        self._listeners.add(listener)

    def unsubscribe(self, listener: ChangeListener) -> None:
        """Undo `subscribe`; unknown listeners are fine."""
        self._listeners.discard(listener)

    async def first_starts(self) -> None:
        """Wait, within `start_grace` of the gateway's own start, for backends that have never listed anything."""
        for supervisor in self._supervisors.values():
            if supervisor.settled.is_set() or supervisor.listing is not None:
                continue
            with trio.move_on_at(self._grace_over):
                await supervisor.settled.wait()

    def strangers(self, name: str) -> Iterator[Supervisor]:
        """Backends that have never listed anything and might own this public name."""
        for supervisor in self._supervisors.values():
            namespace = supervisor.config.effective_namespace
            fits = not namespace or name.startswith(namespace + self._naming.separator)
            if supervisor.listing is None and fits:
                yield supervisor

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run every supervisor; returns when all have ended after `stop`."""
        self._grace_over = trio.current_time() + self.settings.start_grace
        async with trio.open_nursery() as services:
            services.start_soon(self._announce)
            if self._store is not None:
                services.start_soon(self._keep, self._store)
            async with trio.open_nursery() as owners:
                for supervisor in self._supervisors.values():
                    owners.start_soon(supervisor.run, name=f"supervisor of {supervisor.name}")
                task_status.started()
                await self._stopped.wait()
            services.cancel_scope.cancel(reason="all supervisors have ended")
        if self._store is not None:
            with trio.move_on_after(LAST_KEEP_BOUND):
                await self._keep_news(self._store)
        self.ended.set()

    def stop(self) -> None:
        """Ask every supervisor to end."""
        self._stopped.set()
        for supervisor in self._supervisors.values():
            supervisor.stop()

    async def _announce(self) -> None:
        """Tell listeners of changes: one notice for all that happens within `list_change_delay`."""
        while True:
            await self._dirty.wait()
            await trio.sleep(self.settings.list_change_delay)
            self._dirty = trio.Event()
            fresh, told = self.snapshot(), self._announced
            self._announced = fresh
            features = frozenset(kind.feature for kind in Kind if not fresh.same_list(told, kind))
            if features:
                for listener in tuple(self._listeners):
                    listener(features)

    async def _keep(self, store: Store) -> None:
        """Write what backends list to the state directory, in a thread, at most every `KEEP_INTERVAL` seconds."""
        while True:
            await trio.sleep(KEEP_INTERVAL)
            await self._keep_news(store)

    async def _keep_news(self, store: Store) -> None:
        await trio.lowlevel.checkpoint()
        for name, supervisor in self._supervisors.items():
            listing = supervisor.listing
            if listing is None or listing is self._kept[name]:
                continue
            try:
                # May be abandoned: a file is replaced as a whole or not at all, and a disk that hangs holds up nobody.
                await trio.to_thread.run_sync(store.save_catalog, supervisor.config, listing, abandon_on_cancel=True)
            except OSError as exc:
                log.warning("the catalog of %r could not be kept in %s: %s", name, store.directory, exc)
            self._kept[name] = listing

    def _build(self) -> Snapshot:
        parts: list[Part] = []
        for name, supervisor in self._supervisors.items():
            listing = supervisor.listing
            if listing is None:
                continue
            part = self._parts.get(name)
            if part is None or part.listing is not listing:
                part = make_part(name, supervisor.config.effective_namespace, listing, self._naming)
                self._parts[name] = part
            parts.append(part)
        listed = frozenset(name for name, one in self._supervisors.items() if one.offered)
        snapshot = Snapshot(parts, listed=listed, naming=self._naming)
        for clash in snapshot.clashes:
            if clash not in self._snapshot.clashes:
                log.warning("names clash: %s", clash)
        return snapshot


def _owner_of(server: ServerConfig) -> type[Supervisor]:
    return Supervisor if server.session == "shared" else PrivateFleet
