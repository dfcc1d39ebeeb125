"""Calls of one client that wait for nothing but their outcome, without a task for each.

One task answers all calls whose outcomes came in the same turn of the loop. A call to which anything else happens (an
event, a server request, the end of its deadline or of stdin) gets a task of its own and continues as other requests do.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.calls import Outcome
    from gateway.frontends.call_stream import CallStream
    from gateway.jsonrpc import Id, Message


class Waiting(NamedTuple):
    """One such call."""

    message: Message
    scope: trio.CancelScope
    flow: CallStream


class CompletionQueue:
    """The waiting calls, by request id.

    `answer(request_id, waiting, outcome)` answers one, `start(waiting)` starts a task for one; neither may wait, and
    either owns the call from then on.
    """

    def __init__(self, answer: Callable[[Id, Waiting, Outcome], None], start: Callable[[Waiting], None]) -> None:
        self._answer = answer
        self._start = start
        self._calls: dict[Id, Waiting] = {}
        self._ready: dict[Id, None] = {}
        self._wake = trio.Event()
        self._ended = False

    def add(self, request_id: Id, waiting: Waiting) -> None:
        """Add a submitted call; after `end` it gets a task at once."""
        if self._ended:
            self._start(waiting)
            return
        self._calls[request_id] = waiting
        if not waiting.flow.watch(partial(self._mark_ready, request_id)):
            self._begin_task(request_id)

    def drop(self, request_id: Id) -> bool:
        """Close a cancelled call; return False if it is not in the queue."""
        waiting = self._remove(request_id)
        if waiting is not None:
            waiting.flow.close()
        return waiting is not None

    def end(self) -> None:
        """Start a task for each call, now and for all that are added later."""
        self._ended = True
        for request_id in list(self._calls):
            self._begin_task(request_id)

    async def run(self) -> None:
        """Answer calls as their outcomes come, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            ready, self._ready = self._ready, {}
            for request_id in ready:
                self._finish_ready(request_id)

    def _remove(self, request_id: Id) -> Waiting | None:
        waiting = self._calls.pop(request_id, None)
        if waiting is not None:
            waiting.flow.unwatch()
        return waiting

    def _begin_task(self, request_id: Id) -> None:
        waiting = self._remove(request_id)
        if waiting is not None:
            self._start(waiting)

    def _mark_ready(self, request_id: Id) -> None:
        self._ready[request_id] = None
        self._wake.set()

    def _finish_ready(self, request_id: Id) -> None:
        # Not part of `run`: its variables would keep the last call and its outcome alive until the next one.
        waiting = self._calls.get(request_id)
        if waiting is None:  # dropped, or its task has it
            return
        outcome = waiting.flow.settled
        if outcome is None:
            self._begin_task(request_id)
            return
        self._remove(request_id)
        self._answer(request_id, waiting, outcome)
