"""Question: what do access control and the audit cost?

Method: four gateways over HTTP before one stdlib echo each: with neither; with the audit in a file; in the log; with
keys and the audit in a file. Each round measures all of them, in a different order, with 16 connections in each era;
every answer is checked. Ratios are taken within a round, over the gateway with neither. Reported are their median and
range, and the CPU time per call of the gateway's process, which other work on the same cores hardly changes. It also
checks that the file has a line for each call, and exits with status 1 if not.
"""

from __future__ import annotations

import http.client
import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.processes import backend, config_of, cpu_seconds, load, serving_config
from benchmarks.table import Claim, Figure, ratios, render
from gateway.access.keys import hash_key

CONNECTIONS = 16
KEY = "a-key-for-the-benchmarks"
ERAS = ("legacy", "modern")
NEITHER, FILE, LOG, BOTH = "neither", "audit to a file", "audit to the log", "keys, and audit to a file"


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds (16; quick: 2)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (0.8; quick: 0.4)")


def run(options):
    rounds = options.rounds or (2 if options.quick else 16)
    seconds = options.seconds or (0.4 if options.quick else 0.8)
    results = {}
    with TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {name: open_gateway(stack, config) for name, config in make_configs(Path(folder)).items()}
        for number in range(rounds):
            first = number % len(servers)
            for name in (*list(servers)[first:], *list(servers)[:first]):
                for era in ERAS:
                    results.setdefault((name, era), []).append(measure(name, servers[name], era, seconds))
        stack.close()  # and with their ends the last lines are written
        noted = {name: count_lines(Path(folder, word)) for name, word in ((FILE, "file"), (BOTH, "both"))}
    return make_claims(results, noted), make_details(results)


def make_configs(folder):
    config = config_of({"echo": backend()})

    def audited(settings, **further):
        return config | {"gateway": {"audit": settings}} | further

    key = {"name": "load", "hash": hash_key(KEY)}
    return {
        NEITHER: config,
        FILE: audited({"file": str(folder / "file")}),
        LOG: audited(True),
        BOTH: audited({"file": str(folder / "both")}, access={"keys": [key]}),
    }


def open_gateway(stack, config):
    server = stack.enter_context(serving_config(config))
    server.wait_ready(1)
    return server


def measure(name, server, era, seconds):
    """Measure one step; `cpu_call` is the gateway's own."""
    headers = {"authorization": f"Bearer {KEY}"} if name == BOTH else {}
    spec = {"kind": "http", "era": era, "connections": CONNECTIONS, "port": server.port, "headers": headers}
    cpu, calls = cpu_seconds(server.pid), count_calls(server)
    found = load(**spec, tool="echo.echo", seconds=seconds)
    return found | {"cpu_call": (cpu_seconds(server.pid) - cpu) / (count_calls(server) - calls)}


def count_calls(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/servers/echo")
        return json.loads(connection.getresponse().read())["calls"]
    finally:
        connection.close()


def count_lines(path):
    return path.read_bytes().count(b'"outcome":"answered"')


def make_claims(results, noted):
    def values(name, era, key):
        return [found[key] for found in results[name, era]]

    claims = []
    for name, least in ((BOTH, 0.85), (FILE, 0.85), (LOG, None)):
        for era in ERAS:
            ratio = ratios(values(name, era, "per_second"), values(NEITHER, era, "per_second"))
            claims.append(Claim(f"{name}, {era}: calls/s over neither", ratio, "ratio", least=least))
            ratio = ratios(values(NEITHER, era, "cpu_call"), values(name, era, "cpu_call"))
            claims.append(Claim(f"{name}, {era}: CPU of a call with neither over it", ratio, "ratio", least=least))
    for name, lines in noted.items():
        made = sum(found["calls"] for era in ERAS for found in results[name, era])
        # More calls are made than are measured, since there is a warm-up.
        claims.append(Claim(f"{name}: lines for each measured call", Figure.of([lines / made]), "ratio", least=1))
    return claims


def make_details(results):
    rows = []
    for (name, era), found in results.items():
        figures = [Figure.of([one[key] for one in found]) for key in ("per_second", "p50", "p99", "cpu_call")]
        shown = [figures[0].show(1, 0), *(figure.show(1e3, 3) for figure in figures[1:3]), figures[3].show(1e6, 0)]
        rows.append([name, era, *shown])
    data = [{"who": name, "era": era, "rounds": found} for (name, era), found in results.items()]
    return render(["who", "era", "calls/s", "p50 ms", "p99 ms", "gateway CPU us a call"], rows), data


def fatal(claims):
    """Return whether a call has no line."""
    return not all(claim.reached for claim in claims if "lines" in claim.what)
