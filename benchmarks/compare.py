"""Question: what does a call cost in the cells published by a Rust proxy?

Method: clients with 1, 8 and 32 sessions (streamable HTTP, legacy era, one call in flight each) call an echo backend
over HTTP (`http_echo.py`) and the stdlib echo on pipes, directly and through the gateway; on pipes, directly means as
many calls in flight. Each path then gets an open loop at 50 % and 80 % of its calls/s with 32 sessions, from 64
connections; a latency counts from when the call was due. Added p50 and ratios are taken within a round. CPU is that of
each process, the load generator's start included, divided by its calls; not for open loops. All processes share
the machine stated below.

The published cells are those of joshrotenberg/mcp-proxy 0.4.1, `docs/benchmarks.md` of 2026-08-04: HTTP to HTTP, 2,000
calls a cell, Apple M4 Pro with 14 cores. Another machine, client and backend: compare the ratios, not the calls/s.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from benchmarks import progress
from benchmarks.processes import backend, cpu_seconds, load, serving, serving_config
from benchmarks.scale import child_of
from benchmarks.table import Claim, Figure, Table, differences, ratios

SESSIONS = (1, 8, 32)
SHARES = (0.5, 0.8)
CONNECTIONS = 64  # of the open loop
BACKENDS = {"http": "HTTP to HTTP", "pipe": "HTTP to stdio"}
PUBLISHED = {
    ("directly", 1): (17596, 50.12, 113.54),
    ("directly", 8): (63924, 112.58, 162.67),
    ("directly", 32): (86951, 266.12, 482.00),
    ("proxy", 1): (9551, 102.04, 137.46),
    ("proxy", 8): (33489, 218.33, 281.17),
    ("proxy", 32): (35113, 601.46, 808.96),
}
"""(who, sessions) -> calls/s, p50 and p99 in microseconds."""


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (2; quick: 0.4)")


def run(options):
    """Claims, and the details as (pieces, data)."""
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (0.4 if options.quick else 2.0)
    progress.plan(rounds * len(BACKENDS) * 2 * (len(SESSIONS) + len(SHARES)))
    results = {}
    with ExitStack() as stack:
        echo = stack.enter_context(serving([sys.executable, "-m", "benchmarks.http_echo"]))
        command, *args = backend()
        servers = {
            "http": {"url": f"http://127.0.0.1:{echo.port}/mcp", "era": "legacy"},
            "pipe": {"command": command, "args": args},
        }
        settings = {"max_sessions": 10_000}  # the load ends none
        gateway = stack.enter_context(serving_config({"mcpServers": servers, "gateway": settings}))
        gateway.wait_ready(len(servers))
        pids = {"http": {"gateway": gateway.pid, "backend": echo.pid}}
        pids["pipe"] = {"gateway": gateway.pid, "backend": child_of(gateway.pid)}
        for _ in range(rounds):
            for kind in BACKENDS:
                for who in ("directly", "gateway"):
                    measure_path(
                        make_spec(who, kind, echo.port, gateway.port), pids[kind], seconds, (kind, who), results
                    )
    return make_claims(results), ([make_table(results), make_published()], make_data(results))


def make_spec(who, kind, echo_port, gateway_port):
    """Return the path's spec for the load generator, as a function of its clients."""
    call = {"era": "legacy", "tool": "echo" if who == "directly" else f"{kind}.echo"}
    if who == "directly" and kind == "pipe":
        return lambda count: call | {"kind": "stdio", "command": backend(), "window": count}
    port = echo_port if who == "directly" else gateway_port
    return lambda count: call | {"kind": "http", "port": port, "connections": count}


def measure_path(make, pids, seconds, path, results):
    """Add the results of one path: (backend, who, load) -> one a round."""
    for sessions in SESSIONS:
        found = measure_cpu(make(sessions), pids, seconds)
        results.setdefault((*path, sessions), []).append(found)
    for share in SHARES if "port" in make(1) else ():  # on pipes there is no open loop
        spec = make(CONNECTIONS) | {"rate": round(found["per_second"] * share)}
        results.setdefault((*path, share), []).append(load(seconds=seconds, **spec))


def measure_cpu(spec, pids, seconds):
    """Measure; add the seconds of CPU a call of each process that took part."""
    before = {name: cpu_seconds(pid) for name, pid in pids.items()}
    found = load(seconds=seconds, **spec)
    used = {name: cpu_seconds(pid) - before[name] for name, pid in pids.items()} | {"client": found["cpu"]}
    found["cpu_call"] = {name: seconds / found["answered"] for name, seconds in used.items()}
    return found


def make_claims(results):
    claims = []
    for kind, title in BACKENDS.items():
        for sessions in SESSIONS:
            direct, through = results[kind, "directly", sessions], results[kind, "gateway", sessions]
            rate = ratios(*([found["per_second"] for found in path] for path in (through, direct)))
            added = differences(*([found["p50"] for found in path] for path in (through, direct)))
            claims += [
                Claim(f"{title}, {sessions} sessions: calls/s over direct", rate, "ratio"),
                Claim(f"{title}, {sessions} sessions: added p50", added, "us", 1e6),
            ]
    return claims


PROCESSES = ("gateway", "backend", "client")
HEADER = ["path", "who", "load", "calls/s", "p50 us", "p99 us", "CPU us a call: gateway", "backend", "client"]


def make_table(results):
    rows = []
    for (kind, who, size), found in results.items():
        rate, p50, p99 = (Figure.of([one[key] for one in found]) for key in ("per_second", "p50", "p99"))
        cpu = dict.fromkeys(PROCESSES, "")
        for name in cpu if isinstance(size, int) else ():
            if who == "gateway" or name == "client" or (name, kind) == ("backend", "http"):
                cpu[name] = Figure.of([one["cpu_call"][name] for one in found]).show(1e6, 0)
        words = f"{size} sessions" if isinstance(size, int) else f"open loop, {size:.0%}"
        shown = [rate.show(1, 0), p50.show(1e6, 0), p99.show(1e6, 0), *cpu.values()]
        rows.append([BACKENDS[kind], who, words, *shown])
    return Table(HEADER, rows, "Calls by sessions")


def make_published():
    rows = []
    for (who, sessions), (rate, p50, p99) in PUBLISHED.items():
        direct = PUBLISHED["directly", sessions]
        ratio, added = ("", "") if who == "directly" else (f"{rate / direct[0]:.2f}", f"{p50 - direct[1]:.0f}")
        rows.append([who, sessions, f"{rate:,}", f"{p50:.0f}", f"{p99:.0f}", ratio, added])
    header = ["who", "sessions", "calls/s", "p50 us", "p99 us", "calls/s over direct", "added p50 us"]
    return Table(header, rows, "Published: joshrotenberg/mcp-proxy 0.4.1 (Rust), HTTP to HTTP, Apple M4 Pro, 14 cores")


def make_data(results):
    return [
        {"backend": kind, "who": who, "load": size, "rounds": found} for (kind, who, size), found in results.items()
    ]
