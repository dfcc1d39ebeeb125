"""Servers with state of their client get `"session": "client"`, however they are started."""

from __future__ import annotations

import json
import sys

import pytest

from gateway.cli import main
from gateway.cli.stateful import REASONS, reason_for, with_session
from gateway.config import parse_server
from tests.support.gateway_process import PEERS

ROOTS_AT_START = f"""
import sys
sys.path.insert(0, {str(PEERS)!r})
import echo_server
class Server(echo_server.Server):
    def handle_notification(self, method, params):
        if method == "notifications/initialized":
            self.send({{"jsonrpc": "2.0", "id": 1, "method": "roots/list"}})
Server(echo_server.make_parser().parse_args([])).run()
"""


@pytest.mark.parametrize(
    "line",
    [
        "npx -y @playwright/mcp",
        "npx @playwright/mcp@latest --headless",
        "npx -y chrome-devtools-mcp@0.10.2",
        "bunx -y @modelcontextprotocol/server-sequential-thinking",
        "/opt/bin/mcp-server-playwright --browser firefox",
        "docker run -i --rm mcp/playwright:latest",
        "docker run -i --rm mcp/sequentialthinking",
        "uvx browser-use[cli]==0.5 --mcp",
        "uvx --from git+https://github.com/oraios/serena serena start-mcp-server",
    ],
)
def test_known_servers_get_a_session_per_client(line):
    command, *args = line.split()
    entry = {"command": command, "args": args}
    assert reason_for(entry)
    assert parse_server("x", with_session(entry), environ={}).session == "client"


@pytest.mark.parametrize(
    "entry",
    [
        {"command": "npx", "args": ["-y", "@modelcontextprotocol/server-memory"]},
        {"command": "npx", "args": ["-y", "@playwright/mcp-tools"]},
        {"command": "uvx", "args": ["mcp-server-git", "--repository", "/src/serena"]},
        {"command": "python", "args": None},
        {"command": ["x"], "args": [1]},
        {"url": "https://h/@playwright/mcp"},
    ],
)
def test_other_servers_are_shared(entry):
    assert reason_for(entry) is None
    assert with_session(entry) == entry


def test_a_chosen_session_is_kept():
    entry = {"command": "chrome-devtools-mcp", "session": "shared"}
    assert with_session(entry) == entry


def test_each_reason_is_a_clause():
    assert all(text.startswith(("it ", "its ")) and not text.endswith(".") for text in REASONS.values())


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*args):
        status = main([*map(str, args), "--state-dir", str(tmp_path / "state")])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_import_and_add_write_and_explain_it(cli, tmp_path):
    entry = {"command": "chrome-devtools-mcp", "args": ["--no-such-option"]}  # not installed here
    (tmp_path / "theirs.json").write_text(json.dumps({"mcpServers": {"a": entry}}), encoding="utf-8")
    _, out, _ = cli("import", "theirs.json", "--config", "mine.json", "--yes")
    assert f"session: client, since {REASONS['chrome-devtools-mcp']}" in out
    _, _, err = cli("add", "b", "--config", "mine.json", "--", "chrome-devtools-mcp")
    assert f"each client gets a process of its own: {REASONS['chrome-devtools-mcp']}" in err
    found = json.loads((tmp_path / "mine.json").read_text(encoding="utf-8"))["mcpServers"]
    assert [found[name]["session"] for name in ("a", "b")] == ["client", "client"]


@pytest.mark.parametrize(("session", "is_warned"), [("shared", True), ("client", False)])
def test_doctor_warns_of_a_shared_server_that_asks(cli, tmp_path, session, is_warned):
    asks = {"command": sys.executable, "args": ["-c", ROOTS_AT_START], "session": session}
    (tmp_path / "c.json").write_text(json.dumps({"mcpServers": {"asks": asks}}), encoding="utf-8")
    status, out, _ = cli("doctor", "c.json", "--json")
    found = json.loads(out)["asks"]
    assert (status, found["asked"]) == (0, ["roots/list"])
    assert any("it sends roots/list" in hint for hint in found["hints"]) is is_warned
    assert any("name its folders in 'args'" in hint for hint in found["hints"]) is is_warned
