"""Results from 100 bytes to 1 MB: the backend directly and through the gateway, alternating.

Direct calls use the backend's pipes. The tool answers with text of this size, and each answer is compared. One and four
calls are in flight. MB/s are the result's bytes over time: of the latency's median with one call, of the rate with
four. Backend: stdlib echo.
"""

from __future__ import annotations

from benchmarks.plots import Plot
from benchmarks.processes import backend, config_file, config_of, gateway_command, load, serving_gateway
from benchmarks.table import Claim, Figure, Table, ratios

SIZES = (100, 1_000, 10_000, 100_000, 1_000_000)
QUICK = (100, 1_000_000)
WINDOWS = (1, 4)
LARGE = 1_000_000


def measure(rounds, seconds, *, quick):
    """Claims, pieces to show, data."""
    sizes = QUICK if quick else SIZES
    command, results = backend(), {}
    with config_file(config_of({"echo": command})) as path, serving_gateway({"echo": command}) as gateway:
        gateway.wait_ready(1)
        frontends = {
            "direct": {"kind": "stdio", "era": "legacy", "command": command, "tool": "big"},
            "gateway stdio": {
                "kind": "stdio", "era": "legacy", "command": gateway_command(path, "stdio"), "tool": "echo.big",
            },
            "gateway HTTP": {"kind": "http", "era": "modern", "port": gateway.port, "tool": "echo.big"},
        }  # fmt: skip
        for _ in range(rounds):
            for size in sizes:
                for window in WINDOWS:
                    for who, frontend in frontends.items():
                        spec = {"check": "big", "size": size, "seconds": seconds}
                        spec |= {"window": window, "connections": window}
                        results.setdefault((who, size, window), []).append(load(**frontend, **spec))
    return make_claims(results), make_pieces(results, sizes), pack(results)


def rates(results, who, size, window):
    """Return MB/s of each round."""
    found = results[who, size, window]
    return [size / 1e6 / one["p50"] if window == 1 else size / 1e6 * one["per_second"] for one in found]


def make_claims(results):
    claims = []
    for who, least in (("gateway stdio", 0.5), ("gateway HTTP", None)):
        for window in WINDOWS:
            above, below = (rates(results, one, LARGE, window) for one in (who, "direct"))
            what = f"1 MB results, {who}, {window} under way, stdlib echo: MB/s over direct"
            claims.append(Claim(what, ratios(above, below), "ratio", least=least))
    return claims


def make_pieces(results, sizes):
    rows, series = [], {}
    for (who, size, window), found in results.items():
        p50, rate = Figure.of([one["p50"] for one in found]), Figure.of(rates(results, who, size, window))
        rows.append([who, f"{size:,}", window, p50.show(1e3, 3), rate.show(1, 2)])
        if window == 1:
            series.setdefault(who, []).append((size, rate.value))
    rows.sort(key=lambda row: (sizes.index(int(row[1].replace(",", ""))), row[2], row[0]))
    header = ["who", "bytes of the result", "under way", "p50 ms", "MB/s"]
    return [
        Table(header, rows, "Results by size, stdlib echo"),
        Plot("Results by size, one call at a time", "bytes", "MB/s", series, x_log=True, y_log=True),
    ]


def pack(results):
    return [{"who": key[0], "size": key[1], "under_way": key[2], "rounds": found} for key, found in results.items()]
