"""A peer that runs before one backend, and is ended with all its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks import load, oracle
from benchmarks.answers import WrongAnswer
from benchmarks.processes import ROOT, Failed

LISTEN_WITHIN = 60.0  # seconds from its start
WORK_WITHIN = 20.0  # seconds from then until it answers a call correctly: some listen before their backend is ready
END_WITHIN = 8.0
POLL = 0.05


class Running:
    """The process, its log and its address."""

    def __init__(self, peer, backend, mark, folder):
        """Start it. `backend` is its command, with `mark` to find its remains."""
        self.peer, self.mark = peer, mark
        self.port = free_port()
        command = peer.command(peer.install(), backend, self.port, folder)
        environment = {name: value.format(folder=folder) for name, value in peer.environment}
        self.log_path = Path(folder, "log")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self):
        return self.log_path.read_text(encoding="utf-8", errors="replace")[-2000:]

    def spec(self, frontend, **further):
        """For the load generator."""
        kind, era = frontend
        url = f"http://127.0.0.1:{self.port}{self.peer.frontends[frontend]}"
        return {"kind": kind, "era": era, "url": url, "tool": self.peer.tool, "connections": 1} | further

    def wait_listening(self):
        until = time.monotonic() + LISTEN_WITHIN
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise Failed(f"exited with status {self.process.returncode}: {last_lines(self.log())}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(POLL)
        raise Failed(f"does not listen after {LISTEN_WITHIN:.0f} s: {last_lines(self.log())}")

    def wait_working(self, frontend):
        """Wait until one connection gets correct answers; otherwise raise the last error unchanged."""
        until, seconds = time.monotonic() + WORK_WITHIN, 0.1
        while True:
            try:
                load.run(self.spec(frontend, seconds=seconds))
            except (WrongAnswer, OSError, ValueError):
                if time.monotonic() > until or self.process.poll() is not None:
                    raise
                time.sleep(POLL)
                seconds = min(2 * seconds, 5.0)  # some start a process for each call
            else:
                return

    def end(self):
        """End the process with SIGTERM, then SIGKILL; then all processes with its mark."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.poll() is None:
                self.process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(END_WITHIN)
        oracle.end_all(self.mark)


@contextlib.contextmanager
def running(peer, backend, mark):
    """Run in a subreaper: the remains of a peer are inherited, and ended."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = Running(peer, backend, mark, folder)
        try:
            started.wait_listening()
            yield started
        finally:
            started.end()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def last_lines(log, count=3):
    return " / ".join(line.strip() for line in log.strip().splitlines()[-count:])[-400:] or "(no output)"
