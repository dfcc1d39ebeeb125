"""Real clients that answer server requests: the rows of the bridge that need them.

Four public SDKs, in each mode that they have, before servers of both eras of the standard library and servers on the
SDKs: those of the legacy era, and those of both eras, which serve each client in its own. One process of each client
runs all rows; what it prints is compared with the table.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from tests.contract import bridge
from tests.contract.bridge import ELICITATION, ROOTS, SAMPLING
from tests.interop.conftest import Peers
from tests.support.gateway_process import ROOT, START_WITHIN, bare_nursery, open_gateway_process, peer, run_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.real("clients")


def representable(value: Any) -> Any:
    """Return the value without lone surrogates, which the SDKs on pydantic cannot write."""
    return json.loads(re.sub(r"\\ud[89a-f][0-9a-f]{2}", "", json.dumps(value)))


FORM, SAMPLE, WITH_TOOLS = map(representable, (bridge.FORM, bridge.SAMPLE, bridge.WITH_TOOLS))
CLIENTS = Path(__file__).parent / "clients"
CONVERSE_WITHIN = 90.0  # seconds, of which a client gives itself 60
ERAS = {era: peer("bridge_server.py", "--era", era, "--name", era) for era in ("legacy", "modern")}
MODES = [
    ("python-1", "legacy"),
    ("typescript-1", "legacy"),
    ("python-2", "legacy"),
    ("python-2", "auto"),
    ("typescript-2", "legacy"),
    ("typescript-2", "auto"),
]
URL = {"mode": "url", "message": "Please visit.", "url": "https://example.com/visit"}
FORM_SAID, TEXT_SAID = {"content": {"name": "Ada"}}, {"content": {"type": "text", "text": "four"}}
USE = {"type": "tool_use", "id": "use-1", "name": "add", "input": {"a": 2}}
ROOTS_SAID = {"roots": [{"uri": "file:///home/ada", "name": "ada"}]}

Ask = tuple[str, list[tuple[str, Any]], list[str], list[dict[str, Any]]]
ASKS: list[Ask] = [
    ("form elicitation", [(ELICITATION, FORM)], ["form elicitation"], [FORM_SAID]),
    ("URL elicitation", [(ELICITATION, URL)], ["url elicitation"], [{"action": "accept"}]),
    ("sampling", [(SAMPLING, SAMPLE)], ["sampling"], [TEXT_SAID]),
    ("sampling with tools", [(SAMPLING, WITH_TOOLS)], ["sampling with tools"], [{"content": [USE]}]),
    ("roots", [(ROOTS, {})], ["roots"], [ROOTS_SAID]),
    (
        "two server requests at once",
        [(ELICITATION, FORM), (ROOTS, {})],
        ["form elicitation", "roots"],
        [FORM_SAID, ROOTS_SAID],
    ),
]
"""Row, what the server asks, what the client was asked, and what came back to the server."""
OVERTAKEN = "notifications wait a turn and answers do not: what is read together loses its progress"
CANNOT = {(client, "stdio", "progress"): OVERTAKEN for client in ("typescript-1", "typescript-2")}
"""What an SDK cannot be held to, and why. That its progress comes at all is seen in the row that cancels on it."""


def ask_row(server: str, asks: list[tuple[str, Any]]) -> dict[str, Any]:
    requests = {}
    for number, (method, params) in enumerate(asks):
        named = server != "modern" and params.get("mode") == "url"  # ids exist in the legacy era only
        requests[f"ask-{number}"] = {
            "method": method,
            "params": params | ({"elicitationId": "e-1"} if named else {}),
        }
    return {"tool": f"{server}.ask", "arguments": {"requests": requests}}


def other_rows(server: str) -> dict[str, dict[str, Any]]:
    """Return the action of each row; modern clients listen where legacy ones subscribe."""
    uri = f"memo://{server}/one"
    return {
        "progress": {"tool": f"{server}.progress", "arguments": {"n": 3}},
        "log": {"tool": f"{server}.log", "arguments": {"level": "error", "n": 2}},
        "cancel": {
            "tool": f"{server}.progress",
            "arguments": {"n": 50, "delay": 0.1},
            "cancel": True,
            "after": [f"{server}.stopped", "tools", "progress"],
        },
        "list_changed": {
            "tool": f"{server}.grow",
            "arguments": {"features": ["tools"]},
            "wait": "notifications/tools/list_changed",
            "listed": f"{server}.grown_0",
        },
        "resource updated": {
            "tool": f"{server}.touch",
            "arguments": {"uri": uri},
            "subscribe": uri,
            "before": [f"{server}.subscribed", "uris", uri],
            "wait": "notifications/resources/updated",
        },
    }


def command_of(peers: Peers, client: str) -> list[str]:
    """The client that is asked, run as the one that only calls is."""
    program, script, *rest = peers.clients[client]
    name = {"python-1": "sdk1_rows.py", "python-2": "sdk2_rows.py"}.get(client, "ts_rows.mjs")
    return [program, str(Path(script).with_name(name)), *rest]


async def run_rows(peers: Peers, client: str, mode: str, servers: list[str], **target: Any) -> None:
    """Have the client go through all rows at each server, and compare."""
    asked = [(server, *row) for server in servers for row in ASKS]
    others = [(server, name, row) for server in servers for name, row in other_rows(server).items()]
    rows = [ask_row(server, asks) for server, _name, asks, _kinds, _said in asked] + [row for _, _, row in others]
    found = await converse(command_of(peers, client), {"mode": mode, "rows": rows, **target})
    assert len(found) == len(rows)
    way = "http" if "url" in target else "stdio"
    for (server, name, _asks, kinds, said), got in zip(asked, found, strict=False):
        assert got["asked"] == kinds, (client, server, name, got)
        answers = got["structured"]["answers"]
        for number, wanted in enumerate(said):
            assert wanted.items() <= answers[f"ask-{number}"].items(), (client, server, name, answers)
    for (server, name, row), got in zip(others, found[len(asked) :], strict=True):
        assert got["progress"] == 3 or name != "progress" or (client, way, name) in CANNOT, (client, server, got)
        assert got["logs"] == 2 or name != "log", (client, server, got)
        assert got["cancelled"] == (name == "cancel"), (client, server, name, got)
        assert got["waited"] is (True if "wait" in row else None), (client, server, name, got)


async def converse(command: list[str], job: dict[str, Any]) -> list[dict[str, Any]]:
    with trio.fail_after(CONVERSE_WITHIN):
        done = await trio.run_process(
            [*command, json.dumps(job)],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return json.loads(done.stdout)["rows"]


def make_config(servers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"mcpServers": servers, "gateway": {"start_grace": 20}}


@pytest.mark.parametrize(("client", "mode"), MODES)
async def test_real_clients_in_every_row(peers: Peers, client: str, mode: str) -> None:
    async with open_gateway_process(make_config(ERAS)) as gateway:
        await run_rows(peers, client, mode, list(ERAS), url=gateway.url)


# -- servers on the SDKs ---------------------------------------------------------------------------------------------


def sdk_servers(peers: Peers, transport: str) -> dict[str, list[str]]:
    """The commands of the servers that are made with the SDKs."""
    python, _script = peers.clients["python-1"]
    node, _script, modules = peers.clients["typescript-1"]
    servers, kwargs = CLIENTS.with_name("servers"), ["http"] if transport == "http" else []
    return {
        "python": [python, str(servers / "sdk1_server.py"), "python", *kwargs],
        "typescript": [node, str(servers / "ts1_server.mjs"), modules, "typescript", *kwargs],
        **{f"{sdk}2": bridge.command_of(sdk, transport, f"{sdk}2") for sdk in bridge.SDKS},
    }


@asynccontextmanager
async def listening(command: list[str]) -> AsyncGenerator[dict[str, Any]]:
    """A server over HTTP; its config entry."""
    async with run_process(command) as running:
        line = await running.wait_stderr("listening on http://", within=START_WITHIN)
        yield {"url": line[line.index("http://") :].split()[0]}


async def test_stdio_sdk_servers_serve_stdio_clients(peers: Peers, tmp_path: Path) -> None:
    """A client of each era has its own gateway, with servers of both eras."""
    commands = sdk_servers(peers, "stdio")
    servers = {name: {"command": command[0], "args": command[1:]} for name, command in commands.items()} | ERAS
    path = tmp_path / "config.json"
    path.write_text(json.dumps(make_config(servers)), encoding="utf-8")

    async def run(client: str, mode: str) -> None:
        arguments = ["-m", "gateway", "serve", "--config", str(path), "--state-dir", str(tmp_path / client)]
        await run_rows(peers, client, mode, list(servers), command=sys.executable, args=arguments)

    async with bare_nursery() as nursery:
        nursery.start_soon(run, "python-1", "legacy")
        nursery.start_soon(run, "typescript-2", "auto")


async def test_http_sdk_servers_serve_http_clients(peers: Peers) -> None:
    async def run(client: str, mode: str, servers: dict[str, dict[str, Any]]) -> None:
        async with open_gateway_process(make_config(servers)) as gateway:
            await run_rows(peers, client, mode, list(servers), url=gateway.url)

    commands = sdk_servers(peers, "http")
    async with (
        listening(commands["python"]) as python,
        listening(commands["typescript"]) as typescript,
        listening(commands["python2"]) as python2,
        listening(commands["typescript2"]) as typescript2,
        bare_nursery() as nursery,
    ):
        servers = {"python": python, "typescript": typescript, "python2": python2, "typescript2": typescript2}
        nursery.start_soon(run, "typescript-1", "legacy", servers)
        nursery.start_soon(run, "python-2", "auto", servers)
