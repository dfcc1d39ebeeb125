"""What has changed between two snapshots, as clients of one scope or another see it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.catalog.kinds import Kind

if TYPE_CHECKING:
    from gateway.calls import Scope
    from gateway.catalog.snapshot import Snapshot


class ListNews:
    """The lists that a client has to be told of; looked at once for each scope."""

    def __init__(self, told: Snapshot, fresh: Snapshot) -> None:
        self._told = told
        self._fresh = fresh
        self._seen: dict[Scope | None, frozenset[str]] = {}

    def __bool__(self) -> bool:
        """Whether there may be news for anybody: where nobody sees a change, no part of it has changed either."""
        return bool(self.features(None)) or self._told.views != self._fresh.views

    def features(self, scope: Scope | None) -> frozenset[str]:
        """The features ("tools", "prompts", "resources") whose lists look different now in this scope."""
        found = self._seen.get(scope)
        if found is None:
            told, fresh = self._told.within(scope), self._fresh.within(scope)
            found = frozenset(kind.feature for kind in Kind if not fresh.same_list(told, kind))
            self._seen[scope] = found
        return found
