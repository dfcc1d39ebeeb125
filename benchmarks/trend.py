"""The slope of a series of samples, with its margin of error.

The first sixth is discarded: caches, pools and the allocator reach their size then. The rest is divided into 20 blocks
of equal length, because successive samples resemble each other and count too often. A line is fitted to the means of
the blocks. Its standard error grows by sqrt((1 + r) / (1 - r)) if the residuals of neighbouring blocks still correlate
(r > 0). The margin is 3.3 standard errors: Student's t of 18 degrees of freedom exceeds it with a probability of 0.2 %,
so that about one clean run of five series in a hundred fails, more where neighbouring blocks correlate above 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean

DISCARDED = 1 / 6
BLOCKS = 20
DEVIATIONS = 3.3
MAX_CORRELATION = 0.95  # else the margin of a perfectly smooth curve would be infinite


@dataclass(frozen=True)
class Trend:
    """A slope per unit of time and its margin of error."""

    slope: float
    margin: float

    @property
    def rises(self):
        return self.slope > self.margin


def fit(points):
    """Return the trend of [(time, value), ...], in order of time.

    Raises ValueError for too few.
    """
    first, last = points[0][0], points[-1][0]
    kept = [point for point in points if point[0] >= first + (last - first) * DISCARDED]
    if len(kept) < BLOCKS:
        raise ValueError(f"{len(kept)} samples are fewer than {BLOCKS}, one for each block")
    cuts = [len(kept) * number // BLOCKS for number in range(BLOCKS + 1)]
    blocks = [kept[begin:end] for begin, end in pairwise(cuts)]
    times, values = ([fmean(point[index] for point in block) for block in blocks] for index in (0, 1))
    at, mean = fmean(times), fmean(values)
    spread = sum((time - at) ** 2 for time in times)
    slope = sum((time - at) * (value - mean) for time, value in zip(times, values, strict=True)) / spread
    residuals = [value - mean - slope * (time - at) for time, value in zip(times, values, strict=True)]
    squares = sum(residual**2 for residual in residuals)
    together = sum(one * other for one, other in pairwise(residuals))
    correlation = min(MAX_CORRELATION, max(0.0, together / squares)) if squares else 0.0
    error = sqrt(squares / (BLOCKS - 2) / spread) * sqrt((1 + correlation) / (1 - correlation))
    return Trend(slope, DEVIATIONS * error)
