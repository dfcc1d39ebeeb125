"""One `subscriptions/listen` of a modern client (2026-07-28 basic/patterns/subscriptions).

The acknowledgement comes first and names only what is honoured; every message carries the subscription's id. What is
still to be told is a set of features, so a slow client cannot make it grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.eras import meta, results
from gateway.errors import InvalidParams
from gateway.frontends.changes import Changes

if TYPE_CHECKING:
    import msgspec

    from gateway.calls import Call
    from gateway.frontends.answers import Answers

_FILTERS: Final = {
    "toolsListChanged": "tools",
    "promptsListChanged": "prompts",
    "resourcesListChanged": "resources",
}


class Subscription:
    """What one client wants to hear, and what it still has to be told."""

    def __init__(self, answers: Answers, request_id: jsonrpc.Id, call: Call) -> None:
        """Read the filter.

        Raises:
            InvalidParams: `params.notifications` is missing or has the wrong form.
        """
        try:
            wanted = jsonrpc.decode_object(call.params["notifications"])
        except (KeyError, ValueError):
            text = "subscriptions/listen needs params.notifications, an object"
            raise InvalidParams(text) from None
        self._answers = answers
        self._id = request_id
        self._features = {_FILTERS[key]: key for key, value in wanted.items() if _is_wanted(key, value)}
        self._changes = Changes(request_id)

    def acknowledgement(self) -> bytes:
        """The first message: the subset of the filter that is honoured."""
        honoured = dict.fromkeys(self._features.values(), True)
        return jsonrpc.notification(
            "notifications/subscriptions/acknowledged",
            jsonrpc.encode({"_meta": {meta.SUBSCRIPTION_ID: self._id}, "notifications": honoured}),
        )

    def tell(self, features: frozenset[str]) -> None:
        """Note that lists changed."""
        wanted = features & self._features.keys()
        if wanted:
            self._changes.add(wanted)

    async def take(self) -> list[bytes]:
        """Wait for changes; return the notifications to send."""
        return await self._changes.take()

    def result(self) -> bytes:
        """The response that ends the subscription gracefully ("Graceful Closure")."""
        own = {meta.SUBSCRIPTION_ID: self._id}
        result = results.modern_result({}, server_info=self._answers.server_info, own_meta=dict(own))
        return jsonrpc.response(self._id, result)


def _is_wanted(key: str, value: msgspec.Raw) -> bool:
    if key not in _FILTERS:
        return False
    if bytes(value) not in {b"true", b"false"}:
        text = f"params.notifications.{key} must be true or false"
        raise InvalidParams(text)
    return bytes(value) == b"true"
