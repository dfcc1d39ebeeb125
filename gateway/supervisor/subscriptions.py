"""What clients receive beyond the answers to their calls: resource updates, log messages, notifications.

`SubscriptionRegistry` counts by client, so that a backend is subscribed to a resource once, however many clients are,
and has the most verbose log level that any of them wants. Sessions bring their backend in line with it, also after a
restart. Kept by backend and by client: frequent events look only at the entries that they concern.

`ClientNotifications` delivers what is for one client alone, by the key of its sessions with backends: the stdio
process, a legacy session, or an authenticated principal. A principal may have several streams open; each of them
receives everything. The owner of a receiver closes it when the client has gone.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway.backends.session.session_state import DesiredState
from gateway.eras.meta import LOG_LEVELS

if TYPE_CHECKING:
    from collections.abc import Callable

    Update = Callable[[str, dict[str, msgspec.Raw]], None]
    Receiver = Callable[[str, dict[str, msgspec.Raw]], None]

LEVEL_KEPT: Final = 60.0
"""Seconds for which legacy backends log what a modern request has asked for: telling them costs a request each time."""


class _Watcher(msgspec.Struct, frozen=True):
    update: Update
    key: str | None
    """The client's session (or principal), for backends that have a session for it alone."""


class _Watched:
    """What is watched at one backend."""

    def __init__(self) -> None:
        self.watchers: dict[str, dict[object, _Watcher]] = {}
        self._wholes: defaultdict[str, set[str]] = defaultdict(set)
        """URIs by what they are without slashes at the end: a resource that is part of one begins so."""

    def add(self, uri: str, client: object, watcher: _Watcher) -> None:
        self.watchers.setdefault(uri, {})[client] = watcher
        self._wholes[uri.rstrip("/")].add(uri)

    def remove(self, uri: str, client: object) -> None:
        watchers = self.watchers.get(uri, {})
        watchers.pop(client, None)
        if uri in self.watchers and not watchers:
            del self.watchers[uri]
            whole = uri.rstrip("/")
            self._wholes[whole].discard(uri)
            if not self._wholes[whole]:
                del self._wholes[whole]

    def concerned(self, uri: str) -> set[str]:
        """Return the watched URIs that are this resource, or one that it is part of."""
        concerned = {uri} if uri in self.watchers else set[str]()
        if uri.count("/") > len(self._wholes):  # a URI may consist of slashes
            for whole, watched in self._wholes.items():
                if uri.startswith(whole + "/"):
                    concerned |= watched
            return concerned
        end = uri.find("/")
        while end >= 0:
            concerned |= self._wholes.get(uri[:end], set())
            end = uri.find("/", end + 1)
        return concerned


class SubscriptionRegistry:
    """All wishes of all clients. Clients are told apart by a key object that lives as long as they do."""

    def __init__(self) -> None:
        self._levels: dict[object, str] = {}
        self._lent: dict[str, float] = {}
        self._has_lent = trio.Event()
        self._backends: defaultdict[str, _Watched] = defaultdict(_Watched)
        self._clients: defaultdict[object, set[tuple[str, str]]] = defaultdict(set)

    def __contains__(self, client: object) -> bool:
        return client in self._levels or client in self._clients

    def want_level(self, client: object, level: str | None) -> None:
        """Note the log level that a client wants; None for none any more."""
        self._levels.pop(client, None)
        if level is not None:
            self._levels[client] = level

    def lend_level(self, level: str) -> bool:
        """Note the level of a request that stands alone, for a while; returns whether it is news."""
        is_new = level not in self._lent
        self._lent[level] = trio.current_time() + LEVEL_KEPT
        if is_new:
            self._has_lent.set()
        return is_new

    async def run(self, changed: Callable[[], None]) -> None:
        """Forget levels that were lent, and say so; runs until cancelled."""
        while True:
            await self._has_lent.wait()
            self._has_lent = trio.Event()
            while self._lent:
                await trio.sleep_until(min(self._lent.values()))
                now = trio.current_time()
                self._lent = {level: until for level, until in self._lent.items() if until > now}
                changed()

    def watch(self, client: object, backend: str, uri: str, update: Update, *, key: str | None = None) -> None:
        """Note that a client wants to hear of a resource."""
        self._backends[backend].add(uri, client, _Watcher(update, key))
        self._clients[client].add((backend, uri))

    def unwatch(self, client: object, backend: str, uri: str) -> None:
        """Note that a client does not want to hear of a resource any more."""
        if (backend, uri) not in self.watched(client):
            return
        self._backends[backend].remove(uri, client)
        self._clients[client].discard((backend, uri))
        if not self._clients[client]:
            del self._clients[client]

    def watched(self, client: object) -> list[tuple[str, str]]:
        """The (backend, uri) that a client wants to hear of."""
        return list(self._clients.get(client, ()))

    def forget(self, client: object) -> set[str]:
        """Drop all wishes of a client that has gone; returns the backends that they concerned."""
        self._levels.pop(client, None)
        keys = self.watched(client)
        for backend, uri in keys:
            self.unwatch(client, backend, uri)
        return {backend for backend, _ in keys}

    def of(self, backend: str, key: str | None = None) -> DesiredState:
        """What this backend's session should be set to; with a key, the session that is that client's alone."""
        level = min((*self._levels.values(), *self._lent), key=LOG_LEVELS.index, default=None)
        if backend not in self._backends:
            return DesiredState(level)
        watchers = self._backends[backend].watchers
        if key is None:
            return DesiredState(level, frozenset(watchers))
        own = (uri for uri, found in watchers.items() if any(watcher.key == key for watcher in found.values()))
        return DesiredState(level, frozenset(own))

    def updated(self, backend: str, uri: str, params: dict[str, msgspec.Raw], key: str | None = None) -> None:
        """Tell those who want to hear of this resource, or of one that it is part of (server/resources).

        With a key, only that client: the update was seen in its own session.
        """
        if backend not in self._backends:
            return
        watched = self._backends[backend]
        for wanted in sorted(watched.concerned(uri)):
            for watcher in list(watched.watchers[wanted].values()):
                if key is None or watcher.key == key:
                    watcher.update(uri, params)


class ClientNotifications:
    """All receivers of all clients. A receiver takes a method and params, and returns at once."""

    def __init__(self) -> None:
        self._receivers: dict[str, list[Receiver]] = {}

    def __len__(self) -> int:
        """Clients that have one."""
        return len(self._receivers)

    def register(self, key: str, receiver: Receiver) -> None:
        """Have a receiver filled with what is for this client."""
        self._receivers.setdefault(key, []).append(receiver)

    def close(self, key: str, receiver: Receiver) -> None:
        """Take a receiver away. Safe to repeat, and for one that never was."""
        receivers = self._receivers.get(key, [])
        if receiver in receivers:
            receivers.remove(receiver)
        if not receivers:
            self._receivers.pop(key, None)

    def deliver(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Tell a client something; one that has gone, or has no receiver, does not get it."""
        for receiver in tuple(self._receivers.get(key, ())):
            receiver(method, params)
