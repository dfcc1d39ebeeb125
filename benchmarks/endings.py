"""One gateway before a zoo of ten children, ended in one way: `run_once(ENDING, ...)`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import oracle
from benchmarks.processes import ROOT, START_WITHIN, Failed

ZOO_SERVER = ROOT / "tests" / "children" / "zoo_server.py"
ZOO = [
    "echo",  # well behaved
    "ignores_term",  # and stdin's end too
    "ignores_eof",
    "grandchild_pipes",  # forks a grandchild that keeps the pipes
    "daemon",  # double-forks with setsid
    "stubborn_daemon",  # the same, ignores signals, keeps the pipes
    "scrubbed_daemon",  # the same, with an empty environment
    "shell",  # spawns a shell that spawns
    "stopped",  # by SIGSTOP
    "flusher",  # exits while flushing 50 MB
]
SHUTDOWN_GRACE = (
    0.3,
    0.3,
    1.0,
)  # the default has 2 s in place of 0.3 s: the same steps, and the grid takes a fifth of the time
SLACK = 6.0  # seconds beyond the shutdown sequence after which a living process counts as a survivor
SETTLE = 2.0  # seconds for a living gateway to reap and to close, after its backends are ready again
SIGINT_GAP = 0.1
POLL = 0.01


@dataclass
class Outcome:
    """The remains of one run, in seconds from the ending to the last process's end."""

    ending: str
    transport: str
    processes: int
    survivors: int = 0
    zombies: int = 0
    leaked_fds: int = 0
    gone: float = 0.0
    exited: float = 0.0
    status: int | None = None
    ready_again: float | None = None

    def data(self):
        return asdict(self)


class Run:
    """A gateway process, its config and its log in a folder of their own."""

    def __init__(
        self,
        folder,
        backends,
        *,
        transport="stdio",
        program="gateway",
        shutdown_grace=SHUTDOWN_GRACE,
        settings=None,
        prefix=(),
    ):
        """`backends`: name -> command; `settings`: fields for each of them; `prefix`: what runs the gateway."""
        self.names, self.count, self.folder = list(backends), len(backends), folder
        common = {"shutdown_grace": list(shutdown_grace), "connect_timeout": 60} | (settings or {})
        servers = {name: {"command": argv[0], "args": argv[1:]} | common for name, argv in backends.items()}
        config = Path(folder, "config.json")
        config.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
        self.log_path = Path(folder, "log")
        command = [*prefix, sys.executable, "-m", program, "serve", "--config", str(config), "--transport", transport]
        command += ["--port", "0", "--state-dir", str(Path(folder, "state")), "--log-level", "info"]
        command.append(
            "--no-watch"
        )  # begins a moment after the start and opens files then, which would look like a leak
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                bufsize=0,
            )
        self.started = time.monotonic()

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def wait_log(self, text, count, within=START_WITHIN):
        """Poll the log until the text appears `count` times.

        A request would make the gateway check its children.
        """
        until = time.monotonic() + within
        while (log := self.log()).count(text) < count:
            if time.monotonic() > until or self.process.poll() is not None:
                raise Failed(f"{text!r} {log.count(text)} of {count} times, {self.process.poll()}:\n{log[-4000:]}")
            time.sleep(POLL)

    def wait_ready(self, times=1):
        self.wait_log(" is ready", times * self.count)

    def wait_exit(self, until):
        """Return its exit time in seconds of `time.monotonic`; None while it runs."""
        if not oracle.wait_end(self.pid, until):
            return None
        at = time.monotonic()
        self.process.wait()
        return at

    def port(self):
        """Return its listen address from its log."""
        self.wait_log("listening on http://", 1)
        address = self.log().split("listening on http://", 1)[1].split("/", 1)[0]
        return int(address.rpartition(":")[2])

    def admin_token(self):
        return Path(self.folder, "state", "admin-token").read_text(encoding="utf-8").strip()

    def fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def clean_up(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


# -- the endings -------------------------------------------------------------------------------------------------------


def end_stdin(run):
    run.process.stdin.close()


def terminate(run):
    run.process.terminate()


def interrupt_twice(run):
    """Press Ctrl-C twice: the whole foreground group gets it."""
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(SIGINT_GAP)
    os.killpg(run.pid, signal.SIGINT)


def kill(run):
    run.process.kill()


def kill_group(run):
    os.killpg(run.pid, signal.SIGKILL)


def crash(run):
    os.kill(run.pid, signal.SIGUSR1)  # benchmarks.instrumented


ENDINGS = {
    "stdin EOF": end_stdin,
    "SIGTERM": terminate,
    "SIGINT twice": interrupt_twice,
    "SIGKILL": kill,
    "SIGKILL of the group": kill_group,
    "crash by a bug": crash,
    "restart": None,  # see _restart
    "removal over HTTP": None,  # see _remove
}
KILLED = {"SIGKILL", "SIGKILL of the group"}
"""Endings after which no process is left to reap: zombies are left to init, and not counted."""
FIRST = {"restart", "removal over HTTP"}
"""Endings in which the children end before the gateway does, by SIGTERM."""
FRONTENDS = {"stdin EOF": "stdio", "removal over HTTP": "streamable-http"}
"""Endings that only one frontend has."""
STATUS = dict.fromkeys(ENDINGS, 0) | {"crash by a bug": 1} | dict.fromkeys(KILLED, -signal.SIGKILL)


def run_once(ending, transport="stdio", *, zoo=ZOO, shutdown_grace=SHUTDOWN_GRACE):
    """Start, wait until all are ready, end, and count the remains.

    The caller is a subreaper without other children.
    """
    transport = FRONTENDS.get(ending, transport)
    program = "benchmarks.instrumented" if ending == "crash by a bug" else "gateway"
    mark = f"zoo-{secrets.token_hex(8)}"
    backends = {
        f"b{i}-{temper}": [sys.executable, "-I", "-S", "-E", str(ZOO_SERVER), temper, mark]
        for i, temper in enumerate(zoo)
    }
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, backends, transport=transport, program=program, shutdown_grace=shutdown_grace)
        try:
            run.wait_ready()
            outcome = Outcome(ending, transport, len(oracle.marked(mark)))
            if ending in FIRST:
                (_restart if ending == "restart" else _remove)(run, mark, outcome, shutdown_grace)
            _end(run, mark, outcome, shutdown_grace)
            if outcome.status != STATUS[ending]:
                raise Failed(f"{ending}: exit status {outcome.status}:\n{run.log()[-4000:]}")
            return outcome
        finally:
            run.clean_up()
            oracle.end_all(mark)


def _end(run, mark, outcome, shutdown_grace):
    sentinels = oracle.sentinels(run.pid)
    began = time.monotonic()
    until = began + sum(shutdown_grace) + SLACK
    (ENDINGS[outcome.ending] or terminate)(run)
    gone, left = oracle.wait_gone(lambda: oracle.marked(mark), until)
    exited = run.wait_exit(until)
    _, watchers = oracle.wait_gone(lambda: oracle.still(sentinels), until)
    if outcome.ending not in FIRST:
        outcome.gone = gone - began
    outcome.survivors += len(left) + len(watchers) + (exited is None)
    outcome.exited = (exited or until) - began
    outcome.status = run.process.returncode
    inherited = oracle.reap()
    if outcome.ending not in KILLED:
        outcome.zombies += inherited


def _restart(run, mark, outcome, shutdown_grace):
    """SIGKILL every child: descendants must end, and the number of open files stay."""
    old, fds = oracle.marked(mark), run.fds()
    children = [pid for pid in old if (row := oracle.stat(pid)) is not None and row[1] == run.pid]
    began = time.monotonic()
    for pid in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    gone, left = oracle.wait_gone(lambda: oracle.still(old), began + sum(shutdown_grace) + SLACK)
    outcome.gone, outcome.survivors = gone - began, len(left)
    run.wait_ready(2)
    outcome.ready_again = time.monotonic() - began
    until = time.monotonic() + SETTLE
    # The last check counts: an earlier one may see files that a scan of /proc has open for a moment.
    while any(left := (run.fds() - fds, len(oracle.zombies(run.pid)))) and time.monotonic() < until:
        time.sleep(POLL)
    outcome.leaked_fds, outcome.zombies = max(0, left[0]), left[1]


def _remove(run, mark, outcome, shutdown_grace):
    """DELETE every server over the management API: the gateway must have no children left."""
    sentinels = oracle.sentinels(run.pid)
    connection = http.client.HTTPConnection("127.0.0.1", run.port(), timeout=sum(shutdown_grace) + SLACK)
    headers = {"Authorization": f"Bearer {run.admin_token()}"}
    began = time.monotonic()
    for name in run.names:
        connection.request("DELETE", f"/servers/{name}", headers=headers)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise Failed(f"DELETE of {name} got {response.status}: {body[:500]!r}")
    connection.close()
    gone, left = oracle.wait_gone(lambda: oracle.marked(mark), began + sum(shutdown_grace) + SLACK)
    outcome.gone, outcome.survivors = gone - began, len(left)
    until = time.monotonic() + SETTLE
    while (zombies := oracle.zombies(run.pid) - set(sentinels)) and time.monotonic() < until:
        time.sleep(POLL)
    outcome.zombies = len(zombies)
