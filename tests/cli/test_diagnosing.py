"""`mcp-gateway doctor --running` on real gateways: over the control socket, over HTTP, and without one."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio

from gateway.cli import main
from gateway.cli.diagnosing import show
from tests.support.gateway_process import echo_backend, open_gateway_process

pytestmark = pytest.mark.leak_check

WORKING = {"one": echo_backend() | {"shutdown_grace": [0.3, 0.3, 1], "env": {"API_KEY": "correct-horse"}}}
BROKEN = {"two": {"command": "/nowhere/to/be/found", "restart": False}}


@pytest.fixture
def doctor(capsys, tmp_path):
    async def run(*words):
        words = ["doctor", "--running", *words, "--state-dir", str(tmp_path)]
        with trio.fail_after(30):
            status = await trio.to_thread.run_sync(partial(main, words))
        return status, *capsys.readouterr()

    return run


async def test_a_gateway_on_stdio_is_examined(doctor, tmp_path):
    servers = {"mcpServers": WORKING | BROKEN}
    async with open_gateway_process(
        servers, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}, transport="stdio"
    ) as gateway:
        await gateway.stdio.initialize()
        await gateway.wait_stderr("'one' is ready")
        await gateway.wait_stderr("'two' is failed")
        await gateway.stdio.call_tool("one.echo", {"text": "hi"})
        status, out, err = await doctor()
        assert (status, err) == (1, "")
        assert out.startswith("2 servers, 1 ready, 1 failed\n")
        assert "\none: echo          1  " in out
        assert "problem: two: marked failed: " in out
        assert "warning: one: secrets in plain text in the config: env.API_KEY\n  hint: write ${NAME}" in out
        assert "correct-horse" not in out
        status, out, _ = await doctor("--json")
        found = json.loads(out)
        assert (status, found["findings"][0]["code"]) == (1, "unavailable")


async def test_a_gateway_is_examined_at_its_url(doctor, tmp_path):
    access = {"keys": [{"name": "me", "hash": "sha256:" + "0" * 64}]}
    config = {"mcpServers": WORKING, "access": access}
    async with open_gateway_process(config, env={"MCP_GATEWAY_STATE_DIR": str(tmp_path)}) as gateway:
        await gateway.wait_stderr("'one' is ready")
        status, out, _ = await doctor("--url", gateway.url)
        assert (status, out.startswith("1 server, 1 ready\n")) == (0, True)
        status, out, err = await doctor("--url", gateway.url, "--admin-token", "wrong")
        assert (status, out, "admin token" in err) == (1, "", True)


async def test_without_a_gateway_it_fails(doctor):
    status, out, err = await doctor()
    assert (status, out, "no gateway is running" in err) == (1, "", True)


@pytest.mark.parametrize("words", [["--running", "x.json"], ["x.json", "--url", "1"]])
def test_what_is_examined_is_one_thing(words, capsys):
    assert main(["doctor", *words]) == 2
    assert "--running" in capsys.readouterr().err


def test_nothing_found_is_said(capsys):
    view = {"view": None, "tools": 1, "bytes": 1000, "tokens_estimate": 250}
    show({"states": {"a": "ready"}, "slowest": [], "largest": [], "views": [view], "findings": []})
    assert capsys.readouterr().out.splitlines() == [
        "1 server, 1 ready",
        "",
        "views      tools  bytes  tokens (estimate)",
        "(no view)      1  1,000                250",
        "",
        "no problems found",
    ]
