"""The log level and resource subscriptions of one backend session, as clients want them.

A legacy backend gets `logging/setLevel`, `resources/subscribe` and `resources/unsubscribe`. A modern one gets the level
with each request, and the subscriptions as the filter of one `subscriptions/listen` that stays open (2026-07-28
basic/patterns/subscriptions). The state sent is part of the session, so a new session is sent everything again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.backends.session.contracts import wait_any
from gateway.backends.session.handshake import change_filter, has_flag
from gateway.calls import Complete, Era, Failure
from gateway.eras.methods import LISTEN

if TYPE_CHECKING:
    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.conversation import Conversation
    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.calls import Outcome

RELISTEN_DELAY: Final = 5.0
"""Seconds until a `subscriptions/listen` that has ended is opened again: faster polling would flood the backend."""
LONGEST_DELAY: Final = 300.0
"""Maximum seconds between two attempts at a backend that keeps ending it."""
SOUND_AFTER: Final = 30.0
"""Seconds it must stay open for the delay to be reset."""
ACKNOWLEDGED_WITHIN: Final = 5.0
"""Seconds that an old request stays open for the acknowledgement of its replacement."""

log = logging.getLogger("gateway.backend")


class DesiredState(msgspec.Struct, frozen=True):
    """The desired state of one backend's session."""

    log_level: str | None = None
    uris: frozenset[str] = frozenset()


class SessionReconciler:
    """One session's state: as desired, and as sent."""

    def __init__(
        self,
        conversation: Conversation,
        listener: SessionObserver,
        *,
        timeout: float,
        relisten_delay: float = RELISTEN_DELAY,
    ) -> None:
        self.wishes = DesiredState()
        self.changed = trio.Event()
        """Set when the desired state changes; the reader replaces the event."""
        self._conversation = conversation
        self._listener = listener
        self._timeout = timeout
        self._relisten_delay = relisten_delay
        self._level: str | None = None
        self._uris: set[str] = set()

    def set_desired(self, wishes: DesiredState) -> None:
        """Set the desired state of the session."""
        if wishes != self.wishes:
            self.wishes = wishes
            self.changed.set()

    def subscribed(self, uri: str) -> None:
        """Note that a client's own request has subscribed the session to a resource."""
        self._uris.add(uri)

    def pass_on(self, method: str, params: msgspec.Raw) -> None:
        """Pass on a client's notification unchanged; the modern era has no such notifications."""
        if self._conversation.hop.era is Era.LEGACY:
            self._conversation.pass_on(method, params)

    async def ping(self, *, timeout: float) -> Outcome:
        """Ping the backend; an error is an answer too, silence is `BackendTooSlow`.

        2026-07-28 has no `ping`; there every server answers `server/discover`.
        """
        method = "ping" if self._conversation.hop.era is Era.LEGACY else "server/discover"
        return await self._conversation.request(method, timeout=timeout)

    def forget(self) -> None:
        """Start over: the backend has lost the session, and its state."""
        self._level = None
        self._uris.clear()
        self.changed.set()

    async def run(self, greeting: ServerIntroduction) -> None:
        """Keep the session as desired, until cancelled or until a modern backend serves no listen."""
        if greeting.era is Era.MODERN:
            await self._keep_listening(greeting)
            return
        while True:
            await self.changed.wait()
            self.changed = trio.Event()
            wishes = self.wishes
            if "logging" in greeting.capabilities and wishes.log_level not in {None, self._level}:
                await self._send_changes("logging/setLevel", {"level": wishes.log_level})
                self._level = wishes.log_level
            for uri in sorted(self._uris - wishes.uris):
                self._uris.discard(uri)
                await self._send_changes("resources/unsubscribe", {"uri": uri})
                if uri in self._uris:  # by a client's own request meanwhile; over HTTP either may have arrived first
                    self._uris.discard(uri)
                    self.changed.set()
            for uri in sorted(wishes.uris - self._uris):
                self._uris.add(uri)
                await self._send_changes("resources/subscribe", {"uri": uri})

    async def _send_changes(self, method: str, params: dict[str, object]) -> None:
        outcome = await self._conversation.request(method, params, timeout=self._timeout)
        if not isinstance(outcome, Complete):
            log.warning("backend %r did not accept %s: %s", self._conversation.backend, method, outcome)

    async def _keep_listening(self, greeting: ServerIntroduction) -> None:
        """Keep one `subscriptions/listen` open while lists can change or clients watch resources.

        Whenever it ends, everything counts as changed, since missed notifications are not repeated.
        """
        delay = self._relisten_delay
        while True:
            self.changed = trio.Event()
            if not self._filter(greeting):
                await self.changed.wait()
                continue
            began = trio.current_time()
            outcome = await self._listen(greeting)
            if isinstance(outcome, Failure) and outcome.code == jsonrpc.METHOD_NOT_FOUND:
                log.debug("backend %r does not serve subscriptions/listen", self._conversation.backend)
                return
            if trio.current_time() - began >= SOUND_AFTER:
                delay = self._relisten_delay
            await trio.sleep(delay)
            delay = min(delay * 2, LONGEST_DELAY)
            for feature in greeting.capabilities:
                self._listener.list_changed(feature)
            for uri in sorted(self.wishes.uris):
                self._listener.resource_updated(uri, {"uri": jsonrpc.raw(uri)})

    async def _listen(self, greeting: ServerIntroduction) -> Outcome | None:
        """Keep a request open until the backend ends it.

        Its filter cannot be changed: another request replaces it, and the old one ends when the new one is
        acknowledged, so that nothing is missed between them.
        """
        conversation = self._conversation
        request_id, waiter = conversation.begin(LISTEN, {"notifications": self._filter(greeting)})
        try:
            while not waiter.event.is_set():
                await wait_any(waiter.event, self.changed)
                if not self.changed.is_set():
                    continue
                self.changed = trio.Event()
                old_id, old_waiter = request_id, waiter
                features = self._filter(greeting)
                request_id, waiter = conversation.begin(LISTEN, {"notifications": features})
                try:
                    with trio.move_on_after(ACKNOWLEDGED_WITHIN):
                        await wait_any(waiter.acknowledged, old_waiter.event)
                finally:
                    conversation.end(old_id, reason="replaced by another subscription")
        finally:
            conversation.end(request_id, reason="no longer needed")
        return waiter.outcome

    def _filter(self, greeting: ServerIntroduction) -> dict[str, object]:
        """Return the filter: every list that can change, and the resources that clients watch."""
        features = change_filter(greeting)
        if self.wishes.uris and has_flag(greeting, "resources", "subscribe"):
            features["resourceSubscriptions"] = sorted(self.wishes.uris)
        return features
