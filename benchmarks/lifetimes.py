"""Question: does a child ever outlive its gateway, and how soon has it ended?

Method, the grid: each round starts a gateway before a zoo of ten children (well behaved; ignoring SIGTERM; ignoring the
end of stdin; with a grandchild that keeps the pipes; double-forked with setsid, three ways; a shell that spawns a shell
that spawns; stopped by SIGSTOP; exiting while it flushes 50 MB), for every ending in turn: stdin EOF, SIGTERM, SIGINT
twice, SIGKILL, SIGKILL of the process group, a crash by a bug, kill -9 of every child (a restart, then SIGTERM), and
the removal of every server over the management API (then SIGTERM). Survivors are found by a mark in their command
lines; zombies are processes that the gateway left to its own parent to reap. The grace periods of the shutdown sequence
are shortened to 0.3 + 0.3 + 1 s. 200 rounds take some 15 minutes on two idle cores.

Method, the rows: see the functions in `lifetime_rows`. Exits with status 1 if any child survived, whatever the options.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from benchmarks import lifetime_rows, oracle
from benchmarks.endings import ENDINGS, SHUTDOWN_GRACE, ZOO, run_once
from benchmarks.table import Claim, Figure, render

LEFT_BEHIND = "survivors, zombies and leaked descriptors"
TRANSPORTS = ("stdio", "streamable-http")


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds of the grid (20; quick: 1)")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="gateways at once in the grid")
    parser.add_argument("--seconds", type=float, help="start no further round after this many seconds")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--grid", action="store_true", help="only the grid")
    only.add_argument("--rows", action="store_true", help="only the rows")


def run(options):
    claims, details, data = [], [], {}
    if not options.rows:
        outcomes = run_grid(options)
        claims += grid_claims(outcomes)
        details.append(grid_table(outcomes))
        data["grid"] = [outcome.data() for outcome in outcomes]
    if not options.grid:
        with oracle.subreaper():
            rows = lifetime_rows.measure(quick=options.quick)
        claims += rows.claims
        details.append(rows.table())
        data["rows"] = rows.data
    return claims, ("\n\n".join(details), data)


def fatal(claims):
    """Return whether a child survived, which fails even without `--strict`."""
    return any(claim.what.startswith(LEFT_BEHIND) and not claim.reached for claim in claims)


def run_grid(options):
    """Run all rounds, some gateways at a time, each in a separate subreaper."""
    rounds = options.rounds or (1 if options.quick else 20)
    until = time.monotonic() + (options.seconds or float("inf"))
    outcomes = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for number in range(rounds):
            if number and time.monotonic() > until:
                break
            cells = [(ending, TRANSPORTS[number % len(TRANSPORTS)]) for ending in ENDINGS]
            futures = [pool.submit(run_cell, *cell) for cell in cells]
            outcomes += [future.result() for future in as_completed(futures)]
    return outcomes


def run_cell(ending, transport):
    with oracle.subreaper():
        return run_once(ending, transport)


def grid_claims(outcomes):
    rounds = len(outcomes) // len(ENDINGS)
    left = sum(outcome.survivors + outcome.zombies + outcome.leaked_fds for outcome in outcomes)
    slowest = max(outcome.gone for outcome in outcomes)
    size = f"{rounds} rounds x {len(ENDINGS)} endings x {len(ZOO)} children"
    bound = sum(SHUTDOWN_GRACE) + 1
    return [
        Claim(f"{LEFT_BEHIND}, {size}", Figure.of([left]), most=0),
        Claim("the zoo is gone, slowest of all (grace periods + 1 s)", Figure.of([slowest]), "s", most=bound),
    ]


def grid_table(outcomes):
    header = ["ending", "runs", "processes", "survivors", "zombies", "leaked fds", "gone: median s", "worst s"]
    rows = []
    for ending in ENDINGS:
        mine = [outcome for outcome in outcomes if outcome.ending == ending]
        gone = Figure.of([outcome.gone for outcome in mine])
        fields = ("processes", "survivors", "zombies", "leaked_fds")
        sums = [sum(getattr(outcome, field) for outcome in mine) for field in fields]
        rows.append([ending, len(mine), *sums, f"{gone.value:.2f}", f"{gone.high:.2f}"])
    return render(header, rows)
