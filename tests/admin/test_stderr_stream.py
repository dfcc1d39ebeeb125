"""Live stderr over the management API."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway.admin.stderr_stream import MAX_STREAMS
from gateway.backends.stderr import SHOWN_LINES, WATCHED_LINES
from tests.support.admin import SECRET, Harness, open_harness
from tests.support.fakes import FakeExchange, settle

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock


async def read_stderr(harness: Harness, nursery: trio.Nursery, name: str = "a") -> FakeExchange:
    exchange = FakeExchange(method="GET")
    exchange.scope["path"] = f"/servers/{name}/stderr"
    nursery.start_soon(harness.app, exchange.scope, exchange.receive, exchange.send)
    await trio.sleep(1)
    return exchange


async def test_stderr_arrives_as_it_is_written(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        for number in range(SHOWN_LINES + 5):
            harness.fakes["a"].session.write_stderr(f"old {number}".encode())
        exchange = await read_stderr(harness, nursery)
        harness.fakes["a"].session.write_stderr(f"the key is {SECRET}".encode())
        await trio.sleep(1)
        first, second = exchange.events
        assert first == {"lines": [f"old {number}" for number in range(5, SHOWN_LINES + 5)], "dropped": 0}
        assert second == {"lines": ["the key is ***"], "dropped": 0}
        assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
        harness.fakes["a"].session.write_stderr(b"from the replacement")
        await trio.sleep(1)
        assert exchange.events[-1] == {"lines": ["from the replacement"], "dropped": 0}
        assert (await harness.ask("DELETE", "/servers/a"))[0] == 200
        await trio.sleep(1)
        assert exchange.ended


async def test_stderr_that_floods_is_bounded_and_counted(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        exchange = await read_stderr(harness, nursery)
        for number in range(100_000):
            harness.fakes["a"].session.write_stderr(b"%d" % number)
        await trio.sleep(1)
        (event,) = exchange.events
        assert (len(event["lines"]), event["dropped"]) == (WATCHED_LINES, 100_000 - WATCHED_LINES)
        assert event["lines"][-1] == "99999"
        tail = harness.management.find_stderr("a")
        assert tail is not None
        assert len(tail.after(0)) == WATCHED_LINES
        exchange.gone.set()
        await settle()
        assert len(tail.after(0)) == SHOWN_LINES


async def test_readers_of_stderr_are_bounded(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        readers = [await read_stderr(harness, nursery) for _ in range(MAX_STREAMS)]
        assert (await harness.ask("GET", "/servers/a/stderr"))[0] == 503
        assert (await harness.ask("GET", "/servers/missing/stderr"))[0] == 404
        readers[0].gone.set()
        await settle()
        assert (await read_stderr(harness, nursery, "off")).status == 200
        harness.closing.set()
