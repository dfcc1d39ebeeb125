"""Question: what does a tool call through the gateway cost?

Method, `faces`: each round measures in turn the bare app on stock Hypercorn (`bare.py`) and on the gateway's own HTTP
server, the gateway over HTTP (legacy and modern, 1 and 16 connections), the backend called directly over its pipes,
behind a relay that only copies bytes (`relay.py`), and behind the gateway in stdio mode (1 and 16 calls in flight).
Every answer is checked against its request. Ratios and differences are taken within a round; their median and range are
reported. The backend is the stdlib echo, so that the gateway's own cost shows, unless another is chosen.

The other parts: `relay` (HTTP calls compared with a relay that does nothing else, `relay.py`), and with up to three
rounds each `payloads` (results from 100 B to 1 MB), `transports` (every frontend with every backend transport),
`remote` (a backend over HTTP compared with one on pipes), `flight` (64 calls in flight, stdio to stdio), `arrivals`
(open loop beside closed loop), `owner` (the rate at which the process that owns the backends would be full, if HTTP
were served by others); see the modules of these names. Units: calls per second, MB/s, milliseconds.
"""

from __future__ import annotations

import sys

from benchmarks import arrivals, flight, owner, payloads, relay, remote, transports
from benchmarks.answers import TEXT
from benchmarks.plots import percentiles
from benchmarks.processes import (
    backend,
    config_file,
    config_of,
    gateway_command,
    load,
    run_module,
    serving_bare,
    serving_gateway,
)
from benchmarks.table import Claim, Figure, Table, differences, ratios

MANY = 16  # connections, or calls in flight
PARTS = {
    "faces": None,
    "relay": relay,
    "payloads": payloads,
    "transports": transports,
    "remote": remote,
    "flight": flight,
    "arrivals": arrivals,
    "owner": owner,
}


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (2; quick: 0.4)")
    parser.add_argument("--backend", choices=["echo", "sdk"], default="echo", help="stdlib echo, or one on the SDK")
    parser.add_argument("--only", action="append", choices=[*PARTS], help="this part, again for more; else all")
    parser.add_argument(
        "--backend-era", choices=["legacy", "modern", "both"], default="legacy", help="of the echo backend"
    )


def run(options):
    """Claims, and the details as (pieces, data)."""
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (0.4 if options.quick else 2.0)
    claims, pieces, data = [], [], {}
    for name in options.only or PARTS:
        part = {"faces": measure_frontends, "owner": measure_owner}.get(name)
        if part is not None:
            found = part(rounds if name == "faces" else min(rounds, 3), seconds, options)
        else:
            most = rounds if name == "relay" else 3
            found = PARTS[name].measure(min(rounds, most), seconds, quick=options.quick)
        claims += found[0]
        pieces += found[1]
        data[name] = found[2]
    return claims, (pieces, data)


def measure_frontends(rounds, seconds, options):
    command = backend(options.backend, *(["--era", options.backend_era] if options.backend == "echo" else []))
    results = {}
    with (
        config_file(config_of({"echo": command})) as config,
        serving_bare() as bare,
        serving_bare("--own") as own,
        serving_gateway({"echo": command}) as gateway,
    ):
        gateway.wait_ready(1)
        steps = make_steps((bare.port, own.port, gateway.port), command, gateway_command(config, "stdio"), options)
        for _ in range(rounds):
            for name, spec in steps.items():
                results.setdefault(name, []).append(load(seconds=seconds, **spec))
    return make_claims(results, options), *make_details(results)


def measure_owner(rounds, seconds, _options):
    results = owner.measure(rounds, seconds, lambda spec: run_module("benchmarks.owner", spec))
    rows, busiest = [], results[owner.WINDOWS[-1]]
    for window, found in results.items():
        rate, cpu = (Figure.of([one[key] for one in found]) for key in ("per_second", "cpu_per_call"))
        rows.append([window, rate.show(1, 0), cpu.show(1e6, 1)])
    full = Figure.of([1 / one["cpu_per_call"] for one in busiest])
    claims = [
        Claim(f"owner of the backends alone, {owner.WINDOWS[-1]} under way, stdlib echo", Figure.of(
            [one["per_second"] for one in busiest]), "calls/s"),
        Claim("calls/s that would fill the core of the owner of the backends", full, "calls/s"),
    ]  # fmt: skip
    table = Table(["under way", "calls/s", "CPU us a call"], rows, "Router, supervisor and backend without a frontend")
    return claims, [table], results


def make_steps(ports, command, stdio_gateway, options):
    """Name of a step -> spec for the load generator; names are (who, era, window)."""
    steps = {}
    bare_port, own_port, gateway_port = ports
    for calls in (1, MANY):
        for era in ("legacy", "modern"):
            http = {"kind": "http", "era": era, "connections": calls, "tool": "echo.echo"}
            steps["bare HTTP", era, calls] = http | {"port": bare_port, "check": "constant"}
            steps["bare, own HTTP", era, calls] = http | {"port": own_port, "check": "constant"}
            steps["gateway HTTP", era, calls] = http | {"port": gateway_port, "check": "echo"}
    direct_era = "modern" if options.backend == "echo" and options.backend_era == "modern" else "legacy"
    for calls in (1, MANY):
        steps["backend stdio", direct_era, calls] = {
            "kind": "stdio", "era": direct_era, "window": calls, "command": command, "tool": "echo",
        }  # fmt: skip
        relay = [sys.executable, "-m", "benchmarks.relay", *command]
        steps["bare relay stdio", direct_era, calls] = steps["backend stdio", direct_era, calls] | {"command": relay}
        for era in ("legacy", "modern"):
            steps["gateway stdio", era, calls] = {
                "kind": "stdio", "era": era, "window": calls, "command": stdio_gateway, "tool": "echo.echo",
            }  # fmt: skip
    return steps


def make_claims(results, options):
    """Return the rows of the table; the targets are for the stdlib echo."""
    strict = options.backend == "echo"
    least, most = (1.2, 0.25) if strict else (None, None)

    def values(who, era, calls, key):
        return [result[key] for result in results[who, era, calls]]

    direct_era = next(era for who, era, _calls in results if who == "backend stdio")
    claims = []
    for era in ("legacy", "modern"):
        above, below = (values(f"{who} HTTP", era, MANY, "per_second") for who in ("gateway", "bare"))
        claims.append(
            Claim(f"HTTP {era}, {MANY} connections: calls/s over bare", ratios(above, below), "ratio", least=least)
        )
    for era in ("legacy", "modern"):
        added = differences(*(values(f"{who} HTTP", era, 1, "p50") for who in ("gateway", "bare")))
        claims.append(Claim(f"HTTP {era}, 1 connection: added p50 over bare", added, "ms", 1e3, most=most))
    direct = values("backend stdio", direct_era, 1, "p50")
    added = differences(values("bare relay stdio", direct_era, 1, "p50"), direct)
    claims.append(Claim("a bare relay on trio, one at a time: added p50 over direct", added, "ms", 1e3))
    for era in ("legacy", "modern"):
        added = differences(values("gateway stdio", era, 1, "p50"), direct)
        claims.append(Claim(f"stdio {era}, one at a time: added p50 over direct", added, "ms", 1e3, most=most))
    return claims


def make_details(results):
    rows, data = [], []
    for (who, era, calls), measured in results.items():
        figures = {key: Figure.of([result[key] for result in measured]) for key in ("per_second", "p50", "p99")}
        shown = [figures["per_second"].show(1, 0), figures["p50"].show(1e3, 3), figures["p99"].show(1e3, 3)]
        rows.append([who, era, calls, *shown])
        data.append({"who": who, "era": era, "under_way": calls, "rounds": measured})
    title = f"Calls with the text {TEXT % 1_000_000!r}"
    header = ["who", "era", "under way", "calls/s", "p50 ms", "p99 ms"]
    curves = {f"{who}, {era}": found[-1] for (who, era, calls), found in results.items() if calls == MANY}
    return [Table(header, rows, title), percentiles(f"Latency, {MANY} under way", curves)], data
