"""The third-party servers and clients, installed once into .cache/interop and pinned.

Without a registry in reach the tests fail and say so; MCP_GATEWAY_OFFLINE=1 skips them instead.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop.cached import OFFLINE, InstallError, is_offline, node_modules, python_venv

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


@dataclass(frozen=True)
class Peers:
    """Commands that start the servers, and those that start each client, to which its job is added."""

    servers: dict[str, dict[str, Any]]
    apps: dict[str, dict[str, Any]]
    """Servers whose tools have pages."""
    stateful: dict[str, dict[str, Any]]
    """Servers that keep things in their process and in files that begin with `${FILE}`, a variable of the gateway's."""
    clients: dict[str, list[str]]


@pytest.fixture(scope="session")
def peers() -> Peers:
    if is_offline():
        pytest.skip(f"{OFFLINE} is set: third-party servers and clients are not installed")
    try:
        return install()
    except InstallError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def install() -> Peers:
    node = shutil.which("node")
    if node is None:
        raise InstallError(f"node is not on PATH; install Node.js 20 or newer, or set {OFFLINE}=1 to skip these tests")
    everything = node_modules("interop/everything", EVERYTHING)
    entry = everything / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
    time = python_venv("interop/time", TIME)
    apps = node_modules("interop/apps", *APPS)
    memory = node_modules("interop/memory", MEMORY) / "@modelcontextprotocol" / "server-memory" / "dist" / "index.js"
    sqlite = "from mcp_server_sqlite import main; main()"  # its module has no `__main__`
    examples = {"monitor": "system-monitor", "vanilla": "basic-vanillajs", "react": "basic-react"}
    return Peers(
        servers={
            "time": {"command": str(time), "args": ["-m", "mcp_server_time", "--local-timezone", "UTC"]},
            "everything": {"command": node, "args": [str(entry), "stdio"]},
        },
        apps={
            name: {
                "command": node,
                "args": [str(apps / f"@modelcontextprotocol/server-{example}/dist/index.js"), "--stdio"],
            }
            for name, example in examples.items()
        },
        stateful={
            "memory": {"command": node, "args": [str(memory)], "env": {"MEMORY_FILE_PATH": "${FILE}.jsonl"}},
            "sqlite": {
                "command": str(python_venv("interop/sqlite", *SQLITE)),
                "args": ["-c", sqlite, "--db-path", "${FILE}.db"],
            },
        },
        clients={
            "python-2": [sys.executable, str(CLIENTS / "sdk2_client.py")],
            "python-1": [str(python_venv("interop/sdk1", SDK1)), str(CLIENTS / "sdk1_client.py")],
            "typescript-1": [node, str(CLIENTS / "ts1_client.mjs"), str(node_modules("interop/ts1", TS1))],
            "typescript-2": [node, str(CLIENTS / "ts2_client.mjs"), str(node_modules("interop/ts2", TS2))],
            "app-host": [node, str(CLIENTS / "app_host.mjs"), str(apps)],
            "app-browser": [node, str(CLIENTS / "app_browser.mjs"), str(apps)],
        },
    )
