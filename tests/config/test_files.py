"""Files on disk, the examples, the comparison of configs, the field reference, and import cost."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from gateway.config import (
    AuditSettings,
    GatewaySettings,
    ServerConfig,
    ShutdownGrace,
    changed_at_start_only,
    config_reference,
    diff_configs,
    load_config,
    parse_config,
)
from gateway.config.files import MAX_FILE_BYTES, FileReader, SpecialFile, UnreadableFile, read_at_most
from gateway.config.model import NOT_WRITTEN
from gateway.errors import ConfigError
from gateway.reload.source import ConfigSource
from gateway.reload.watch import mark_of

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRON = {"HOME": "/home/u"}


def problem(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ=ENVIRON)
    (line,) = caught.value.problems
    return line


def test_guarantee_g4_minimal_example() -> None:
    config = load_config(EXAMPLES / "minimal.json", environ=ENVIRON)
    assert config.servers == {
        "time": ServerConfig(name="time", transport="stdio", command="uvx", args=("mcp-server-time",))
    }
    assert (config.gateway, config.warnings) == (GatewaySettings(), ())
    assert config.source == str(EXAMPLES / "minimal.json")


def test_full_example_shows_every_field_with_no_warning() -> None:
    config = load_config(EXAMPLES / "full.json", environ=ENVIRON)
    assert config.warnings == ()
    raw = json.loads((EXAMPLES / "full.json").read_text(encoding="utf-8"))
    servers = raw["mcpServers"].values()
    shown = {("mcpServers.NAME", key) for fields in servers for key in fields} | {
        ("gateway", key) for key in raw["gateway"]
    }
    for section in ("restart", "shutdown_grace", "rate_limit", "circuit_breaker", "crash_limit"):
        shown |= {(f"mcpServers.NAME.{section}", key) for key in raw["mcpServers"]["local"][section]}
    tools = raw["mcpServers"]["local"]["tools"]
    shown |= {("mcpServers.NAME.tools", key) for key in tools}
    shown |= {("mcpServers.NAME.tools.overrides.NAME", key) for one in tools["overrides"].values() for key in one}
    shown |= {("views.NAME", key) for view in raw["views"].values() for key in view}
    shown |= {("views.NAME.tools", key) for view in raw["views"].values() for key in view["tools"]}
    shown |= {("gateway.audit", key) for key in raw["gateway"]["audit"]}
    shown |= {("mcpServers.NAME.oauth", key) for key in raw["mcpServers"]["probed"]["oauth"]}
    rows = [row for row in config_reference() if not row.section.startswith("access")]  # it has tests of its own
    assert shown == {(row.section, row.field) for row in rows}
    local = config.servers["local"]
    assert (local.command, local.args[-1], local.cwd) == ("/home/u/bin/my-server", "/home/u/data", "/home/u/data")
    assert local.env == {"SERVICE_REGION": "eu-west", "API_KEY": "unset", "PRICE": "${AMOUNT}"}
    assert local.shutdown_grace == ShutdownGrace(5.0, 3.0, 2.0)
    assert [server.transport for server in config.servers.values()] == ["stdio", "streamable-http", None]
    assert config.gateway.audit == AuditSettings("/home/u/audit.jsonl", arguments=True)
    default = GatewaySettings()
    same = [name for name in default.__struct_fields__ if getattr(config.gateway, name) == getattr(default, name)]
    assert same == []


def test_a_0_1_0_config_still_loads_completely() -> None:
    """The example has every key and spelling of 0.1.0; all must remain valid."""
    config = load_config(EXAMPLES / "full-0.1.0.json", environ=ENVIRON)
    assert config.warnings == ()
    servers = config.servers
    spelled, filtered = servers["spelled"], [server for name, server in servers.items() if name.startswith("filtered")]
    assert (spelled.transport, spelled.call_timeout, spelled.disabled) == ("streamable-http", pytest.approx(60), False)
    assert spelled.oauth is not None
    assert (spelled.oauth.client_id, spelled.oauth.redirect_port, spelled.oauth.scopes) == (
        "gateway", 8765, ("read", "write"),
    )  # fmt: skip
    assert spelled.tools.overrides["look_up"].name == "find"
    assert spelled.tools.overrides["look_for"].name == "search"
    assert [server.tools.include for server in filtered] == [("a",)] * 6
    assert [server.tools.exclude for server in filtered] == [("b",)] * 4 + [()] * 2
    assert config.views["spelled"].max_name_length == 64
    assert config.access.oauth is not None
    assert [key.name for key in config.access.keys] == ["alice", "ci"]


def test_another_clients_file() -> None:
    config = load_config(EXAMPLES / "claude-desktop.json", environ=ENVIRON)
    assert [server.disabled for server in config.servers.values()] == [False, False, True]
    assert config.servers["filesystem"].args[-1] == "/home/u/Documents"
    assert config.servers["github"].call_timeout == pytest.approx(60)
    assert len(config.warnings) == 4


def test_guarantee_g4_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    assert problem(path) == f"{path}: no such file; check its path"


def test_directory(tmp_path: Path) -> None:
    assert problem(tmp_path) == f"{tmp_path}: is a directory; name the file in it"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("size", [0, 1, 65_537, 400_000])
def test_a_named_pipe_is_read_to_its_end(pipe: Path, size: int) -> None:
    text = b" " * size
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pipe.write_bytes, text)
        assert read_at_most(pipe, 10**6, timeout=10) == (text, True)
        assert written.result(10) == size


def test_an_unfinished_pipe_fails_clearly(pipe: Path) -> None:
    with pytest.raises(SpecialFile, match="is a pipe whose writer has written nothing within"):
        read_at_most(pipe, 100, timeout=0.05)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pipe.open("wb", buffering=0) as writer:
        writer.write(b"half")
        with pytest.raises(SpecialFile, match="is a pipe whose writer has not closed it within"):
            read_at_most(pipe, 100, timeout=0.05)
        writer.write(b"x" * 200)
        assert len(read_at_most(pipe, 100, timeout=0.05)[0]) == 101  # no more is read than shows that it is too much
    os.close(reading)


def test_special_files_are_refused_by_what_they_are(tmp_path: Path) -> None:
    assert problem(Path("/dev/zero")) == "/dev/zero: is a device; name a file"
    with socket.socket(socket.AF_UNIX) as unix, contextlib.chdir(tmp_path):
        unix.bind("s")
    assert problem(tmp_path / "s") == f"{tmp_path / 's'}: is a socket; name a file"


def test_an_oversized_pipe_is_refused_each_time(pipe: Path) -> None:
    read = FileReader(pipe.parent, None, {})
    with ThreadPoolExecutor() as pool:
        pool.submit(pipe.write_bytes, b"x" * (MAX_FILE_BYTES + 1))
        for _ in range(2):
            with pytest.raises(UnreadableFile, match="is larger than 64 KiB"):
                read(pipe.name)


def test_a_config_pipe_is_not_read_again(pipe: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ConfigSource(pipe, environ={})
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(pipe.write_bytes, b'{"mcpServers": {"a": {"command": "x"}}}')
        assert list(source.open().servers) == ["a"]
        written.result(10)
    mark = source.mark
    assert mark_of(pipe) == mark  # writing to it or reading from it is not a change
    assert source.read() is source.base
    assert "was read at the start" in caplog.text
    pipe.unlink()
    pipe.write_bytes(b'{"mcpServers": {"b": {"command": "x"}}}')  # a file takes its place
    assert mark_of(pipe) != mark
    assert list(source.read().config.servers) == ["b"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    path.touch(mode=0)
    assert problem(path) == f"{path}: permission denied; make it readable for this user"


def test_permission_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)
    assert problem(Path("x.json")) == "x.json: permission denied; make it readable for this user"


def test_paths_through_files_or_with_nul_fail_clearly(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert problem(tmp_path / "f" / "x.json").endswith("cannot be read: not a directory")
    assert problem(Path("a\0b")) == "'a\\x00b': cannot be read: not a path"


def test_a_huge_file(tmp_path: Path) -> None:
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(17 * 2**20)
    assert problem(path) == f"{path}: is larger than 16 MiB, too large for a config"


def test_not_text(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\n\n\x80")
    assert problem(path) == f"{path}: line 3: is not UTF-8 text; save it as UTF-8"


def test_difference() -> None:
    old = parse_config({"mcpServers": {name: {"command": name} for name in "abcd"}}, environ={})
    new = parse_config(
        {
            "servers": {
                "e": {"command": "e"},
                "d": {"command": "d", "disabled": True},
                "b": {"command": "b", "timeout": 1},
                "a": {"type": "stdio", "command": "a", "args": []},
            },
            "gateway": {"separator": "_"},
        },
        environ={},
    )
    diff = diff_configs(old, new)
    assert (diff.added, diff.removed, diff.changed, diff.unchanged) == (("e",), ("c",), ("d", "b"), ("a",))
    assert diff_configs(old, old).unchanged == tuple("abcd")


@pytest.mark.parametrize("name", GatewaySettings.__struct_fields__)
def test_start_only_settings_are_described_as_such(name) -> None:
    changed = changed_at_start_only(GatewaySettings(), msgspec.structs.replace(GatewaySettings(), **{name: object()}))
    (doc,) = (row.doc for row in config_reference() if (row.section, row.field) == ("gateway", name))
    assert changed == ([name] if doc.endswith("A change applies at the next start.") else [])


def test_listener_and_session_settings_need_a_restart() -> None:
    other = {
        "max_sessions": 1,
        "log_format": "json",
        "page_size": 1,
        "start_grace": 1.0,
    }
    found = changed_at_start_only(GatewaySettings(), msgspec.structs.replace(GatewaySettings(), **other))
    assert found == ["max_sessions", "log_format"]


def test_reference() -> None:
    rows = {(row.section, row.field): row for row in config_reference()}
    assert len(rows) == len(config_reference()) > 100  # none twice
    for row in rows.values():
        assert row.doc.endswith(".")
        assert row.type
    timeout = rows["mcpServers.NAME", "call_timeout"]
    assert (timeout.type, timeout.default) == ("a number of seconds above 0", "300")
    assert rows["gateway", "separator"].default == '"."'
    assert rows["gateway", "page_size"].default == "none"


def test_every_default_passes_its_own_check() -> None:
    """Writing a default into the file must change nothing."""
    gateway = msgspec.to_builtins(GatewaySettings())
    server = {
        key: value
        for key, value in msgspec.to_builtins(ServerConfig(name="s", command="x")).items()
        if key not in NOT_WRITTEN | {"headers", "oauth"}
    }
    config = parse_config({"mcpServers": {"s": server}, "gateway": gateway}, environ={})
    assert config.warnings == ()
    assert config.gateway == GatewaySettings()
    assert config.servers["s"] == ServerConfig(name="s", transport="stdio", command="x")


def test_the_import_brings_nothing_heavy() -> None:
    """A desktop client waits for the start: only msgspec and json may be imported."""
    script = (
        "import sys, gateway.config, gateway.errors; "
        "print(*sorted({'trio', 'anyio', 'mcp', 'difflib', 'urllib.parse', 'hypercorn'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert not found.stdout.strip()
