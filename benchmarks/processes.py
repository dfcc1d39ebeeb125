"""The processes that a benchmark starts; each ends with its block."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import progress

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / "tests" / "peers"

START_WITHIN = 120.0  # seconds until a server listens and its backends are ready: 100 children share the cores
STOP_WITHIN = 30.0
POLL = 0.02  # seconds between two polls of /health or of stderr


class Failed(Exception):
    """A process failed to do its part of the measurement."""


def backend(kind="echo", *args):
    """Return the command of a stdio backend: the stdlib echo, or the SDK's."""
    return [sys.executable, str(PEERS / f"{kind}_server.py"), *map(str, args)]


def config_of(commands):
    """Return a gateway config of stdio backends: name -> command."""
    return {"mcpServers": {name: {"command": c[0], "args": c[1:]} for name, c in commands.items()}}


def gateway_command(config_path, transport, module="gateway"):
    port = [] if transport == "stdio" else ["--port", "0"]
    command = [sys.executable, "-m", module, "serve", "--config", str(config_path), "--transport", transport]
    # A state directory of its own: catalogs of an earlier run would answer before the backends do.
    state = ["--state-dir", str(config_path.parent / "state")]
    return [*command, *state, "--log-level", "warning", *port]


@contextlib.contextmanager
def config_file(config):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        yield path


class Server:
    """A process that names its address on stderr."""

    def __init__(self, command):
        self.errors = tempfile.TemporaryFile()  # ruff: ignore[open-file-with-context-handler]  # closed by stop()
        self.started = time.perf_counter()
        pipe = subprocess.DEVNULL
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=self.errors)
        self.port = None

    @property
    def pid(self):
        return self.process.pid

    def stderr(self):
        fd = self.errors.fileno()  # the process writes at the offset that we share: it must not move
        return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")

    def wait_port(self):
        """Poll stderr for the line; polling costs the server nothing."""
        while time.perf_counter() - self.started < START_WITHIN:
            text = self.stderr()
            if "listening on http://" in text:
                address = text.split("listening on http://", 1)[1].split("/", 1)[0]
                self.port = int(address.rpartition(":")[2])
                return self.port
            if self.process.poll() is not None:
                break
            time.sleep(POLL / 4)
        raise Failed(f"does not listen, exit status {self.process.poll()}:\n{self.stderr()[-4000:]}")

    def health(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def wait_ready(self, count):
        """Wait until `count` backends are ready; return the seconds since the process was started."""
        while (now := time.perf_counter() - self.started) < START_WITHIN:
            states = [backend["state"] for backend in self.health()["backends"].values()]
            if states.count("ready") >= count:
                return time.perf_counter() - self.started
            time.sleep(POLL)
        raise Failed(f"after {now:.0f} s only {states.count('ready')} of {count} are ready:\n{self.stderr()[-4000:]}")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            print(f"process {self.pid} had to be killed", file=sys.stderr)
        self.errors.close()


@contextlib.contextmanager
def serving(command):
    server = Server(command)
    try:
        server.wait_port()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def serving_gateway(commands, transport="streamable-http", **members):
    """Run the gateway over HTTP in front of these backends.

    It listens, but is not ready yet. `members` go into the config.
    """
    with serving_config(config_of(commands) | members, transport) as server:
        yield server


@contextlib.contextmanager
def serving_config(config, transport="streamable-http", *, module="gateway"):
    """Run the gateway over HTTP with a whole config; `module` replaces its entry point."""
    with config_file(config) as path, serving(gateway_command(path, transport, module)) as server:
        yield server


def serving_peer(*args, script="http_peer.py"):
    """Return the config of a backend over HTTP."""
    return serving([sys.executable, str(PEERS / script), *args])


def serving_bare(*args):
    return serving([sys.executable, "-m", "benchmarks.bare", *args])


def load(**spec):
    """Run the load generator; return its result."""
    progress.step(name_of(spec))
    with loading(**spec) as running:
        return running.result()


def name_of(spec):
    under_way = spec.get("connections") or spec.get("window") or ""
    return " ".join(str(word) for word in (spec["kind"], spec.get("era", ""), under_way, spec.get("tool", "")) if word)


class Load:
    """A load generator that runs beside another measurement."""

    def __init__(self, spec):
        self.spec = spec
        self.bound = 60 + 3 * spec.get("seconds", 60)
        command = [sys.executable, "-m", "benchmarks.load", json.dumps(spec)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)

    def stop(self):
        """End it now; return its result. Only with a `timeline`."""
        self.process.terminate()

    def result(self):
        try:
            out, errors = self.process.communicate(timeout=self.bound)
        except subprocess.TimeoutExpired:
            raise Failed(f"no result within {self.bound:.0f} s: {self.spec}") from None
        if self.process.returncode:
            raise Failed(f"{self.spec}:\n{errors.decode(errors='replace')[-4000:]}")
        return json.loads(out)


@contextlib.contextmanager
def loading(**spec):
    """Run load for the length of a block, or until it has its result."""
    running = Load(spec)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()
        running.process.stdout.close()
        running.process.stderr.close()


def cpu_seconds(pid):
    """Return the CPU time of all threads of a process so far, to the nanosecond."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def run_module(module, spec):
    """Run a program of the benchmarks with a spec; return the JSON it prints."""
    progress.step(module.rpartition(".")[2])
    command = [sys.executable, "-m", module, json.dumps(spec)]
    bound = 60 + 3 * spec.get("seconds", 60)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=bound, check=False)
    if done.returncode:
        raise Failed(f"{module} {spec}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout)
