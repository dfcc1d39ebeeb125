"""The HTTP+SSE transport: the same lists as elsewhere, with its own start and end.

What a call does over every transport is tested with `every_cell_and_sse` in `test_calls.py` and `test_cancel.py`.
"""

from __future__ import annotations

import json

import trio
from mcp import ClientSession
from mcp.client.sse import sse_client

from tests.contract.support import FAST, SHUTDOWN_GRACE, SSE, open_client, structured_of, text_of
from tests.support.gateway_process import echo_backend, make_request, open_gateway_process, open_sse

CHANGED = "notifications/tools/list_changed"


def sse_url(gateways):
    return gateways["http"].url.removesuffix("/mcp") + "/sse"


async def test_lists_are_those_of_the_other_transport(gateways):
    async with open_client(gateways, SSE) as one, open_client(gateways, ("legacy", "http")) as other:
        lists = [json.loads(await client.exact("tools/list"))["result"] for client in (one, other)]
        assert lists[0] == lists[1]


async def test_changes_are_notified_once(gateways):
    async with open_client(gateways, SSE) as client:
        for tool in ("grow", "shrink"):
            await client.call(f"changing.{tool}")
            await client.stdio.notification(CHANGED)
        await client.call("legacy.sleep", {"seconds": 0.3})
        assert [message for message in client.stdio.arrived if message.get("method") == CHANGED] == []


# -- what only this transport has --------------------------------------------------------------------------------------


async def test_the_sdk_as_client(gateways):
    seen = []

    async def on_progress(progress, total, message):
        await trio.lowlevel.checkpoint()
        seen.append(progress)

    with trio.fail_after(15):
        async with sse_client(sse_url(gateways)) as streams, ClientSession(*streams) as client:
            assert (await client.initialize()).server_info.name == "office"
            assert "legacy.echo" in {tool.name for tool in (await client.list_tools()).tools}
            result = await client.call_tool("legacy.progress", {"n": 3}, progress_callback=on_progress)
            assert result.content[0].text == "3 steps"
            await client.send_ping()
    assert seen == [1, 2, 3]


async def test_wrong_requests(gateways):
    async with open_sse(sse_url(gateways)) as client:
        ping = make_request(1, "ping")
        for given, status in [
            ({"path": "/messages/"}, 400),
            ({"path": "/messages/?session_id=nobody"}, 404),
            ({"headers": {"Content-Type": "text/plain"}}, 415),
            ({"headers": {"Origin": "https://evil.example"}}, 403),
            ({"headers": {"Host": "evil.example"}}, 403),
        ]:
            assert (await client.post(ping, **given)).status == status, given
        assert (await client.post(b"{")).status == 400
        assert (await client.post(b"x" * (4 * 1024 * 1024 + 1))).status == 413
        for method, path in (("POST", "/sse"), ("DELETE", "/sse"), ("GET", client.endpoint)):
            assert (await client.http.send(method, path=path)).status == 405
        for header in ({"Origin": "https://evil.example"}, {"Host": "evil.example"}):
            assert (await client.http.send("GET", path="/sse", headers=header)).status == 403
        await client.initialize()
        assert (await client.request("ping"))["result"] == {}


async def test_the_end_of_the_stream_ends_its_session(gateways):
    async with open_client(gateways, ("legacy", "http")) as witness:
        before = structured_of(await witness.call("legacy.cancelled_log"))["cancelled"]
        async with open_client(gateways, SSE) as client:
            await client.stdio.start(
                "tools/call",
                {"name": "legacy.progress", "arguments": {"n": 1000, "delay": 0.02}, "_meta": {"progressToken": 1}},
            )
            await client.stdio.notification("notifications/progress")
            stale = client.stdio
        with trio.fail_after(10):
            while structured_of(await witness.call("legacy.cancelled_log"))["cancelled"] == before:
                pass  # each look is a round trip
        assert (await stale.post(make_request(5, "ping"))).status == 404


async def test_clients_do_not_receive_each_others_messages(gateways):
    async with open_client(gateways, SSE) as one, open_client(gateways, SSE) as other:
        first = await one.stdio.start(
            "tools/call", {"name": "legacy.sleep", "arguments": {"seconds": 0.2, "text": "1"}}
        )
        second = await other.stdio.start("tools/call", {"name": "legacy.echo", "arguments": {"text": "2"}})
        assert first == second  # the same id on both
        assert text_of(await other.stdio.response(second)) == "2"
        assert text_of(await one.stdio.response(first)) == "1"
        assert one.stdio.arrived == other.stdio.arrived == []


async def test_guarantee_g3_sse_serves_alone_and_stops_mid_call():
    config = {
        "mcpServers": {"echo": echo_backend() | {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}},
        "gateway": {"drain_grace": 10},
    }
    paths = ("--sse-path", "/old", "--message-path", "/old/in")
    async with open_gateway_process(config, transport="sse", extra_args=paths) as gateway:
        assert gateway.url.endswith("/old")
        assert gateway.stderr_text.count("listening on") == 1
        async with open_sse(gateway.url) as client:
            assert client.endpoint.startswith("/old/in?session_id=")
            assert (await client.http.send("POST", b"{}", path="/mcp")).status == 404
            await client.initialize()
            assert text_of(await client.call_tool("echo.echo", {"text": "ready"})) == "ready"
            call = await client.start(
                "tools/call", {"name": "echo.sleep", "arguments": {"seconds": 0.5, "text": "slept"}}
            )
            await client.request("ping")
            gateway.process.terminate()
            assert text_of(await client.response(call)) == "slept"
            with trio.fail_after(10):
                assert await client.next_event() is None  # and then the stream ends in good order
            assert await gateway.process.wait() == 0


async def test_a_stalled_client_delays_no_other():
    config = {"mcpServers": {"echo": echo_backend()}, "gateway": {"drain_grace": 1}}
    # Whether its calls count as ended in time depends on how much the kernel took.
    async with open_gateway_process(config, transport="sse,http", status=None) as gateway:
        assert gateway.url.endswith("/mcp")
        url = gateway.url.removesuffix("/mcp") + "/sse"
        assert (await gateway.wait_stderr("/sse")).endswith(url)
        async with open_sse(url) as client:
            await client.initialize()
            with trio.move_on_after(1):  # from some call on, its POSTs wait until it reads
                for _ in range(30):
                    await client.start("tools/call", {"name": "echo.big", "arguments": {"n": 1_000_000}})
            async with open_sse(url) as other:
                await other.initialize()
                assert text_of(await other.call_tool("echo.echo", {"text": "undisturbed"})) == "undisturbed"
            await gateway.stop()
