"""The upstream `subscriptions/listen` of a modern backend, on any transport: how it says that its lists changed.

2026-07-28 basic/patterns/subscriptions. One request that stays open; when it ends it is opened again, and everything
counts as changed, since nothing that was said meanwhile is said again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.backends import handshake
from gateway.calls import Era, Failure

if TYPE_CHECKING:
    from gateway.backends.conversation import Conversation, Listener
    from gateway.backends.handshake import Greeting

RELISTEN_DELAY: Final = 5.0
"""Seconds until an ended request is opened again; polling faster would be a storm."""
LONGEST_DELAY: Final = 300.0
"""Seconds between two attempts at a backend that ends it again and again."""
SOUND_AFTER: Final = 30.0
"""A request that stayed open for so many seconds forgives all earlier failures."""

log = logging.getLogger("gateway.backend")


async def keep_listening(conversation: Conversation, greeting: Greeting, listener: Listener) -> None:
    """Listen until cancelled, where a modern backend says that its lists can change; else return at once."""
    wanted = handshake.change_filter(greeting)
    if greeting.era is not Era.MODERN or not wanted:
        return
    delay = RELISTEN_DELAY
    while True:
        began = trio.current_time()
        request_id, waiter = conversation.begin("subscriptions/listen", {"notifications": wanted})
        try:
            await waiter.event.wait()
        finally:
            conversation.end(request_id, reason="no longer needed")
        if isinstance(waiter.outcome, Failure) and waiter.outcome.code == jsonrpc.METHOD_NOT_FOUND:
            log.debug("backend %r does not serve subscriptions/listen", conversation.backend)
            return
        if trio.current_time() - began >= SOUND_AFTER:
            delay = RELISTEN_DELAY
        await trio.sleep(delay)
        delay = min(delay * 2, LONGEST_DELAY)
        for feature in greeting.capabilities:
            listener.list_changed(feature)
