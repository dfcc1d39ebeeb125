"""The fleet's catalog, built from the backends' lists and cached for the next run.

`CatalogBuilder` makes a backend's part once per change of that backend, and the snapshot on the first request after a
change, so a hundred backends that start together cost one snapshot. It has no task and never waits.

`CatalogCache` stores the backends' lists in the state directory, so that the next run can list immediately. Its task
writes in a worker thread: a disk that hangs delays no other task, and a disk that fails causes a warning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.catalog.parts import Naming, Part, fill_memos, make_part
from gateway.catalog.scopes import make_views
from gateway.catalog.snapshot import Snapshot
from gateway.eras.methods import Kind
from gateway.masking import SECRETS
from gateway.store import OVERDUE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from gateway.catalog.listing import Listing
    from gateway.catalog.offers import Offer
    from gateway.config import Config, ServerConfig
    from gateway.store import Store
    from gateway.supervisor.supervisor import Supervisor

KEEP_INTERVAL: Final = 1.0
"""Seconds between two writes of a catalog, so that a server whose lists keep changing costs one write each."""
LAST_KEEP_BOUND: Final = 1.0
"""Seconds at most to write the latest lists at shutdown, so that short runs serve the next ones too."""

log = logging.getLogger("gateway.supervisor")


class CatalogBuilder:
    """The offers of the backends of one config, as one snapshot."""

    def __init__(self, config: Config, supervisors: Mapping[str, Supervisor]) -> None:
        self._config = config
        self._naming: Naming = _naming_of(config)
        self._supervisors = supervisors
        self._parts: dict[str, Part] = {}
        self._offers: Mapping[str, Offer] | None = None
        self.leaves_out = _excludes(config)
        """Whether a tool of some backend may be hidden from all callers."""
        self._snapshot = Snapshot()
        self._is_stale = True

    def note_change(self, supervisor: Supervisor) -> None:
        """Note a change: the snapshot is rebuilt at the next request.

        The backend's own part is built now, so that the first request does not wait for hundreds of parts.
        """
        self._is_stale = True
        if self._supervisors.get(supervisor.name) is supervisor:
            self._part(supervisor)

    def change(self, config: Config, supervisors: Mapping[str, Supervisor], kept: Collection[str]) -> None:
        """Use another config; the parts of backends in `kept` stay valid."""
        naming = _naming_of(config)
        self._parts = {name: part for name, part in self._parts.items() if name in kept and naming == self._naming}
        self._config, self._naming, self._supervisors = config, naming, supervisors
        self.leaves_out = self._offers is not None or _excludes(config)
        self._is_stale = True

    def snapshot(self) -> Snapshot:
        """The snapshot of everything offered."""
        if self._is_stale:
            self._is_stale = False
            self._snapshot = self._build(self._offers)
        return self._snapshot

    def offer(self, offers: Mapping[str, Offer] | None) -> list[str]:
        """Restrict the offer to these tools, or None for all.

        Return the unknown names; if there are any, nothing changes.
        """
        whole = self._build(None)
        unknown = [name for name in offers or () if whole.route(Kind.TOOLS, name) is None]
        if not unknown:
            self._offers = offers
            self.leaves_out = offers is not None or _excludes(self._config)
            self._is_stale = True
        return unknown

    def _build(self, offers: Mapping[str, Offer] | None) -> Snapshot:
        parts = [part for supervisor in self._supervisors.values() if (part := self._part(supervisor)) is not None]
        snapshot = Snapshot(
            parts,
            listed=frozenset(name for name, one in self._supervisors.items() if one.offered),
            naming=self._naming,
            offers=offers,
            backends=self._supervisors,
            views=make_views(self._config),
            namespaces={name: one.config.effective_namespace for name, one in self._supervisors.items()},
        )
        for clash in dict.fromkeys(snapshot.clashes):
            if clash not in self._snapshot.clashes:
                log.warning("names clash: %s", clash, extra={"event": "names_clash"})
        return snapshot

    def _part(self, supervisor: Supervisor) -> Part | None:
        name, listing, config = supervisor.name, supervisor.listing, supervisor.config
        if listing is None:
            return None
        part = self._parts.get(name)
        if part is None or part.listing is not listing:
            part = self._parts[name] = make_part(name, config.effective_namespace, listing, self._naming, config.tools)
            fill_memos(part)
            loose_ends = tuple(map(SECRETS.mask, part.loose_ends))
            for text in loose_ends:
                if text not in supervisor.loose_ends:
                    log.warning("server %r: %s", name, text, extra={"event": "catalog_warning", "backend": name})
            supervisor.loose_ends = loose_ends
        return part


def _excludes(config: Config) -> bool:
    return any(server.tools.excludes for server in config.servers.values() if not server.disabled)


def _naming_of(config: Config) -> Naming:
    return Naming(config.gateway.separator, config.gateway.max_name_length)


class CatalogCache:
    """Reads and writes last-good catalogs and the `OVERDUE` servers; a no-op without a store."""

    def __init__(self, store: Store | None, interval: float) -> None:
        self._store = store
        self._interval = interval
        self._kept: dict[str, Listing | None] = {}
        self._late: set[str] = set()
        self._dirty = trio.Event()

    def load(self, server: ServerConfig) -> Listing | None:
        """Read the last lists of this server.

        Blocks, so call it only before any task runs that a slow disk could delay.
        """
        found = None if self._store is None else self._store.load_catalog(server)
        self._kept[server.name] = found
        return found

    async def load_in_thread(self, server: ServerConfig) -> Listing | None:
        """Read the last lists of a server that is added to running ones."""
        if self._store is None:
            return None
        return await trio.to_thread.run_sync(self._store.load_catalog, server, abandon_on_cancel=True)

    def forget_others(self, names: Collection[str]) -> None:
        """Keep entries of these servers only."""
        self._kept = {name: listing for name, listing in self._kept.items() if name in names}
        self._late.intersection_update(names)

    def note_change(self) -> None:
        """Have a backend's lists written soon: a client may end this run any time."""
        self._dirty.set()

    def note_late(self, names: Iterable[str]) -> None:
        """Record these backends as `OVERDUE`, until they list something."""
        self._late.update(names)
        self._dirty.set()

    async def run(self, supervisors: Callable[[], Mapping[str, Supervisor]]) -> None:
        """Write changed lists, at most once an interval, until cancelled."""
        while self._store is not None:
            await self._dirty.wait()
            self._dirty = trio.Event()
            await self._save(self._store, supervisors())
            await trio.sleep(self._interval)

    async def save_last(self, supervisors: Mapping[str, Supervisor]) -> None:
        """Write the latest lists at the end of the run, while its client still waits."""
        if self._store is not None:
            with trio.move_on_after(LAST_KEEP_BOUND):
                await self._save(self._store, supervisors)

    async def _save(self, store: Store, supervisors: Mapping[str, Supervisor]) -> None:
        await trio.lowlevel.checkpoint()
        for name, supervisor in supervisors.items():
            listing = OVERDUE if supervisor.listing is None and name in self._late else supervisor.listing
            if listing is None or listing is self._kept.get(name):
                continue
            if any(listing.unread.values()):  # the stored lists may be better
                continue
            try:
                # May be abandoned: a file is replaced as a whole or not at all, and no disk may delay shutdown.
                await trio.to_thread.run_sync(store.save_catalog, supervisor.config, listing, abandon_on_cancel=True)
            except OSError as exc:
                log.warning("cannot store the catalog of %r in %s: %s", name, store.directory, exc)
            self._kept[name] = listing
