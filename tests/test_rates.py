"""Token buckets, and log lines limited by one."""

from __future__ import annotations

import pytest

from gateway.config.limits import RateLimit
from gateway.rates import LogRate, TokenBucket


@pytest.mark.parametrize(
    ("limit", "times", "waits"),
    [
        (RateLimit(1, 2), [0, 0, 0, 0.25, 1, 1], [0, 0, 1, 0.75, 0, 1]),
        (RateLimit(10, 1), [0, 0.05, 0.1], [0, 0.05, 0]),
        (RateLimit(1, 3), [0, 0, 0, 1000, 1000, 1000, 1000], [0, 0, 0, 0, 0, 0, 1]),
        (RateLimit(1, 1), [5, 4, 6], [0, 1, 0]),  # a clock that steps back gives nothing and takes nothing
    ],
)
def test_a_bucket_allows_a_burst_then_the_rate(limit: RateLimit, times: list[float], waits: list[float]) -> None:
    bucket = TokenBucket(limit)
    assert [bucket.delay_until_available(now) for now in times] == pytest.approx(waits)


def test_a_log_rate_counts_what_it_suppresses() -> None:
    now = 0.0
    rate = LogRate(RateLimit(1, 2), clock=lambda: now)
    assert [rate.allows() for _ in range(4)] == [True, True, False, False]
    now = 1.0
    assert rate.allows()
    assert rate.suppressed == rate.pop_suppressed() == 2
    assert rate.pop_suppressed() == 0
