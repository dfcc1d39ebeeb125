"""`open_gateway` in a trio program: calls, lists, status, reload, ASGI application, exit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
from mcp_types import Tool

import gateway
from gateway.config import parse_config
from gateway.errors import GatewayError
from tests.support.embedding import WITHIN, children, config_of, open_server, open_wire, text_of
from tests.support.gateway_process import echo_backend, faulty_backend

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.leak_check


async def test_tools_are_listed_and_called_by_public_names() -> None:
    with trio.fail_after(WITHIN):
        async with gateway.open_gateway(config_of(a=echo_backend(), b=echo_backend())) as gw:
            tools = await gw.list_tools()
            assert all(isinstance(tool, Tool) for tool in tools)
            assert {"a.echo", "b.echo"} <= {tool.name for tool in tools}
            assert text_of(await gw.call_tool("b.echo", {"text": "x"})) == "x"
            pids = [(await gw.call_tool("a.env")).structured_content["pid"] for _ in range(2)]
            assert len(set(pids)) == 1  # one session for all
            assert gw.status()["a"].pid == pids[0]
        assert children() == []


@pytest.mark.parametrize(
    ("name", "arguments", "problem", "words"),
    [
        ("a.nothing", {}, RuntimeError, "Unknown tool: a.nothing"),
        ("dies.go", {}, RuntimeError, "'dies.go' of server 'dies'"),
        ("a.sleep", {"seconds": 20}, TimeoutError, "'a.sleep'"),
        ("a.echo", {"text": object()}, RuntimeError, "JSON"),
    ],
)
async def test_unavailable_items_raise_gateway_errors(
    name: str, arguments: Any, problem: type[Exception], words: str
) -> None:
    with trio.fail_after(WITHIN):
        async with gateway.open_gateway(config_of(a=echo_backend(), dies=faulty_backend("dies_mid_call"))) as gw:
            with pytest.raises(problem, match=words) as caught:
                await gw.call_tool(name, arguments, timeout=0.5 if problem is TimeoutError else None)
            assert isinstance(caught.value, GatewayError)


async def test_a_cancelled_call_is_cancelled_at_its_server() -> None:
    with trio.fail_after(WITHIN):
        async with gateway.open_gateway(config_of()) as gw:
            await gw.list_tools()
            with trio.move_on_after(0.3):
                await gw.call_tool("a.sleep", {"seconds": 20})
            log = await gw.call_tool("a.cancelled_log")
            assert len(log.structured_content["cancelled"]) == 1


async def test_a_reload_keeps_unchanged_servers_and_refuses_errors() -> None:
    with trio.fail_after(WITHIN):
        async with gateway.open_gateway(config_of(a=echo_backend(), b=echo_backend())) as gw:
            pid = (await gw.call_tool("a.env")).structured_content["pid"]
            await gw.reload(config_of(a=echo_backend(), c=echo_backend()))
            assert list(gw.status()) == ["a", "c"]
            assert gw.status()["a"].pid == pid
            with pytest.raises(ValueError, match="'b'"):
                await gw.reload(config_of(b={"command": 3}))
            assert list(gw.status()) == ["a", "c"]


async def test_the_asgi_application_runs_under_a_server() -> None:
    with trio.fail_after(WITHIN):
        async with (
            gateway.open_gateway(config_of()) as gw,
            open_server(gw.asgi_app) as url,
            open_wire(url) as wire,
        ):
            assert (await wire.call("a.echo", text="x"))["result"]["content"][0]["text"] == "x"
            assert (await wire.post("ping", origin="https://evil.example")).status_code == 403
            assert (await wire.http.get("/other")).status_code == 404


async def test_the_forms_of_a_config(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of()), encoding="utf-8")
    with trio.fail_after(WITHIN):
        for config in (path, str(path), parse_config(config_of(), environ={})):
            async with gateway.open_gateway(config) as gw:
                assert list(gw.status()) == ["a"]
        for wrong in (None, 7, tmp_path / "absent.json", {"mcpServers": {"a": {}}}):
            with pytest.raises(GatewayError):
                async with gateway.open_gateway(wrong):
                    raise AssertionError("it was opened")


async def test_last_good_lists_are_kept_in_a_directory(tmp_path: Path) -> None:
    with trio.fail_after(WITHIN):
        async with gateway.open_gateway(config_of(), state_directory=tmp_path / "state") as gw:
            await gw.list_tools()
        assert list((tmp_path / "state" / "catalogs").iterdir())


async def test_an_error_in_the_block_propagates_unchanged() -> None:
    async def fail() -> None:
        async with gateway.open_gateway(config_of()) as gw:
            await gw.list_tools()
            raise ZeroDivisionError

    with trio.fail_after(WITHIN):
        with pytest.raises(ZeroDivisionError):
            await fail()
        with trio.move_on_after(0.5) as scope:
            async with gateway.open_gateway(config_of()) as gw:
                await gw.list_tools()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert children() == []


def test_asyncio_callers_are_referred_to_its_class():
    import asyncio  # noqa: TID251 - the loop of a program around us

    async def program():
        async with gateway.open_gateway({"mcpServers": {}}):
            pytest.fail("it started")

    with pytest.raises(RuntimeError, match=r"in an asyncio program use gateway\.ProxyManager"):
        asyncio.run(program())
