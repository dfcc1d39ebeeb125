"""Histograms of durations, counted on the gateway's thread and read by the exporter's.

The SDK's own histograms cost 10 us a value, one of these 1 us. Bounded: series beyond `MAX_SERIES` count together, as
the SDK's do.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

BOUNDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Upper bounds in seconds of all buckets but the last: those of the semantic conventions."""
MAX_SERIES: Final = 2_000
"""Series of all histograms together; the limit of the SDK for one."""
OVERFLOW: Final = (("otel.metric.overflow", True),)

Attributes = tuple[tuple[str, str | int], ...]


class HistogramName(NamedTuple):
    """A histogram of the semantic conventions."""

    name: str
    description: str


CLIENT_OPERATION: Final = HistogramName(
    "mcp.client.operation.duration",
    "The duration of the MCP request or notification as observed on the sender from the time it was sent until the"
    " response or ack is received.",
)
SERVER_OPERATION: Final = HistogramName(
    "mcp.server.operation.duration",
    "MCP request or notification duration as observed on the receiver from the time it was received until the result"
    " or ack is sent.",
)
CLIENT_SESSION: Final = HistogramName(
    "mcp.client.session.duration", "The duration of the MCP session as observed on the MCP client."
)
SERVER_SESSION: Final = HistogramName(
    "mcp.server.session.duration", "The duration of the MCP session as observed on the MCP server."
)


class Series:
    """The values of one histogram with the same attributes."""

    __slots__ = ("attributes", "buckets", "histogram", "longest", "shortest", "total")

    def __init__(self, histogram: HistogramName, attributes: Attributes) -> None:
        self.histogram = histogram
        self.attributes = attributes
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.shortest = float("inf")
        self.longest = 0.0

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
        if seconds < self.shortest:
            self.shortest = seconds
        if seconds > self.longest:
            self.longest = seconds


class Durations:
    """All histograms of one gateway."""

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self._series: dict[tuple[object, ...], Series] = {}
        self._max_series = max_series
        self.since = time.time_ns()
        """The time before the first value, in nanoseconds of Unix time."""

    def series(self, histogram: HistogramName, key: object, describe: Callable[[], Attributes]) -> Series:
        """Return the series of this key; `describe` returns the attributes of a new one."""
        series = self._series.get((histogram, key))
        if series is not None:
            return series
        if len(self._series) >= self._max_series:
            key, attributes = OVERFLOW, OVERFLOW
        else:
            attributes = describe()
        return self._series.setdefault((histogram, key), Series(histogram, attributes))

    def all(self) -> list[Series]:
        """Return all series."""
        return list(self._series.values())
