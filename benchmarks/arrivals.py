"""Open loop beside closed loop: calls are due at a fixed rate.

In an open loop a latency counts from when a call was due. A closed loop delays its next call while a server stalls, and
so measures one bad latency where many clients would have had one. The rates are fractions of the closed loop's with 16
connections in this run, each server's own: the bare app on stock Hypercorn, and the gateway over HTTP. 64 connections
send the calls that are due. Backend: stdlib echo.
"""

from __future__ import annotations

from benchmarks.plots import Plot, percentiles
from benchmarks.processes import backend, load, serving_bare, serving_gateway
from benchmarks.table import Figure, Table

SHARES = (0.25, 0.5, 0.75)
QUICK = (0.5,)
CLOSED = (1, 4, 16, 64)
CONNECTIONS = 64


def measure(rounds, seconds, *, quick):
    """Claims (none), pieces to show, data."""
    results = {}
    with serving_bare() as bare, serving_gateway({"echo": backend()}) as gateway:
        gateway.wait_ready(1)
        servers = {"bare": (bare.port, "constant"), "gateway": (gateway.port, "echo")}
        for _ in range(rounds):
            for who, (port, check) in servers.items():
                call = {"kind": "http", "era": "modern", "tool": "echo.echo", "port": port, "check": check}
                for connections in (16,) if quick else CLOSED:
                    found = load(**call, connections=connections, seconds=seconds)
                    results.setdefault((who, "closed", connections), []).append(found)
                most = results[who, "closed", 16][-1]["per_second"]
                for share in QUICK if quick else SHARES:
                    found = load(**call, connections=CONNECTIONS, seconds=seconds, rate=round(most * share))
                    results.setdefault((who, "open", share), []).append(found)
    rows, rates = [], {}
    for (who, loop, size), found in results.items():
        rate, p50, p99 = (Figure.of([one[key] for one in found]) for key in ("per_second", "p50", "p99"))
        words = f"{size} connections" if loop == "closed" else f"{size:.0%} of its rate at 16 connections"
        rows.append([who, loop, words, rate.show(1, 0), p50.show(1e3, 2), p99.show(1e3, 2)])
        if loop == "closed":
            rates.setdefault(who, []).append((size, rate.value))
    curves = {
        f"{who}, {'16 connections' if loop == 'closed' else f'{size:.0%} of its rate'}": found[-1]
        for (who, loop, size), found in results.items()
        if loop == "open" or size == 16
    }
    pieces = [
        Table(["who", "loop", "load", "calls/s", "p50 ms", "p99 ms"], rows, "Closed and open loop, HTTP modern"),
        percentiles("Latency over HTTP, from when a call was due", curves),
        Plot("Calls a second by connections", "connections", "calls/s", rates, x_log=True),
    ]
    return [], pieces, [{"who": key[0], "loop": key[1], "load": key[2], "rounds": r} for key, r in results.items()]
