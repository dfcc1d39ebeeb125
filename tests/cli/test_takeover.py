"""`install --take-over`: servers move with consent, and none is lost."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tomllib

import pytest

from gateway.cli import main
from tests.support.gateway_process import ROOT, START_WITHIN, echo_backend

SECRET = "s3cr3t"
PLAIN = {"command": "absent-program", "args": ["--token", SECRET]}
KEYED = {"command": "absent-program", "env": {"API_KEY": SECRET}}
DIE = """
import os, pathlib, sys
from gateway.cli import main
left, replace = int(sys.argv.pop(1)), pathlib.Path.replace
def dying(self, target):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    return replace(self, target)
pathlib.Path.replace = dying
sys.exit(main(sys.argv[1:]))
"""
"""A run that is killed at its n-th rename."""


class Typed(io.StringIO):
    """What a user types at a terminal."""

    def isatty(self):
        return True


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
        "MY_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    put(tmp_path / "ours.json", {"mcpServers": {}}).chmod(0o600)

    def run(*args, typed=None):
        if typed is not None:
            monkeypatch.setattr(sys, "stdin", Typed(typed))
        status = main([*map(str, args), "--config", "ours.json"])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return status, out, err

    return run


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value, indent=2), encoding="utf-8")
    return path


def servers(path):
    return json.loads(path.read_text(encoding="utf-8"))["mcpServers"]


def cursor(tmp_path, **entries):
    return put(tmp_path / ".cursor" / "mcp.json", {"mcpServers": entries})


def test_servers_move_with_their_secrets_and_the_client_keeps_a_copy(cli, tmp_path):
    path = put(
        tmp_path / ".cursor" / "mcp.json",
        '{\n  // mine\n  "mcpServers": ' + json.dumps({"a b": PLAIN, "k": KEYED}) + "\n}",
    )
    before = path.read_text(encoding="utf-8")
    status, out, _ = cli("install", "cursor", "--take-over", "--yes")
    assert status == 0
    assert "a-b: runs absent-program --token ***" in out
    assert "    env: API_KEY=***" in out
    assert servers(tmp_path / "ours.json") == {"a-b": PLAIN, "k": KEYED}
    text = path.read_text(encoding="utf-8")
    assert "// mine" in text
    assert "gateway" in text
    assert SECRET not in text
    assert path.with_name("mcp.json.bak").read_text(encoding="utf-8") == before
    assert "absent-program" in out[out.index("a-b: ", out.index("absent-program")) :]  # each was started once
    assert cli("install", "cursor", "--take-over", "--yes")[1] == "cursor: nothing to change\n"


@pytest.mark.parametrize(
    ("words", "typed", "moves"),
    [
        (("--yes",), None, False),
        (("--take-over",), None, False),
        ((), "n\ny\n", False),
        ((), "y\nn\n", False),
        ((), "y\ny\n", True),
        (("--take-over",), "y\n", True),
        (("--yes",), "y\ny\n", False),
    ],
)
def test_nothing_moves_without_consent(cli, tmp_path, words, typed, moves):
    path = cursor(tmp_path, k=KEYED)
    _, _, err = cli("install", "cursor", *words, typed=typed)
    assert (servers(tmp_path / "ours.json") == {"k": KEYED}) is moves
    assert ("k" in servers(path)) is not moves
    assert ("--take-over moves them" in err) is ("--yes" in words)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"command": "x", "env": {"T": "${MY_TOKEN}"}}, "MY_TOKEN"),
        ({"command": "x", "args": ["${workspaceFolder}"]}, "project"),
        ({"command": "./x"}, "project"),
        ({"command": "x", "cwd": "folder"}, "project"),
        ({"command": "x", "args": 5}, "not a valid server"),
        (5, "not a valid server"),
        ({"command": "x", "call_timeout": -1, "cwd": "relative/../x\0"}, "stays"),
        ({"command": "another"}, "another server of that name"),
        ({"command": "y", "env": {"A": "${cmd:another x}"}}, "another server of that name"),
        ({"command": "mcp-gateway", "args": ["serve", "--config", "ours.json"]}, "is a gateway too"),
    ],
)
def test_a_server_that_would_break_stays(cli, tmp_path, entry, why):
    put(
        tmp_path / "ours.json",
        {"mcpServers": {"s": {"command": "y", "env": {"A": "${cmd:/bin/echo}"}}}}
        if "another" in why
        else {"mcpServers": {}},
    )
    path = cursor(tmp_path, s=entry, k=KEYED)
    before = servers(tmp_path / "ours.json")
    status, _, err = cli("install", "cursor", "--take-over", "--yes")
    assert status == 0
    assert why in err
    assert servers(path)["s"] == entry
    assert servers(tmp_path / "ours.json") == before | {"k": KEYED}


def test_clients_with_the_same_server_share_it(cli, tmp_path):
    first = cursor(tmp_path, same=KEYED | {"type": "stdio"}, other=PLAIN)
    second = put(tmp_path / ".gemini" / "settings.json", {"mcpServers": {"same": KEYED, "other": KEYED}})
    status, _, err = cli("install", "--all", "--take-over", "--yes")
    assert status == 0
    assert servers(tmp_path / "ours.json") == {"same": KEYED | {"type": "stdio"}, "other": PLAIN}
    assert [*servers(first)] == ["gateway"]
    assert sorted(servers(second)) == ["gateway", "other"]
    assert "another server of that name" in err


def test_a_clients_own_command_removes_them(cli, tmp_path):
    listed = put(
        tmp_path / ".codex" / "config.toml",
        '[mcp_servers.k]\ncommand = "absent-program"\n[mcp_servers.k.env]\nAPI_KEY = "s3cr3t"\n',
    )
    program = put(
        tmp_path / "bin" / "codex", f"#!{sys.executable}\nimport sys\nprint(*sys.argv[1:4], file=open('called', 'a'))\n"
    )
    program.chmod(0o755)
    assert cli("install", "codex", "--take-over", "--yes")[0] == 0
    assert (tmp_path / "called").read_text(encoding="utf-8").splitlines() == ["mcp add gateway", "mcp remove k"]
    assert servers(tmp_path / "ours.json") == {"k": KEYED}
    assert listed.with_name("config.toml.bak").read_bytes() == listed.read_bytes()


def test_toml_loses_its_servers(cli, tmp_path):
    path = put(
        tmp_path / ".codex" / "config.toml",
        '# mine\n[mcp_servers.k]\ncommand = "absent-program"\n[mcp_servers.k.env]\nAPI_KEY = "s3cr3t"\n',
    )
    assert cli("install", "codex", "--take-over", "--yes")[0] == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# mine\n")
    assert list(tomllib.loads(text)["mcp_servers"]) == ["gateway"]
    assert servers(tmp_path / "ours.json") == {"k": KEYED}


def test_a_new_config_is_for_its_user_alone(cli, tmp_path):
    path = tmp_path / "ours.json"
    path.unlink()
    cursor(tmp_path, k=KEYED)
    _, _, err = cli("install", "cursor", "--take-over", "--yes")
    assert servers(path) == {"k": KEYED}
    assert path.stat().st_mode & 0o077 == 0
    assert "chmod" not in err


def test_a_config_that_would_be_empty_is_not_made(cli, tmp_path):
    (tmp_path / "ours.json").unlink()
    path = cursor(tmp_path)
    status, _, err = cli("install", "cursor", "--take-over", "--yes")
    assert (status, "no server moves to it" in err) == (1, True)
    assert servers(path) == {}


def test_a_readable_config_gets_a_warning(cli, tmp_path):
    (tmp_path / "ours.json").chmod(0o644)
    cursor(tmp_path, k=KEYED)
    assert "chmod 600" in cli("install", "cursor", "--take-over", "--yes")[2]


def test_a_config_that_cannot_be_edited_stops_it(cli, tmp_path):
    put(tmp_path / "ours.json", '{"mcpServers": {}, "mcpServers": {}}')
    path = cursor(tmp_path, k=KEYED)
    assert cli("install", "cursor", "--take-over", "--yes")[0] == 2
    assert servers(path) == {"k": KEYED}


def test_a_working_server_is_known_afterwards(cli, tmp_path):
    cursor(tmp_path, echo=echo_backend())
    status, out, _ = cli("install", "cursor", "--take-over", "--yes")
    assert status == 0
    assert "echo: ok" in out


@pytest.mark.parametrize("present", [{}, {"k": {"command": "another"}}])
def test_no_command_for_a_value_runs_without_consent(cli, tmp_path, present):
    put(tmp_path / "ours.json", {"mcpServers": present})
    cursor(tmp_path, k={"command": "absent-program", "env": {"T": f"${{cmd:/usr/bin/touch {tmp_path}/ran}}"}})
    out = cli("install", "cursor", typed="n\nn\n")[1]
    assert ("runs for a value: /usr/bin/touch" in out) is not bool(present)
    assert not (tmp_path / "ran").exists()


def test_a_command_cannot_hide_itself(cli, tmp_path):
    cursor(tmp_path, k={"command": "evil\x1b[1A\x1b[2Kgood\u202e"})
    assert "runs evil\\x1b[1A\\x1b[2Kgood\\u202e" in cli("install", "cursor", "--take-over", "--yes")[1]


def test_a_file_that_changes_during_the_question_stays(cli, tmp_path, monkeypatch):
    path = cursor(tmp_path, k=KEYED)
    changed = json.dumps({"mcpServers": {"k": KEYED, "new": PLAIN}})

    class Late(Typed):
        def readline(self, *_):
            put(path, changed)
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Late())
    status, _, err = cli("install", "cursor", "--take-over")
    assert (status, "changed meanwhile" in err) == (1, True)
    assert path.read_text(encoding="utf-8") == changed
    assert cli("install", "cursor", "--take-over", "--yes")[0] == 0
    assert servers(tmp_path / "ours.json") == {"k": KEYED, "new": PLAIN}


@pytest.mark.parametrize("renames", range(3))
def test_a_killed_run_loses_no_server_and_can_be_repeated(cli, tmp_path, renames):
    # The renames: our config, the backup, the client's file.
    path = cursor(tmp_path, k=KEYED, p=PLAIN)
    command = [
        sys.executable,
        "-c",
        DIE,
        str(renames),
        "install",
        "cursor",
        "--take-over",
        "--yes",
        "--config",
        "ours.json",
    ]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=START_WITHIN, check=False)
    assert killed.returncode == -9, killed.stderr
    assert {*servers(path), *servers(tmp_path / "ours.json")} == {"k", "p"}
    assert servers(path) == {"k": KEYED, "p": PLAIN}
    assert cli("install", "cursor", "--take-over", "--yes")[0] == 0
    assert [*servers(path)] == ["gateway"]
    assert servers(tmp_path / "ours.json") == {"k": KEYED, "p": PLAIN}


def test_a_full_disk_leaves_the_clients_file_whole(cli, tmp_path):
    path = put(tmp_path / ".cursor" / "mcp.json", "// " + "x" * 3_000 + "\n" + json.dumps({"mcpServers": {"k": KEYED}}))
    before = path.read_bytes()
    command = f'ulimit -f 1; exec "{sys.executable}" -m gateway install cursor --take-over --yes --config ours.json'
    env = os.environ | {"PYTHONPATH": str(ROOT), "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    full = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, timeout=START_WITHIN, check=False
    )
    assert full.returncode == 1, full.stderr
    assert b"cannot be written: File too large" in full.stderr
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["mcp.json"]
    assert servers(tmp_path / "ours.json") == {"k": KEYED}
