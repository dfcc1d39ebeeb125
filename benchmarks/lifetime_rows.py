"""Five figures about the lifetimes of children, each with a target; see each function.

They run one after the other, in a process that is a subreaper and has no other children.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

from benchmarks import oracle
from benchmarks.endings import SLACK, Run, run_once
from benchmarks.load import Pipes
from benchmarks.processes import Failed, backend
from benchmarks.table import Claim, Figure, render
from benchmarks.wire import encode, initialize_params, make_message

DEFAULT_SHUTDOWN_GRACE = (2.0, 2.0, 1.0)
QUICK_RESTART = {"initial_delay": 0.1, "jitter": 0, "healthy_after": 0.001}
"""Each death counts as the first, so that each restart waits only the first step of the backoff."""
IN_FLIGHT = 20
REST = 12.0  # seconds: trio keeps an idle worker thread for ten, and their number varies
WARM_UP = (
    50  # starts before the first measurement: the allocator and the threads of the loop have their final size then
)


@dataclass
class Rows:
    claims: list = field(default_factory=list)
    data: dict = field(default_factory=dict)

    def add(self, what, values, unit="s", scale=1.0, most=None):
        """Use the slowest round, since a promise about lifetimes must hold for it."""
        self.data[what] = list(values)
        worst = max(values)
        suffix = ": slowest" if len(values) > 1 else ""
        self.claims.append(Claim(what + suffix, Figure(worst, worst, worst), unit, scale, most=most))

    def table(self):
        rows = [
            [what, len(values), f"{median(values):.4g}", f"{max(values):.4g}"] for what, values in self.data.items()
        ]
        return render(["what (seconds, count, bytes)", "rounds", "median", "worst"], rows)


def measure(*, quick):
    rows = Rows()
    many, rounds = (10, 1) if quick else (100, 5)
    measure_terminate(rows, many, rounds)
    measure_kill(rows, many, rounds)
    measure_kill_zoo(rows, rounds)
    measure_revival(rows, 3 if quick else 20)
    measure_cycles(rows, 20 if quick else 500)
    return rows


@contextmanager
def running(backends, **options):
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, backends, **options)
        try:
            run.wait_ready()
            yield run
        finally:
            run.clean_up()
            oracle.reap()


def well_behaved(count, mark):
    """Return the stdlib echo with the mark in its name."""
    return {f"b{i:03}": backend("echo", "--name", mark) for i in range(count)}


def check_all_there(mark, count):
    """Check that the oracle finds all processes at the beginning, or it proves nothing."""
    if len(oracle.marked(mark)) != count:
        raise Failed(f"{len(oracle.marked(mark))} of {count} processes found")


def measure_terminate(rows, count, rounds):
    """SIGTERM an idle gateway (HTTP) with many echo backends; measure until all have ended."""
    times = []
    for _ in range(rounds):
        mark = f"echo-{secrets.token_hex(8)}"
        with running(
            well_behaved(count, mark), transport="streamable-http", shutdown_grace=DEFAULT_SHUTDOWN_GRACE
        ) as run:
            check_all_there(mark, count)
            began = time.monotonic()
            run.process.terminate()
            gone, left = oracle.wait_gone(lambda mark=mark: oracle.marked(mark), began + SLACK)
            exited = run.wait_exit(began + SLACK)
            if left or exited is None:
                raise Failed(f"{len(left)} of {count} survived SIGTERM; exited: {exited}")
            times.append(max(gone, exited) - began)
    rows.add(f"{count} echo backends, SIGTERM: all gone and the gateway exited", times, most=1.5)


def measure_kill(rows, count, rounds):
    """SIGKILL a gateway with many echo backends; measure until all have ended.

    The end of their stdin ends them.
    """
    times = []
    for _ in range(rounds):
        mark = f"echo-{secrets.token_hex(8)}"
        with running(well_behaved(count, mark), shutdown_grace=DEFAULT_SHUTDOWN_GRACE) as run:
            check_all_there(mark, count)
            sentinels = oracle.sentinels(run.pid)
            began = time.monotonic()
            run.process.kill()
            gone, left = oracle.wait_gone(lambda mark=mark: oracle.marked(mark), began + SLACK)
            if left:
                raise Failed(f"{len(left)} of {count} survived SIGKILL of the gateway")
            times.append(gone - began)
            oracle.wait_gone(lambda there=sentinels: oracle.still(there), began + SLACK)
    rows.add(f"{count} echo backends, SIGKILL of the gateway: all gone", times, most=1)


def measure_kill_zoo(rows, rounds):
    """Measure the same with the zoo and the default grace periods.

    They are 2 + 2 + 1 s.
    """
    outcomes = [run_once("SIGKILL", shutdown_grace=DEFAULT_SHUTDOWN_GRACE) for _ in range(rounds)]
    if any(outcome.survivors for outcome in outcomes):
        raise Failed(f"survivors of SIGKILL of the gateway: {outcomes}")
    bound = sum(DEFAULT_SHUTDOWN_GRACE) + 1
    rows.add("the zoo, SIGKILL of the gateway: all gone", [outcome.gone for outcome in outcomes], most=bound)


# -- kill -9 of one backend ------------------------------------------------------------------------------------------


def measure_revival(rows, rounds):
    """SIGKILL an echo backend with calls in flight; measure failures and recovery.

    Measured are the times until each call has failed, and until the backend is ready again. The backend's own start is
    measured in between: exec to the answers of server/discover, initialize and tools/list.
    """
    own, ready, answered = [], [], []
    mark = f"echo-{secrets.token_hex(8)}"
    with running(well_behaved(1, mark), settings={"restart": QUICK_RESTART}) as run:
        client = Client(run)
        for number in range(rounds):
            own.append(time_own_start())
            took, back = revive(run, client, mark, number + 2)
            answered.append(took)
            ready.append(back)
        client.end()
    over = [total - start for total, start in zip(ready, own, strict=True)]
    rows.add(f"kill -9 of a backend: the last of {IN_FLIGHT} calls in flight is answered", answered, "ms", 1e3, most=50)
    rows.add("kill -9 of a backend: ready again, beyond its own start", over, most=0.3)
    rows.add("its own start", own)


def revive(run, client, mark, readies):
    """Return (seconds to the last answer, seconds until ready)."""
    ids = client.start_calls(IN_FLIGHT, seconds=60)
    client.call("b000.echo", {"text": "all before this one have reached the backend"})
    (child,) = oracle.marked(mark)
    began = time.monotonic()
    os.kill(child, signal.SIGKILL)
    for answer in client.answers(ids):
        text = json.dumps(answer)
        if "SIGKILL" not in text:
            raise Failed(f"not the error of a killed backend: {text[:300]}")
    took = time.monotonic() - began
    run.wait_ready(readies)
    return took, time.monotonic() - began


def time_own_start():
    began = time.monotonic()
    pipes = Pipes(backend("echo"))
    try:
        for method, params in (("server/discover", {}), ("initialize", initialize_params()), ("tools/list", {})):
            pipes.send(encode(make_message(method, params, "legacy", 1)))
            pipes.lines()
        return time.monotonic() - began
    finally:
        pipes.close()


class Client:
    """A legacy client on the pipes of a gateway in stdio mode."""

    def __init__(self, run):
        self.stdin, self.stdout = run.process.stdin, os.fdopen(os.dup(run.process.stdout.fileno()), "rb")
        self.last_id = 0
        self.request("initialize", initialize_params())

    def start(self, method, params):
        self.last_id += 1
        message = {"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params}
        self.stdin.write(json.dumps(message).encode() + b"\n")
        return self.last_id

    def start_calls(self, count, seconds):
        arguments = {"seconds": seconds}
        return [self.start("tools/call", {"name": "b000.sleep", "arguments": arguments}) for _ in range(count)]

    def answers(self, ids):
        """Return the responses to these requests, in order of arrival."""
        wanted = set(ids)
        while wanted:
            line = self.stdout.readline()
            if not line:
                raise Failed("the gateway closed its stdout")
            message = json.loads(line)
            if message.get("id") in wanted and "method" not in message:
                wanted.remove(message["id"])
                yield message

    def request(self, method, params):
        (answer,) = self.answers([self.start(method, params)])
        return answer

    def call(self, name, arguments):
        answer = self.request("tools/call", {"name": name, "arguments": arguments})
        if "result" not in answer or answer["result"].get("isError"):
            raise Failed(f"{name}: {answer}")
        return answer

    def end(self):
        self.stdin.close()
        self.stdout.close()


# -- the same backend, over and over ---------------------------------------------------------------------------------


def measure_cycles(rows, cycles):
    """Start a backend by a call, let it idle out, repeat: growth is a leak."""
    mark = f"echo-{secrets.token_hex(8)}"
    settings = {"start": "lazy", "idle_timeout": 0.005}
    with running(well_behaved(1, mark), settings=settings, program="benchmarks.instrumented") as run:
        client = Client(run)
        cycle(run, client, WARM_UP, 1)
        before = ask_statistics(run, 1)
        cycle(run, client, cycles, 1 + WARM_UP)
        after = ask_statistics(run, 2)
        client.end()
    grown = {key: after[key] - before[key] for key in before}
    for what, key in (("file descriptors", "fds"), ("tasks", "tasks"), ("threads", "threads")):
        rows.add(f"{cycles} starts and stops: {what} more", [grown[key]], "", most=0)
    rows.add(f"{cycles} starts and stops: growth of RSS", [grown["rss"]], "MB", 1e-6, most=2)


def cycle(run, client, count, stops):
    for number in range(count):
        run.wait_log(" is stopped", stops + number)
        client.call("b000.echo", {"text": "hello"})
    run.wait_log(" is stopped", stops + count)


def ask_statistics(run, times):
    """Return the gateway's statistics at rest, without shutdown sequences and idle threads."""
    time.sleep(REST)
    os.kill(run.pid, signal.SIGUSR2)
    run.wait_log("\nstatistics ", times)
    line = run.log().rpartition("\nstatistics ")[2]
    return json.loads(line.partition("\n")[0])
