"""Question: does a call, or a list, become slower with the number of backends?

Method: gateways over HTTP before 1, 10, 100 and 300 stdlib echo backends of 20 tools each run at the same time, and in
each of many short rounds are called one after the other, in a different order each round, always at their first
backend: one call at a time (p50 of the latency, and the CPU time that the gateway spends on a call), 16 connections
(calls/s). Ratios are over the gateway with 1 backend, within a round. Then the list of all tools: the first one
requested once all backends are ready, the first after one backend was killed and is back (only its entries are encoded
again), and again unchanged. RSS is the gateway's own, after all that. Units: ratio, ms, MB (1,000,000 bytes).
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import ExitStack, closing

from benchmarks import oracle, progress
from benchmarks.answers import check_list
from benchmarks.load import read_list
from benchmarks.memory import read_status
from benchmarks.plots import Plot
from benchmarks.processes import POLL, START_WITHIN, Failed, backend, cpu_seconds, load, serving_gateway
from benchmarks.table import Claim, Figure, Table, ratios
from benchmarks.wire import Connection

TOOLS = 20
MANY = 16  # connections
SIZES = (1, 10, 100, 300)
QUICK = (1, 20)


def add_arguments(parser):
    parser.add_argument("--sizes", help=f"numbers of backends, with commas ({','.join(map(str, SIZES))}; quick: 1,20)")
    parser.add_argument("--rounds", type=int, help="rounds (15; quick: 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (0.7; quick: 0.4)")


def run(options):
    sizes = [int(word) for word in options.sizes.split(",")] if options.sizes else QUICK if options.quick else SIZES
    rounds = options.rounds or (1 if options.quick else 15)
    seconds = options.seconds or (0.4 if options.quick else 0.7)
    progress.plan(len(sizes) * (2 * rounds + 2))
    found = {size: {"startup": [], "lists": {}} for size in sizes}
    with ExitStack() as stack:
        gateways = {}
        for size in sizes:
            progress.step(f"starting {size} backends")
            gateway = gateways[size] = stack.enter_context(serving_gateway(backends(size)))
            found[size]["ready after"] = gateway.wait_ready(size)
            found[size]["lists"]["first"] = [first_lists(gateway, size)]
        for number in range(rounds):
            for size, gateway in rotated(gateways, number):
                for name, result in measure(gateway, seconds).items():
                    found[size].setdefault(name, []).append(result)
        for size, gateway in gateways.items():
            progress.step(f"lists of {size} backends")
            found[size]["lists"] |= changed_lists(gateway, size, rounds)
            found[size]["rss"] = read_status(gateway.pid)["VmRSS"]
    return make_claims(found), make_details(found)


def rotated(gateways, number):
    """Return all (size, gateway), rotated so that none always follows the busiest."""
    pairs = list(gateways.items())
    first = number % len(pairs)
    return pairs[first:] + pairs[:first]


def backends(count):
    return {f"b{i:03}": backend("echo", "--plain", "--tools", TOOLS, "--name", f"b{i:03}") for i in range(count)}


def measure(gateway, seconds):
    spec = {"kind": "http", "era": "modern", "port": gateway.port, "seconds": seconds, "tool": "b000.tool_0"}
    spec |= {"check": "numbered", "prefix": "b000.tool_0 "}
    before = cpu_seconds(gateway.pid)
    one = load(**spec, connections=1)
    # Its warm-up is in the CPU time and not in its calls: a sixth of the whole.
    one["cpu_per_call"] = (cpu_seconds(gateway.pid) - before) / (one["calls"] * 1.2)
    return {"one": one, "many": load(**spec, connections=MANY)}


def time_list(connection, size):
    entries, took = read_list(connection, 1)
    check_list(entries, size * TOOLS)
    return took


def first_lists(gateway, size):
    """Measure the first list that this gateway ever gives, in seconds."""
    with closing(Connection(gateway.port, "modern")) as connection:
        return time_list(connection, size)


def changed_lists(gateway, size, rounds):
    with closing(Connection(gateway.port, "modern")) as connection:
        again = [time_list(connection, size) for _ in range(5 * rounds)]
        after = []
        for _ in range(min(rounds, 3)):
            os.kill(child_of(gateway.pid), signal.SIGKILL)
            wait_restarted(gateway, size)
            after.append(time_list(connection, size))
    return {"after a change": after, "again": again}


def child_of(pid):
    """Return one of the backends of a gateway."""
    for one in oracle.pids():
        row = oracle.stat(one)
        if row is not None and row[1] == pid and b"echo_server.py" in oracle.read(one, "cmdline"):
            return one
    raise Failed(f"process {pid} has no backends")


def wait_restarted(gateway, size):
    """Wait until the gateway has noticed the kill, and all are ready again."""
    until, noticed = time.monotonic() + START_WITHIN, False
    while time.monotonic() < until:
        states = [one["state"] for one in gateway.health()["backends"].values()]
        noticed = noticed or states.count("ready") < size
        if noticed and states.count("ready") == size:
            return
        time.sleep(POLL / 4)
    raise Failed("the killed backend was not ready again")


def make_claims(found):
    small, *_, large = found
    whole = f"{large:,} stdlib echo backends over {small}"

    def values(size, step, key):
        return [result[key] for result in found[size][step]]

    claims = [
        Claim(
            f"{whole}: p50 of a call, one at a time", ratios(values(large, "one", "p50"), values(small, "one", "p50")),
            "ratio", most=1.05,
        ),
        Claim(
            f"{whole}: the gateway's CPU time for a call",
            ratios(values(large, "one", "cpu_per_call"), values(small, "one", "cpu_per_call")), "ratio", most=1.05,
        ),
        Claim(
            f"{whole}: time for a call at {MANY} connections",
            ratios(values(small, "many", "per_second"), values(large, "many", "per_second")), "ratio", most=1.05,
        ),
    ]  # fmt: skip
    lists, tools = found[large]["lists"], f"tools/list of {large * TOOLS:,} tools"
    claims += [
        Claim(f"{tools}: first", Figure.of(lists["first"]), "ms", 1e3, most=20),
        Claim(f"{tools}: after one backend changed", Figure.of(lists["after a change"]), "ms", 1e3, most=20),
        Claim(f"{tools}: unchanged", Figure.of(lists["again"]), "ms", 1e3, most=5),
        Claim(f"RSS of the gateway, {large} x {TOOLS} tools", Figure.of([found[large]["rss"]]), "MB", 1e-6, most=120),
    ]
    return claims


def make_details(found):
    header = ["backends", "p50 ms", "CPU us a call", f"calls/s, {MANY}", "all ready s", "first list ms", "changed ms",
              "unchanged ms", "RSS MB"]  # fmt: skip
    rows = []
    for size, one in found.items():
        lists = {name: Figure.of(values) for name, values in one["lists"].items()}
        rows.append([
            size,
            Figure.of([result["p50"] for result in one["one"]]).show(1e3, 3),
            Figure.of([result["cpu_per_call"] for result in one["one"]]).show(1e6, 0),
            Figure.of([result["per_second"] for result in one["many"]]).show(1, 0),
            f"{one['ready after']:.2f}",
            *(lists[name].show(1e3, 1) for name in ("first", "after a change", "again")),
            f"{one['rss'] / 1e6:.1f}",
        ])
    memory = {"gateway": [(size, one["rss"] / 1e6) for size, one in found.items()]}
    speed = {
        f"{MANY} connections": [
            (size, Figure.of([result["per_second"] for result in one["many"]]).value) for size, one in found.items()
        ]
    }
    shown = [
        Table(header, rows, "stdlib echo backends of 20 tools"),
        Plot("Memory of the gateway by backends", "backends", "MB", memory),
        Plot("Calls a second by backends", "backends", "calls/s", speed, x_log=True),
    ]
    return shown, found
