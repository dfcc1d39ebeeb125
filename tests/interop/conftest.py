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
TS1 = "@modelcontextprotocol/sdk@1.32.2"
TS2 = "@modelcontextprotocol/client@2.4.0"


@dataclass(frozen=True)
class Peers:
    """Commands that start the servers, and those that start each client, to which its job is added."""

    servers: dict[str, dict[str, Any]]
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
