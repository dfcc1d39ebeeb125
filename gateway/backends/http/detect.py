"""Detection of a `url`'s transport, if neither config nor era record names it.

2026-07-28 basic/transports/streamable-http, "Backward Compatibility": a modern request first, then `initialize`; a
server that refuses both with 400, 404 or 405, or by closing the connection, is asked for the event stream of the SSE
transport.
"""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from gateway.backends.http.recovery import TIMING
from gateway.backends.http.session import open_http_session
from gateway.backends.http.sse import SseSession
from gateway.backends.http.streamable import StreamableSession
from gateway.backends.opening import EraRecords
from gateway.backends.session.handshake import AUTO_HINT
from gateway.budget import MAX_BUFFERED_BYTES, Budget
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendUnfit
from gateway.http_client.errors import HttpRefused

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.backends.http.recovery import Timing
    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.handshake import Attempts
    from gateway.backends.session.interface import Session
    from gateway.calls import Era
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop
    from gateway.http_client.client import Signer

NOT_STREAMABLE: Final = frozenset({400, 404, 405})
"""Statuses with which a server of the SSE transport refuses a POST."""

_NO_MODERN_SERVER: Final = frozenset({400, 405})
"""Those of them that no modern server returns for `server/discover`; 404 may come from a proxy."""

_E = TypeVar("_E", bound=BackendError)

log = logging.getLogger("gateway.backend")


class HttpOpener:
    """Opens sessions over HTTP, on whichever transport the server speaks.

    `records` remembers earlier results; `buffers` counts the bytes of arriving messages.
    """

    def __init__(
        self, records: EraRecords | None = None, buffers: Budget | None = None, *, timing: Timing = TIMING
    ) -> None:
        self._records = records or EraRecords()
        self._buffers = Budget(MAX_BUFFERED_BYTES) if buffers is None else buffers
        self._timing = timing

    @asynccontextmanager
    async def open(
        self,
        config: ServerConfig,
        listener: SessionObserver,
        *,
        hop: Hop,
        signer: Signer | None = None,
        era: Era | None = None,
    ) -> AsyncGenerator[Session]:
        """Open a session according to the config, or else to the server's answers.

        Raises:
            BackendError: as the transports do; if both were tried, the error names both.
        """
        attempt = partial(self._open, config, listener, hop, signer)
        async with self._records.open(config, attempt, era) as session:
            yield session

    @asynccontextmanager
    async def _open(
        self, config: ServerConfig, listener: SessionObserver, hop: Hop, signer: Signer | None, attempts: Attempts
    ) -> AsyncGenerator[Session]:
        open_session = partial(
            open_http_session,
            config=config,
            listener=listener,
            hop=hop,
            signer=signer,
            attempts=attempts,
            buffers=self._buffers,
            timing=self._timing,
        )
        transport = config.transport or attempts.transport
        refused: BackendError | None = None
        if transport != "sse":
            opened = False
            try:
                async with open_session(StreamableSession) as session:
                    opened = True
                    attempts.transport = "streamable-http"
                    yield session
            except* (HttpRefused, BackendExited) as group:
                refused = _first(group)
                status = refused.status if isinstance(refused, HttpRefused) else None
                if not opened and config.era == "modern" and status in _NO_MODERN_SERVER:
                    text = f"does not speak a modern protocol version (era: modern): it {refused.reason}; {AUTO_HINT}"
                    raise BackendUnfit(config.name, text) from refused
                if opened or transport is not None or config.era == "modern" or status not in {*NOT_STREAMABLE, None}:
                    raise
            if refused is None:
                return
            log.debug("%s; trying the SSE transport", refused)
            attempts.start_over()
        elif config.era == "modern":
            raise BackendUnfit(config.name, "has era 'modern', which the SSE transport does not support")
        opened = False
        try:
            async with open_session(SseSession) as session:
                opened = True
                attempts.transport = "sse"
                yield session
        except* BackendError as group:
            if opened or refused is None:
                raise
            problem = _first(group)
            text = f"speaks neither streamable HTTP (it {refused.reason}) nor SSE (it {problem.reason})"
            raise BackendProtocol(config.name, text) from problem


def _first(group: BaseExceptionGroup[_E]) -> _E:
    """Return the first error of a group, at any depth."""
    first: _E | BaseExceptionGroup[_E] = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
