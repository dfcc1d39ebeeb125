"""Relays as real processes that share a runtime and a state directory."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio

from tests.support.gateway_process import ROOT, StdioClient, run_process

WITHIN = 30.0  # seconds for processes to start or to end on a busy machine
LINGER = 0.3  # seconds that a gateway stays; tests of a longer one name it
QUICK = {"shutdown_grace": [0.2, 0.2, 1]}


class Machine:
    def __init__(self, folder):
        self.folder = folder
        self.config = folder / "config.json"
        self.runtime = folder / "run"
        self.state = folder / "state"
        self.env = {
            "XDG_RUNTIME_DIR": str(self.runtime),
            "MCP_GATEWAY_STATE_DIR": str(self.state),
            "PYTHONPATH": str(ROOT),
        }
        self.runtime.mkdir(0o700)

    def write(self, servers, **sections):
        self.config.write_text(json.dumps({"mcpServers": servers, **sections}), encoding="utf-8")

    @asynccontextmanager
    async def open_client(self, *args, linger=LINGER, config=None, env=None):
        """Run a relay with a client on its pipes; close its stdin to end it."""
        path = str(config or self.config)
        command = [sys.executable, "-P", "-m", "gateway", "connect", path, "--linger", str(linger), *args]
        async with run_process(command, env=self.env | (env or {})) as relay:
            relay.stdio = StdioClient(relay.process.stdin, relay.process.stdout)
            yield relay  # ruff: ignore[fallible-context-manager] - a block that raised is ended by `run_process`
            await relay.process.stdin.aclose()
            with trio.fail_after(WITHIN):
                await relay.process.wait()

    def sockets(self):
        return sorted((self.runtime / "trio-mcp-gateway").glob("*.sock"))

    def gateways(self):
        """The pids of the gateways that live, by their control sockets."""
        return [pid for pid in self._pids() if is_alive(pid)]

    def _pids(self):
        return [int(path.stem.removeprefix("control-")) for path in self.state.glob("control-*.sock")]

    async def gateway(self):
        """The pid of the only gateway, once it is there."""
        await until(lambda: len(self.gateways()) == 1)
        return self.gateways()[0]

    def children(self):
        """The pids of the processes that run one of the peers of this machine's config."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                environment = environment_of(int(entry.name))
                if b"MACHINE=" + os.fsencode(self.folder) in environment and any(b"peers" in word for word in words):
                    found.append(int(entry.name))
        return found

    def peer(self, server):
        """The config entry of a server whose processes this machine can count."""
        return server | QUICK | {"env": {"MACHINE": str(self.folder)}}

    async def nothing_left(self):
        ending = self.gateways()
        await until(lambda: not (self.gateways() or self.children() or self.sockets() or any(map(is_alive, ending))))
        for path in (self.runtime / "trio-mcp-gateway").glob("*.log"):
            log = path.read_text(encoding="utf-8")
            assert "Traceback" not in log, log

    def end(self):
        for pid in self.gateways() + self.children():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def peak_memory(pid):
    """The most memory that a process has had, in KiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0])


def environment_of(pid):
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def until(is_so):
    with trio.fail_after(WITHIN):
        while not is_so():  # ruff: ignore[async-busy-wait] - other processes say nothing when they are done
            await trio.sleep(0.02)


@asynccontextmanager
async def open_machine():
    with tempfile.TemporaryDirectory() as folder:
        machine = Machine(Path(folder))
        try:
            yield machine
        finally:
            machine.end()
