"""The clocks of a measurement, and its results: latencies since send or due time."""

from __future__ import annotations

import time
from collections import deque

from benchmarks.answers import NONE_IN_TIME, WrongAnswer

WARM_UP = 0.2  # of the measured time, before it
MAX_CALLS = 2_000_000  # of one measurement, whatever the time
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)


def now():
    """Return seconds on a clock that all processes of the machine share."""
    return time.perf_counter()


class ClosedLoop:
    """A closed loop: each answer releases the next call.

    Calls answered within the measured time count.
    """

    def __init__(self, seconds):
        self.seconds = seconds
        self.begin = now() + seconds * WARM_UP
        self.end = self.begin + seconds
        self.latencies = []
        self.answered = 0  # also before and after the measured time

    def add(self, sent, answered):
        """Add an answer; return whether the measurement continues."""
        self.answered += 1
        if self.begin <= answered <= self.end:
            self.latencies.append(answered - sent)
        return answered < self.end and len(self.latencies) < MAX_CALLS

    def result(self):
        return summarize(self.latencies, self.seconds) | {"answered": self.answered}


class OpenLoop:
    """An open loop: calls are due at a fixed rate, so every delayed call counts.

    A latency counts from when the call was due, so a client that could not send in time hides nothing.
    """

    def __init__(self, seconds, rate):
        self.seconds, self.rate = seconds, rate
        self.start = now()
        self.begin = self.start + seconds * WARM_UP
        self.total = min(MAX_CALLS, int(rate * seconds * (1 + WARM_UP)))
        self.numbered = 0
        self.latencies = []
        self.waiting = deque()  # due times of calls that no client is free to send

    def due(self, at):
        """Queue the calls that have become due until `at`."""
        while self.numbered < self.total and (moment := self.start + self.numbered / self.rate) <= at:
            self.waiting.append(moment)
            self.numbered += 1

    def next_in(self, at):
        """Return the seconds until the next call is due; None without one."""
        return None if self.numbered >= self.total else max(0.0, self.start + self.numbered / self.rate - at)

    def add(self, due, answered):
        if due >= self.begin:
            self.latencies.append(answered - due)

    def result(self):
        seconds = max(self.seconds, now() - self.begin)
        return summarize(self.latencies, seconds) | {"rate": self.rate}


def summarize(latencies, seconds):
    if not latencies:
        raise WrongAnswer(NONE_IN_TIME)
    ordered = sorted(latencies)

    def quantile(share):
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]

    return {
        "calls": len(ordered),
        "seconds": seconds,
        "per_second": len(ordered) / seconds,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "quantiles": [[share, quantile(share)] for share in QUANTILES],
        "cpu": time.process_time(),
    }
