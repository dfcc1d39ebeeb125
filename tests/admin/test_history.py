"""The samples of `GET /history`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.admin.history import DAY, INTERVAL, PER_MINUTE, RECENT, Rows, estimate
from gateway.calls import Failure
from gateway.processes.usage import read_usage
from gateway.supervisor.history import BOUNDS
from tests.support.admin import Harness, open_harness
from tests.support.fakes import LEGACY_CALLER, make_call

if TYPE_CHECKING:
    from pathlib import Path

    from trio.testing import MockClock

BUCKETS = len(BOUNDS) + 1


async def call(harness: Harness, seconds: float, outcome: Any = None) -> None:
    pending = await harness.router.submit(make_call("a.x"))
    await trio.sleep(seconds)
    harness.fakes["a"].session.answer(**({} if outcome is None else {"outcome": outcome}))
    harness.router.release(pending)


async def history(harness: Harness, query: bytes = b"") -> tuple[int, Any]:
    return await harness.ask("GET", "/history", query=query)


async def test_each_sample_counts_since_the_last(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness, trio.open_nursery() as nursery:
        await nursery.start(harness.management.history.run)
        assert (await history(harness))[1]["recent"]["calls"] == []
        await call(harness, 2)
        await call(harness, 1, Failure(-32000, "no", None, LEGACY_CALLER.era))
        await trio.sleep(2 * INTERVAL)
        _, found = await history(harness)
        recent = found["recent"]
        assert (recent["calls"], recent["failed"], recent["duration"]) == ([2, 0], [1, 0], [3_000_000, 0])
        assert [sum(row) for row in recent["buckets"]] == [2, 0]
        assert (recent["interval"], recent["number"], found["bounds"]) == (INTERVAL, 2, list(BOUNDS))
        assert len(recent["memory"]) == len(recent["children_memory"]) == len(recent["processes"]) == 2
        assert found["backends"].keys() == {"a"}  # no other has had a call
        assert found["backends"]["a"]["calls"] == [2, 0]
        assert 500_000 < found["backends"]["a"]["p50"][0] <= found["backends"]["a"]["p99"][0] < 2_500_000
        assert (await history(harness, b"after=1"))[1]["recent"]["calls"] == [0]
        nursery.cancel_scope.cancel()


async def test_a_restarted_server_counts_from_zero(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        for _ in range(2):
            await call(harness, 0.1)
            harness.management.history.sample(0, 0, 0)
            assert (await harness.ask("POST", "/servers/a/restart"))[0] == 200
        await call(harness, 0.1)
        harness.management.history.sample(0, 0, 0)
        assert (await history(harness))[1]["recent"]["calls"] == [1, 1, 1]
        assert (await harness.ask("DELETE", "/servers/a"))[0] == 200
        harness.management.history.sample(0, 0, 0)
        assert (await history(harness))[1]["backends"] == {}


async def test_a_day_is_kept_by_the_minute(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        for number in range(3 * PER_MINUTE):
            if number in {1, 2, PER_MINUTE}:
                await call(harness, 0.1)
            harness.management.history.sample(number, 2 * number, 3)
        _, found = await history(harness)
        day = found["day"]
        assert (day["calls"], day["interval"], day["number"]) == ([2, 1, 0], 60.0, 3)
        assert (day["memory"], day["children_memory"], day["processes"]) == ([11, 23, 35], [22, 46, 70], [3, 3, 3])
        assert [sum(row) for row in day["buckets"]] == [2, 1, 0]


@pytest.mark.parametrize(("after", "samples"), [(b"0", 3), (b"1", 2), (b"3", 0), (b"4", 3), (b"999999999999999", 3)])
async def test_after_leaves_out_known_samples(
    after: bytes, samples: int, tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_harness(tmp_path) as harness:
        for _ in range(3):
            harness.management.history.sample(0, 0, 0)
        _, found = await history(harness, b"after=" + after)
        assert len(found["recent"]["calls"]) == samples
        assert (found["day"] is None) is (after != b"0")


@pytest.mark.parametrize("after", [b"", b"-1", b"x", b"1.5", b"%C2%B2", b"1" * 16])
async def test_a_bad_number_is_refused(after: bytes, tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path) as harness:
        assert (await history(harness, b"after=" + after))[0] == 400


def test_rows_are_bounded() -> None:
    rows = Rows(2, RECENT)
    for number in range(RECENT + 3):
        rows.add((number, -number))
    assert (rows.count, rows.column(0, DAY)) == (RECENT + 3, list(range(3, RECENT + 3)))
    assert rows.last(2) == [(RECENT + 1, -RECENT - 1), (RECENT + 2, -RECENT - 2)]
    assert rows.column(0, 0) == []


@pytest.mark.parametrize(
    ("counts", "median", "p99"),
    [
        ({0: 10}, 500, 990),
        ({2: 98, 3: 2}, 3_776, 7_500),
        ({BUCKETS - 1: 1}, 300_000_000, 300_000_000),  # above the last bound nothing is known
        ({0: 1, BUCKETS - 1: 1}, 1_000, 300_000_000),
    ],
)
def test_percentiles_lie_within_their_buckets(counts: dict[int, int], median: int, p99: int) -> None:
    assert estimate([counts.get(index, 0) for index in range(BUCKETS)]) == (median, p99)


def test_no_process_has_no_usage() -> None:
    assert read_usage(2**22 + 1) is None
