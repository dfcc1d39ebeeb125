"""Question: how soon do callers of a killed backend get errors, and then answers?

Method: the gateway over HTTP before one stdlib echo backend, with 16 connections that call it without a pause, from a
separate process, which records when and how each call was sent and answered. The backend is killed with SIGKILL
repeatedly, each time after it has served normally for a while. For each kill: the time until the last of the calls in
flight has its answer (an error, as a rule), until the first error, and until the first call sent after the kill
succeeds. The last is compared with the backend's own start (exec to `initialize` answered, on this machine, between the
kills). Calls that were never answered are counted too. Unit: ms.
"""

from __future__ import annotations

import os
import signal
import time

from benchmarks import progress
from benchmarks.clock import now
from benchmarks.plots import Plot
from benchmarks.processes import POLL, Failed, backend, config_of, loading, serving_config
from benchmarks.scale import child_of
from benchmarks.startup import time_initialize
from benchmarks.table import Claim, Figure, Table

MANY = 16
WELL = 0.6  # seconds between readiness and the next kill; longer than `healthy_after`
HEALTHY = 0.3  # seconds after which the gateway resets the count: otherwise the kills would be quick failures in a row
EACH = 4.0  # maximum seconds for one kill
COLUMNS = {
    "heard": "first error",
    "answered": "last call under way answered",
    "served": "first good answer to a call sent after",
}


def add_arguments(parser):
    parser.add_argument("--kills", type=int, help="kills (30; quick: 3)")


def run(options):
    kills = options.kills or (3 if options.quick else 30)
    progress.plan(kills)
    config = config_of({"echo": backend()})
    config["mcpServers"]["echo"]["restart"] = {"healthy_after": HEALTHY}
    times, starts = [], []
    with serving_config(config) as gateway:
        gateway.wait_ready(1)
        seconds = kills * EACH
        spec = {"kind": "http", "era": "modern", "port": gateway.port, "connections": MANY, "tool": "echo.echo"}
        with loading(**spec, seconds=seconds, timeline=True) as running:
            time.sleep(WELL)
            for _ in range(kills):
                progress.step("kill")
                times.append(kill(gateway))
                time.sleep(WELL)
                starts.append(time_initialize(backend()))
            running.stop()
            calls = running.result()["calls_made"]
    found = [judge(calls, at) for at in times]
    return make_claims(found, starts, calls), make_details(found, starts)


def kill(gateway):
    """Kill the backend; return the time. Returns once the gateway has another."""
    victim = child_of(gateway.pid)
    at = now()
    os.kill(victim, signal.SIGKILL)
    until = at + EACH
    while now() < until:
        backends = gateway.health()["backends"].values()
        if all(one["state"] == "ready" for one in backends) and is_other(gateway, victim):
            return at
        time.sleep(POLL)
    raise Failed(f"the backend was not ready again within {EACH} s:\n{gateway.stderr()[-4000:]}")


def is_other(gateway, victim):
    try:
        return child_of(gateway.pid) != victim
    except Failed:
        return False


def judge(calls, at):
    """Return the seconds from a kill to each of the events."""
    after = [call for call in calls if call[1] >= at]
    under_way = [answered - at for sent, answered, _ok in after if sent < at]
    errors = [answered - at for _sent, answered, ok in after if not ok]
    good = [answered - at for sent, answered, ok in after if ok and sent >= at]
    if not good:
        raise Failed("no call was answered after a kill")
    return {
        "heard": min(errors, default=None),
        "answered": max(under_way, default=0.0),
        "served": min(good),
        "errors": sum(1 for error in errors if error < min(good)),
    }


def make_claims(found, starts, calls):
    own = Figure.of(starts)
    answered, served = (Figure.of([one[key] for one in found]) for key in ("answered", "served"))
    size = f"{len(found)} kills, {MANY} connections, stdlib echo"
    return [
        Claim(f"{size}: last call under way is answered", answered, "ms", 1e3, most=50),
        Claim(f"{size}: serves again", served, "ms", 1e3),
        Claim(
            f"{size}: serves again, beyond the backend's own start and the first backoff (500 ms)",
            Figure.of([one["served"] - own.value - 0.5 for one in found]), "ms", 1e3, most=300,
        ),
        Claim("the backend's own start", own, "ms", 1e3),
        Claim("calls in all", Figure.of([len(calls)])),
    ]  # fmt: skip


def make_details(found, starts):
    rows, series = [], {}
    for key, words in COLUMNS.items():
        values = sorted(one[key] for one in found if one[key] is not None)
        if not values:
            continue
        spread = [values[min(len(values) - 1, int(len(values) * share))] for share in (0, 0.5, 0.9, 1)]
        rows.append([words, len(values), *(f"{value * 1e3:.1f}" for value in spread)])
        series[words] = [((i + 1) / len(values) * 100, value * 1e3) for i, value in enumerate(values)]
    errors = Figure.of([one["errors"] for one in found])
    shown = [
        Table(["ms from the kill to", "kills", "least", "median", "p90", "most"], rows),
        f"calls answered with an error after a kill: {errors.show(1, 0)}",
        Plot("After kill -9 of the backend", "% of kills", "ms", series, y_log=True),
    ]
    return shown, {"kills": found, "starts": starts}
