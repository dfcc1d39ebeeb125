"""The fleet's catalog, assembled from what its backends list.

Each backend's part is made once per change of that backend; the snapshot is made anew when somebody looks after a
change, so that a hundred backends which start at once cost one, not a hundred. No task, and nothing in here waits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from gateway.catalog.kinds import Kind
from gateway.catalog.parts import Naming, Part, fill_memos, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.catalog.views import make_views
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from gateway.catalog.offers import Offer
    from gateway.config import Config
    from gateway.supervisor.supervisor import Supervisor

log = logging.getLogger("gateway.supervisor")


class CatalogBuilder:
    """What the backends of one config offer, as one snapshot."""

    def __init__(self, config: Config, supervisors: Mapping[str, Supervisor]) -> None:
        self._config = config
        self._naming: Naming = _naming_of(config)
        self._supervisors = supervisors
        self._parts: dict[str, Part] = {}
        self._offers: Mapping[str, Offer] | None = None
        self.leaves_out = _excludes(config)
        """Whether a tool of some backend may be kept from all callers."""
        self._snapshot = Snapshot()
        self._is_stale = True

    def note_change(self, supervisor: Supervisor) -> None:
        """Note that something is different: the snapshot is made anew when next asked for.

        The backend's own part is made now, so that whoever asks first does not wait for those of hundreds.
        """
        self._is_stale = True
        if self._supervisors.get(supervisor.name) is supervisor:
            self._part(supervisor)

    def change(self, config: Config, supervisors: Mapping[str, Supervisor], kept: Collection[str]) -> None:
        """Go by another config from now on; the parts of backends in `kept` are as good as before."""
        naming = _naming_of(config)
        self._parts = {name: part for name, part in self._parts.items() if name in kept and naming == self._naming}
        self._config, self._naming, self._supervisors = config, naming, supervisors
        self.leaves_out = self._offers is not None or _excludes(config)
        self._is_stale = True

    def snapshot(self) -> Snapshot:
        """Everything that is offered now."""
        if self._is_stale:
            self._is_stale = False
            self._snapshot = self._build(self._offers)
        return self._snapshot

    def offer(self, offers: Mapping[str, Offer] | None) -> list[str]:
        """Offer exactly these tools from now on, None: all; returns names that nobody owns, then changes nothing."""
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
        for clash in snapshot.clashes:
            if clash not in self._snapshot.clashes:
                log.warning("names clash: %s", clash)
        return snapshot

    def _part(self, supervisor: Supervisor) -> Part | None:
        name, listing, config = supervisor.name, supervisor.listing, supervisor.config
        if listing is None:
            return None
        part = self._parts.get(name)
        if part is None or part.listing is not listing:
            part = self._parts[name] = make_part(name, config.effective_namespace, listing, self._naming, config.tools)
            fill_memos(part)
            _note_loose_ends(supervisor, part)
        return part


def _note_loose_ends(supervisor: Supervisor, part: Part) -> None:
    loose_ends = tuple(map(SECRETS.mask, part.loose_ends))
    for text in loose_ends:
        if text not in supervisor.loose_ends:
            log.warning("server %r: %s", supervisor.name, text)
    supervisor.loose_ends = loose_ends


def _excludes(config: Config) -> bool:
    return any(server.tools.excludes for server in config.servers.values() if not server.disabled)


def _naming_of(config: Config) -> Naming:
    return Naming(config.gateway.separator, config.gateway.max_name_length)
