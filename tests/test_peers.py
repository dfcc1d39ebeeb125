"""The test peers and the raw clients themselves: each does what its docstring promises, seen without a gateway."""

from __future__ import annotations

import json
import sys

import pytest
import trio

from tests.support.gateway_process import (
    META,
    MODERN,
    PEERS,
    HttpClient,
    StdioClient,
    make_request,
    modern_params,
    parse_events,
    run_process,
)

pytestmark = pytest.mark.leak_check


class Peer:
    """A script of tests/peers as a child, with a client on its pipes."""

    def __init__(self, script, *args):
        self.command = [sys.executable, str(PEERS / script), *map(str, args)]

    async def __aenter__(self):
        self.run = run_process(self.command)
        self.running = await self.run.__aenter__()
        self.process = self.running.process
        self.client = StdioClient(self.process.stdin, self.process.stdout)
        return self.client

    async def __aexit__(self, *details):
        return await self.run.__aexit__(*details)


def text_of(message):
    return message["result"]["content"][0]["text"]


async def test_echo_legacy_handshake_keeps_the_version_asked_for():
    async with Peer("echo_server.py", "--name", "one", "--tools", 2) as client:
        result = await client.initialize("2025-03-26")
        assert result["protocolVersion"] == "2025-03-26"
        assert result["serverInfo"]["name"] == "one"
        names = [tool["name"] for tool in (await client.request("tools/list"))["result"]["tools"]]
        assert names[-2:] == ["tool_0", "tool_1"]
        assert "echo" in names
        assert text_of(await client.call_tool("tool_1", {"text": "hi"})) == "one.tool_1 hi"
        assert (await client.request("server/discover"))["error"]["code"] == -32601


async def test_echo_modern_era():
    async with Peer("echo_server.py", "--era", "modern") as client:
        assert (await client.request("initialize"))["error"]["code"] == -32601
        found = (await client.request_modern("server/discover"))["result"]
        assert found["supportedVersions"] == [MODERN]
        assert found["_meta"][META + "serverInfo"]["name"] == "echo"
        listed = (await client.request_modern("tools/list"))["result"]
        assert (listed["resultType"], listed["ttlMs"], listed["cacheScope"]) == ("complete", 0, "private")
        answer = await client.request_modern("tools/call", {"name": "echo", "arguments": {"text": "é"}})
        assert answer["result"] == {"content": [{"type": "text", "text": "é"}], "resultType": "complete"}
        wrong = {"name": "echo", "_meta": {META + "protocolVersion": "2099-01-01"}}
        assert (await client.request_modern("tools/call", wrong))["error"]["code"] == -32022


async def test_echo_both_eras_in_one_process():
    async with Peer("echo_server.py", "--era", "both") as client:
        assert (await client.request_modern("tools/list"))["result"]["resultType"] == "complete"
        await client.initialize()
        assert "resultType" not in (await client.request("tools/list"))["result"]


async def test_echo_sleeps_beside_other_calls_and_never_answers_a_cancelled_one():
    async with Peer("echo_server.py") as client:
        slow = await client.start("tools/call", {"name": "sleep", "arguments": {"seconds": 30}})
        short = await client.start("tools/call", {"name": "sleep", "arguments": {"seconds": 0.01}})
        assert text_of(await client.call_tool("echo", {"text": "meanwhile"})) == "meanwhile"
        assert text_of(await client.response(short)) == "slept"
        await client.notify("notifications/cancelled", {"requestId": slow})
        log = await client.call_tool("cancelled_log")
        assert log["result"]["structuredContent"] == {"cancelled": [slow]}
        assert client.arrived == []


async def test_echo_reports_progress_in_order_before_the_answer():
    async with Peer("echo_server.py") as client:
        asked = await client.start(
            "tools/call", {"name": "progress", "arguments": {"n": 2}, "_meta": {"progressToken": "t"}}
        )
        got = [await client.next_message() for _ in range(3)]
        assert [m["params"]["progress"] for m in got[:2]] == [1, 2]
        assert {m["params"]["progressToken"] for m in got[:2]} == {"t"}
        assert got[2]["id"] == asked


async def test_echo_pages_with_an_empty_cursor_and_ends_on_eof():
    peer = Peer("echo_server.py", "--plain", "--tools", 5, "--page-size", 2)
    async with peer as client:
        seen, cursors, params = [], [], {}
        while True:
            page = (await client.request("tools/list", params))["result"]
            seen += [tool["name"] for tool in page["tools"]]
            if "nextCursor" not in page:
                break
            cursors.append(page["nextCursor"])
            params = {"cursor": page["nextCursor"]}
        assert seen == [f"tool_{i}" for i in range(5)]
        assert cursors == ["", "2"]
        await client.sending.aclose()
        with trio.fail_after(5):
            assert await peer.process.wait() == 0


async def test_structured_keeps_nulls_and_unknown_members():
    async with Peer("echo_server.py") as client:
        arguments = {"value": {"a": None}, "extra": {"unknown": [None]}}
        result = (await client.call_tool("structured", arguments))["result"]
        assert result["structuredContent"] == {"a": None}
        assert result["unknown"] == [None]


async def test_hang_leaves_other_requests_alone():
    async with Peer("echo_server.py", "--hang", "list") as client:
        await client.initialize()
        await client.start("tools/list")
        assert text_of(await client.call_tool("echo", {"text": "well"})) == "well"


async def test_a_legacy_server_may_meet_discover_with_silence():
    async with Peer("echo_server.py", "--hang", "discover") as client:
        await client.start("server/discover")
        assert (await client.initialize())["protocolVersion"]
        assert client.arrived == []


async def go(client, **arguments):
    return await client.start("tools/call", {"name": "go", "arguments": arguments})


@pytest.mark.parametrize("fault", ["garbage", "crlf", "pretty", "bad_tool", "dup_tools", "slow_start"])
async def test_faults_that_still_answer(fault):
    async with Peer("faulty_server.py", "--fault", fault, "--start-delay", 0.01) as client:
        await client.start("initialize")
        await client.start("tools/list")
        await go(client)
        lines = []
        while len([line for line in lines if b'"id"' in line and b'"result"' in line and b"object" not in line]) < 2:
            with trio.fail_after(5):
                lines.append(await client.read_line())
        everything = b"".join(lines)
        expected = {
            "garbage": b"not utf-8",
            "crlf": b"}\r\n",
            "pretty": b'{\r  "jsonrpc"',
            "bad_tool": b'"name":17',
            "dup_tools": b"The same name again.",
            "slow_start": b'"serverInfo"',
        }[fault]
        while expected not in everything:
            with trio.fail_after(5):
                everything += await client.read_line()


@pytest.mark.parametrize(
    ("variant", "start", "end"),
    [
        ("id_start", b'{"jsonrpc":"2.0","id":1,"result"', b'"}]}}\n'),
        ("id_end", b'{"jsonrpc":"2.0","result"', b'"}]},"id":1}\n'),
        ("id_absent", b'{"jsonrpc":"2.0","result"', b'"}]}}\n'),
    ],
)
async def test_big_line(variant, start, end):
    async with Peer("faulty_server.py", "--fault", "big_line", "--variant", variant, "--size", 3_000_000) as client:
        await go(client)
        with trio.fail_after(5):
            line = await client.read_line()
        assert line.startswith(start)
        assert line.endswith(end)
        assert 3_000_000 < len(line) < 3_000_200
        assert text_of(await client.call_tool("echo", {"text": "alive"})) == "alive"


@pytest.mark.parametrize(
    ("fault", "variant", "status"),
    [("exit_at_once", "", 4), ("dies_mid_call", "", 5), ("dies_mid_call", "kill", -9), ("half_line", "", 6)],
)
async def test_faults_that_end_the_process(fault, variant, status):
    peer = Peer("faulty_server.py", "--fault", fault, "--variant", variant)
    async with peer as client:
        with trio.fail_after(5):
            try:
                await go(client)
                rest = await client.read_line()
            except trio.BrokenResourceError:
                rest = b""
            assert await peer.process.wait() == status
        assert not rest.endswith(b"\n")
        assert bool(rest) == (fault == "half_line")


async def test_closes_stdout_but_lives():
    peer = Peer("faulty_server.py", "--fault", "closes_stdout")
    async with peer as client:
        await go(client)
        with trio.fail_after(5):
            assert await client.read_line() == b""
        assert peer.process.poll() is None


@pytest.mark.parametrize("fault", ["unknown_ids", "answers_twice", "asks", "progress_after_result", "string_id"])
async def test_faults_around_an_answer(fault):
    async with Peer("faulty_server.py", "--fault", fault) as client:
        await go(client)
        await client.request("ping")
        got = [(message.get("method"), message.get("id")) for message in client.arrived]
        expected = {
            "unknown_ids": [(None, i) for i in (999_999, "nobody", None, -1, 888_888, 1)],
            "answers_twice": [(None, 1), (None, 1)],
            "asks": [("ping", 1), ("vendor/unknown", "a"), (None, 1)],
            "progress_after_result": [(None, 1), *[("notifications/progress", None)] * 3],
            "string_id": [(None, "1")],
        }[fault]
        assert got == expected


@pytest.mark.parametrize("variant", ["plain", "huge_float", "surrogate", "nan", "latin1", "duplicate"])
async def test_odd_result_arrives_as_its_bytes(variant):
    async with Peer("faulty_server.py", "--fault", "odd_result", "--variant", variant) as client:
        await go(client)
        with trio.fail_after(5):
            line = await client.read_line()
        marks = {"plain": b"hologram", "huge_float": b"1e400", "surrogate": b"\\ud800", "nan": b"NaN"}
        assert marks.get(variant, b'"content"') in line


async def test_error_result_has_the_code_and_data_asked_for():
    async with Peer("faulty_server.py", "--fault", "error_result") as client:
        answer = await client.call_tool("go", {"code": -1, "message": "no", "data": None})
        assert answer["error"] == {"code": -1, "message": "no"}


async def test_list_changed_grows_in_both_eras():
    async with Peer("faulty_server.py", "--fault", "list_changed", "--era", "both") as client:
        listen = await client.start(
            "subscriptions/listen", modern_params({"notifications": {"toolsListChanged": True}})
        )
        acknowledged = await client.notification("notifications/subscriptions/acknowledged")
        assert acknowledged["params"]["notifications"] == {"toolsListChanged": True}
        await client.call_tool("grow")
        changes = [m for m in client.arrived if m.get("method") == "notifications/tools/list_changed"]
        assert [m.get("params", {}).get("_meta", {}).get(META + "subscriptionId") for m in changes] == [None, listen]
        names = [tool["name"] for tool in (await client.request("tools/list"))["result"]["tools"]]
        assert names[-1] == "grown_0"


async def test_floods():
    async with Peer("faulty_server.py", "--fault", "floods_stderr", "--size", 400_000) as client:
        assert text_of(await client.call_tool("go")) == "flooded"


@pytest.mark.parametrize("options", [(), ("--json",)])
async def test_raw_http_client_against_the_sdk(options):
    peer = Peer("sdk_server.py", "--transport", "streamable-http", *options)
    async with peer:
        line = await peer.running.wait_stderr("listening on", within=20)
        client = HttpClient(line.split()[-1])
        result = await client.initialize()
        assert result["serverInfo"]["name"] == "sdk"
        assert client.session_id
        assert (await client.call_tool("add", {"a": 1, "b": 2}))["result"]["structuredContent"] == {"result": 3.0}
        answer = await client.call_modern("tools/call", {"name": "echo", "arguments": {"text": "hi"}})
        assert answer["result"]["content"] == [{"type": "text", "text": "hi"}]
        assert answer["result"]["resultType"] == "complete"
        if not options:
            params = {"name": "progress", "arguments": {"n": 2}, "_meta": {"progressToken": 1}}
            async with client.stream_modern("tools/call", params) as exchange:
                got = [(await exchange.next_sse()).json() for _ in range(3)]
            assert [message.get("method") for message in got] == [*["notifications/progress"] * 2, None]
        assert (await client.delete_session()).status == 200
        assert (await client.post(make_request(9, "ping"))).status == 404


def test_events_are_read_whatever_the_line_ends():
    body = b": hello\r\n\r\nid: 4\r\nevent: message\r\ndata: {\r\ndata: }\r\n\r\nretry: 5\ndata:\n\n"
    comment, message, retry = parse_events(body)
    assert comment.comment == "hello"
    assert (message.id, json.loads(message.data)) == ("4", {})
    assert (retry.retry, retry.data) == (5, "")
