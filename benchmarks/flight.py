"""Stdio to stdio with 64 calls in flight: the gateway over its backend alone.

The same client drives both, alternating.

Once with a backend on the SDK, as users have them, and once with the stdlib echo, whose own call is so cheap that any
relay's cost shows: a bare trio relay reached 0.3.
"""

from __future__ import annotations

from benchmarks.processes import backend, config_file, config_of, gateway_command, load
from benchmarks.table import Claim, Figure, Table, ratios

WINDOW = 64
LEAST = {"sdk": 0.8, "echo": 0.25}
NAMES = {"sdk": "SDK backend", "echo": "stdlib echo"}


def measure(rounds, seconds, *, quick):
    """Claims, pieces to show, data."""
    del quick
    results, claims, rows = {}, [], []
    for kind, least in LEAST.items():
        command = backend(kind)
        with config_file(config_of({"echo": command})) as path:
            steps = {"direct": (command, "echo"), "gateway": (gateway_command(path, "stdio"), "echo.echo")}
            for _ in range(rounds):
                for who, (program, tool) in steps.items():
                    spec = {"kind": "stdio", "era": "legacy", "window": WINDOW, "seconds": seconds}
                    found = load(command=program, tool=tool, **spec)
                    results.setdefault(f"{who}, {NAMES[kind]}", []).append(found)
        above, below = (
            [one["per_second"] for one in results[f"{who}, {NAMES[kind]}"]] for who in ("gateway", "direct")
        )
        what = f"stdio to stdio, {WINDOW} calls in flight, {NAMES[kind]}: calls/s over direct"
        claims.append(Claim(what, ratios(above, below), "ratio", least=least))
    for who, found in results.items():
        rate, p99 = (Figure.of([one[key] for one in found]) for key in ("per_second", "p99"))
        rows.append([who, rate.show(1, 0), p99.show(1e3, 2)])
    return claims, [Table(["who", "calls/s", "p99 ms"], rows, f"{WINDOW} calls in flight, stdio to stdio")], results
