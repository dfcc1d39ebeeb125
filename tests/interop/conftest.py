"""The third-party servers and clients, installed once into .cache/interop and pinned.

Without a reachable registry the tests fail with that reason.
"""

from __future__ import annotations

import shutil
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.interop.cached import InstallError, machine, node_modules, python_venv

if TYPE_CHECKING:
    from collections.abc import Generator

CLIENTS = Path(__file__).parent / "clients"
TIME = "mcp-server-time==2026.10.19"
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
SDK1 = "mcp==1.30.0"
MEMORY = "@modelcontextprotocol/server-memory@2026.8.31"
SQLITE = ["mcp-server-sqlite==2025.4.25", SDK1]
"""It asks for any version of the SDK, and works with the first one alone."""
TS1 = "@modelcontextprotocol/sdk@1.32.2"
TS2 = "@modelcontextprotocol/client@2.4.0"
APPS = [
    TS2,
    "@modelcontextprotocol/core@2.4.0",
    "@modelcontextprotocol/ext-apps@2.0.4",
    "@modelcontextprotocol/server-basic-react@2.0.3",
    "@modelcontextprotocol/server-basic-vanillajs@2.0.3",
    "@modelcontextprotocol/server-system-monitor@2.0.3",
]
"""MCP Apps: example servers, two of them with the same page and tool, and what a host is made of."""

AGENTS = ("@anthropic-ai/claude-code@2.1.328", "@openai/codex@0.169.0", "opencode-ai@1.18.33")
AXE = "axe-core@4.14.1"


@dataclass(frozen=True)
class Peers:
    """Commands that start the servers and each client; the job is appended."""

    servers: dict[str, dict[str, Any]]
    clients: dict[str, list[str]]


@dataclass(frozen=True)
class AppPeers:
    """Servers whose tools have pages, and commands of hosts; jobs are appended."""

    servers: dict[str, dict[str, Any]]
    host: list[str]
    browser: list[str]


@pytest.fixture(scope="session")
def peers() -> Peers:
    with failing_test():
        return install_clients()


@pytest.fixture(scope="session")
def app_peers() -> AppPeers:
    with failing_test():
        return install_apps()


@pytest.fixture(scope="session")
def agents() -> dict[str, Path]:
    """The programs of coding agents, by their names."""
    with failing_test():
        return install_agents()


@pytest.fixture(scope="session")
def axe() -> str:
    """The script of axe-core, which checks the accessibility of a page."""
    with failing_test():
        return install_axe().read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def stateful_servers() -> dict[str, dict[str, Any]]:
    """Servers with state in their process and in files.

    The files begin with `${FILE}`, a variable of the gateway's.
    """
    with failing_test():
        return install_stateful_servers()


@contextmanager
def failing_test() -> Generator[None]:
    """Fail the test, without a traceback, if an install fails."""
    try:
        yield
    except InstallError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def find_node() -> str:
    node = shutil.which("node")
    if node is None:
        raise InstallError("node is not on PATH; install Node.js 20 or newer")
    return node


def install_clients() -> Peers:
    node = find_node()
    everything = node_modules("interop/everything", EVERYTHING)
    entry = everything / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    time = python_venv("interop/time", TIME)
    return Peers(
        servers={
            "time": {"command": str(time), "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"]},
            "everything": {"command": node, "args": [str(entry), "stdio"]},
        },
        clients={
            "python-2": [sys.executable, str(CLIENTS / "sdk2_client.py")],
            "python-1": [str(python_venv("interop/sdk1", SDK1)), str(CLIENTS / "sdk1_client.py")],
            "typescript-1": [node, str(CLIENTS / "ts1_client.mjs"), str(node_modules("interop/ts1", TS1))],
            "typescript-2": [node, str(CLIENTS / "ts2_client.mjs"), str(node_modules("interop/ts2", TS2))],
        },
    )


def install_apps() -> AppPeers:
    node = find_node()
    modules = node_modules("interop/apps", *APPS)
    examples = {"monitor": "system-monitor", "vanilla": "basic-vanillajs", "react": "basic-react"}
    entries = {name: modules / f"@modelcontextprotocol/server-{end}/dist/index.js" for name, end in examples.items()}
    return AppPeers(
        servers={name: {"command": node, "args": [str(entry), "--stdio"]} for name, entry in entries.items()},
        host=[node, str(CLIENTS / "app_host.mjs"), str(modules)],
        browser=[node, str(CLIENTS / "app_browser.mjs"), str(modules)],
    )


def install_agents() -> dict[str, Path]:
    # Their own launchers need a script that runs after the install; the programs are in packages for each machine.
    modules = node_modules("interop/agents", *AGENTS)
    programs = {"claude": "@anthropic-ai/claude-code-*/claude", "codex": "@openai/codex-*/vendor/*/bin/codex"}
    programs["opencode"] = "opencode-*-baseline/bin/opencode" if machine() == "x64" else "opencode-*/bin/opencode"
    found = {name: next(iter(sorted(modules.glob(place))), None) for name, place in programs.items()}
    if missing := [name for name, path in found.items() if path is None]:
        raise InstallError(f"{', '.join(missing)}: there is no program for this machine")
    return {name: path for name, path in found.items() if path is not None}


def install_axe() -> Path:
    return node_modules("interop/axe", AXE) / "axe-core" / "axe.min.js"


def install_stateful_servers() -> dict[str, dict[str, Any]]:
    memory = node_modules("interop/memory", MEMORY) / "@modelcontextprotocol" / "server-memory" / "dist" / "index.js"
    python = str(python_venv("interop/sqlite", *SQLITE))
    sqlite = "from mcp_server_sqlite import main; main()"  # its module has no `__main__`
    return {
        "memory": {"command": find_node(), "args": [str(memory)], "env": {"MEMORY_FILE_PATH": "${FILE}.jsonl"}},
        "sqlite": {"command": python, "args": ["-c", sqlite, "--db-path", "${FILE}.db"]},
    }
