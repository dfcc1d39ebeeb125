"""The description of a peer, as data: pins, command line, frontends."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import Failed
from tests.interop.cached import InstallError, node_modules, python_venv

LEGACY_HTTP, MODERN_HTTP, SSE = ("http", "legacy"), ("http", "modern"), ("sse", "legacy")
SPELLED = {LEGACY_HTTP: "HTTP, sessions", MODERN_HTTP: "HTTP, 2026-07-28", SSE: "SSE"}
"""The transports of a gateway: the load generator's kind, and an era."""
COMMAND = "{*command}"
"""In a command line: the backend's, word for word."""


@dataclass(frozen=True)
class Peer:
    """A gateway before one stdio backend that has a tool `echo`.

    `argv` may use {python} (of its venv), {bin} (the folder of that), {node}, {modules}, {port}, {folder} (empty, its
    own), {config} (a file in the format of MCP clients, the backend's name is `echo`), {command} (the backend's as one
    string) and the word COMMAND. `faces`: transport -> path. `least`: the target for calls/s of this gateway over those
    of the peer. `prepare(site)` is called once it listens.
    """

    name: str
    argv: tuple[str, ...]
    frontends: dict
    runtime: str = "own"
    pins: tuple[str, ...] = ()
    tool: str = "echo"
    environment: tuple[tuple[str, str], ...] = ()
    least: float | None = None
    headers: tuple[str, ...] = ()

    @property
    def version(self):
        return self.pins[0].replace("==", "@").rpartition("@")[2] if self.pins else ""

    @property
    def folder(self):
        """The folder of its installation, below .cache; variants of one peer share it."""
        return f"peers/{self.runtime}-{self.pins[0].replace('==', '@').rpartition('@')[0].replace('/', '-')}"

    def install(self):
        """Return the names for its command line, after installing it. Raises Failed."""
        try:
            if self.runtime == "python":
                python = python_venv(self.folder, *self.pins)
                return {"python": str(python), "bin": str(python.parent)}
            if self.runtime == "node":
                node = shutil.which("node")
                if node is None:
                    raise InstallError("node is not on PATH; install Node.js 20 or newer")
                return {"node": node, "modules": str(node_modules(self.folder, *self.pins))}
        except InstallError as error:
            raise Failed(str(error)) from error
        return {"python": sys.executable, "bin": str(Path(sys.executable).parent)}

    def command(self, installed, backend, port, folder):
        """Return its command line; write the config that it may name."""
        config = Path(folder, "config.json")
        servers = {"echo": {"command": backend[0], "args": backend[1:]}}
        config.write_text(json.dumps({"mcpServers": servers}), encoding="utf-8")
        names = {**installed, "port": port, "folder": folder, "config": config, "command": shlex.join(backend)}
        words = []
        for word in self.argv:
            words += backend if word == COMMAND else [word.format_map(names)]
        return words
