"""Real clients in an empty home: `install` connects them, and one gateway serves their calls."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.relay.machine import is_alive
from tests.support.gateway_process import PEERS, STOP_WITHIN
from tests.support.pages import PAGES, Shell

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = pytest.mark.real("clients")

TUTORIAL = PAGES / "tutorial"
ANSWER_WITHIN = 240.0  # seconds for one command of an agent: opencode needs 7 s of CPU time
ARGUMENTS = {"timezone": "Europe/Berlin"}


@contextmanager
def run_model() -> Generator[str]:
    """A model that calls the tool of the tutorial; its address."""
    command = [sys.executable, str(PEERS / "fake_model.py"), "get_current_time", json.dumps(ARGUMENTS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as model:
        try:
            assert model.stdout is not None
            yield f"http://127.0.0.1:{int(model.stdout.readline())}"
        finally:
            model.kill()


def add_agents(shell: Shell, agents: dict[str, Path], url: str) -> None:
    """Put the agents on PATH, logged in to the model."""
    for name, path in agents.items():
        provider = {"name": "fake", "base_url": f"{url}/v1", "wire_api": "responses"}
        members = ",".join(f"{key}={json.dumps(value)}" for key, value in provider.items())
        options = ["-c", "model_provider=fake", "-c", "model=fake", "-c", f"model_providers.fake={{{members}}}"]
        shell.add_program(name, f'exec "{path}" {shlex.join(options) if name == "codex" else ""} "$@"')
    provider = {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": f"{url}/v1", "apiKey": "x"}}
    opencode = {"model": "fake/fake", "provider": {"fake": provider | {"models": {"fake": {}}}}}
    shell.environment |= {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "x",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "ENABLE_TOOL_SEARCH": "false",  # a real model would search for the tool first
        "OPENCODE_CONFIG_CONTENT": json.dumps(opencode),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
    }


def test_the_tutorial_goes_as_shown_with_real_clients(agents: dict[str, Path], tmp_path: Path) -> None:
    with run_model() as url, Shell(tmp_path, ANSWER_WITHIN) as shell:
        add_agents(shell, agents, url)
        shell.follow(TUTORIAL / "one-gateway.md", TUTORIAL / "first-gateway.md")
        (report,) = json.loads(shell.run("mcp-gateway ps --json")[1])
        processes = [report["pid"], *(backend["pid"] for backend in report["backends"])]
        assert len(processes) == 3
        assert all(map(is_alive, processes))
        # The last client decides how long the gateway stays.
        assert shell.run("mcp-gateway connect --config config.json --linger 0 < /dev/null")[0] == 0
        assert shell.run(f"timeout {STOP_WITHIN:.0f} tail --pid={report['pid']} -f /dev/null")[0] == 0
        assert not any(map(is_alive, processes))


def test_real_clients_hand_over_the_server_they_have(agents: dict[str, Path], tmp_path: Path) -> None:
    with Shell(tmp_path, ANSWER_WITHIN) as shell:
        for name, path in agents.items():
            shell.add_program(name, f'exec "{path}" "$@"')
        assert shell.run("claude mcp add --scope user time -e API_KEY=secret -- uvx mcp-server-time")[0] == 0
        assert shell.run("codex mcp add time --env API_KEY=secret -- uvx mcp-server-time")[0] == 0
        entry = {"type": "local", "command": ["uvx", "mcp-server-time"], "environment": {"API_KEY": "secret"}}
        opencode = shell.write("../.config/opencode/opencode.json", json.dumps({"mcp": {"time": entry}}))

        status, printed = shell.run("mcp-gateway install --all --config config.json --take-over --yes")
        assert status == 0, printed
        assert "secret" not in printed
        assert "time: ok" in printed
        ours = json.loads((shell.folder / "config.json").read_text(encoding="utf-8"))["mcpServers"]
        assert ours["time"]["env"] == {"API_KEY": "secret"}
        claude = json.loads((tmp_path / ".claude.json").read_text(encoding="utf-8"))
        codex = tomllib.loads((tmp_path / ".codex" / "config.toml").read_text(encoding="utf-8"))
        left = [claude["mcpServers"], codex["mcp_servers"], json.loads(opencode.read_text(encoding="utf-8"))["mcp"]]
        assert [list(servers) for servers in (ours, *left)] == [["time"], *[["gateway"]] * 3]
