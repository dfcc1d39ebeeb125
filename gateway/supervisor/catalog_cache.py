"""Last-good catalogs: what backends list is kept in the state directory, so that the next run can list at once.

One task looks for news and writes in a worker thread; a disk that hangs holds up nobody, one that fails is a warning.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from gateway.catalog.listing import Listing
    from gateway.config import ServerConfig
    from gateway.store import Store
    from gateway.supervisor.supervisor import Supervisor

KEEP_INTERVAL: Final = 1.0
"""Seconds between two looks for catalogs to keep: a server that lists something new every moment costs one write."""
LAST_KEEP_BOUND: Final = 1.0
"""Seconds at most for keeping, at the end, what was listed since the last look: short runs teach the next ones too."""

log = logging.getLogger("gateway.supervisor")


class CatalogCache:
    """The one who reads and writes last-good catalogs; without a store there are none."""

    def __init__(self, store: Store | None) -> None:
        self._store = store
        self._kept: dict[str, Listing | None] = {}

    def load(self, server: ServerConfig) -> Listing | None:
        """What this server listed last; for the beginning, where nothing runs yet that a slow disk could hold up."""
        found = None if self._store is None else self._store.load_catalog(server)
        self._kept[server.name] = found
        return found

    async def load_in_thread(self, server: ServerConfig) -> Listing | None:
        """The same for a server that is added to running ones."""
        if self._store is None:
            return None
        return await trio.to_thread.run_sync(self._store.load_catalog, server, abandon_on_cancel=True)

    def forget_others(self, names: Collection[str]) -> None:
        """Go on with these servers alone: of others nothing is known to be kept."""
        self._kept = {name: listing for name, listing in self._kept.items() if name in names}

    async def run(self, supervisors: Callable[[], Mapping[str, Supervisor]]) -> None:
        """Write what backends list, at most every `KEEP_INTERVAL` seconds, until cancelled."""
        while self._store is not None:
            await trio.sleep(KEEP_INTERVAL)
            await self._save(self._store, supervisors())

    async def save_last(self, supervisors: Mapping[str, Supervisor]) -> None:
        """Write what was listed since the last look, at the end of the run."""
        if self._store is not None:
            with trio.move_on_after(LAST_KEEP_BOUND):
                await self._save(self._store, supervisors)

    async def _save(self, store: Store, supervisors: Mapping[str, Supervisor]) -> None:
        await trio.lowlevel.checkpoint()
        for name, supervisor in supervisors.items():
            listing = supervisor.listing
            if listing is None or listing is self._kept.get(name):
                continue
            if any(listing.unread.values()):  # what was kept before may be better
                continue
            try:
                # May be abandoned: a file is replaced as a whole or not at all, and a disk that hangs holds up nobody.
                await trio.to_thread.run_sync(store.save_catalog, supervisor.config, listing, abandon_on_cancel=True)
            except OSError as exc:
                log.warning("the catalog of %r could not be kept in %s: %s", name, store.directory, exc)
            self._kept[name] = listing
