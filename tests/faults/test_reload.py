"""Config reloads during calls: no call is lost, and unchanged backends are not touched."""

from __future__ import annotations

import json
import signal
import sys
from argparse import Namespace
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio

from benchmarks import reload
from tests.contract.support import FAST, SHUTDOWN_GRACE, structured_of
from tests.support.gateway_process import (
    ANSWER_WITHIN,
    START_WITHIN,
    HttpClient,
    bare_nursery,
    echo_backend,
    open_gateway_process,
    run_process,
)

EXTRA = {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}
TOKEN = "a-token-for-the-tests"
ENV = {"MCP_GATEWAY_ADMIN_TOKEN": TOKEN}


def backend(*args):
    return echo_backend(*args) | EXTRA


class Admin:
    """The management API of a gateway."""

    def __init__(self, gateway):
        self.base = gateway.url.removesuffix("/mcp")

    async def ask(self, method, path, body=None, **headers):
        # Asks over a connection of its own, so that nothing is left open.
        async with httpx2.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN) as client:
            headers = {"authorization": f"Bearer {TOKEN}", **headers}
            answer = await client.request(method, self.base + path, json=body, headers=headers)
            return answer.status_code, answer.json()

    async def until_servers(self, names):
        with trio.fail_after(ANSWER_WITHIN):
            while (await self.ask("GET", "/servers"))[1]["servers"] != names:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.02)


def config_path(gateway):
    """The file that the gateway was started with."""
    command = Path(f"/proc/{gateway.pid}/cmdline").read_bytes().split(b"\0")
    return Path(command[command.index(b"--config") + 1].decode())


def replace(path, config):
    path.with_suffix(".tmp").write_text(json.dumps(config), encoding="utf-8")
    path.with_suffix(".tmp").replace(path)


async def test_an_edit_and_sighup_spare_unchanged_backends():
    config = {"mcpServers": {"keep": backend(), "drop": backend()}, "gateway": {"start_grace": 10}}
    async with open_gateway_process(config, env=ENV) as gateway:
        client, admin, path = HttpClient(gateway.url), Admin(gateway), config_path(gateway)
        await client.initialize()
        before = structured_of(await client.call_tool("keep.env"))["pid"]
        answers = []

        async def call():
            answers.append(await client.call_tool("drop.sleep", {"seconds": 0.6, "text": "finished"}))

        async with bare_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(0.2)  # the call is under way
            replace(path, {"mcpServers": {"keep": backend(), "fresh": backend()}})
            await admin.until_servers(["keep", "fresh"])
        assert answers[0]["result"]["content"][0]["text"] == "finished"
        tools = {tool["name"].split(".")[0] for tool in (await client.request("tools/list"))["result"]["tools"]}
        assert tools == {"keep", "fresh"}
        path.write_text("{", encoding="utf-8")
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.wait_stderr("config rejected (SIGHUP)")
        _, health = await admin.ask("GET", "/health")
        assert (health["servers"], health["reload"]["ok"]) == (["keep", "fresh"], False)
        replace(path, {"mcpServers": {"keep": backend()}})
        gateway.process.send_signal(signal.SIGHUP)
        await admin.until_servers(["keep"])
        assert structured_of(await client.call_tool("keep.env"))["pid"] == before
        assert "Traceback" not in gateway.stderr_text


def test_random_reloads_under_load_lose_no_call():
    """A short form of `python -m benchmarks reload`; see there for what is done."""
    claims, (text, data) = reload.run(Namespace(reloads=9, clients=4, seed=4, quick=True))
    assert not data["wrong"], text
    assert not reload.fatal(claims), [claim.row() for claim in claims if not claim.reached]
    assert data["done"]["reloads"] == 9


@pytest.mark.parametrize(
    ("server", "code", "text", "expected"),
    [
        ("come", -32602, "Unknown tool: come.echo", True),
        ("many2", -32602, "Unknown tool: many2.echo", True),
        ("keep", -32602, "Unknown tool: keep.echo", False),
        ("many0", -32602, "Unknown tool: many0.echo", False),
        ("come", -32603, "backend 'come' was stopped", False),
    ],
)
def test_only_calls_to_removed_servers_may_be_refused(server, code, text, expected):
    assert reload.Caller.may_be_gone(server, {"code": code, "message": text}) is expected


async def test_api_changes_survive_a_restart(tmp_path):
    config = {"mcpServers": {"keep": backend()}, "gateway": {"start_grace": 10}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    env = {"MCP_GATEWAY_STATE_DIR": str(tmp_path / "state")}
    for turn in ("first", "second"):
        async with serve_file(path, env) as gateway:
            token = (tmp_path / "state" / "admin-token").read_text().strip()
            admin, client = Admin(gateway), HttpClient(gateway.url)
            headers = {"authorization": f"Bearer {token}"}
            if turn == "first":
                status, refused = await admin.ask("POST", "/servers", {"mcpServers": {"extra": backend()}})
                assert (status, "hint" in refused) == (401, True)
                body = {"mcpServers": {"extra": backend()}}
                assert await admin.ask("POST", "/servers", body, **headers) == (200, {"added": ["extra"]})
                assert (await admin.ask("DELETE", "/servers/keep", **headers))[0] == 200
            await client.initialize()
            answer = await client.call_tool("extra.echo", {"text": turn})
            assert answer["result"]["content"][0]["text"] == turn
            assert (await admin.ask("GET", "/servers"))[1]["servers"] == ["extra"]


@pytest.mark.parametrize("path", ["/servers", "/reload", "/servers/keep/restart"])
async def test_foreign_hosts_and_origins_are_refused_with_tokens(path):
    async with open_gateway_process({"mcpServers": {"keep": backend()}}, env=ENV) as gateway:
        admin = Admin(gateway)
        for headers in ({"host": "evil.example"}, {"origin": "https://evil.example"}):
            assert (await admin.ask("POST", path, {}, **headers))[0] == 403
        assert "config reloaded" not in gateway.stderr_text


async def test_shutdown_ends_the_event_stream_and_pending_reload():
    slow = {"command": "sleep", "args": ["100"], "shutdown_grace": SHUTDOWN_GRACE}
    async with open_gateway_process({"mcpServers": {"keep": backend()}}, env=ENV) as gateway, bare_nursery() as nursery:
        admin, events, statuses = Admin(gateway), [], []

        async def read():
            async with (
                httpx2.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN) as client,
                client.stream("GET", admin.base + "/events") as stream,
            ):
                events.extend([line async for line in stream.aiter_lines()])
            events.append("ended")

        async def add():
            statuses.append(await admin.ask("POST", "/servers", {"mcpServers": {"slow": slow}}))

        nursery.start_soon(read)
        nursery.start_soon(add)
        await gateway.wait_stderr("backend 'slow' is starting")
        gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(ANSWER_WITHIN):  # far less than the 100 s
            assert await gateway.process.wait() == 0
        with trio.fail_after(ANSWER_WITHIN):
            while not statuses or "ended" not in events:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
        assert statuses[0][0] == 503
        await gateway.wait_stderr_end()
        assert "Traceback" not in gateway.stderr_text


@asynccontextmanager
async def serve_file(path, env):
    """The gateway over a file of the test's own."""
    command = [sys.executable, "-m", "gateway", "serve", "--config", str(path), "--transport", "http", "--port", "0"]
    async with run_process(command, env=env) as gateway:
        line = await gateway.wait_stderr("listening on http://", within=START_WITHIN)
        gateway.url = line[line.index("http://") :].split()[0]
        yield gateway  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
        assert await gateway.stop() == 0
