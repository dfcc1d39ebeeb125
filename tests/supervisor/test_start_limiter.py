"""Concurrent starts: bounded, callers first, and never blocked by hanging ones."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.config.model import ServerConfig
from gateway.errors import BackendExited
from gateway.supervisor.start_limiter import STALL_TIMEOUT, StartLimiter
from gateway.supervisor.supervisor import Supervisor
from tests.support.fakes import FakeBackend, backends, make_listing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

START = 1.0  # seconds that a well one takes to start


class Starts:
    """An opener that records starts; `hung` ones never finish, `broken` ones fail."""

    def __init__(self, hung: str = "", broken: str = "") -> None:
        self.hung, self.broken = hung, broken
        self.began: list[tuple[str, float]] = []
        self.origin = trio.current_time()

    @asynccontextmanager
    async def __call__(self, config: ServerConfig, listener: Any, **_further: Any) -> AsyncGenerator[Any]:
        self.began.append((config.name, trio.current_time() - self.origin))
        await trio.sleep(math.inf if config.name in self.hung else START)
        if config.name in self.broken:
            raise BackendExited(config.name, "exited with status 3")
        yield config.name


def server(name: str, **fields: Any) -> ServerConfig:
    return ServerConfig(name=name, **({"command": "x"} | fields))


async def start(limiter: StartLimiter, config: ServerConfig, listener: Any = None) -> None:
    try:
        async with limiter(config, listener):
            await trio.sleep_forever()
    except BackendExited:
        pass


def run_all(nursery: trio.Nursery, limiter: StartLimiter, names: str) -> None:
    for name in names:
        nursery.start_soon(start, limiter, server(name))


@asynccontextmanager
async def waiting(limiter: StartLimiter, names: str) -> AsyncGenerator[trio.Nursery]:
    """Start these in order, until all tasks wait; cancel the rest at the end."""
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(start, limiter, server(name))
                await wait_all_tasks_blocked()
            yield nursery  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            nursery.cancel_scope.cancel()


async def test_concurrent_starts_are_bounded(autojump_clock: MockClock) -> None:
    opener = Starts(broken="b")
    limiter = StartLimiter(opener, limit=2)
    async with waiting(limiter, "abcde"):
        await trio.sleep(10)
    # One that fails gives its place back as well as one that is ready, which keeps it no longer.
    assert sorted(at for _name, at in opener.began) == [0, 0, 1, 1, 2]
    assert sorted(name for name, _at in opener.began) == list("abcde")


async def test_hanging_starts_delay_others_briefly(autojump_clock: MockClock) -> None:
    opener = Starts(hung="ab")
    limiter = StartLimiter(opener, limit=2)
    async with waiting(limiter, "ab") as nursery:
        run_all(nursery, limiter, "cde")
        await trio.sleep(20)
    assert sorted(at for _name, at in opener.began) == [0, 0, STALL_TIMEOUT, STALL_TIMEOUT, STALL_TIMEOUT + START]


async def test_backends_with_waiting_callers_start_first(autojump_clock: MockClock) -> None:
    opener = Starts()
    limiter = StartLimiter(opener, limit=1)
    fake = FakeBackend(make_listing("t"))
    supervisor = Supervisor(server("wanted"), backends({"wanted": fake}), fake_upward())
    async with waiting(limiter, "abc") as nursery:
        nursery.start_soon(start, limiter, server("wanted"), supervisor)
        await wait_all_tasks_blocked()
        supervisor.request_start()
        await trio.sleep(10)
    assert [name for name, _at in opener.began] == ["a", "wanted", "b", "c"]


def fake_upward() -> Any:
    return object()  # no notification precedes the supervisor's start


async def test_a_stopped_waiter_leaves_the_queue(autojump_clock: MockClock) -> None:
    opener = Starts()
    limiter = StartLimiter(opener, limit=1)
    async with waiting(limiter, "a") as nursery:
        with trio.move_on_after(START / 2):
            await start(limiter, server("b"))
        run_all(nursery, limiter, "c")
        await trio.sleep(10)
    assert opener.began == [("a", 0), ("c", START)]


async def test_remote_backends_do_not_wait(autojump_clock: MockClock) -> None:
    opener = Starts(hung="a")
    limiter = StartLimiter(opener, limit=1)
    async with waiting(limiter, "a") as nursery:
        nursery.start_soon(start, limiter, server("r", command=None, url="http://127.0.0.1:1/mcp"))
        await trio.sleep(1)
    assert opener.began == [("a", 0), ("r", 0)]
