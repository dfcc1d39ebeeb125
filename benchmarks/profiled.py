"""The gateway with a sampler: `python -m benchmarks.profiled serve ...` is `mcp-gateway serve ...`.

Once the process has used `AFTER` seconds of CPU time (by then it has started and is under load), a timer of CPU time
records, every few milliseconds, the stack of the main thread, where trio runs. At the end, it writes stacks, CPU time
and the number of calls answered meanwhile as JSON to the file in PROFILE_TO.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from gateway.cli import main
from gateway.router import Router

AFTER = 1.0  # seconds of CPU time before the first sample
EACH = 0.001  # seconds of CPU time between two; the kernel makes it some milliseconds
TO = "BENCHMARK_PROFILE_TO"

SITE = [str(Path(__file__).resolve().parent.parent) + "/", "site-packages/", "lib/python"]


class Sampler:
    """Stacks, outermost function first, and their counts."""

    def __init__(self):
        self.stacks = Counter()
        self.calls = 0
        self.first = self.last = None  # (CPU time, times, calls)

    def sample(self, _number, frame):
        self.last = (time.process_time(), os.times()[:2], self.calls)
        self.first = self.first or self.last
        stack = []
        while frame is not None:
            stack.append(frame.f_code)
            frame = frame.f_back
        self.stacks[tuple(reversed(stack))] += 1

    def count_calls(self):
        release = Router.release

        def counted(router, *args, **further):
            self.calls += 1
            release(router, *args, **further)

        Router.release = counted

    def dump(self):
        if self.first is None or self.last[2] == self.first[2]:
            return {"error": "no call was answered while samples were taken"}
        (cpu, times, calls), (cpu_before, times_before, calls_before) = self.last, self.first
        return {
            "stacks": [[[spell(code) for code in stack], seen] for stack, seen in self.stacks.items()],
            "calls": calls - calls_before,
            "cpu": cpu - cpu_before,
            "user": times[0] - times_before[0],
            "system": times[1] - times_before[1],
        }


def spell(code):
    """Return `FILE:FUNCTION`, the file relative to its package's parent."""
    name = code.co_filename
    for place in SITE:
        _before, found, after = name.partition(place)
        if found:
            name = after
            break
    return f"{name}:{code.co_qualname}"


def run():
    sampler = Sampler()
    sampler.count_calls()
    signal.signal(signal.SIGPROF, sampler.sample)
    signal.setitimer(signal.ITIMER_PROF, AFTER, EACH)
    try:
        return main()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(os.environ[TO]).write_text(json.dumps(sampler.dump()), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run())
