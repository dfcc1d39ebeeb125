"""Access to the host program's loop, asyncio or trio.

The only module that uses asyncio, and only if it is running. Everything else on the host's side uses anyio.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    Post = Callable[[Callable[[], object]], None]


def poster() -> Post:
    """Return a function with which any thread can call into the running loop.

    It is a no-op once the loop has ended.

    Raises:
        RuntimeError: no loop runs here.
    """
    if trio.lowlevel.in_trio_task():
        token = trio.lowlevel.current_trio_token()

        def post_to_trio(call: Callable[[], object]) -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(call)

        return post_to_trio

    import asyncio  # 30 ms that a program on trio avoids

    loop = asyncio.get_running_loop()

    def post_to_asyncio(call: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)

    return post_to_asyncio
