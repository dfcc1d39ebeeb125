"""What clients want of backends beyond single calls: resource updates, and how much logging.

Counted by who wants it, so that a backend is subscribed to a resource once, however many clients are, and is told the
most verbose level that anybody wants. Sessions bring their backend in line with these wishes, also after a restart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.backends.upkeep import Wishes
from gateway.eras.meta import LOG_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    Update = Callable[[str, dict[str, msgspec.Raw]], None]


class WishList:
    """All wishes of all clients. Clients are told apart by a key object that lives as long as they do."""

    def __init__(self) -> None:
        self._levels: dict[object, str] = {}
        self._watchers: dict[tuple[str, str], dict[object, Update]] = {}

    def __contains__(self, client: object) -> bool:
        return client in self._levels or bool(self.watched(client))

    def want_level(self, client: object, level: str | None) -> None:
        """Note the log level that a client wants; None for none any more."""
        self._levels.pop(client, None)
        if level is not None:
            self._levels[client] = level

    def watch(self, client: object, backend: str, uri: str, update: Update) -> None:
        """Note that a client wants to hear of a resource."""
        self._watchers.setdefault((backend, uri), {})[client] = update

    def unwatch(self, client: object, backend: str, uri: str) -> None:
        """Note that a client does not want to hear of a resource any more."""
        watchers = self._watchers.get((backend, uri), {})
        watchers.pop(client, None)
        if not watchers:
            self._watchers.pop((backend, uri), None)

    def watched(self, client: object) -> list[tuple[str, str]]:
        """The (backend, uri) that a client wants to hear of."""
        return [key for key, watchers in self._watchers.items() if client in watchers]

    def forget(self, client: object) -> set[str]:
        """Drop all wishes of a client that has gone; returns the backends that they concerned."""
        self._levels.pop(client, None)
        keys = self.watched(client)
        for backend, uri in keys:
            self.unwatch(client, backend, uri)
        return {backend for backend, _ in keys}

    def of(self, backend: str) -> Wishes:
        """What this backend's session should be set to."""
        level = min(self._levels.values(), key=LOG_LEVELS.index, default=None)
        return Wishes(level, frozenset(uri for owner, uri in self._watchers if owner == backend))

    def updated(self, backend: str, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Tell those who want to hear of this resource, or of one that it is part of (server/resources)."""
        for (owner, wanted), watchers in list(self._watchers.items()):
            if owner == backend and (uri == wanted or uri.startswith(wanted.rstrip("/") + "/")):
                for update in list(watchers.values()):
                    update(uri, params)
