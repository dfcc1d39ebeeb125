"""The program around the gateway: whichever loop runs there, asyncio's or trio's, and how its tasks are reached.

The only module that touches asyncio, and only when that is what runs. Everything else on the host's side is written
with anyio, which serves both.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    Post = Callable[[Callable[[], object]], None]


def poster() -> Post:
    """How any thread has a function called in the loop that runs here; nothing happens once that loop has ended.

    Raises:
        RuntimeError: no loop runs here.
    """
    if trio.lowlevel.in_trio_task():
        token = trio.lowlevel.current_trio_token()

        def post_to_trio(call: Callable[[], object]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(call)

        return post_to_trio

    import asyncio  # 30 ms that a program on trio does not pay

    loop = asyncio.get_running_loop()

    def post_to_asyncio(call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)

    return post_to_asyncio
