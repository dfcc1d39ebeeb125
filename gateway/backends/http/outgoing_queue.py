"""The queue of notifications and responses to a backend over HTTP, POSTed in order.

They keep their order, as on a pipe. The queue is bounded; when it is full the newest message is dropped with a warning:
only a backend that sends requests faster than it accepts responses can fill it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SPARE_CAPACITY: Final = 64
"""Queued messages, beyond one for each call that may be in flight."""
LOG_EVERY: Final = 100
"""One in this many dropped messages is logged."""
POST_WAIT: Final = 10.0
"""Seconds for one message; then it is dropped, so that a hanging server delays the others only for a while."""

log = logging.getLogger("gateway.backend")


class OutgoingQueue:
    """A queue with one task, `run`, which the session owns."""

    def __init__(self, backend: str, deliver: Callable[[bytes], Awaitable[None]], *, max_concurrency: int) -> None:
        self.dropped = 0
        self._backend = backend
        self._deliver = deliver
        capacity = max_concurrency + SPARE_CAPACITY
        self._send, self._receive = trio.open_memory_channel["bytes | trio.Event"](capacity)

    def post(self, data: bytes) -> None:
        """Queue a message."""
        try:
            self._send.send_nowait(data)
        except trio.WouldBlock:
            self.dropped += 1
            if self.dropped % LOG_EVERY == 1:
                log.warning("backend %r accepts no messages; %d dropped so far", self._backend, self.dropped)
        except trio.ClosedResourceError:
            log.debug("backend %r: message dropped after the end of its session", self._backend)

    async def flushed(self) -> None:
        """Wait until every message queued so far is delivered or dropped."""
        reached = trio.Event()
        await self._send.send(reached)
        await reached.wait()

    async def run(self) -> None:
        """Deliver until cancelled."""
        with self._send, self._receive:
            async for item in self._receive:
                if isinstance(item, bytes):
                    await self.deliver(item)
                else:
                    item.set()

    async def deliver(self, data: bytes) -> None:
        """Send one message immediately, bypassing the queue; drop it after `POST_WAIT`, with a warning."""
        try:
            with trio.fail_after(POST_WAIT):
                await self._deliver(data)
        except (BackendError, trio.TooSlowError) as problem:
            why = problem.reason if isinstance(problem, BackendError) else f"accepted no message within {POST_WAIT:g} s"
            log.warning("backend %r: a message was not delivered: %s", self._backend, why)
