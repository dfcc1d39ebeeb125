"""A limit on concurrent starts of child processes.

Three hundred that started together would all be slow, and all time out.

`StartLimiter` wraps an opener; it has no task. A start waits here for a slot, before its `connect_timeout` begins, and
releases the slot when its session is open or has failed to open. A backend with a waiting caller goes first. Starts
that hang do not delay the others for long: when none has ended for `STALL_TIMEOUT` seconds, those in progress stop
counting. Remote backends cost the machine nothing to start and never wait here.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import msgspec

    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.interface import Opener, Session
    from gateway.calls import Era
    from gateway.config import ServerConfig

MAX_CONCURRENT_STARTS: Final = max(16, 4 * (os.cpu_count() or 1))
"""Concurrent starts. Enough for a desktop; sixteen servers of half a CPU second each are ready within 4 s on two cores,
far from any `connect_timeout`."""
STALL_TIMEOUT: Final = 5.0
"""Seconds without the end of any start after which those in progress are considered hung and no longer count."""


class _Slot:
    def __init__(self, listener: SessionObserver) -> None:
        self._listener = listener
        self.given = trio.Event()

    @property
    def wanted(self) -> bool:
        return isinstance(self._listener, Supervisor) and self._listener.wanted


class StartLimiter:
    """An opener that limits concurrent starts of processes."""

    def __init__(self, opener: Opener, limit: int = MAX_CONCURRENT_STARTS) -> None:
        self._opener = opener
        self._limit = limit
        self._starting: set[_Slot] = set()
        self._waiting: list[_Slot] = []
        self._changed_at = 0.0  # when a slot was last acquired or released

    @asynccontextmanager
    async def __call__(
        self,
        config: ServerConfig,
        listener: SessionObserver,
        *,
        capabilities: msgspec.Raw | None = None,
        era: Era | None = None,
    ) -> AsyncGenerator[Session]:
        """Open a session when it is this backend's turn.

        Raises what the opener raises. Cancelling leaves the queue.
        """
        slot = _Slot(listener)
        try:
            if config.command is not None:
                self._waiting.append(slot)
                self._start_next()
                while not slot.given.is_set():
                    with trio.move_on_at(self._changed_at + STALL_TIMEOUT):
                        await slot.given.wait()
                    if trio.current_time() >= self._changed_at + STALL_TIMEOUT:
                        self._starting.clear()
                        self._start_next()
            async with self._opener(config, listener, capabilities=capabilities, era=era) as session:
                self._release(slot)
                yield session
        finally:
            self._release(slot)

    def _start_next(self) -> None:
        while self._waiting and len(self._starting) < self._limit:
            slot = next((one for one in self._waiting if one.wanted), self._waiting[0])
            self._waiting.remove(slot)
            self._starting.add(slot)
            self._changed_at = trio.current_time()
            slot.given.set()

    def _release(self, slot: _Slot) -> None:
        if slot in self._waiting:
            self._waiting.remove(slot)
        elif slot in self._starting:
            self._starting.discard(slot)
            self._changed_at = trio.current_time()
            self._start_next()
