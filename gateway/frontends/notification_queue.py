"""A client's pending notifications: lists that changed, resources that were updated.

Only the latest notification about each list and resource is kept, so a client that reads slowly gets everything once
and the queue is bounded: three lists, and the resources that the client has subscribed to.
"""

from __future__ import annotations

from itertools import starmap
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.eras import meta

if TYPE_CHECKING:
    from collections.abc import Iterable

    import msgspec

    from gateway.jsonrpc import Id


MAX_DIRECT: Final = 64
"""Pending notifications for this client alone."""


class NotificationQueue:
    """One client's pending notifications; in the modern era each carries its subscription's id."""

    def __init__(self, subscription: Id | None = None) -> None:
        self._pending: dict[str, tuple[str, dict[str, msgspec.Raw]]] = {}
        self._subscription = subscription
        self._directs = 0
        self._event = trio.Event()

    def add(self, features: Iterable[str]) -> None:
        """Note that lists changed."""
        for feature in sorted(features):
            self._enqueue(feature, f"notifications/{feature}/list_changed", {})

    def updated(self, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Note that a resource was updated; `params` are those of the backend's notification."""
        self._enqueue(f"resource {uri}", "notifications/resources/updated", params)

    def direct(self, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Queue a notification for this client alone; drop the oldest of too many."""
        if method.endswith("/list_changed"):  # received in its own session with a backend, and perhaps elsewhere too
            self.add([method.split("/")[1]])
            return
        self._directs += 1
        self._pending.pop(f"direct {self._directs - MAX_DIRECT}", None)
        self._enqueue(f"direct {self._directs}", method, params)

    def _enqueue(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        self._pending[key] = (method, params)
        self._event.set()

    async def next_batch(self) -> list[bytes]:
        """Wait for notifications; return all of them, encoded."""
        while not self._pending:
            self._event = trio.Event()
            await self._event.wait()
        taken, self._pending = self._pending, {}
        return list(starmap(self._encode, taken.values()))

    def _encode(self, method: str, params: dict[str, msgspec.Raw]) -> bytes:
        if self._subscription is None:
            return jsonrpc.notification(method, jsonrpc.encode(params) if params else None)
        try:
            own: dict[str, object] = dict(jsonrpc.decode_object(params.get("_meta", jsonrpc.ABSENT)))
        except ValueError:
            own = {}
        own[meta.SUBSCRIPTION_ID] = self._subscription
        return jsonrpc.notification(method, jsonrpc.encode({**params, "_meta": own}))
