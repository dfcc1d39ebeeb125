"""Question: how soon is the gateway usable?

Method, first: the gateway is started in stdio mode before one echo backend and `initialize` is written immediately;
time from exec to the answer, next to a Python that does nothing and to the backend itself. Second: 100 echo backends
that start together; time from exec of the gateway until `GET /health` (polled every 20 ms) reports all ready, over time
from exec of `direct.py` until a trio program with as many tasks has started and initialized the same 100 (and, as a
second figure, listed their tools). Third: `connect` before one echo backend with a known catalog: time from exec of the
relay to the answered `initialize`, with the gateway running and with none, over a Python that does nothing, and with
none to the answered `tools/list`; and the p50 of a call through it over one through `socat - UNIX-CONNECT:` to the same
socket, if socat is installed. Rounds are interleaved. Unit: seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.answers import WrongAnswer
from benchmarks.listing import add_size_arguments, many_backends
from benchmarks.pipes import Pipes
from benchmarks.processes import ROOT, backend, config_file, config_of, gateway_command, serving_gateway
from benchmarks.table import Claim, Figure, ratios, render
from benchmarks.wire import encode, initialize_params, make_message

LIST = encode(make_message("tools/list", {}, "legacy", 2))


def add_arguments(parser):
    add_size_arguments(parser)
    parser.add_argument("--rounds", type=int, help="rounds with all backends (7; quick: 1)")
    parser.add_argument("--starts", type=int, help="starts in stdio mode, and of relays (10; quick: 3)")
    parser.add_argument("--relayed-calls", type=int, default=50, help="calls of one turn through a relay (50)")


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
    with config_file(config_of({"echo": backend()})) as path, tempfile.TemporaryDirectory() as folder:
        relays = Relays(path, folder)
        for _ in range(starts):
            times.setdefault("python -I -c pass", []).append(time_nothing("-I"))
            answered, listed = relays.time_cold()
            times.setdefault("connect: no gateway", []).append(answered)
            times.setdefault("connect: no gateway, listed", []).append(listed)
            times.setdefault("connect: gateway runs", []).append(relays.time_warm())
        memory, calls = relays.measure_calls(starts, options.relayed_calls)
    count = len(commands)
    for _ in range(rounds):
        times.setdefault("direct: initialized", []).append(time_direct(count))
        times.setdefault("direct: initialized and listed", []).append(time_direct(count, "--list"))
        times.setdefault("gateway: all ready", []).append(time_gateway(commands))
    return [*make_claims(times, count), *make_relay_claims(times, memory, calls)], make_details(times | calls)


def time_nothing(*flags):
    begin = time.perf_counter()
    subprocess.run([sys.executable, *flags, "-c", "pass"], check=True, timeout=30)
    return time.perf_counter() - begin


class Relays:
    """Relays with a runtime and a state directory of their own."""

    def __init__(self, config, folder):
        self.command = [sys.executable, "-P", "-m", "gateway", "connect", config, "--linger"]
        self.runtime = Path(folder, "run")
        self.state = Path(folder, "state")
        self.runtime.mkdir(0o700)
        self.env = {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "MCP_GATEWAY_STATE_DIR": str(self.state),
            "PYTHONPATH": str(ROOT),
        }
        for _ in range(2):  # the catalog is known from then on, and the answer to `initialize` that it gives
            self.time_cold()

    def socket(self):
        return next(self.runtime.glob("*/*.sock"), None)

    def time_cold(self):
        took = time_listing([*self.command, "0"], self.env)
        deadline = time.monotonic() + 30
        while any(self.state.glob("control-*.sock")):  # until the gateway has exited, and its children
            if time.monotonic() > deadline:
                raise WrongAnswer("the gateway of connect did not stop")
            time.sleep(0.02)
        return took

    def open(self, command, hello=b""):
        pipes = Pipes(command, env=self.env)
        if hello:
            pipes.send(hello)
            pipes.lines()
        pipes.open("legacy")
        pipes.ask(LIST, 2)  # until the gateway runs
        return pipes

    def time_warm(self):
        keeper = self.open([*self.command, "0"])
        try:
            return time_initialize([*self.command, "0"], env=self.env)
        finally:
            keeper.close()

    def measure_calls(self, rounds, count):
        """Return a relay's memory in MiB, and the p50s by the program in between."""
        by_relay = self.open([*self.command, "0"])
        ways = {"call through connect": by_relay}
        try:
            if shutil.which("socat") is not None:
                hello = json.dumps({"linger": 0}).encode()
                ways["call through socat"] = self.open(["socat", "-", f"UNIX-CONNECT:{self.socket()}"], hello)
            found = {}
            for _ in range(rounds * 4):
                for what, pipes in ways.items():
                    found.setdefault(what, []).append(statistics.median(time_calls(pipes, count)))
            return resident(by_relay.child.pid), found
        finally:
            for pipes in ways.values():
                pipes.close()


def time_calls(pipes, count):
    for number in range(1, count + 1):
        params = {"name": "echo.echo", "arguments": {"text": "x"}}
        line = encode(make_message("tools/call", params, "legacy", number))
        begin = time.perf_counter()
        answer = pipes.ask(line, number)
        yield time.perf_counter() - begin
        if b'"result"' not in answer:
            raise WrongAnswer(f"a call got {answer[:300]!r}")


def resident(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_relay_claims(times, memory, calls):
    nothing = times["python -I -c pass"]
    claims = [
        Claim(
            "connect, gateway runs: initialize over python",
            ratios(times["connect: gateway runs"], nothing),
            "ratio",
            most=3,
        ),
        Claim(
            "connect, no gateway: initialize over python",
            ratios(times["connect: no gateway"], nothing),
            "ratio",
            most=8,
        ),
        Claim(
            "connect, no gateway: tools/list over python",
            ratios(times["connect: no gateway, listed"], nothing),
            "ratio",
        ),
        Claim("memory of a relay", Figure.of([memory]), "MiB", most=12),
    ]
    if "call through socat" in calls:
        added = ratios(calls["call through connect"], calls["call through socat"])
        claims.append(Claim("connect: p50 of a call over socat", added, "ratio", most=1.3))
    return claims


def time_initialize(command, env=None):
    begin = time.perf_counter()
    pipes = Pipes(command, env=env)
    try:
        pipes.send(encode(make_message("initialize", initialize_params(), "legacy", 1)))
        line = pipes.lines()[0]
        took = time.perf_counter() - begin
        if b'"serverInfo"' not in line:
            raise WrongAnswer(f"initialize got {line[:300]!r}")
        return took
    finally:
        pipes.close()


def time_listing(command, env):
    """Measure from exec to the answered `initialize`, and to the answered `tools/list`."""
    begin = time.perf_counter()
    pipes = Pipes(command, env=env)
    try:
        pipes.open("legacy")
        answered = time.perf_counter() - begin
        line = pipes.ask(LIST, 2)
        listed = time.perf_counter() - begin
        if b'"echo.echo"' not in line:
            raise WrongAnswer(f"tools/list got {line[:300]!r}")
        return answered, listed
    finally:
        pipes.close()


def time_direct(count, *args):
    """Measure from exec to the line that it prints when all are ready."""
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
