"""Question: how long does `tools/list` take with many backends, even if one hangs?

Method: two gateways run together, one before 100 healthy backends of 20 tools each, the other before the same 100 and
one more that never answers `initialize`. In each round, alternating, whole lists (all pages) are fetched one after the
other over one connection; each must hold exactly the 2,000 tools. Unit: milliseconds from the request to the last byte.
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks.processes import backend, load, serving_gateway
from benchmarks.table import Claim, Figure, ratios, render


def add_arguments(parser):
    add_size_arguments(parser)
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 1)")
    parser.add_argument("--count", type=int, help="lists in each round (50; quick: 10)")


def add_size_arguments(parser):
    parser.add_argument("--backends", type=int, help="healthy backends (100; quick: 10)")
    parser.add_argument("--tools", type=int, default=20, help="tools of each (20)")


def many_backends(options):
    """Name -> command of the echo backends."""
    count = options.backends or (10 if options.quick else 100)
    return {
        f"b{i:03}": backend("echo", "--plain", "--tools", options.tools, "--name", f"b{i:03}") for i in range(count)
    }


def run(options):
    rounds = options.rounds or (1 if options.quick else 5)
    count = options.count or (10 if options.quick else 50)
    well = many_backends(options)
    hung = well | {"hung": backend("echo", "--plain", "--hang", "initialize")}
    results = {}
    with ExitStack() as stack:
        ports = {}
        for name, commands in (("none hung", well), ("one hung", hung)):
            gateway = stack.enter_context(serving_gateway(commands))
            gateway.wait_ready(len(well))
            ports[name] = gateway.port
        spec = {"kind": "list", "tools": len(well) * options.tools, "count": count, "warm_up": 3}
        for _ in range(rounds):
            for era in ("legacy", "modern"):
                for name, port in ports.items():
                    results.setdefault((name, era), []).append(load(port=port, era=era, **spec))
    return make_claims(results, f"{len(well)} x {options.tools} tools"), make_details(results)


def make_claims(results, size):
    claims = []
    for era in ("legacy", "modern"):
        p50 = {name: [result["p50"] for result in results[name, era]] for name in ("none hung", "one hung")}
        one = Figure.of(p50["one hung"])
        claims += [
            Claim(f"tools/list {era}, {size}, one hung: p50", one, "ms", 1e3, most=5),
            # "No slower", within the difference between two runs of the same thing.
            Claim(
                f"tools/list {era}: one hung over none hung",
                ratios(p50["one hung"], p50["none hung"]),
                "ratio",
                most=1.1,
            ),
        ]
    return claims


def make_details(results):
    rows, data = [], []
    for (name, era), measured in results.items():
        p50, p99 = (Figure.of([result[key] for result in measured]) for key in ("p50", "p99"))
        rows.append([name, era, p50.show(1e3, 2), p99.show(1e3, 2)])
        data.append({"backends": name, "era": era, "rounds": measured})
    return render(["backends", "era", "p50 ms", "p99 ms"], rows), data
