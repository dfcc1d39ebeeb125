"""Keeps one backend session as clients want it: log level and resource subscriptions, in either era.

A legacy backend is told by `logging/setLevel`, `resources/subscribe` and `unsubscribe`; a modern one by the filter of
the upstream `subscriptions/listen` (`listening`), and by the level on each request. What has been told is part of the
session, so that a new session is told everything again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.backends.session.subscription_stream import run_subscription_stream
from gateway.calls import Complete, Era

if TYPE_CHECKING:
    from gateway.backends.session.conversation import Conversation
    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.backends.session.interface import SessionObserver
    from gateway.calls import Outcome

log = logging.getLogger("gateway.backend")


class DesiredState(msgspec.Struct, frozen=True):
    """What one backend's session should be set to."""

    log_level: str | None = None
    uris: frozenset[str] = frozenset()


class SessionReconciler:
    """One session's settings: what is wished, and what has been told."""

    def __init__(self, conversation: Conversation, listener: SessionObserver, *, timeout: float) -> None:
        self.wishes = DesiredState()
        self.changed = trio.Event()
        """Set when the wishes are others; who acts on them puts a new event in its place."""
        self._conversation = conversation
        self._listener = listener
        self._timeout = timeout
        self._level: str | None = None
        self._uris: set[str] = set()

    def set_desired(self, wishes: DesiredState) -> None:
        """Have the session brought in line with these wishes."""
        if wishes != self.wishes:
            self.wishes = wishes
            self.changed.set()

    def subscribed(self, uri: str) -> None:
        """Note that a client's own request has subscribed the session to a resource."""
        self._uris.add(uri)

    def pass_on(self, method: str, params: msgspec.Raw) -> None:
        """Hand on what a client of this session says on its own, as it is: the modern era has no such notifications."""
        if self._conversation.hop.era is Era.LEGACY:
            self._conversation.pass_on(method, params)

    async def ping(self, *, timeout: float) -> Outcome:
        """Ask whether the backend lives; an error is an answer too, silence is `BackendTooSlow`.

        2026-07-28 has no `ping` any more; there every server answers `server/discover`.
        """
        method = "ping" if self._conversation.hop.era is Era.LEGACY else "server/discover"
        return await self._conversation.request(method, timeout=timeout)

    def forget(self) -> None:
        """Begin anew: the backend has forgotten the session and with it all that it was told."""
        self._level = None
        self._uris.clear()
        self.changed.set()

    async def run(self, greeting: ServerIntroduction) -> None:
        """Do what is wished, until cancelled."""
        if greeting.era is Era.MODERN:
            await run_subscription_stream(self._conversation, greeting, self._listener, self)
            return
        while True:
            await self.changed.wait()
            self.changed = trio.Event()
            await self._apply(greeting)

    async def _apply(self, greeting: ServerIntroduction) -> None:
        wishes = self.wishes
        if "logging" in greeting.capabilities and wishes.log_level not in {None, self._level}:
            await self._send_changes("logging/setLevel", {"level": wishes.log_level})
            self._level = wishes.log_level
        for uri in sorted(self._uris - wishes.uris):
            self._uris.discard(uri)
            await self._send_changes("resources/unsubscribe", {"uri": uri})
            if uri in self._uris:  # by a client's own request meanwhile; over HTTP either may have come first
                self._uris.discard(uri)
                self.changed.set()
        for uri in sorted(wishes.uris - self._uris):
            self._uris.add(uri)
            await self._send_changes("resources/subscribe", {"uri": uri})

    async def _send_changes(self, method: str, params: dict[str, object]) -> None:
        outcome = await self._conversation.request(method, params, timeout=self._timeout)
        if not isinstance(outcome, Complete):
            log.warning("backend %r did not accept %s: %s", self._conversation.backend, method, outcome)
