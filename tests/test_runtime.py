"""The runtime shared by the command and embedded gateways: reload and shutdown order."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.app import Gateway, Options
from gateway.calls import Caller, Era
from gateway.config import parse_config
from gateway.embed.native import EmbeddedGateway, open_gateway
from gateway.errors import ConfigError, Revoked, ShuttingDown
from gateway.masking import SECRETS
from gateway.runtime import MAX_DEPTH, Lineage
from tests.support.access import Harness, Unguarded, keys, make_config, open_harness, running
from tests.support.fakes import SOON, FakeExchange, make_call, settle
from tests.support.gateway_process import ROOT, HttpClient, echo_backend, open_gateway_process, run_process

if TYPE_CHECKING:
    from trio.testing import MockClock

    from gateway.access.principals import Principal
    from gateway.config import Config
    from gateway.inflight.pending import PendingCall

QUICK = {"restart": {"max_quick_failures": 1}, "shutdown_grace": [0.3, 0.3, 1]}


def serving(config: Path) -> dict[str, Any]:
    """The entry of a gateway with this config."""
    return {"command": sys.executable, "args": ["-m", "gateway", "serve", "--config", str(config)], "cwd": str(ROOT)}


META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}}
SECRET = "hunter2-hunter2-hunter2"


def config_of(access: object = None, **settings: Any) -> dict[str, Any]:
    raw: dict[str, Any] = {"mcpServers": {"a": echo_backend()}, "gateway": settings}
    return raw if access is None else {**raw, "access": access}


async def list_tools(gw: EmbeddedGateway) -> tuple[int | None, Any]:
    """The status and the message of a `tools/list` at the ASGI application."""
    headers = {
        "host": "any.example",
        "content-type": "application/json",
        "mcp-protocol-version": "2026-07-28",
        "mcp-method": "tools/list",
    }
    exchange = FakeExchange(json.dumps(LIST).encode(), headers=headers)
    await gw.asgi_app(exchange.scope, exchange.receive, exchange.send)
    return exchange.status, json.loads(exchange.body)


# -- Reloads of an embedded gateway ------------------------------------------------------------------------------------


@pytest.mark.leak_check
async def test_a_reload_changes_an_embedded_gateways_pages() -> None:
    with trio.fail_after(SOON):
        async with open_gateway(config_of()) as gw:
            await gw.list_tools()
            assert "nextCursor" not in (await list_tools(gw))[1]["result"]
            await gw.reload(config_of(page_size=1))
            result = (await list_tools(gw))[1]["result"]
            assert len(result["tools"]) == 1
            assert result["nextCursor"]
            await gw.reload(config_of())
            assert "nextCursor" not in (await list_tools(gw))[1]["result"]


async def test_a_reload_changes_an_embedded_gateways_body_limit() -> None:
    empty: dict[str, Any] = {"mcpServers": {}}
    with trio.fail_after(SOON):
        async with open_gateway(empty) as gw:
            assert (await list_tools(gw))[0] == 200
            await gw.reload({**empty, "gateway": {"max_body_bytes": 10}})
            assert (await list_tools(gw))[0] == 413


@pytest.mark.leak_check
@pytest.mark.parametrize("when", ["start", "reload"])
async def test_an_embedded_gateway_keeps_the_audit(tmp_path: Path, when: str) -> None:
    path = tmp_path / "audit.jsonl"
    audited = config_of(audit={"file": str(path)})
    with trio.fail_after(SOON):
        async with open_gateway(audited if when == "start" else config_of()) as gw:
            if when == "reload":
                await gw.call_tool("a.echo", {"text": "before"})
                await gw.reload(audited)
            await gw.call_tool("a.echo", {"text": "x"})
            with pytest.raises(RuntimeError):
                await gw.call_tool("a.nothing")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["name"], line["outcome"]) for line in lines] == [("a.echo", "answered"), ("a.nothing", "refused")]


async def test_an_embedded_gateway_notes_requests_without_a_key(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    raw = {"mcpServers": {}, "access": keys(), "gateway": {"audit": {"file": str(path)}}}
    with trio.fail_after(SOON):
        async with open_gateway(raw) as gw:
            assert (await list_tools(gw))[0] == 401
    (line,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert (line["outcome"], line["code"], line["path"]) == ("denied", 401, "/mcp")


def secret_config(secret: str | None) -> Config:
    """A config whose secret belongs to no server, so that only the runtime masks it."""
    headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
    server = {"url": "http://127.0.0.1:1/mcp", "headers": headers, "disabled": True}
    return parse_config({"mcpServers": {"off": server}}, environ={})


@pytest.mark.parametrize("when", ["start", "reload"])
async def test_an_embedded_gateway_masks_its_secrets(when: str) -> None:
    text = f"it said {SECRET}"
    assert SECRETS.mask(text) == text
    with trio.fail_after(SOON):
        async with open_gateway(secret_config(SECRET if when == "start" else None)) as gw:
            if when == "reload":
                assert SECRETS.mask(text) == text
                await gw.reload(secret_config(SECRET))
            assert SECRET not in SECRETS.mask(text)
            await gw.reload(secret_config(None))
            assert SECRETS.mask(text) == text
    assert SECRETS.mask(text) == text


CHANGED: dict[str, Any] = {
    "name": "other",
    "log_format": "json",
    "max_sessions": 7,
    "max_connections": 7,
    "max_silent_connections": 7,
    "session_idle_timeout": 7.0,
    "max_client_requests": 7,
    "max_buffered_bytes": 7,
    "request_state_keys": "A" * 43,
}


@pytest.mark.parametrize("host", ["command", "embedded"])
async def test_changed_start_only_settings_are_named(host: str, caplog: pytest.LogCaptureFixture) -> None:
    await trio.lowlevel.checkpoint()  # a gateway is made where a loop runs
    guard: Any = Unguarded()
    before, after = ({"mcpServers": {}, "gateway": settings} for settings in ({}, CHANGED))
    one = parse_config(before, environ={})
    caplog.set_level(logging.WARNING, "gateway")
    if host == "command":
        await Gateway(one, Options(), guard)._apply(parse_config(after, environ={}))
    else:
        await EmbeddedGateway(one, guard).reload(after)
    named = [record.getMessage().split()[0].removeprefix("gateway.") for record in caplog.records]
    assert sorted(named) == sorted(CHANGED)


# -- The end of a principal --------------------------------------------------------------------------------------------


class Recorder:
    """Records, when a principal ends, its open sessions and whether its call has ended."""

    def __init__(self, harness: Harness, pending: PendingCall) -> None:
        self.harness = harness
        self.pending = pending
        self.found: list[tuple[str, int, bool]] = []

    def apply_access(self) -> None:
        pass

    def update_principal(self, principal: Principal) -> None:
        pass

    def end_principal(self, principal: Principal) -> None:
        self.found.append((principal.name, self.harness.mcp.sessions, self.pending.over))


async def test_a_principals_sessions_end_before_its_calls(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as harness:
        await harness.call(await harness.initialize())
        pending = await harness.router.submit(make_call("a.x", caller=alice()))
        recorder = Recorder(harness, pending)
        harness.access.attach(recorder)
        await harness.runtime.apply(make_config({"keys": keys()["keys"][1:]}))
        assert recorder.found == [("alice", 0, False)]
        assert isinstance(await pending.next(), Revoked)
        harness.router.release(pending)
        await settle()
        assert harness.mcp.sessions == harness.router.under_way == 0
        harness.access.detach(recorder)


def alice() -> Caller:
    return Caller(era=Era.LEGACY, version="", principal="alice")


# -- Stopping ----------------------------------------------------------------------------------------------------------


async def test_streams_end_after_the_calls_and_backends_last(autojump_clock: MockClock) -> None:
    harness = Harness(make_config(None))
    runtime = harness.runtime
    async with running(harness):
        pending = await harness.router.submit(make_call("a.x"))
        stream = await harness.start("GET", "/sse", accept="text/event-stream")
        runtime.stop()
        await settle()
        with pytest.raises(ShuttingDown):
            await harness.router.submit(make_call("a.x"))
        assert not (runtime.closing.is_set())
        assert not (stream.ended)
        await harness.answer()
        harness.router.release(pending)
        await settle()
        assert runtime.closing.is_set()
        assert stream.ended
        with trio.fail_after(100):
            await harness.fleet.ended.wait()
        with pytest.raises(ShuttingDown):
            await runtime.apply(make_config(None))


# -- a gateway inside itself -------------------------------------------------------------------------------------------


def test_a_lineage_rejects_cycles_and_excessive_depth(tmp_path: Path) -> None:
    lineage = Lineage.of({"MCP_GATEWAY_GATEWAYS": "no lineage"})
    assert lineage == Lineage()
    for number in range(MAX_DEPTH):
        config = tmp_path / f"{number}.json"
        lineage.check(config)
        config.write_text("{}", encoding="utf-8")
        lineage = lineage.with_own("g", str(config))
        (tmp_path / f"link-{number}.json").symlink_to(config)
        with pytest.raises(ConfigError, match="started by a gateway with the same config"):
            lineage.check(tmp_path / f"link-{number}.json")
    with pytest.raises(ConfigError, match="3 gateways are already nested"):
        lineage.check(tmp_path / "more.json")
    assert len(lineage.with_own("g", "an inline config").configs) == MAX_DEPTH
    assert len(set(lineage.names)) == MAX_DEPTH


@pytest.mark.leak_check
async def test_a_gateway_that_would_start_itself_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner.json"
    inner.write_text(json.dumps({"mcpServers": {"me": serving(inner) | QUICK}}), encoding="utf-8")
    async with run_process([sys.executable, "-m", "gateway", "serve", "--config", str(inner)]) as gateway:
        line = await gateway.wait_stderr("started by a gateway with the same config")
        assert f"{inner} -> {inner}" in line


@pytest.mark.leak_check
async def test_different_gateways_work_in_a_chain(tmp_path: Path) -> None:
    inner = tmp_path / "inner.json"
    inner.write_text(json.dumps({"mcpServers": {"echo": echo_backend() | QUICK}}), encoding="utf-8")
    async with open_gateway_process({"mcpServers": {"inner": serving(inner) | QUICK}}) as middle:
        assert middle.url is not None
        async with open_gateway_process({"mcpServers": {"middle": {"url": middle.url}}}) as outer:
            assert outer.url is not None
            client = HttpClient(outer.url)
            await client.initialize()
            answer = await client.call_tool("middle.inner.echo.echo", {"text": "hi"})
            assert answer["result"]["content"][0]["text"] == "hi"


def rewrite(gateway: Any, **servers: Any) -> None:
    """Put servers into the config of a running gateway, which watches it."""
    path = Path(gateway.process.args[gateway.process.args.index("--config") + 1])
    config = json.loads(path.read_text(encoding="utf-8"))
    config["mcpServers"] |= servers
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_a_gateway_as_its_own_backend_is_refused(era: str) -> None:
    async with open_gateway_process({"mcpServers": {"echo": echo_backend() | QUICK}}) as gateway:
        rewrite(gateway, me={"url": gateway.url, "era": era, **QUICK})
        assert await gateway.wait_stderr("leads back to this gateway")


@pytest.mark.parametrize("transport", ["streamable-http", "sse"])
async def test_two_gateways_that_serve_each_other_are_refused(transport: str) -> None:
    echo = {"mcpServers": {"echo": echo_backend() | QUICK}}
    async with open_gateway_process(echo, transport=transport) as first:
        config = {"mcpServers": {"first": {"url": first.url, "transport": transport, **QUICK}}}
        async with open_gateway_process(config, transport=transport) as second:
            assert await second.wait_stderr("'first' is ready")
            rewrite(first, second={"url": second.url, "transport": transport, **QUICK})
            line = await first.wait_stderr("lists this gateway's own catalog")
            assert " -> " in line
