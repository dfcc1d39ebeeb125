"""`mcp-gateway import` and `doctor`: other clients' configs imported, and servers tried once."""

from __future__ import annotations

import json
import re
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio

from gateway.calls import Era
from gateway.cli import main
from gateway.cli.clients import CLIENTS, places
from gateway.config import parse_server
from gateway.eras.methods import Kind
from gateway.errors import BackendProtocol
from gateway.store import OVERDUE, EraRecord, Store
from tests.faults.corpus.player import server
from tests.support.gateway_process import echo_backend, faulty_backend

SECRET = "s3cr3t"
QUICK = {"shutdown_grace": [0.3, 0.3, 1]}
JSONC = """{ // mine
  "servers": {"one": {"type": "stdio", "command": "x", "args": ["--token", "s3cr3t", "http://h//x"],
                      "env": {"KEY": "s3cr3t"}}, /* and */ }, }"""
TOML = """
[mcp_servers.two]
command = "y"
env = { KEY = "s3cr3t" }
env_vars = ["HOME"]
startup_timeout_sec = 20
[mcp_servers."far away"]
url = "https://h/mcp"
bearer_token_env_var = "TOKEN"
"""


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (
        "XDG_CONFIG_HOME",
        "APPDATA",
        "CODEX_HOME",
        "COPILOT_HOME",
        "CLAUDE_CONFIG_DIR",
        "MY_KEY",
        "K",
        "KEY",
        "API_KEY",
        "OTHER",
        "HOST",
    ):
        monkeypatch.delenv(name, raising=False)

    def run(*args):
        status = main([*map(str, args)])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return status, out, err

    return run


def servers(path):
    return json.loads(path.read_text(encoding="utf-8"))["mcpServers"]


def test_a_file_with_comments_into_a_new_config(cli, tmp_path):
    (tmp_path / "other.json").write_text(JSONC, encoding="utf-8")
    status, out, _ = cli("import", "other.json", "--config", "mine.json", "--yes")
    assert status == 0
    assert "one: runs x --token *** http://h//x" in out
    assert "env: KEY=***" in out
    assert servers(tmp_path / "mine.json")["one"]["args"][1] == SECRET
    assert stat.S_IMODE((tmp_path / "mine.json").stat().st_mode) == 0o600


def test_codex_writes_toml(cli, tmp_path):
    (tmp_path / ".codex").mkdir()
    (tmp_path / ".codex" / "config.toml").write_text(TOML, encoding="utf-8")
    assert cli("import", "codex", "--config", "mine.json", "--yes")[0] == 0
    found = servers(tmp_path / "mine.json")
    assert found["two"] == {
        "command": "y", "env": {"HOME": "${HOME}", "KEY": SECRET}, "connect_timeout": 20,
    }  # fmt: skip
    assert found["far-away"]["headers"] == {"Authorization": "Bearer ${TOKEN:-}"}


FORMATS = {
    # What each client writes, by the place where it does, and what becomes of it.
    "copilot": (
        ".copilot/mcp-config.json",
        ('{"mcpServers": {"a": {"type": "local", "command": "x", "args": ["-y"], "env": {"K": "v"}, "tools": ["*"]},'
        ' "b": {"type": "http", "url": "https://h/mcp", "headers": {"H": "${K}"}, "tools": ["one"]}}}'),
        {
            "a": {"command": "x", "args": ["-y"], "env": {"K": "v"}, "tools": ["*"]},
            "b": {"type": "http", "url": "https://h/mcp", "headers": {"H": "${K:-}"}, "tools": ["one"]},
        },
    ),
    "gemini": (
        ".gemini/settings.json",
        ('{"mcp": {"excluded": ["c"]}, "mcpServers": {'
        ' "a": {"command": "x", "env": {"K": "$MY_KEY", "L": "${MY_KEY}-$5"}, "timeout": 30000, "trust": true},'
        ' "b": {"httpUrl": "https://h/mcp", "includeTools": ["one"]}, "c": {"command": "y"}}}'),
        {
            "a": {"command": "x", "env": {"K": "${MY_KEY:-}", "L": "${MY_KEY:-}-$5"}},
            "b": {"url": "https://h/mcp", "includeTools": ["one"]},
            "c": {"command": "y", "disabled": True},
        },
    ),
    "opencode": (
        ".config/opencode/opencode.jsonc",
        ('{ // mine\n "mcp": {"a": {"type": "local", "command": ["x", "-y", "p"], "environment": {"K": "{env:KEY}"},'
        ' "enabled": false, "timeout": 5000}, "b": {"type": "remote", "url": "https://h/mcp",'
        ' "headers": {"Authorization": "Bearer {file:key.txt}"}, "oauth": false,}, }}'),
        {
            "a": {"command": "x", "args": ["-y", "p"], "env": {"K": "${KEY:-}"}, "enabled": False},
            "b": {"url": "https://h/mcp", "oauth": False, "headers": {"Authorization": "Bearer ${file:HERE/key.txt}"}},
        },
    ),
    "vscode": (
        ".vscode/mcp.json",
        ('{"inputs": [{"id": "api-key", "type": "promptString"}], /* all */ "servers": {"a": {"type": "stdio",'
        ' "command": "${userHome}/x", "args": ["${workspaceFolder}/y"], "env": {"K": "${input:api-key}",'
        ' "L": "${env:OTHER}"}}}}'),
        {
            "a": {"type": "stdio", "command": "HOME/x", "args": ["HOME/y"],
                  "env": {"K": "${API_KEY:-}", "L": "${OTHER:-}"}},
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("client", FORMATS)
def test_every_clients_config_is_imported_and_served(cli, tmp_path, client):
    place, text, expected = FORMATS[client]
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    (path.parent / "key.txt").write_text("k", encoding="utf-8")
    status, out, err = cli("import", client, "--config", "mine.json", "--yes")
    assert status == 0, err
    spelled = json.loads(json.dumps(expected).replace("HERE", str(path.parent)).replace("HOME", str(tmp_path)))
    assert servers(tmp_path / "mine.json") == spelled
    for variable in re.findall(r"\$\{(\w+):-\}", json.dumps(spelled)):
        assert re.search(rf"variables: .*{variable}", out)
        assert re.search(rf"needs .*{variable}.* from the environment", err)
    assert cli("check", "mine.json")[0] == 0


def test_unsupported_entries_are_skipped_and_reported(cli, tmp_path):
    odd = {
        "good": {"command": "x"},
        "socket": {"type": "websocket", "url": "wss://h"},
        "asks": {"command": "x", "args": ["${command:pick}"]},
        "needs": {"url": "https://${HOST}/mcp"},
        "list": ["x"],
        "headers": {"url": "https://h", "headers": ["a"]},
        "nothing": {},
        "go od": {"command": "x"},
        "go-od": {"command": "y"},
    }
    (tmp_path / "other.json").write_text(json.dumps({"mcpServers": odd}), encoding="utf-8")
    status, _, err = cli("import", "other.json", "--config", "mine.json", "--yes")
    assert status == 1
    assert list(servers(tmp_path / "mine.json")) == ["good", "go-od"]
    for name in ("socket", "asks", "needs", "list", "headers", "nothing", "go-od"):
        assert f"warning: server {name!r} is skipped: " in err
    assert cli("check", "mine.json")[0] == 0
    found = json.loads(cli("import", "other.json", "--config", "mine.json", "--yes", "--force", "--json")[1])
    assert (list(found["servers"]), len(found["skipped"])) == (["good", "go-od"], 7)


def test_the_gateways_own_entries_are_left_out(cli, tmp_path):
    serve = ["serve", "--config", str(tmp_path / "mine.json")]
    entries = {
        "path": {"command": "/opt/bin/mcp-gateway", "args": serve},
        "module": {"command": sys.executable, "args": ["-m", "gateway", *serve]},
        "uvx": {"command": "uvx", "args": ["--from", "trio-mcp-gateway", "mcp-gateway", "serve", "--config=mine.json"]},
        "unnamed": {"command": "mcp-gateway"},
        "other": {"command": "mcp-gateway", "args": ["serve", "--config", "another.json"]},
        "time": {"command": "uvx", "args": ["mcp-server-time"]},
    }
    (tmp_path / "other.json").write_text(json.dumps({"mcpServers": entries}), encoding="utf-8")
    status, _, err = cli("import", "other.json", "--config", "mine.json", "--yes")
    assert (status, list(servers(tmp_path / "mine.json"))) == (0, ["other", "time"])
    assert err.count("is this gateway itself and is skipped") == 4


@pytest.mark.parametrize("name", ["config.yaml", "config.yml"])
def test_yaml_is_not_supported_yet(cli, tmp_path, name):
    (tmp_path / name).write_text("extensions: {}", encoding="utf-8")
    status, _, err = cli("import", name, "--config", "mine.json", "--yes")
    assert (status, f"{name}: YAML is not supported yet" in err) == (1, True)


def test_existing_entries_and_other_content_stay(cli, tmp_path):
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps({"mcpServers": {"one": {"command": "old"}}, "gateway": {"name": "n"}}), encoding="utf-8")
    mine.chmod(0o640)
    (tmp_path / "other.json").write_text(JSONC, encoding="utf-8")
    status, _, err = cli("import", "other.json", "--config", mine, "--yes")
    assert status == 0
    assert "'one' is already in the config" in err
    assert servers(mine) == {"one": {"command": "old"}}
    assert cli("import", "other.json", "--config", mine, "--yes", "--force")[0] == 0
    assert servers(mine)["one"]["command"] == "x"
    assert json.loads(mine.read_text(encoding="utf-8"))["gateway"] == {"name": "n"}
    assert stat.S_IMODE(mine.stat().st_mode) == 0o640
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "other.json"}


def test_nothing_is_written_unasked(cli, tmp_path):
    (tmp_path / "other.json").write_text(JSONC, encoding="utf-8")
    status, _, err = cli("import", "other.json", "--config", "mine.json")
    assert status == 1
    assert "--yes" in err
    assert not (tmp_path / "mine.json").exists()


def test_no_command_of_a_value_runs_unasked(cli, tmp_path):
    entry = {"command": "x", "env": {"KEY": "${cmd:touch ran}"}}
    (tmp_path / "theirs.json").write_text(json.dumps({"mcpServers": {"a": entry}}), encoding="utf-8")
    status, out, _ = cli("import", "theirs.json", "--config", "mine.json")
    assert status == 1
    assert "runs for a value: touch ran" in out
    assert not (tmp_path / "ran").exists()


def test_a_broken_config_is_not_written_over(cli, tmp_path):
    (tmp_path / "other.json").write_text(JSONC, encoding="utf-8")
    (tmp_path / "mine.json").write_text("{", encoding="utf-8")
    assert cli("import", "other.json", "--config", "mine.json", "--yes")[0] == 1
    assert (tmp_path / "mine.json").read_text(encoding="utf-8") == "{"


@pytest.mark.parametrize(
    "words", [("doctor", "c.json"), ("check", "--start", "c.json"), ("import", "c.json", "--config", "new", "--yes")]
)
def test_a_server_started_once_stays_listed(cli, tmp_path, words):
    patience = "startup_timeout_sec" if words[0] == "import" else "connect_timeout"  # as a client calls it
    entries = {
        "good": echo_backend() | QUICK,
        "missing": {"command": "no-such-command-anywhere"},
        "silent": faulty_backend("hang", "--when", "start") | QUICK | {patience: 0.5},
    }
    (tmp_path / "c.json").write_text(json.dumps({"mcpServers": entries}), encoding="utf-8")
    status, out, _ = cli(*words, "--state-dir", "state")
    assert status == (0 if words[0] == "import" else 1)
    assert "good: ok, legacy 2025-11-25, 9 tools" in out
    store = Store(tmp_path / "state")
    kept = {name: store.load_catalog(parse_server(name, entry, environ={})) for name, entry in entries.items()}
    assert kept["missing"] is None
    assert kept["silent"] is OVERDUE
    assert kept["good"] is not None
    assert kept["good"].count(Kind.TOOLS) == 9


def test_a_check_with_start_is_one_json_document(cli, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"mcpServers": {"good": echo_backend() | QUICK}}), encoding="utf-8")
    status, out, _ = cli("check", "--start", "--json", "c.json")
    found = json.loads(out)
    assert (status, found["ok"], found["started"]["good"]["tools"]) == (0, True, 9)


def test_nothing_starts_where_the_config_is_wrong(cli, tmp_path):
    (tmp_path / "mine.json").write_text('{"mcpServers": {"bad": {"command": 7}}}', encoding="utf-8")
    (tmp_path / "other.json").write_text(JSONC, encoding="utf-8")
    status, _, err = cli("import", "other.json", "--config", "mine.json", "--yes")
    assert status == 0
    assert "no server was started: " in err
    assert "mcp-gateway check mine.json" in err


@pytest.mark.parametrize("client", CLIENTS)
def test_a_missing_client_is_reported_with_searched_paths(cli, client):
    status, _, err = cli("import", client, "--config", "mine.json")
    assert status == 1
    assert f"error: {client} has no config here; looked at /" in err


def test_the_places_of_each_system():
    there = {system: places("claude", {"HOME": "/h"}, Path("/p"), system)[0] for system in ("linux", "darwin", "win32")}
    assert [str(path).removeprefix("/h/") for path in there.values()] == [
        ".config/Claude/claude_desktop_config.json",
        "Library/Application Support/Claude/claude_desktop_config.json",
        "AppData/Roaming/Claude/claude_desktop_config.json",
    ]


def test_the_doctor_tries_each_server_once(cli, tmp_path):
    config = {
        "mcpServers": {
            "good": echo_backend() | QUICK,
            "missing": {"command": "no-such-command-anywhere"},
            "silent": faulty_backend("hang", "--when", "start") | QUICK | {"connect_timeout": 0.5},
            "off": {"command": "x", "disabled": True},
        }
    }
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    status, out, _ = cli("doctor", "c.json", "--json")
    found = json.loads(out)
    assert status == 1
    assert list(found) == ["good", "missing", "silent", "off"]
    assert found["off"] == {"ok": True, "disabled": "disabled by its config"}
    good = found["good"]
    assert (good["ok"], good["era"], good["tools"], good["children_left"]) == (True, "legacy", 9, [])
    assert (good["hints"], good["odd_names"][0], good["long_names"]) == ([], "good.echo", [])
    assert "no-such-command-anywhere" in found["missing"]["problem"]
    assert (found["missing"]["code"], found["silent"]["code"]) == ("backend_unavailable", "backend_timeout")
    assert found["missing"]["command"] is None
    assert found["silent"]["problem"] == "was not ready within 0.5 s (connect_timeout)"


def test_doctor_counts_non_mcp_lines_on_stdout(cli, tmp_path):
    noisy = faulty_backend("garbage") | QUICK
    silent = {"command": "sh", "args": ["-c", "echo one; echo two; exec sleep 60"], "connect_timeout": 0.5} | QUICK
    (tmp_path / "c.json").write_text(json.dumps({"mcpServers": {"noisy": noisy, "silent": silent}}), encoding="utf-8")
    found = json.loads(cli("doctor", "c.json", "--json")[1])
    assert any("lines to stdout that are not MCP messages, the last:" in hint for hint in found["noisy"]["hints"])
    text = "it wrote 2 lines to stdout that are not MCP messages, the last: 'two'"
    assert found["silent"]["problem"] == f"was not ready within 0.5 s (connect_timeout); {text}"


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (trio.TooSlowError(), "was not ready in time (connect_timeout)"),
        (OSError(), "failed with OSError without a message"),
        (OSError(2, "No such file"), "failed: [Errno 2] No such file"),
        (BackendProtocol("x", "is odd"), "is odd"),
    ],
)
def test_the_doctor_never_shows_a_bare_exception(cli, tmp_path, monkeypatch, problem, said):
    def fail(*_, **__):
        raise problem

    monkeypatch.setattr("gateway.backends.opener.SessionOpener.__call__", fail)
    (tmp_path / "c.json").write_text(json.dumps({"mcpServers": {"x": {"url": "http://127.0.0.1:1"}}}), encoding="utf-8")
    status, out, _ = cli("doctor", "c.json")
    assert (status, out) == (1, f"x: {said}\n")


def test_doctor_reports_detected_and_recorded_eras(cli, tmp_path):
    rules = [{"method": "server/discover", "then": "exit 1"}]
    config = parse_server("b", server(rules) | QUICK, environ={})
    (tmp_path / "c.json").write_text(json.dumps({"mcpServers": {"b": server(rules) | QUICK}}), encoding="utf-8")
    status, out, _ = cli("doctor", "c.json", "--json", "--state-dir", "state")
    found = json.loads(out)["b"]
    assert (status, found["era_record"]) == (0, None)
    assert (found["era"], found["version"], found["eras_offered"]) == ("legacy", "2025-11-25", ["legacy"])
    assert (found["versions_offered"], found["server_info"]) == (["2025-11-25"], {"name": "player", "version": "1"})
    record = EraRecord(
        era=Era.MODERN,
        version="2026-07-28",
        asked="",
        offered=("2026-07-28", "2025-11-25"),
        transport="stdio",
        server_info=msgspec.Raw(b'{"name":"old"}'),
        at=time.time(),
    )
    Store(tmp_path / "state").save_era(config, record)
    kept = json.loads(cli("doctor", "c.json", "--json", "--state-dir", "state")[1])["b"]["era_record"]
    assert (kept["era"], kept["eras_offered"], kept["server_info"]) == ("modern", ["legacy", "modern"], {"name": "old"})
    _, out, _ = cli("doctor", "c.json")
    assert "server: player 1; offers: legacy" in out


def test_doctor_shows_a_servers_stderr(cli, tmp_path):
    script = (
        "import sys\nfor n in range(30): print('line', n, file=sys.stderr)\nraise RuntimeError('API_KEY is not set')"
    )
    crashes = {"command": sys.executable, "args": ["-c", script]}
    config = {"mcpServers": {"crashes": crashes, "good": echo_backend() | QUICK}}
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    found = json.loads(cli("doctor", "c.json", "--json")[1])
    assert "exited with status 1; stderr: RuntimeError: API_KEY is not set" in found["crashes"]["problem"]
    assert found["crashes"]["code"] == "backend_exited"
    assert len(found["crashes"]["stderr"]) == 20
    assert found["crashes"]["stderr"][-1] == "RuntimeError: API_KEY is not set"
    assert found["good"]["stderr"] == []
    _, out, _ = cli("doctor", "c.json")
    assert [line for line in out.splitlines() if line.startswith("  stderr: line")][-1] == "  stderr: line 29"


def test_doctor_names_odd_tools_long_names_and_paths(cli, tmp_path):
    config = {
        "mcpServers": {
            "odd": faulty_backend("bad_tool") | QUICK,
            "l" * 62: echo_backend() | QUICK,
            "path": {"command": "sh", "env": {"PATH": "/no/such/folder"}},
        }
    }
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    _, out, _ = cli("doctor", "c.json", "--json")
    odd, long, path = json.loads(out).values()
    assert odd["ok"]
    assert any("left out" in hint for hint in odd["hints"])
    assert long["long_names"][0].startswith(f"{'l' * 62}.")
    assert not path["ok"]
    assert "'sh' is on your own PATH" in path["hints"][0]


def test_the_doctor_lists_rejected_names_once(cli, tmp_path):
    config = {"mcpServers": {"one": echo_backend() | QUICK, "l" * 62: echo_backend() | QUICK}}
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    _, out, _ = cli("doctor", "c.json")
    hints = [line for line in out.splitlines() if "hint:" in line]
    assert len(hints) == 1
    assert hints[0].startswith("hint: 18 of 18 names have characters that some clients reject, as 'one.echo'; 9 of 18")
    assert "?separator=__&max_name_length=64" in hints[0]


@pytest.mark.leak_check
def test_doctor_leaves_no_server_process(cli, tmp_path):
    pid = tmp_path / "pid"
    echo = echo_backend()
    script = f"setsid sh -c 'echo $$ > {pid}; exec sleep 60' > /dev/null 2>&1 < /dev/null &\n"
    script += f"while [ ! -s {pid} ]; do :; done; exec {echo['command']} {' '.join(echo['args'])}"
    config = {"mcpServers": {"leaves": {"command": "sh", "args": ["-c", script]} | QUICK}}
    (tmp_path / "c.json").write_text(json.dumps(config), encoding="utf-8")
    status, out, _ = cli("doctor", "c.json", "--json")
    assert (status, json.loads(out)["leaves"]["children_left"]) == (0, [])
    left = Path("/proc", pid.read_text(encoding="ascii").strip(), "stat")
    with suppress(FileNotFoundError, ProcessLookupError):  # the subreaper reaps orphans later
        assert left.read_text(encoding="utf-8").rpartition(")")[2].split()[0] in {"Z", "X"}
