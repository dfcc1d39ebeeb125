"""Real clients that are asked, told and obeyed: the rows of the bridge that need a client which answers.

Four public SDKs, in each mode that they have, before a legacy and a modern server of the standard library, which can
ask for anything. One process of each client runs all rows; what it prints is compared with the table.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.contract.bridge import ELICITATION, FORM, ROOTS, SAMPLE, SAMPLING, WITH_TOOLS
from tests.interop.conftest import Peers
from tests.support import ROOT, open_gateway_process, peer

CLIENTS = Path(__file__).parent / "clients"
CONVERSE_WITHIN = 45.0  # seconds, of which a client gives itself 30
ERAS = ["legacy", "modern"]
CONFIG = {
    "mcpServers": {era: peer("bridge_server.py", "--era", era, "--name", era) for era in ERAS},
    "gateway": {"start_grace": 20},
}
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
    ("two asks at once", [(ELICITATION, FORM), (ROOTS, {})], ["form elicitation", "roots"], [FORM_SAID, ROOTS_SAID]),
]
"""Row, what the server asks, what the client was asked, and what came back to the server."""


def ask_row(era: str, asks: list[tuple[str, Any]]) -> dict[str, Any]:
    requests = {}
    for number, (method, params) in enumerate(asks):
        named = era == "legacy" and params.get("mode") == "url"  # ids exist in the legacy era only
        requests[f"ask-{number}"] = {
            "method": method,
            "params": params | ({"elicitationId": "e-1"} if named else {}),
        }
    return {"tool": f"{era}.ask", "arguments": {"requests": requests}}


def other_rows(era: str, mode: str) -> dict[str, dict[str, Any]]:
    """Row -> what is done; what a modern client hears on streams of its own is left to the legacy ones here."""
    rows = {
        "progress": {"tool": f"{era}.progress", "arguments": {"n": 3}},
        "log": {"tool": f"{era}.log", "arguments": {"level": "error", "n": 2}},
        "cancel": {"tool": f"{era}.progress", "arguments": {"n": 50, "delay": 0.1}, "cancel": True},
    }
    if mode == "legacy":
        rows["list_changed"] = {"tool": f"{era}.grow", "arguments": {"features": ["tools"]}}
        rows["list_changed"]["wait"] = "notifications/tools/list_changed"
        uri = f"memo://{era}/one"
        rows["resource updated"] = {"tool": f"{era}.touch", "arguments": {"uri": uri}, "subscribe": uri}
        rows["resource updated"] |= {"subscribed": f"{era}.subscribed", "wait": "notifications/resources/updated"}
    return rows


def command_of(peers: Peers, client: str) -> list[str]:
    """The client that is asked, run as the one that only calls is."""
    program, script, *rest = peers.clients[client]
    name = {"python-1": "sdk1_rows.py", "python-2": "sdk2_rows.py"}.get(client, "ts_rows.mjs")
    return [program, str(Path(script).with_name(name)), *rest]


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


@pytest.mark.parametrize(("client", "mode"), MODES)
async def test_real_clients_in_every_row(peers: Peers, client: str, mode: str) -> None:
    asked = [(era, *row) for era in ERAS for row in ASKS]
    others = [(era, name, row) for era in ERAS for name, row in other_rows(era, mode).items()]
    rows = [ask_row(era, asks) for era, _name, asks, _kinds, _said in asked] + [row for _era, _name, row in others]
    async with open_gateway_process(CONFIG) as gateway:
        found = await converse(command_of(peers, client), {"url": gateway.url, "mode": mode, "rows": rows})
    for (era, name, _asks, kinds, said), got in zip(asked, found, strict=False):
        assert got["asked"] == kinds, (era, name, got)
        answers = got["structured"]["answers"]
        for number, wanted in enumerate(said):
            assert wanted.items() <= answers[f"ask-{number}"].items(), (era, name, answers)
    for (era, name, row), got in zip(others, found[len(asked) :], strict=True):
        assert got["progress"] == 3 or name != "progress", (era, got)
        assert got["logs"] == 2 or name != "log", (era, got)
        assert got["cancelled"] == (name == "cancel"), (era, name, got)
        assert got["waited"] is (True if "wait" in row else None), (era, name, got)
