"""How many connections may be open at once: over the bound idle ones make room, and else accepting waits.

One client more than that is accepted, and waits with all others, who wait in the kernel's queue: only when somebody is
there is an idle connection closed. Whoever serves a connection frees its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Generic, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_CONNECTIONS: Final = 5_000
"""Connections at once where nothing else is said."""
LOOK_AGAIN: Final = 0.25
"""Seconds between two looks, while the bound is reached, whether a connection has become idle."""

AnyStream = TypeVar("AnyStream", bound=trio.abc.Stream)


class Places:
    """A number of places; `make_room` is called when there is none, and may have one freed soon."""

    def __init__(self, most: int, make_room: Callable[[], None]) -> None:
        self._most = most
        self._make_room = make_room
        self._taken = 0
        self._freed = trio.Event()

    async def take(self) -> None:
        """Take a place; waits until there is one."""
        while self._taken >= self._most:
            if self._freed.is_set():
                self._freed = trio.Event()
            self._make_room()
            with trio.move_on_after(LOOK_AGAIN):
                await self._freed.wait()
        self._taken += 1

    def free(self) -> None:
        """Give a place back."""
        self._taken -= 1
        self._freed.set()


class BoundedListener(trio.abc.Listener[AnyStream], Generic[AnyStream]):
    """A listener that hands out a connection only when there is a place for it."""

    def __init__(self, listener: trio.abc.Listener[AnyStream], places: Places) -> None:
        self._listener = listener
        self._places = places

    async def accept(self) -> AnyStream:
        """Wait for a client and for a place, which whoever serves it frees; cancelled, the client is let go."""
        stream = await self._listener.accept()
        try:
            await self._places.take()
        except trio.Cancelled:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def aclose(self) -> None:
        """Close the socket."""
        await self._listener.aclose()
