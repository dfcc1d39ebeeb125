"""Question: how soon can one work with the gateway?

Method, first: the gateway is started in stdio mode before one echo backend and `initialize` is written at once; time
from exec to the answer, next to a Python that does nothing and to the backend itself. Second: 100 echo backends that
start at once; time from exec of the gateway until `GET /health` (polled every 20 ms) calls all ready, over time from
exec of `direct.py` until a trio program with as many tasks has started and initialized the same 100 (and, told
besides, listed their tools). Rounds are interleaved. Unit: seconds.
"""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.answers import WrongAnswer
from benchmarks.listing import add_size_arguments, many_backends
from benchmarks.pipes import Pipes
from benchmarks.processes import ROOT, backend, config_file, config_of, gateway_command, serving_gateway
from benchmarks.table import Claim, Figure, ratios, render
from benchmarks.wire import encode, initialize_params, make_message


def add_arguments(parser):
    add_size_arguments(parser)
    parser.add_argument("--rounds", type=int, help="rounds with all backends (7; quick: 1)")
    parser.add_argument("--starts", type=int, help="starts in stdio mode (10; quick: 3)")


def run(options):
    rounds = options.rounds or (1 if options.quick else 7)
    starts = options.starts or (3 if options.quick else 10)
    commands = many_backends(options)
    times = {}
    with config_file(config_of({"echo": backend()})) as path:
        for _ in range(starts):
            times.setdefault("python -c pass", []).append(time_nothing())
            times.setdefault("backend: first initialize", []).append(time_initialize(backend()))
            command = gateway_command(path, "stdio")
            times.setdefault("gateway: first initialize", []).append(time_initialize(command))
    count = len(commands)
    for _ in range(rounds):
        times.setdefault("direct: initialized", []).append(time_direct(count))
        times.setdefault("direct: initialized and listed", []).append(time_direct(count, "--list"))
        times.setdefault("gateway: all ready", []).append(time_gateway(commands))
    return make_claims(times, count), make_details(times)


def time_nothing():
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=30)
    return time.perf_counter() - begin


def time_initialize(command):
    begin = time.perf_counter()
    pipes = Pipes(command)
    try:
        pipes.send(encode(make_message("initialize", initialize_params(), "legacy", 1)))
        line = pipes.lines()[0]
        took = time.perf_counter() - begin
        if b'"serverInfo"' not in line:
            raise WrongAnswer(f"initialize got {line[:300]!r}")
        return took
    finally:
        pipes.close()


def time_direct(count, *args):
    """From exec to the line that it prints when all are there."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.direct", str(count), *args]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        line = process.stdout.readline()
        took = time.perf_counter() - begin
        if process.wait(60) or not line:
            raise WrongAnswer(f"direct.py failed with status {process.returncode}")
    return took


def time_gateway(commands):
    with serving_gateway(commands) as gateway:
        return gateway.wait_ready(len(commands))


def make_claims(times, count):
    ready, direct = times["gateway: all ready"], times["direct: initialized"]
    first = Figure.of(times["gateway: first initialize"])
    listed = ratios(ready, times["direct: initialized and listed"])
    return [
        Claim(f"{count} stdio backends: all ready over direct", ratios(ready, direct), "ratio", most=1.3),
        Claim(f"{count} stdio backends: all ready over direct with tools/list", listed, "ratio"),
        Claim("stdio mode: exec to first answered initialize", first, "s", most=0.5),
    ]


def make_details(times):
    rows = [[what, Figure.of(values).show(1, 3), len(values)] for what, values in times.items()]
    return render(["what", "seconds", "rounds"], rows), times
