"""Clients on the Python SDK 2, in both modes, receive requests of either era's servers.

The server is the one of the conformance suite, greeted once as a legacy and once as a modern server; what it asks in a
legacy call it asks by requests, in a modern one by `input_required`. Roots, which it asks for in the modern era only,
are asked for by a server of the standard library in the legacy one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.gateway_process import LATEST_LEGACY, MODERN, ROOT, open_gateway_process, peer

CLIENT = Path(__file__).parent / "clients" / "sdk2_asked.py"
CONVERSE_WITHIN = 90.0  # seconds, of which the client gives itself 60
MODES = ["legacy", "auto"]
SERVER = {"command": sys.executable, "args": ["-m", "tests.conformance.server"], "cwd": str(ROOT)}
CONFIG = {
    "mcpServers": {
        "legacy": SERVER | {"era": "legacy"},
        "modern": SERVER | {"era": "modern"},
        "rich": peer("bridge_server.py"),
    },
    "gateway": {"start_grace": 20},
}
ROOTS_ASKED = {"requests": {"one": {"method": "roots/list", "params": {}}}}

CALLS: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("legacy.test_elicitation", {"message": "Who?"}, ["elicitation"], "Ada"),
    ("legacy.test_sampling", {"prompt": "2 + 2?"}, ["sampling"], "LLM response: four"),
    ("rich.ask", ROOTS_ASKED, ["roots"], "file:///home/ada"),
    ("modern.test_input_required_result_elicitation", {}, ["elicitation"], "Hello, Ada!"),
    ("modern.test_input_required_result_sampling", {}, ["sampling"], "The model says: four"),
    ("modern.test_input_required_result_list_roots", {}, ["roots"], "Roots: file:///home/ada"),
    (
        "modern.test_input_required_result_multiple_inputs",
        {},
        ["elicitation", "roots", "sampling"],
        "All three came, and Ada is greeted.",
    ),
    ("modern.test_input_required_result_multi_round", {}, ["elicitation"], "The color is Ada."),
    ("modern.test_input_required_result_request_state", {}, ["elicitation"], "state-ok"),
    ("modern.test_input_required_result_tampered_state", {}, ["elicitation"], "state-ok"),
]
"""Tool, arguments, what the client is asked, and what is then said."""


async def converse(mode: str, **target: Any) -> None:
    job = {"mode": mode, "calls": [(tool, arguments) for tool, arguments, _, _ in CALLS], **target}
    with trio.fail_after(CONVERSE_WITHIN):
        done = await trio.run_process(
            [sys.executable, str(CLIENT), json.dumps(job)],
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    report = json.loads(done.stdout)
    assert report["version"] == (LATEST_LEGACY if mode == "legacy" else MODERN)
    for (tool, _, wanted, said), found in zip(CALLS, report["calls"], strict=True):
        assert found["asked"] == wanted, tool
        assert said in found["text"], tool


@pytest.mark.parametrize("mode", MODES)
async def test_real_clients_get_server_requests_over_http(mode: str) -> None:
    async with open_gateway_process(CONFIG) as gateway:
        await converse(mode, url=gateway.url)


@pytest.mark.parametrize("mode", MODES)
async def test_real_clients_get_server_requests_over_stdio(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    arguments = ["-m", "gateway", "serve", "--config", str(path), "--state-dir", str(tmp_path / "state")]
    await converse(mode, command=sys.executable, args=arguments)
