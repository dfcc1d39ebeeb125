"""Histograms: buckets, and the bound of their number."""

from __future__ import annotations

from functools import partial

import pytest

from gateway.tracing.durations import BOUNDS, OVERFLOW, SERVER_OPERATION, Durations


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.01, 0), (0.011, 1), (300.0, 13), (1e6, len(BOUNDS))])
def test_upper_bounds_belong_to_their_bucket(seconds: float, bucket: int) -> None:
    series = Durations().series(SERVER_OPERATION, "a", tuple)
    series.add(seconds)
    assert series.buckets[bucket] == sum(series.buckets) == 1
    assert series.total == series.longest == series.shortest == seconds


def test_same_key_is_the_same_series() -> None:
    durations = Durations()
    for seconds in (1.0, 3.0):
        durations.series(SERVER_OPERATION, "a", partial(tuple, [("a", "b")])).add(seconds)
    (series,) = durations.all()
    assert (series.total, series.shortest, series.longest, series.attributes) == (4.0, 1.0, 3.0, (("a", "b"),))


def test_series_beyond_the_bound_count_together() -> None:
    durations = Durations(max_series=2)
    for number in range(10):
        durations.series(SERVER_OPERATION, number, partial(tuple, [("a", number)])).add(1.0)
    found = {series.attributes: sum(series.buckets) for series in durations.all()}
    assert found == {(("a", 0),): 1, (("a", 1),): 1, OVERFLOW: 8}
