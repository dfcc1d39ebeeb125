"""What is no request on its way to a backend over HTTP: notifications and answers, one POST after the other.

They keep their order, as on a pipe. The queue is bounded, and when it is full the newest is dropped with a warning:
only a backend that asks faster than it takes answers can fill it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_WAITING: Final = 64
"""Messages that may wait."""
POST_WAIT: Final = 10.0
"""Seconds for one of them; then it is given up, so that a deaf server delays the others only so long."""

log = logging.getLogger("gateway.backend")


class HttpPosts:
    """A queue with one task, `run`, which the session owns."""

    def __init__(self, backend: str, deliver: Callable[[bytes], Awaitable[None]]) -> None:
        self._backend = backend
        self._deliver = deliver
        self._send, self._receive = trio.open_memory_channel["tuple[bytes, Callable[[], object] | None]"](MAX_WAITING)

    def post(self, data: bytes, then: Callable[[], object] | None = None) -> None:
        """Put a message in; `then` is called when it was delivered, given up or dropped."""
        try:
            self._send.send_nowait((data, then))
        except trio.WouldBlock:
            log.warning("backend %r takes no more messages: %d wait, one dropped", self._backend, MAX_WAITING)
            if then is not None:
                then()
        except trio.ClosedResourceError:  # the session is ending; what is cancelled now ends with it
            if then is not None:
                then()

    async def flushed(self) -> None:
        """Wait until everything that was put in before is delivered or given up."""
        reached = trio.Event()
        await self._send.send((b"", reached.set))
        await reached.wait()

    async def run(self) -> None:
        """Deliver until cancelled."""
        with self._send, self._receive:
            async for data, then in self._receive:
                try:
                    if data:
                        await self._try(data)
                finally:
                    if then is not None:
                        then()

    async def _try(self, data: bytes) -> None:
        try:
            with trio.fail_after(POST_WAIT):
                await self._deliver(data)
        except (BackendError, trio.TooSlowError) as problem:
            why = problem.reason if isinstance(problem, BackendError) else f"took no message within {POST_WAIT:g} s"
            log.warning("backend %r: a message was not delivered: %s", self._backend, why)
