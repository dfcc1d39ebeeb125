"""Which transport a `url` speaks, where the config does not say it, and what was found out the last time.

2026-07-28 basic/transports/streamable-http, "Backward Compatibility": a modern request first, then `initialize`; a
server that refuses both with 400, 404 or 405 is asked for the event stream of the SSE transport. Transport and era
belong to the server, so they are remembered until opening a session fails.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from gateway.backends.handshake import AUTO_HINT
from gateway.backends.http_client import HttpRefused
from gateway.backends.sse import open_sse
from gateway.backends.streamable import open_streamable
from gateway.calls import Era
from gateway.errors import BackendError, BackendProtocol, BackendUnfit

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import httpx2

    from gateway.backends.conversation import Listener
    from gateway.backends.session import Session
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop

NOT_STREAMABLE: Final = frozenset({400, 404, 405})
"""Statuses that a server of the SSE transport gives to a POST."""

_NO_MODERN_SERVER: Final = frozenset({400, 405})
"""Those of them that no modern server gives to `server/discover`; 404 may come from whatever stands before it."""

_E = TypeVar("_E", bound=BackendError)

log = logging.getLogger("gateway.backend")


class _Found(msgspec.Struct, frozen=True):
    transport: str
    era: Era


class HttpOpener:
    """Opens sessions over HTTP, on whichever transport it is."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str | None], _Found] = {}

    @asynccontextmanager
    async def open(
        self, config: ServerConfig, listener: Listener, *, hop: Hop, auth: httpx2.Auth | None = None
    ) -> AsyncGenerator[Session]:
        """Open a session as the config says, or as the server answers.

        Raises:
            BackendError: as the transports do; where both were tried, the error tells of both.
            trio.TooSlowError: not ready within `connect_timeout`.
        """
        deadline = trio.current_time() + config.connect_timeout
        key = (config.name, config.url)
        found = self._found.pop(key, None)  # it comes back when it has proved right
        transport = config.transport or (None if found is None else found.transport)
        refused: HttpRefused | None = None
        if transport != "sse":
            era = found.era if found is not None and config.era == "auto" else None
            opened = False
            try:
                async with open_streamable(config, listener, hop=hop, era=era, auth=auth, deadline=deadline) as session:
                    opened = True
                    self._found[key] = _Found("streamable-http", session.greeting.era)
                    yield session
            except* HttpRefused as group:
                refused = _first(group)
                if not opened and config.era == "modern" and refused.status in _NO_MODERN_SERVER:
                    text = f"does not speak a modern protocol version (era: modern): it {refused.reason}; {AUTO_HINT}"
                    raise BackendUnfit(config.name, text) from refused
                if opened or transport is not None or config.era == "modern" or refused.status not in NOT_STREAMABLE:
                    raise
            if refused is None:
                return
            log.debug("%s; trying the SSE transport", refused)
        opened = False
        try:
            async with open_sse(config, listener, hop=hop, auth=auth, deadline=deadline) as session:
                opened = True
                self._found[key] = _Found("sse", Era.LEGACY)
                yield session
        except* BackendError as group:
            if opened or refused is None:
                raise
            problem = _first(group)
            text = f"speaks neither streamable HTTP (it {refused.reason}) nor SSE (it {problem.reason})"
            raise BackendProtocol(config.name, text) from problem


def _first(group: BaseExceptionGroup[_E]) -> _E:
    """The first error of a group, however deep."""
    first: _E | BaseExceptionGroup[_E] = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
