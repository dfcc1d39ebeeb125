"""The upstream `subscriptions/listen` of a modern backend, on any transport: how it says that its lists changed.

2026-07-28 basic/patterns/subscriptions. One request that stays open; when it ends it is opened again, and everything
counts as changed, watched resources too, since nothing that was said meanwhile is said again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.backends.session import handshake
from gateway.calls import Failure

if TYPE_CHECKING:
    from gateway.backends.session.conversation import Conversation
    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.backends.session.interface import SessionObserver
    from gateway.backends.session.session_state import SessionReconciler
    from gateway.calls import Outcome

RELISTEN_DELAY: Final = 5.0
"""Seconds until an ended request is opened again; polling faster would be a storm."""
LONGEST_DELAY: Final = 300.0
"""Seconds between two attempts at a backend that ends it again and again."""
SOUND_AFTER: Final = 30.0
"""A request that stayed open for so many seconds forgives all earlier failures."""

log = logging.getLogger("gateway.backend")


ACKNOWLEDGED_WITHIN: Final = 5.0
"""Seconds that an old request stays open for the acknowledgement of the new one that takes its place."""


async def run_subscription_stream(
    conversation: Conversation, greeting: ServerIntroduction, listener: SessionObserver, upkeep: SessionReconciler
) -> None:
    """Listen until cancelled, where a modern backend has lists that can change or resources that clients watch.

    The filter of a request cannot be changed: another request takes its place, and the old one ends when the new one is
    acknowledged, so that nothing is missed between them.
    """
    delay = RELISTEN_DELAY
    while True:
        upkeep.changed = trio.Event()
        wanted = _filter(greeting, upkeep.wishes.uris)
        if not wanted:
            await upkeep.changed.wait()
            continue
        began = trio.current_time()
        outcome = await _listen(conversation, greeting, upkeep, wanted)
        if isinstance(outcome, Failure) and outcome.code == jsonrpc.METHOD_NOT_FOUND:
            log.debug("backend %r does not serve subscriptions/listen", conversation.backend)
            return
        if trio.current_time() - began >= SOUND_AFTER:
            delay = RELISTEN_DELAY
        await trio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY)
        for feature in greeting.capabilities:
            listener.list_changed(feature)
        for uri in sorted(upkeep.wishes.uris):
            listener.resource_updated(uri, {"uri": jsonrpc.raw(uri)})


async def _listen(
    conversation: Conversation, greeting: ServerIntroduction, upkeep: SessionReconciler, wanted: dict[str, object]
) -> Outcome | None:
    """Keep one request open, and others in its place as the wishes change; returns when the backend ends it."""
    request_id, waiter = conversation.begin("subscriptions/listen", {"notifications": wanted})
    try:
        while not waiter.event.is_set():
            await _either(waiter.event, upkeep.changed)
            if not upkeep.changed.is_set():
                continue
            upkeep.changed = trio.Event()
            wanted = _filter(greeting, upkeep.wishes.uris)
            old_id, old_waiter = request_id, waiter
            request_id, waiter = conversation.begin("subscriptions/listen", {"notifications": wanted})
            try:
                with trio.move_on_after(ACKNOWLEDGED_WITHIN):
                    await _either(waiter.acknowledged, old_waiter.event)
            finally:
                conversation.end(old_id, reason="another subscription takes its place")
    finally:
        conversation.end(request_id, reason="no longer needed")
    return waiter.outcome


async def _either(first: trio.Event, second: trio.Event) -> None:
    """Wait until one of two events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel(reason="one of two events is set")

        nursery.start_soon(wait, first)
        await wait(second)


def _filter(greeting: ServerIntroduction, uris: frozenset[str]) -> dict[str, object]:
    """Ask for every list that can change, and for the resources that clients watch."""
    features = handshake.change_filter(greeting)
    if uris and handshake.has_flag(greeting, "resources", "subscribe"):
        return {**features, "resourceSubscriptions": sorted(uris)}
    return features
