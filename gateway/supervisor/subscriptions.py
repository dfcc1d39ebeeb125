"""Messages to clients besides the outcomes of calls: resource updates, log messages, notifications.

`SubscriptionRegistry` counts by client, so that a backend is subscribed to a resource once, however many clients are,
and gets the most verbose log level that any client has set. Sessions apply this to their backend, also after a restart.
It is indexed by backend and by client: frequent events look only at the entries that they concern.

`ClientNotifications` delivers messages for one client only, by the key of its backend sessions: the stdio process, a
legacy session, or an authenticated principal. A principal may have several streams open; each of them receives
everything. The owner of a receiver removes it when the client disconnects.
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
"""Seconds for which legacy backends keep the log level of a modern request: each change costs a request."""


class _Watcher(msgspec.Struct, frozen=True):
    update: Update
    key: str | None
    """The client's session (or principal), for backends with a separate session for it."""


class _Watched:
    """The resources watched at one backend."""

    def __init__(self) -> None:
        self.watchers: dict[str, dict[object, _Watcher]] = {}
        self._wholes: defaultdict[str, set[str]] = defaultdict(set)
        """URIs by their form without trailing slashes, with which the URI of any part of the resource begins."""

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
        """Return the watched URIs of this resource, and of resources that contain it."""
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
    """The subscriptions and log levels of all clients.

    A client is identified by a key object that lives as long as the client.
    """

    def __init__(self) -> None:
        self._levels: dict[object, str] = {}
        self._lent: dict[str, float] = {}
        self._has_lent = trio.Event()
        self._backends: defaultdict[str, _Watched] = defaultdict(_Watched)
        self._clients: defaultdict[object, set[tuple[str, str]]] = defaultdict(set)

    def __contains__(self, client: object) -> bool:
        return client in self._levels or client in self._clients

    def want_level(self, client: object, level: str | None) -> None:
        """Set the log level of a client; None removes it."""
        self._levels.pop(client, None)
        if level is not None:
            self._levels[client] = level

    def lend_level(self, level: str) -> bool:
        """Set a stateless request's log level for `LEVEL_KEPT` seconds; return whether that changes anything."""
        is_new = level not in self._lent
        self._lent[level] = trio.current_time() + LEVEL_KEPT
        if is_new:
            self._has_lent.set()
        return is_new

    async def run(self, changed: Callable[[], None]) -> None:
        """Expire the levels of stateless requests, and report them; runs until cancelled."""
        while True:
            await self._has_lent.wait()
            self._has_lent = trio.Event()
            while self._lent:
                await trio.sleep_until(min(self._lent.values()))
                now = trio.current_time()
                self._lent = {level: until for level, until in self._lent.items() if until > now}
                changed()

    def watch(self, client: object, backend: str, uri: str, update: Update, *, key: str | None = None) -> None:
        """Subscribe a client to a resource."""
        self._backends[backend].add(uri, client, _Watcher(update, key))
        self._clients[client].add((backend, uri))

    def unwatch(self, client: object, backend: str, uri: str) -> None:
        """Unsubscribe a client from a resource."""
        if (backend, uri) not in self.watched(client):
            return
        self._backends[backend].remove(uri, client)
        self._clients[client].discard((backend, uri))
        if not self._clients[client]:
            del self._clients[client]

    def watched(self, client: object) -> list[tuple[str, str]]:
        """Return the (backend, uri) pairs that a client is subscribed to."""
        return list(self._clients.get(client, ()))

    def forget(self, client: object) -> set[str]:
        """Drop everything of a client that has disconnected; return the backends concerned."""
        self._levels.pop(client, None)
        keys = self.watched(client)
        for backend, uri in keys:
            self.unwatch(client, backend, uri)
        return {backend for backend, _ in keys}

    def of(self, backend: str, key: str | None = None) -> DesiredState:
        """Return the desired state of this backend's session; with a key, of that client's."""
        level = min((*self._levels.values(), *self._lent), key=LOG_LEVELS.index, default=None)
        if backend not in self._backends:
            return DesiredState(level)
        watchers = self._backends[backend].watchers
        if key is None:
            return DesiredState(level, frozenset(watchers))
        own = (uri for uri, found in watchers.items() if any(watcher.key == key for watcher in found.values()))
        return DesiredState(level, frozenset(own))

    def updated(self, backend: str, uri: str, params: dict[str, msgspec.Raw], key: str | None = None) -> None:
        """Notify the subscribers of this resource and of those that contain it (server/resources).

        With a key, only that client: the update arrived in its own session.
        """
        if backend not in self._backends:
            return
        watched = self._backends[backend]
        for wanted in sorted(watched.concerned(uri)):
            for watcher in list(watched.watchers[wanted].values()):
                if key is None or watcher.key == key:
                    watcher.update(uri, params)


class ClientNotifications:
    """The receivers of all clients, each called with a method and params.

    A receiver returns immediately.
    """

    def __init__(self) -> None:
        self._receivers: dict[str, list[Receiver]] = {}

    def __len__(self) -> int:
        """Return the number of clients with a receiver."""
        return len(self._receivers)

    def register(self, key: str, receiver: Receiver) -> None:
        """Add a receiver for the messages to this client."""
        self._receivers.setdefault(key, []).append(receiver)

    def close(self, key: str, receiver: Receiver) -> None:
        """Remove a receiver. Safe to repeat, and for an unknown one."""
        receivers = self._receivers.get(key, [])
        if receiver in receivers:
            receivers.remove(receiver)
        if not receivers:
            self._receivers.pop(key, None)

    def deliver(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Pass a message to a client's receivers, if there are any."""
        for receiver in tuple(self._receivers.get(key, ())):
            receiver(method, params)
