"""`reload`, `restart`, `enable` and `disable` on a running gateway."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial

import pytest
import trio

from gateway import open_gateway
from gateway.access.keys import hash_key
from gateway.cli import main
from gateway.cli.main import COMMANDS, find_command
from gateway.errors import ConfigError
from tests.support.gateway_process import HttpClient, echo_backend, open_gateway_process, run_process

pytestmark = pytest.mark.leak_check

QUICK = {"shutdown_grace": [0.3, 0.3, 1]}


def run(*args):
    """The command in this process: (status, stdout)."""
    out, before = io.StringIO(), sys.stdout
    sys.stdout = out
    try:
        return main([*map(str, args)]), out.getvalue()
    finally:
        sys.stdout = before


KEY = "mcpgw_key-of-the-command-line"
ACCESS = {"keys": [{"name": "me", "hash": hash_key(KEY)}]}


@pytest.mark.parametrize("access", [{}, ACCESS], ids=["open", "with keys"])
async def test_commands_change_a_gateway_with_its_stored_token(tmp_path, access, monkeypatch):
    monkeypatch.setenv("MCP_GATEWAY_KEY", KEY)
    state = tmp_path / "state"
    where = ["--state-dir", str(state)]

    async def do(*args):
        return await trio.to_thread.run_sync(partial(run, *args, *where))

    config = {"mcpServers": {"one": echo_backend() | QUICK, "two": echo_backend() | QUICK}, "access": access}
    async with open_gateway_process(config, env={"MCP_GATEWAY_STATE_DIR": str(state)}) as gateway:
        with trio.fail_after(30):
            status, out = await do("ps", "--json")
            assert (status, [one["name"] for one in json.loads(out)[0]["backends"]]) == (0, ["one", "two"])
            status, out = await do("list", "--json")
            assert (status, "one.echo" in out) == (0, True)
            assert await do("call", "one.echo", "text=hi") == (0, "hi\n")
            assert await do("disable", "two") == (0, "two: disabled\n")
            assert await do("enable", "two") == (0, "two: enabled\n")
            status, out = await do("restart", "one", "--json")
            assert (status, json.loads(out)) == (0, {"server": "one", "done": "restarted"})
            assert await do("reload", "--url", gateway.url) == (0, "reloaded: nothing has changed\n")
            assert await do("restart", "three") == (1, "")
            assert await do("reload", "--admin-token", "wrong-wrong-wrong-wrong") == (1, "")
            (state / "admin-token").unlink()
            assert await do("reload") == (1, "")


async def test_a_disabled_server_shows_when_and_why(tmp_path):
    where = ["--state-dir", str(tmp_path)]

    async def do(*args):
        return await trio.to_thread.run_sync(partial(run, *args, *where))

    def disabled(texts):
        assert re.fullmatch(r"disabled since 20\S+Z over the management API \(mcp-gateway disable\)", texts["two"])
        assert texts["off"] == "disabled by its config"

    servers = {"one": echo_backend() | QUICK, "two": echo_backend() | QUICK, "off": {"command": "x", "disabled": True}}
    with trio.fail_after(60):
        async with open_gateway_process(
            {"mcpServers": servers}, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}
        ) as gateway:
            config = gateway.process.args[gateway.process.args.index("--config") + 1]
            assert await do("disable", "two") == (0, "two: disabled\n")
            backends = {one["name"]: one for one in json.loads((await do("ps", "--json"))[1])[0]["backends"]}
            assert [one["state"] == "disabled" for one in backends.values()] == [False, True, True]
            disabled({name: one.get("disabled") for name, one in backends.items()})
            assert f"\ntwo: {backends['two']['disabled']}" in (await do("ps"))[1]
            disabled(json.loads((await do("check", config, "--json"))[1])["servers"])
            found = json.loads((await do("doctor", config, "--json"))[1])
            disabled({name: one.get("disabled") for name, one in found.items()})
            assert f"two: {found['two']['disabled']}\n" in (await do("doctor", config))[1]
            client = HttpClient(gateway.url)
            await client.initialize()
            for name in ("two.echo", "off.x"):
                error = (await client.call_tool(name))["error"]
                assert error["message"] == f"server {name.partition('.')[0]!r} is disabled"
                assert error["data"]["reason"] == "server_disabled"
            command = [sys.executable, "-m", "gateway", "serve", "--config", config, *where]
            async with run_process(command) as another:
                assert await another.wait_stderr("server 'two' is disabled since 20")
                assert await another.wait_stderr("server 'off' is disabled by its config")


async def test_a_gateway_on_stdio_is_listed_and_changed(tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(state))
    config = {"mcpServers": {"one": echo_backend() | QUICK, "away": {"command": "/nowhere", "restart": False}}}

    async def do(*args):
        status = await trio.to_thread.run_sync(main, list(args))
        return status, *capsys.readouterr()

    env = {"MCP_GATEWAY_STATE_DIR": str(state)}
    async with open_gateway_process(config, transport="stdio", env=env) as gateway:
        with trio.fail_after(30):
            await gateway.wait_stderr("'away' is failed")
            status, out, err = await do("list", "tools")
            assert status == 1
            assert "one.echo" in out
            assert err.startswith("warning: server 'away': cannot start: command '/nowhere' not found")
            status, out, _ = await do("list", "--json", "--url", str(gateway.pid))
            found = json.loads(out)
            assert {"one.echo", "one.env"} <= {tool["name"] for tool in found["tools"]}
            assert list(found["problems"]) == ["away"]
            assert (await do("disable", "away"))[:2] == (0, "away: disabled\n")
            assert (await do("list"))[0] == 0
            assert (await do("enable", "away"))[:2] == (1, "away: enabled\n")
            assert (await do("restart", "one"))[:2] == (0, "one: restarted\n")
            assert (await do("reload"))[:2] == (0, "reloaded: nothing has changed\n")
            status, out, err = await do("restart", "ones", "--json")
            assert (status, json.loads(out)["error"]["code"]) == (1, "unknown_server")
            assert "there is no server 'ones'; did you mean 'one'?" in err
            status, out, err = await do("call", "one.echo", "text=hi")
            assert (status, out) == (1, "")
            assert f"the gateway {gateway.pid} serves stdio" in err
            assert (await do("list", "--url", "999999999"))[0] == 1


def complete(*words):
    """Return the shell completions for the last word."""
    variables = {"_MCP_GATEWAY_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words)), **os.environ}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from gateway.cli import main; sys.argv[0] = 'mcp-gateway'; main()"],
        env={**variables, "COMP_WORDS": " ".join(["mcp-gateway", *words])},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.stdout.split()


async def test_tool_names_complete_from_gateway_or_state(tmp_path, monkeypatch):
    state = tmp_path / "state"
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(state))
    config = {"mcpServers": {"one": echo_backend() | QUICK}}
    path = tmp_path / "c.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    async with open_gateway_process(config, transport="stdio", env={"MCP_GATEWAY_STATE_DIR": str(state)}) as gateway:
        await gateway.wait_stderr("'one' is ready")
        assert await trio.to_thread.run_sync(complete, "call", "one.ec") == ["one.echo"]
        assert await trio.to_thread.run_sync(complete, "restart", "o") == ["one"]
    assert await trio.to_thread.run_sync(complete, "call", "--config", str(path), "one.ec") == ["one.echo"]
    assert await trio.to_thread.run_sync(complete, "call", "one.ec") == []


async def test_several_gateways_require_a_choice(tmp_path, capsys, monkeypatch):
    env = {"MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
    monkeypatch.setenv(*next(iter(env.items())))
    config = {"mcpServers": {"one": echo_backend() | QUICK}}
    async with (
        open_gateway_process(config, transport="stdio", env=env) as first,
        open_gateway_process(config, transport="stdio", env=env) as second,
    ):
        with trio.fail_after(30):
            for gateway in (first, second):
                await gateway.wait_stderr("'one' is ready")
            assert await trio.to_thread.run_sync(main, ["reload"]) == 1
            err = capsys.readouterr().err
            assert "2 gateways are running" in err
            assert all(f"--url {gateway.pid}" in err for gateway in (first, second))
            assert await trio.to_thread.run_sync(main, ["reload", "--url", str(second.pid)]) == 0


@pytest.mark.parametrize("command", [["list"], ["call", "one.echo"]], ids=["list", "call"])
async def test_a_missing_or_wrong_key_is_named(command, tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(state))
    config = {"mcpServers": {"one": echo_backend() | QUICK}, "access": ACCESS}
    async with open_gateway_process(config, env={"MCP_GATEWAY_STATE_DIR": str(state)}):
        with trio.fail_after(30):
            for key, hint in ((None, "is required"), ("wrong", "was rejected")):
                if key is not None:
                    monkeypatch.setenv("MCP_GATEWAY_KEY", key)
                assert await trio.to_thread.run_sync(main, [*command, "--json"]) == 1
                out, err = capsys.readouterr()
                code = "missing_credentials" if key is None else "invalid_token"
                assert json.loads(out)["error"]["code"] == code
                assert hint in err
                assert "MCP_GATEWAY_KEY" in err
                assert "OAuth" not in err


SECRET_FLAGS = [
    (name, flag.name)
    for name in COMMANDS
    for flag in find_command(name).flags
    if any(word in flag.name for word in ("token", "secret", "password"))
]


def test_every_command_with_a_secret_is_listed():
    assert {name for name, _ in SECRET_FLAGS} == {"serve", "reload", "restart", "enable", "disable", "doctor"}


@pytest.mark.parametrize("by", ["flag", "flag=", "variable"])
@pytest.mark.parametrize(("command", "flag"), SECRET_FLAGS)
def test_a_secret_on_the_command_line_warns(command, flag, by, tmp_path, capsys, monkeypatch):
    secret = "s3cret-s3cret-s3cret"
    words = {"flag": [flag, secret], "flag=": [f"{flag}={secret}"], "variable": []}[by]
    if by == "variable":
        monkeypatch.setenv("MCP_GATEWAY_ADMIN_TOKEN", secret)
    place = ["x"] if any(not one.is_option for one in find_command(command).flags) else []
    where = ["--config", str(tmp_path / "none.json")] if command == "serve" else ["--state-dir", str(tmp_path)]
    assert main([command, *place, *where, *words]) != 0  # nothing to serve, or no gateway that runs
    errors = capsys.readouterr().err
    assert ("warning:" in errors) is (by != "variable")
    assert by == "variable" or "set MCP_GATEWAY_ADMIN_TOKEN instead" in errors
    assert secret not in errors


@contextmanager
def open_peer(status, body):
    """Serve this answer to every POST; yield the address and received requests."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, self.headers.get("Authorization")))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/mcp", seen
        finally:
            server.shutdown()
            thread.join()


def test_an_unready_gateway_is_reported(capsys, tmp_path):
    with open_peer(200, b'{"server":"x/y","done":"enabled","not_ready":"is starting"}') as (url, seen):
        assert main(["enable", "x/y", "--url", url, "--admin-token", "t" * 16, "--state-dir", str(tmp_path)]) == 1
    assert seen == [("/servers/x%2Fy/enable", f"Bearer {'t' * 16}")]
    out, err = capsys.readouterr()
    assert out == "x/y: enabled\n"
    assert err.endswith("warning: server 'x/y' is not ready: is starting\n")


def test_a_refusal_is_shown_with_its_hint(capsys, tmp_path):
    body = b'{"error":"Invalid.","details":["server \'a\': wrong"],"hint":"look there"}'
    with open_peer(422, body) as (url, seen):
        assert main(["reload", "--url", url, "--state-dir", str(tmp_path)]) == 1
    assert seen == [("/reload", None)]
    assert capsys.readouterr().err == "error: Invalid.\n  server 'a': wrong\nhint: look there\n"


def test_a_foreign_server_is_reported(capsys, tmp_path):
    with open_peer(200, b"<html>") as (url, _):
        assert main(["reload", "--url", url, "--state-dir", str(tmp_path)]) == 1
    assert main(["reload", "--url", url, "--state-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "so this is not a gateway" in err
    assert "cannot be reached" in err


def test_a_local_token_is_sent_only_locally(monkeypatch, tmp_path):
    from gateway.cli.flags import Values
    from gateway.cli.management import _token

    monkeypatch.delenv("MCP_GATEWAY_ADMIN_TOKEN", raising=False)
    (tmp_path / "admin-token").write_text("kept-kept-kept-kept\n", encoding="ascii")
    (tmp_path / "admin-token").chmod(0o600)
    values = Values(url="http://elsewhere.example/mcp", admin_token=None, state_dir=tmp_path)
    assert _token(values, "elsewhere.example") is None
    assert _token(values, "127.0.0.1") == "kept-kept-kept-kept"


async def test_commands_reach_a_gateway_on_a_unix_socket(tmp_path, capsys, monkeypatch):
    state = tmp_path / "state"
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(state))
    config = {"mcpServers": {"echo": echo_backend()}}
    arguments = ["--uds", str(tmp_path / "s"), "--admin", "token"]
    async with open_gateway_process(config, env={"MCP_GATEWAY_STATE_DIR": str(state)}, extra_args=arguments) as gateway:
        assert gateway.url == f"http://unix:{tmp_path}/s:/mcp"
        with trio.fail_after(30):
            for where in ([], ["--url", gateway.url]):
                assert await trio.to_thread.run_sync(main, ["call", "echo.echo", "text=hi", *where]) == 0
                assert await trio.to_thread.run_sync(main, ["reload", *where]) == 0
    assert capsys.readouterr().out == 2 * "hi\nreloaded: nothing has changed\n"


PLANTED = "planted-token-0123456789"
OPEN = "can be written by other users (mode 0777); run `chmod go-w"


@pytest.fixture
def planted(tmp_path):
    """A world-writable state directory with another user's token and control socket."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    (state / "admin-token").write_text(PLANTED, encoding="ascii")
    (state / "admin-token").chmod(0o600)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(state / "control-1.sock"))
    listener.listen()
    state.chmod(0o777)
    with listener:
        yield state


@pytest.mark.parametrize(
    "command",
    [
        ["ps"],
        ["reload"],
        ["restart", "a"],
        ["enable", "a"],
        ["disable", "a"],
        ["reload", "--url", "http://127.0.0.1:9/mcp"],
        ["list"],
        ["call", "a.echo"],
        ["login", "a", "--config", "CONFIG"],
        ["logout", "a", "--config", "CONFIG"],
    ],
    ids=" ".join,
)
def test_a_command_refuses_a_world_writable_state_directory(command, planted, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(planted))
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"mcpServers": {"a": {"url": "http://127.0.0.1:9/mcp"}}}), encoding="utf-8")
    assert main([str(config) if word == "CONFIG" else word for word in command]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: state directory {planted} {OPEN} {planted}`"), err
    assert PLANTED not in out + err


def test_doctor_warns_of_a_world_writable_state_directory(planted, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(planted))
    (tmp_path / "c.json").write_text('{"mcpServers": {}}', encoding="utf-8")
    assert main(["doctor", str(tmp_path / "c.json")]) == 0
    assert f"warning: state directory {planted} {OPEN}" in capsys.readouterr().err


async def test_serve_ignores_a_world_writable_state_directory(planted):
    before = sorted(planted.rglob("*"))
    config = {"mcpServers": {"one": echo_backend() | QUICK}}
    async with open_gateway_process(config, env={"MCP_GATEWAY_STATE_DIR": str(planted)}) as gateway:
        with trio.fail_after(30):
            change = partial(main, ["reload", "--url", gateway.url, "--admin-token", PLANTED])
            assert await trio.to_thread.run_sync(change) == 1
        assert f"warning: state directory {planted} {OPEN}" in gateway.stderr_text
        assert "no admin token" in gateway.stderr_text
    assert sorted(planted.rglob("*")) == before


async def test_embedding_refuses_a_world_writable_state_directory(planted):
    with pytest.raises(ConfigError, match="can be written by other users"):
        async with open_gateway({"mcpServers": {}}, state_directory=planted):
            pytest.fail("it started")


@pytest.mark.parametrize("command", [["list"], ["call", "a.b"], ["reload"], ["restart", "a"]], ids=" ".join)
def test_an_invalid_address_is_named(command, capsys):
    assert main([*command, "--url", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("error: --url: 'nonsense' is not a URL; give one like http://")


def test_an_unreachable_gateway_has_its_exit_code(capsys, tmp_path):
    assert main(["list", "--json", "--url", "http://127.0.0.1:9/mcp", "--state-dir", str(tmp_path)]) == 1
    problem = json.loads(capsys.readouterr().out)["error"]
    assert problem["code"] == "backend_unavailable"
    assert problem["message"].startswith("http://127.0.0.1:9/mcp: cannot be reached")
