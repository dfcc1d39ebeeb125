"""The last day in numbers, for `GET /history`: calls, durations, errors, memory and processes.

One task takes a sample of counters that exist anyway every 5 s, so that calls cost nothing more. Samples are rows of
integers in arrays of fixed size: 15 minutes of the gateway and of each backend, and a day of the gateway by the minute.
For 300 backends that is 1.4 MB in all.
"""

from __future__ import annotations

import os
from array import array
from itertools import accumulate
from operator import add, sub
from typing import TYPE_CHECKING, Final, Literal

import trio

from gateway.admin import documents as doc
from gateway.processes.usage import read_usage
from gateway.supervisor.history import BOUNDS, CallStats
from gateway.telemetry import now_iso

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.processes.guard import ChildGuard
    from gateway.router import Router

INTERVAL: Final = 5.0
"""Seconds between two samples."""
RECENT: Final = 180
"""Samples kept: 15 minutes."""
PER_MINUTE: Final = 12
"""Samples added up to one of the day."""
DAY: Final = 1_440
"""Minutes kept."""
MICROSECONDS: Final = 1_000_000
COUNTS: Final = ("calls", "failed", "refused", "duration", *(f"bucket {index}" for index in range(len(BOUNDS) + 1)))
"""Columns that add up; those of the buckets are the last ones."""
FIRST_BUCKET: Final = 4
GAUGES: Final = ("memory", "children_memory", "processes", "in_flight")
"""Columns of which a minute has the last one."""


class Rows:
    """The latest rows of integers, oldest first."""

    def __init__(self, width: int, limit: int, typecode: Literal["i", "q"] = "q") -> None:
        self.count = 0
        """The number of rows ever added, which is also the number of the last one."""
        self._width = width
        self._size = width * limit
        self._values = array(typecode)

    def add(self, row: Iterable[int]) -> None:
        """Add a row, and drop the oldest one if there are too many."""
        self._values.extend(row)
        del self._values[: max(0, len(self._values) - self._size)]
        self.count += 1

    def column(self, index: int, last: int) -> list[int]:
        """Return a column of the last rows."""
        begin = max(0, len(self._values) - last * self._width)
        return self._values[begin + index :: self._width].tolist()

    def last(self, count: int) -> list[tuple[int, ...]]:
        """Return the last rows."""
        return list(zip(*(self.column(index, count) for index in range(self._width)), strict=True))


class BackendSeries:
    """The recent samples of one backend: calls, and the percentiles of their durations."""

    def __init__(self) -> None:
        self._rows = Rows(3, RECENT, "i")
        self._stats = CallStats()
        self._counts = [0] * len(COUNTS)

    def sample(self, stats: CallStats) -> list[int]:
        """Add a sample; return the differences to the last one, empty without a call."""
        if stats is not self._stats:  # the backend was replaced, and counts from zero
            self._stats, self._counts = stats, [0] * len(COUNTS)
        if stats.calls == self._counts[0]:
            self._rows.add((0, 0, 0))
            return []
        counts = [stats.calls, stats.failed, 0, round(stats.seconds * MICROSECONDS), *stats.buckets]
        more = list(map(sub, counts, self._counts))
        self._counts = counts
        self._rows.add((more[0], *estimate(more[FIRST_BUCKET:])))
        return more

    def document(self, last: int) -> doc.BackendHistory:
        """Return the last samples, without those before the first call."""
        calls, p50, p99 = (self._rows.column(index, last) for index in range(3))
        idle = next((index for index, number in enumerate(calls) if number), len(calls))
        return doc.BackendHistory(calls[idle:], p50[idle:], p99[idle:])


class History:
    """Samples of one gateway."""

    def __init__(self, router: Router, guard: ChildGuard | None) -> None:
        self.started = now_iso()
        self._router = router
        self._guard = guard
        self._limiter = trio.CapacityLimiter(1)
        self._backends: dict[str, BackendSeries] = {}
        width = len(COUNTS) + len(GAUGES)
        self._recent, self._day = Rows(width, RECENT), Rows(width, DAY)
        self._refused = 0
        self._sampled_at = self._minute_at = self.started

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Take samples until cancelled."""
        task_status.started()
        due = trio.current_time()
        while True:
            due = max(due + INTERVAL, trio.current_time())  # samples missed by a machine that slept are left out
            await trio.sleep_until(due)
            children = () if self._guard is None else self._guard.snapshot()
            pids = [pid for child in children for pid in (child.pid, *child.descendants)]
            memory = (0, 0)
            if pids:  # hundreds of children take milliseconds
                with trio.move_on_after(INTERVAL):
                    memory = await trio.to_thread.run_sync(measure, pids, abandon_on_cancel=True, limiter=self._limiter)
            else:
                memory = measure(())
            self.sample(*memory, len(pids))

    def sample(self, memory: int, children_memory: int, processes: int) -> None:
        """Take a sample of all counters; the memory was measured by the caller."""
        supervisors = self._router.fleet.supervisors
        counts = [0] * len(COUNTS)
        for name, supervisor in supervisors.items():
            if name not in self._backends:
                self._backends[name] = BackendSeries()
            if more := self._backends[name].sample(supervisor.history):
                counts = list(map(add, counts, more))
        self._backends = {name: series for name, series in self._backends.items() if name in supervisors}
        refused = sum(self._router.refused.values())
        counts[COUNTS.index("refused")] = max(0, refused - self._refused)  # those of removed servers are dropped
        self._refused = refused
        self._recent.add((*counts, memory, children_memory, processes, self._router.under_way))
        self._sampled_at = now_iso()
        if self._recent.count % PER_MINUTE == 0:
            rows = self._recent.last(PER_MINUTE)
            self._day.add((*list(map(sum, zip(*rows, strict=True)))[: len(COUNTS)], *rows[-1][len(COUNTS) :]))
            self._minute_at = self._sampled_at

    def document(self, after: int = 0) -> doc.History:
        """Return the samples after this number; the day only without one.

        A number that is not of this run is ignored.
        """
        fresh = self._recent.count - after if 0 < after <= self._recent.count else RECENT
        backends = {name: series.document(fresh) for name, series in self._backends.items()}
        return doc.History(
            started=self.started,
            bounds=list(BOUNDS),
            recent=_describe(self._recent, INTERVAL, self._sampled_at, fresh),
            day=None if after else _describe(self._day, INTERVAL * PER_MINUTE, self._minute_at, DAY),
            backends={name: found for name, found in backends.items() if found.calls},
        )


def estimate(buckets: Sequence[int]) -> tuple[int, int]:
    """Return median and p99 of durations in microseconds, at least 1, interpolated within their buckets."""
    sums = [0, *accumulate(buckets)]
    found: list[int] = []
    for share in (0.5, 0.99):
        wanted = share * sums[-1]
        index = next(index for index, count in enumerate(buckets) if count and sums[index + 1] >= wanted)
        low = BOUNDS[index - 1] if index else 0.0
        high = BOUNDS[index] if index < len(BOUNDS) else low  # nothing is known above the last bound
        seconds = low + (high - low) * (wanted - sums[index]) / buckets[index]
        found.append(max(1, round(seconds * MICROSECONDS)))
    return found[0], found[1]


def measure(pids: Sequence[int]) -> tuple[int, int]:
    """Return the resident memory of this process and of the others, in bytes.

    It is 0 where there is no `/proc`.
    """
    own, *others = (0 if (usage := read_usage(pid)) is None else usage.memory for pid in (os.getpid(), *pids))
    return own, sum(others)


def _describe(rows: Rows, interval: float, until: str, last: int) -> doc.Samples:
    columns = {name: rows.column(index, last) for index, name in enumerate((*COUNTS, *GAUGES))}
    buckets = zip(*(columns.pop(name) for name in COUNTS[FIRST_BUCKET:]), strict=True)
    found = [list(row) if any(row) else [] for row in buckets]
    return doc.Samples(interval=interval, number=rows.count, until=until, buckets=found, **columns)
