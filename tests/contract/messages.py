"""A manifest of every message of legacy peers and its tests, checked both ways.

`MESSAGES` lists the messages of each direction; `@covers` makes a function a test of every cell (a frontend and the
transport of its backend) and names the messages that it covers. `gaps` compares the two, and the SDK's own tables with
them, so that a message without a test is as wrong as a test of an unknown message.
"""

from __future__ import annotations

import functools
import itertools
import queue
import sys
from typing import NamedTuple

import pytest
from mcp_types import methods

from tests.support.gateway_process import LATEST_LEGACY, PEERS

FRONTENDS = TRANSPORTS = ("stdio", "sse", "http")
VENDOR = "vendor/*"
"""Whatever MCP does not know."""

TASKS = {"tasks/get", "tasks/result", "tasks/cancel", "tasks/list"}
MESSAGES = {
    "client request": {
        "initialize", "ping", "tools/list", "tools/call", "resources/list", "resources/templates/list",
        "resources/read", "resources/subscribe", "resources/unsubscribe", "prompts/list", "prompts/get",
        "completion/complete", "logging/setLevel", *TASKS, VENDOR,
    },
    "server request": {"ping", "sampling/createMessage", "elicitation/create", "roots/list", *TASKS, VENDOR},
    "client notification": {
        "notifications/initialized", "notifications/cancelled", "notifications/progress",
        "notifications/roots/list_changed", "notifications/tasks/status", VENDOR,
    },
    "server notification": {
        "notifications/cancelled", "notifications/progress", "notifications/message",
        "notifications/tools/list_changed", "notifications/prompts/list_changed",
        "notifications/resources/list_changed", "notifications/resources/updated",
        "notifications/elicitation/complete", "notifications/tasks/status", VENDOR,
    },
}  # fmt: skip
"""All of 2025-11-25, by who sends it; older versions have no other messages."""

SDK = {
    "client request": methods.CLIENT_REQUESTS,
    "server request": methods.SERVER_REQUESTS,
    "client notification": methods.CLIENT_NOTIFICATIONS,
    "server notification": methods.SERVER_NOTIFICATIONS,
}
COVERED: dict[tuple[str, str], list[str]] = {}
"""(direction, message) -> the tests about it."""


class Cell(NamedTuple):
    frontend: str
    transport: str

    client = "legacy"
    """The era, which the helpers of the bridge ask for."""

    def tool(self, name):
        """A tool's public name: it is the backend's own."""
        return name


CELLS = list(itertools.starmap(Cell, itertools.product(FRONTENDS, TRANSPORTS)))


def covers(direction, *messages):
    """Make a test of every cell out of `async test(gateways, cell)`."""

    def decorate(test):
        for message in messages:
            COVERED.setdefault((direction, message), []).append(test.__name__)
        if hasattr(test, "pytestmark"):  # covers another direction too
            return test

        @pytest.mark.parametrize("cell", CELLS, ids="-".join)
        @functools.wraps(test)
        async def run(gateways, cell):
            await test(gateways, cell)

        return run

    return decorate


def gaps():
    """Return the differences between the manifest, the tests and the SDK."""
    wanted = {(direction, message) for direction, messages in MESSAGES.items() for message in messages}
    known = {
        (direction, method) for direction, table in SDK.items() for method, version in table if version <= LATEST_LEGACY
    }
    return {
        "without a test": wanted - COVERED.keys(),
        "not in the manifest": COVERED.keys() - wanted,
        "known to the SDK alone": known - wanted,
    }


def make_reference(name):
    """The backend itself, in this process: its messages must arrive through the gateway."""
    sys.path.insert(0, str(PEERS))
    try:
        import bridge_server
    finally:
        sys.path.remove(str(PEERS))

    parser = bridge_server.make_rich_parser()
    options = parser.parse_args(["--name", name])
    options.transport = "none"
    server = bridge_server.BridgeServer(options)
    server.ear = queue.Queue()
    return server
