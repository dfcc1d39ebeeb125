"""The resources that a gateway holds, as reported by the kernel and its own health."""

from __future__ import annotations

import os
import time

from benchmarks import oracle

SETTLE = 75.0  # seconds until all must be gone: servers wait 30 s for an answer, two of them twice as long
POLL = 0.1


def hold(gateway):
    """Return the gateway's resources at this moment."""
    descriptors = len(os.listdir(f"/proc/{gateway.pid}/fd"))  # first, since the next request opens one
    health = gateway.health()
    return {
        "processes": len(descendants(gateway.pid)),
        "descriptors": descriptors,
        "threads": len(threads(gateway.pid)),
        "calls in flight": sum(one["in_flight"] for one in health["backends"].values()),
    }


def threads(pid):
    """Return the names of its threads, without idle ones that trio keeps for a while."""
    names = [oracle.read(pid, f"task/{task}/comm").decode().strip() for task in os.listdir(f"/proc/{pid}/task")]
    return [name for name in names if not name.startswith("Trio thread ")]


def descendants(pid):
    """Return all descendants of this process, zombies included."""
    parents = {one: row[1] for one in oracle.pids() if (row := oracle.stat(one)) is not None}
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def settle(gateway, wanted):
    """Wait until the gateway is down to these resources; return the last, and the seconds.

    The wait is bounded.
    """
    began = time.monotonic()
    while True:
        held, passed = hold(gateway), time.monotonic() - began
        if passed >= SETTLE or all(held[name] <= wanted[name] for name in wanted):
            return held, passed
        time.sleep(POLL)
