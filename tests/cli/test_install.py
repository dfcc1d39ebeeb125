"""`install`, `uninstall`, `add` and `remove`: careful edits of clients' configs and our own."""

from __future__ import annotations

import json
import sys
import tomllib

import pytest

from gateway.cli import installing, main
from gateway.cli.clients import CLIENTS
from gateway.cli.installing import TABLE
from tests.support.gateway_process import echo_backend

SECRET = "s3cr3t"
THEIRS = """{
  // my servers
  "mcpServers": {
    "other": {"command": "x", "env": {"KEY": "s3cr3t"}} // keep
  }
}
"""


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    for name in (
        "XDG_CONFIG_HOME",
        "CODEX_HOME",
        "COPILOT_HOME",
        "CLAUDE_CONFIG_DIR",
        "MCP_GATEWAY_STATE_DIR",
        "XDG_STATE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ours.json").write_text('{"mcpServers": {}}', encoding="utf-8")

    def run(*args):
        status = main([*map(str, args)])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return status, out, err

    return run


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def program(tmp_path, name, body):
    """A client's own command, which notes its arguments in `called`."""
    path = put(tmp_path / "bin" / name, f"#!{sys.executable}\nimport json, sys\nargs = sys.argv[1:]\n{body}\n")
    path.chmod(0o755)
    (tmp_path / "called").touch()


NOTE = f"open({'called'!r}, 'a').write(json.dumps(args) + '\\n')"


def called(tmp_path):
    return [json.loads(line) for line in (tmp_path / "called").read_text(encoding="utf-8").splitlines()]


def test_a_file_keeps_its_comments_and_a_copy(cli, tmp_path):
    path = put(tmp_path / ".cursor" / "mcp.json", THEIRS)
    status, out, _ = cli("install", "cursor", "--config", "ours.json", "--yes")
    assert status == 0
    assert '+       "gateway": {' not in out
    assert '+     "gateway": {' in out
    text = path.read_text(encoding="utf-8")
    assert text.startswith(THEIRS[: THEIRS.index(" // keep")])
    assert "// keep" in text
    assert str(tmp_path / "ours.json") in text
    assert (tmp_path / ".cursor" / "mcp.json.bak").read_text(encoding="utf-8") == THEIRS
    # Once more changes nothing, and removing it leaves what was there.
    assert cli("install", "cursor", "--config", "ours.json", "--yes")[1] == "cursor: nothing to change\n"
    assert path.read_text(encoding="utf-8") == text
    assert cli("uninstall", "cursor", "--yes")[0] == 0
    assert path.read_text(encoding="utf-8") == THEIRS
    assert cli("uninstall", "cursor")[1] == "cursor: nothing to change\n"


@pytest.mark.parametrize("client", CLIENTS)
def test_every_clients_entry_is_recognized_by_import(cli, tmp_path, client):
    assert cli("install", client, "--config", "ours.json", "--yes")[0] == 0
    path = installing._file(client)
    text = path.read_text(encoding="utf-8")
    root = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    assert list(root[TABLE[client].section]) == ["gateway"]
    assert path.stat().st_mode & 0o077 == 0
    status, out, err = cli("import", client, "--config", "ours.json", "--yes")
    assert (status, "'gateway' is this gateway itself" in err) == (0, True), out


def test_nothing_is_written_without_an_agreement(cli, tmp_path, monkeypatch):
    path = put(tmp_path / ".cursor" / "mcp.json", THEIRS)
    assert cli("install", "cursor", "--config", "ours.json")[0] == 1
    monkeypatch.setattr(installing, "agreed", lambda _question: False)
    assert cli("install", "cursor", "--config", "ours.json")[0] == 1
    assert path.read_text(encoding="utf-8") == THEIRS


@pytest.mark.parametrize(
    ("target", "status"), [("real.json", 0), ("../dangling.json", 0), ("mcp.json", 1), (".", 2), (None, 1)]
)
def test_links_are_followed_or_refused(cli, tmp_path, target, status):
    path = tmp_path / ".cursor" / "mcp.json"
    put(path.with_name("real.json"), THEIRS)
    if target is None:  # no link, but a text that is not a config
        path.write_text("{", encoding="utf-8")
    else:
        path.symlink_to(target)
    assert cli("install", "cursor", "--config", "ours.json", "--yes")[0] == status
    if status:
        assert path.with_name("real.json").read_text(encoding="utf-8") == THEIRS
        assert target is not None or path.read_text(encoding="utf-8") == "{"
    else:
        assert "connect" in path.resolve().read_text(encoding="utf-8")
    assert path.is_symlink() is (target is not None)


def test_a_foreign_entry_of_that_name_stays(cli, tmp_path):
    path = put(tmp_path / ".cursor" / "mcp.json", '{"mcpServers": {"gateway": {"command": "x"}}}')
    before = path.read_text(encoding="utf-8")
    for words in (("install", "cursor", "--config", "ours.json"), ("uninstall", "cursor")):
        status, _, err = cli(*words, "--yes")
        assert (status, "--name NAME" in err) == (1, True)
    assert path.read_text(encoding="utf-8") == before
    assert cli("install", "cursor", "--config", "ours.json", "--yes", "--name", "mcp")[0] == 0
    assert list(json.loads(path.read_text(encoding="utf-8"))["mcpServers"]) == ["gateway", "mcp"]


def test_an_older_entry_of_ours_is_replaced(cli, tmp_path):
    older = {"mcpServers": {"gateway": {"command": "mcp-gateway", "args": ["serve"]}}}
    path = put(tmp_path / ".cursor" / "mcp.json", json.dumps(older))
    assert cli("install", "cursor", "--config", "ours.json", "--yes", "--view", "v")[0] == 0
    args = json.loads(path.read_text(encoding="utf-8"))["mcpServers"]["gateway"]["args"]
    assert args[-6:] == ["--separator", "__", "--max-name-length", "48", "--view", "v"]


def test_a_clients_own_command_does_the_writing(cli, tmp_path):
    program(tmp_path, "claude", NOTE)
    program(tmp_path, "codex", NOTE)
    status, out, _ = cli("install", "--all", "--config", "ours.json", "--yes")
    assert status == 0
    assert "claude mcp add-json --scope user gateway" in out
    added, other = called(tmp_path)
    assert added[:-1] == ["mcp", "add-json", "--scope", "user", "gateway"]
    assert "connect" in json.loads(added[-1])["args"]
    assert other[:4] == ["mcp", "add", "gateway", "--"]
    assert other[-2:] == ["--separator", "__"]


@pytest.mark.parametrize(
    ("client", "member", "written"),
    [
        ("codex", "env_vars", ["MY_KEY"]),
        ("gemini", "env", {"MY_KEY": "$MY_KEY"}),
        ("cursor", "env", None),
    ],
)
def test_clients_pass_on_the_variables_of_the_config(cli, tmp_path, monkeypatch, client, member, written):
    program(tmp_path, "codex", NOTE)  # its command has no option for them
    monkeypatch.setenv("MY_KEY", SECRET)
    env = {"A": "${MY_KEY:-}", "H": "${HOME}", "U": "${UNSET:-}"}
    put(tmp_path / "ours.json", json.dumps({"mcpServers": {"x": {"command": "x", "env": env}}}))
    assert cli("install", client, "--config", "ours.json", "--yes")[0] == 0
    path = installing._file(client)
    text = path.read_text(encoding="utf-8")
    root = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    assert root[TABLE[client].section]["gateway"].get(member) == written
    assert called(tmp_path) == []


def test_another_state_directory_is_part_of_the_entry(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert cli("install", "cursor", "--config", "ours.json", "--yes")[0] == 0
    args = json.loads((tmp_path / ".cursor" / "mcp.json").read_text(encoding="utf-8"))["mcpServers"]["gateway"]["args"]
    assert args[-2:] == ["--state-dir", str(tmp_path / "other" / "trio-mcp-gateway")]


def test_a_command_that_fails_is_reported(cli, tmp_path):
    program(tmp_path, "codex", "sys.exit('no such option')")
    status, _, err = cli("install", "codex", "--config", "ours.json", "--yes")
    assert status == 1
    assert "no such option" in err


def test_a_client_is_found_by_its_program(cli, tmp_path):
    program(tmp_path, "opencode", "sys.exit('its file is edited')")
    assert cli("install", "--all", "--config", "ours.json", "--yes")[0] == 0
    assert "connect" in (tmp_path / ".config" / "opencode" / "opencode.json").read_text(encoding="utf-8")


def test_a_client_that_fails_does_not_stop_the_others(cli, tmp_path):
    program(tmp_path, "claude", "sys.exit('no such option')")
    cursor = put(tmp_path / ".cursor" / "mcp.json", THEIRS)
    status, _, err = cli("install", "--all", "--config", "ours.json", "--yes")
    assert (status, "claude-code: " in err) == (1, True)
    assert "connect" in cursor.read_text(encoding="utf-8")


def test_only_present_clients_get_an_entry(cli, tmp_path):
    cursor = put(tmp_path / ".cursor" / "mcp.json", THEIRS)
    gemini = put(tmp_path / ".gemini" / "settings.json", "[]")
    status, _, err = cli("install", "--all", "--config", "ours.json", "--yes")
    assert status == 1
    assert "gemini: " in err
    assert gemini.read_text(encoding="utf-8") == "[]"
    assert "connect" in cursor.read_text(encoding="utf-8")
    assert not (tmp_path / ".codeium").exists()


@pytest.mark.parametrize("words", [(), ("cursor", "--all"), ("emacs",)])
def test_a_client_that_is_not_one_is_refused(cli, words):
    status, _, err = cli("install", *words, "--config", "ours.json", "--yes")
    assert status in {1, 2}
    assert ("write this into its config" if words == ("emacs",) else "--all") in err


def test_a_config_that_is_wrong_is_not_installed(cli, tmp_path):
    (tmp_path / "ours.json").write_text("{", encoding="utf-8")
    assert cli("install", "cursor", "--config", "ours.json", "--yes")[0] == 2
    assert not (tmp_path / ".cursor").exists()


# -- our own config ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.json", '{"mcpServers": {\n  "b": {"command": "y", "disabled": true}\n}}'),
        ("c.jsonc", '{"mcpServers": { // all\n  "b": {"command": "y", "disabled": true}, // one\n}}'),
        ("c.toml", '# all\n[mcpServers.b]\ncommand = "y" # one\ndisabled = true\n'),
    ],
)
def test_a_server_is_added_tried_and_removed_again(cli, tmp_path, name, text):
    path = put(tmp_path / name, text)
    backend = echo_backend()
    state = ("--state-dir", tmp_path / "state")
    words = ("add", "echo", "--config", path, "--env", "K=${K:-v}", *state, "--", backend["command"], *backend["args"])
    status, out, _ = cli(*words)
    assert status == 0
    assert "echo: ok" in out
    assert "  tools: echo\n" in out
    assert cli("check", path)[0] == 0
    status, _, err = cli(*words)
    assert (status, "--force replaces it" in err) == (1, True)
    assert cli("remove", "echo", "--config", path)[0] == 0
    assert path.read_text(encoding="utf-8").split() == text.split()
    assert cli("remove", "echo", "--config", path)[0] == 1


def test_an_address_is_a_remote_server(cli, tmp_path):
    cli("add", "far", "http://127.0.0.1:9/mcp", "--config", "ours.json", "--state-dir", tmp_path / "state")
    assert json.loads((tmp_path / "ours.json").read_text(encoding="utf-8")) == {
        "mcpServers": {"far": {"url": "http://127.0.0.1:9/mcp"}}
    }


@pytest.mark.parametrize(
    "words",
    [("add", "x"), ("add", "bad name", "--", "x"), ("add", "x", "http://h", "y"), ("add", "x", "y", "--env", "K")],
)
def test_configs_serve_would_refuse_are_not_written(cli, tmp_path, words):
    assert cli(words[0], "--config", "ours.json", *words[1:])[0] == 2
    assert (tmp_path / "ours.json").read_text(encoding="utf-8") == '{"mcpServers": {}}'
