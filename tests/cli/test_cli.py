"""The command line before serving: exit codes and messages."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import gateway
from gateway.access.keys import hash_key
from gateway.cli import main
from gateway.cli.app import read_with_typer
from gateway.cli.flags import convert, read_plain
from gateway.cli.main import COMMANDS, find_command
from gateway.config import parse_config
from tests.support.gateway_process import ROOT, echo_backend

pytestmark = pytest.mark.leak_check

GOOD = {"mcpServers": {"one": {"command": "echo-server", "args": ["-x"]}, "off": {"command": "x", "disabled": True}}}


def run(*args, program=("-m", "gateway")):
    """The command as a process of its own: (status, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, *program, *args],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def cli(capsys):
    """The command in this process: (status, stdout, stderr)."""

    def run_here(*args):
        try:
            status = main(list(map(str, args)))
        except SystemExit as exc:
            status = exc.code
        return status, *capsys.readouterr()

    return run_here


def write(folder, content):
    path = folder / "config.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def assert_refused(result, *parts, status=2, lines=1):
    found, out, err = result
    assert (found, out) == (status, ""), err
    said = [line for line in err.splitlines() if not line.startswith("  ")]  # `check` shows the location below each
    assert len(said) == lines, err
    for part in parts:
        assert part in err
    assert "Traceback" not in err


commands = pytest.mark.parametrize("command", [["check"], ["serve", "--config"]], ids=["check", "serve"])


@commands
def test_a_missing_config_is_named(cli, tmp_path, command):
    assert_refused(cli(*command, tmp_path / "nowhere.json"), "nowhere.json", "no such file")


@commands
def test_a_directory_is_not_a_config(cli, tmp_path, command):
    assert_refused(cli(*command, tmp_path), str(tmp_path), "is a directory")


def test_a_config_in_a_pipe_is_checked(cli, tmp_path):
    path = tmp_path / "config.json"
    os.mkfifo(path)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit(path.write_text, json.dumps(GOOD))
        status, out, _ = cli("check", path)
        written.result(10)
    assert status == 0
    assert out.endswith(": ok, 2 servers\n")


@commands
@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_config_is_named(cli, tmp_path, command):
    path = write(tmp_path, GOOD)
    path.chmod(0)
    assert_refused(cli(*command, path), "config.json", "permission denied")


@commands
@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"mcpServers": 5}', '{"servers": []}', "\x00", "{}"])
def test_guarantee_g4_invalid_config_text_is_one_line(cli, tmp_path, command, text):
    assert_refused(cli(*command, write(tmp_path, text)), "config.json")


@commands
def test_undecodable_bytes_are_one_line(cli, tmp_path, command):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe{\x00")
    assert_refused(cli(*command, path), "config.json")


@commands
def test_guarantee_g4_every_problem_names_server_and_field(cli, tmp_path, command):
    config = {
        "mcpServers": {
            "both": {"command": "x", "url": "http://localhost/mcp"},
            "neither": {},
            "slow": {"command": "x", "call_timeout": -1},
        },
        "gateway": {"separator": "/"},
    }
    result = cli(*command, write(tmp_path, config))
    assert_refused(result, "'both'", "'neither'", "'slow'", "'call_timeout'", "'separator'", lines=4)


def test_an_unset_variable_names_server_field_and_variable(cli, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    path = write(tmp_path, {"mcpServers": {"one": {"command": "x", "env": {"KEY": "${NO_SUCH_VARIABLE}"}}}})
    assert_refused(cli("check", path), "'one'", "env.KEY", "NO_SUCH_VARIABLE")


def test_check_shows_what_would_start(cli, tmp_path):
    config = GOOD | {"gateway": {"name": "mine"}}
    config["mcpServers"] = GOOD["mcpServers"] | {"far": {"url": "https://user:secret@example.com/mcp?key=secret"}}
    status, out, _err = cli("check", write(tmp_path, config))
    assert status == 0
    assert "one: stdio, runs echo-server -x" in out
    assert "off: disabled" in out
    assert "https://example.com/mcp" in out
    assert "secret" not in out
    assert "3 servers" in out


def test_check_warns_about_unknown_keys_and_is_content(cli, tmp_path):
    status, out, err = cli("check", write(tmp_path, {"mcpServers": {"one": {"command": "x", "comand": "y"}}}))
    assert status == 0
    assert "ok" in out
    assert "warning" in err
    assert "did you mean 'command'" in err


@pytest.mark.parametrize(
    ("args", "part"),
    [
        ([], "COMMAND"),
        (["nonsense"], "nonsense"),
        (["serve"], "--config"),
        (["serve", "--config", "x", "--transport", "carrier-pigeon"], "carrier-pigeon"),
        (["serve", "--config", "x", "--transport", ""], "transport"),
        (["serve", "--config", "x", "--transport", "stdio,streamable-http"], "stdio cannot be combined"),
        (["serve", "--config", "x", "--port", "65536"], "65536"),
        (["serve", "--config", "x", "--port", "-1"], "port"),
        (["serve", "--config", "x", "--port", "http"], "http"),
        (["serve", "--config", "x", "--log-level", "loud"], "loud"),
        (["serve", "--config", "x", "--streamable-http-path", "mcp"], "mcp"),
        (["serve", "--config", "x", "--unknown"], "--unknown"),
        (["check"], "FILE"),
    ],
)
def test_wrong_usage_is_2_and_names_what(cli, args, part):
    status, out, err = cli(*args)
    assert (status, out) == (2, "")
    assert part in err
    assert "--help" in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    "paths", [["--sse-path", "/mcp"], ["--message-path", "/sse/"], ["--streamable-http-path", "/messages"]]
)
def test_the_paths_of_the_transports_must_differ(cli, paths):
    status, out, err = cli("serve", "--config", "x", "--transport", "http,sse", *paths)
    assert (status, out) == (2, "")
    assert "three different paths" in err


def test_version(cli):
    assert cli("--version") == (0, f"mcp-gateway {gateway.__version__}\n", "")


@pytest.mark.parametrize("args", [["--help"], ["serve", "--help"], ["check", "--help"], ["demo", "--help"]])
def test_help(cli, args):
    status, out, err = cli(*args)
    assert (status, err) == (0, "")
    assert out.split()[:2] == ["Usage:", "mcp-gateway"]


def test_a_port_in_use_names_the_option(tmp_path):
    started = tmp_path / "started"
    server = {"command": sys.executable, "args": ["-c", f"open({str(started)!r}, 'w')"]}
    config = str(write(tmp_path, {"mcpServers": {"one": server}}))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, out, err = run("serve", "--config", config, "--transport", "streamable-http", "--port", port)
    said = [line for line in err.splitlines() if "error" in line]
    assert (status, out) == (1, "")
    assert len(said) == 1
    assert "--port" in said[0]
    assert port in said[0]
    assert "Traceback" not in err
    assert not started.exists()


def test_a_foreign_address_names_the_option(tmp_path):
    config = str(write(tmp_path, {"mcpServers": {}}))
    args = ("serve", "--config", config, "--transport", "streamable-http", "--port", "0", "--insecure", "--host")
    for host in ("192.0.2.1", "no-such-host.invalid"):
        status, out, err = run(*args, host)
        assert (status, out) == (1, ""), err
        assert "--host" in err
        assert "Traceback" not in err


def test_a_bad_config_never_reaches_stdout(tmp_path):
    status, out, err = run("serve", "--config", str(tmp_path / "nowhere.json"))
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_gateway_with_closed_stdio_ends_in_order(tmp_path, closed):
    """Service managers do this; sockets and pipes must not get the descriptor numbers."""
    path = write(tmp_path, {"mcpServers": {}})
    line = f'exec "$0" -m gateway serve --state-dir "$2" --config "$1" {closed}'
    done = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, str(path), str(tmp_path / "state")],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


class Unread(io.StringIO):
    """A stderr whose reader has gone."""

    def flush(self):
        raise BrokenPipeError


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("args", [("serve", "--config", "/nonexistent"), ("nothing",), ("serve", "--port", "0")])
def test_a_line_reaches_stderr_in_one_piece(tmp_path, args, unbuffered):
    """A separate thread writes logs: it would continue half a line."""
    if "--port" in args:
        path = write(tmp_path, {"mcpServers": {"away": {"command": "/nonexistent"}}})
        args = (*args, "--config", str(path), "--transport", "http", "--log-level", "debug")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps each write apart
    with ours, theirs:
        command = [sys.executable, "-m", "gateway", *args]
        env = {**os.environ, "PYTHONUNBUFFERED": unbuffered, "MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
        with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stderr=theirs) as process:
            theirs.close()
            ours.settimeout(30)
            written = []
            while data := ours.recv(1 << 16):
                written.append(data.decode())
                if "listening on" in written[-1]:
                    process.terminate()
    assert written
    assert [text for text in written if not text.endswith("\n")] == []


def test_unread_stderr_blocks_nothing(monkeypatch):
    monkeypatch.setattr("sys.stderr", Unread())
    assert main(["check", "/no/such/file"]) == 2


@pytest.mark.parametrize(
    "words",
    [
        ["serve", "--config", "a.json", "--transport=http,sse", "--port", "0", "--no-watch", "--host", "::1"],
        ["serve", "--config=a.json"],
        ["serve", "--config", "a", "--config", "b", "--admin-token", "x y"],
        ["login", "one", "--config", "a.json", "--no-browser"],
        ["login", "--config", "a.json", "one"],
        ["ps", "--json", "--state-dir", "/tmp/x"],
        ["check", "a.json"],
        ["fields"],
    ],
)
def test_both_readers_of_the_command_line_agree(words):
    command = find_command(words[0])
    plain = read_plain(command, words[1:])
    assert plain is not None
    other, raw = read_with_typer([find_command(name) for name in COMMANDS], words)
    assert other == command
    assert convert(command, raw) == convert(command, plain)


def test_guarantee_g3_transports_follow_defaults_and_options():
    serve = find_command("serve")

    def read(*words):
        values = convert(serve, read_plain(serve, ["--config", "x", *words]))
        paths = (values.streamable_http_path, values.sse_path, values.message_path)
        return values.transport, values.host, values.port, paths

    assert read() == (("stdio",), "127.0.0.1", 8080, ("/mcp", "/sse", "/messages/"))
    assert read("--transport", "http")[0] == ("streamable-http",)
    assert read("--transport", "streamable-http,sse", "--port", "0", "--sse-path", "/old")[0:4:2] == (
        ("streamable-http", "sse"),
        0,
    )
    assert read("--streamable-http-path", "/a", "--message-path", "/b")[3] == ("/a", "/sse", "/b")


def test_the_plain_parser_leaves_other_lines_to_typer():
    serve = find_command("serve")
    for words in (["--conf", "x"], ["--config"], ["--config", "-x"], ["x", "y"], ["-h"]):
        assert read_plain(serve, words) is None, words
    assert read_plain(serve, ["--config", "x", "--no-watch=1"]) is None


def test_a_plain_start_imports_no_typer(tmp_path):
    code = "import sys; from gateway.cli import main; main(sys.argv[1:]); sys.exit('typer' in sys.modules)"
    path = write(tmp_path, {"mcpServers": {}})
    args = ["serve", "--state-dir", str(tmp_path / "state"), "--config", str(path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *args],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_debug_shows_the_traceback(cli):
    status, out, err = cli("--debug", "serve", "--config", "/no/such/file")
    assert (status, out) == (2, "")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: /no/such/file")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_errors_are_red_only_on_a_terminal(monkeypatch):
    for no_color, text in (("", "\x1b[31merror: "), ("1", "error: ")):
        monkeypatch.setenv("NO_COLOR", no_color)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        assert main(["check", "/no/such/file"]) == 2
        assert terminal.getvalue().startswith(text)


def test_a_shell_can_complete(cli, monkeypatch):
    monkeypatch.setenv("_MCP_GATEWAY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "mcp-gateway serve --admin t")
    monkeypatch.setenv("COMP_CWORD", "3")
    assert cli() == (0, "token\n", "")


def test_a_shell_can_complete_the_names_of_servers(cli, monkeypatch, tmp_path):
    config = write(tmp_path, {"mcpServers": {"one": {"url": "http://x"}, "other": {"url": "${GONE}"}, "two": {}}})
    monkeypatch.setenv("_MCP_GATEWAY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"mcp-gateway login --config {config} o")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert cli() == (0, "one\nother\n", "")
    monkeypatch.setenv("COMP_WORDS", "mcp-gateway login --config /no/such/file o")
    assert cli() == (0, "\n", "")


def test_a_network_address_requires_keys(tmp_path):
    config = str(write(tmp_path, {"mcpServers": {}}))
    status, out, err = run("serve", "--config", config, "--transport", "http", "--port", "0", "--host", "0.0.0.0")
    assert (status, out) == (2, "")
    error, hint = err.splitlines()
    assert "--host 0.0.0.0" in error
    assert "hash-key" in hint
    assert "--insecure" in hint


def test_hash_key(capsys, monkeypatch):
    assert main(["hash-key", "alice", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    config = {"mcpServers": {}, "access": {"keys": [{"name": made["name"], "hash": made["hash"]}]}}
    (key,) = parse_config(config, environ={}).access.keys
    assert key.name == "alice"
    assert key.hash == hash_key(made["key"])
    for before in ("", "\ufeff"):  # PowerShell writes a byte order mark into pipes
        monkeypatch.setattr("sys.stdin", io.StringIO(before + made["key"] + "\n"))
        assert main(["hash-key", "--stdin"]) == 0
        out = capsys.readouterr().out
        assert made["hash"] in out
        assert made["key"] not in out
    monkeypatch.setattr("sys.stdin", io.StringIO("password\n"))
    assert main(["hash-key", "--stdin"]) == 2
    assert main(["hash-key", "a:b"]) == 2


def test_start_up_objects_are_frozen_for_the_collector(tmp_path):
    config = str(write(tmp_path, {"mcpServers": {}}))
    program = "import gc, sys; from gateway.cli.main import main; main(sys.argv[1:]); print(gc.get_freeze_count())"
    flags = ("--config", config, "--port", "0", "--state-dir", str(tmp_path))
    status, out, err = run("serve", *flags, program=("-c", program))
    assert status == 0, err
    assert int((out or err).split()[-1]) > 10_000  # the stdio frontend must have stdout alone


def test_an_interrupt_is_not_explained(capsys, monkeypatch):
    def interrupted(name):
        raise BaseExceptionGroup("", [BaseExceptionGroup("", [KeyboardInterrupt()])])

    monkeypatch.setattr(sys.modules["gateway.cli.main"], "find_command", interrupted)
    assert main(["list"]) == 1
    assert capsys.readouterr() == ("", "")


FILE_COMMANDS = [["check"], ["doctor"], ["serve"], ["list"], ["logout", "off"]]


@pytest.mark.parametrize("command", FILE_COMMANDS, ids=" ".join)
@pytest.mark.parametrize("spelling", ["argument", "option", "both", "none"])
def test_the_config_is_an_argument_or_an_option(cli, tmp_path, command, spelling, monkeypatch):
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "none.json"
    given = {"argument": [path], "option": ["--config", path], "both": [path, "--config", path], "none": []}[spelling]
    status, out, err = cli(*command, *given)
    expected = {"both": "two config files", "none": "no gateway is running" if command == ["list"] else "FILE"}
    assert (status, out) == (1 if command == ["list"] and spelling == "none" else 2, "")
    assert expected.get(spelling, "none.json: no such file") in err


JSON_COMMANDS = [name for name in COMMANDS if any(flag.name == "--json" for flag in find_command(name).flags)]
ALWAYS_WORK = {"fields", "schema", "ps"}


@pytest.mark.parametrize("name", JSON_COMMANDS)
@pytest.mark.parametrize("wrong", ["usage", "file"])
def test_a_failure_with_json_is_one_json_document(cli, tmp_path, name, wrong, monkeypatch):
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(tmp_path / "state"))
    path = tmp_path / "none.json"
    places = ["one" for flag in find_command(name).flags if not flag.is_option and flag.required]
    config = ["--config", path] if any(flag.name == "--config" for flag in find_command(name).flags) else []
    words = ["--unknown"] if wrong == "usage" else [*places, *config]
    if wrong == "file" and name in ALWAYS_WORK | {"hash-key", "check"}:
        return  # `check` has a report of its own, the others read no file and need no gateway
    status, out, err = cli(name, "--json", *words)
    assert status in {1, 2}
    assert set(json.loads(out)["error"]) <= {"code", "message", "hint"}
    assert "error: " in err


@pytest.mark.parametrize("args", [["schema"], ["fields", "--json"], ["list", "--json"], ["list"]], ids=" ".join)
def test_a_reader_that_closes_early_causes_no_error(tmp_path, args):
    path = write(tmp_path, {"mcpServers": {"many": echo_backend("--tools", "2000", "--plain")}})
    where = [str(path)] if args[0] == "list" else []
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", *args, *where], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.read(20)
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (0, b"")


def test_a_list_into_a_pipe_is_not_folded(cli, tmp_path):
    said = "words " * 40 + "end"
    server = echo_backend() | {"tools": {"include": ["echo", "env"], "overrides": {"echo": {"description": said}}}}
    status, out, _ = cli("list", "tools", write(tmp_path, {"mcpServers": {"e": server}}))
    title, echo, env = out.splitlines()
    assert (status, title) == (0, "tools (2)")
    assert echo.startswith("e.echo  ")
    assert echo.endswith(said)
    assert env.startswith("e.env   ")
