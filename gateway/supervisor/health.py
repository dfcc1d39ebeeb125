"""Tasks beside a session: one pings an idle backend, one rereads its lists.

Only an idle backend is pinged: with calls in flight, their deadlines show whether it works, and many servers do one
thing at a time, so a silent one may just be busy.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.backends.session.interface import Session
    from gateway.catalog.listing import Listing
    from gateway.config import ServerConfig

RELIST_INTERVAL: Final = 0.25
"""Minimum seconds between two reads of a backend's lists, however often it sends `list_changed`."""
RELIST_DELAY: Final = 5.0
"""Seconds until a list that failed is read again, doubled each time: it may depend on a slow start."""
RELIST_DELAY_LIMIT: Final = 300.0
"""Maximum seconds until a list that failed is read again."""

log = logging.getLogger("gateway.supervisor")


class Relister:
    """Reads the lists of one backend again, in its current session."""

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._features: dict[str, bool] = {}
        self._marked = trio.Event()

    def mark(self, feature: str, *, is_announced: bool = True) -> None:
        """Have a feature's lists read again; `is_announced` says that the backend has sent `list_changed`."""
        self._features[feature] = is_announced or self._features.get(feature, False)
        self._marked.set()

    async def run(self, session: Session, listed: Callable[[Listing, str | None], None]) -> None:
        """Read changed lists, and failed ones at growing intervals, until cancelled.

        `listed` gets the listing, and the feature that the backend has announced, if any.
        """
        delay = RELIST_DELAY
        while True:
            failed = {kind.feature for kind, again in session.listing.unread.items() if again}
            with trio.move_on_after(delay if failed else math.inf) as scope:
                await self._marked.wait()
            marked, self._features = self._features, dict[str, bool]()
            again: set[str] = set()
            if scope.cancelled_caught:
                again = failed
                delay = min(2 * delay, RELIST_DELAY_LIMIT)
            elif not failed:
                delay = RELIST_DELAY
            self._marked = trio.Event()
            for feature in sorted(marked.keys() | again):
                try:
                    fresh = await session.relist(feature)
                except (BackendTooSlow, BackendProtocol) as exc:
                    extra = {"event": "list_not_updated", "backend": self._backend, "code": exc.code}
                    text = "backend %r: keeping the previous %s: %s"
                    log.warning(text, self._backend, feature, exc.reason, extra=extra)
                    continue
                session.listing = session.listing.relisted(fresh)
                listed(session.listing, feature if marked.get(feature) else None)
            await trio.sleep(RELIST_INTERVAL)


async def ping_periodically(session: Session, config: ServerConfig, interval: float) -> None:
    """Ping every `interval` seconds, until cancelled.

    Any answer is a sign of life, an error as well.

    Raises:
        BackendTooSlow: no answer within `connect_timeout`, while nothing else was in flight.
    """
    while True:
        await trio.sleep(interval)
        if session.in_flight:
            continue
        outcome = await session.upkeep.ping(timeout=config.connect_timeout)
        if isinstance(outcome, BackendTooSlow) and not session.in_flight:
            raise BackendTooSlow(config.name, f"did not answer a ping within {config.connect_timeout:g} s")
        if isinstance(outcome, (BackendExited, BackendUnavailable)):
            return  # the session is ending on its own
