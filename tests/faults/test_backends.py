"""Backends that break or send garbage during a call: only their callers are affected."""

from __future__ import annotations

import json

import pytest
import trio

from tests.contract.support import (
    CELLS,
    FAST,
    SHUTDOWN_GRACE,
    every_cell,
    health,
    kilobytes,
    open_client,
    open_gateways,
    structured_of,
    text_of,
    wait_health,
)
from tests.support.gateway_process import ANSWER_WITHIN, echo_backend, faulty_backend, initialize_params, make_request

EXTRA = {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}
ODD = ("nan", "surrogate", "latin1", "number", "huge_float")
SIZES = ("id_start", "id_end", "id_absent")
CONFIG = {
    "mcpServers": {
        "good": echo_backend() | EXTRA,
        "exits": faulty_backend("dies_mid_call") | EXTRA,
        "killed": faulty_backend("dies_mid_call", "--variant", "kill") | EXTRA,
        "half_line": faulty_backend("half_line") | EXTRA,
        "closes_stdout": faulty_backend("closes_stdout") | EXTRA,
        "hangs": faulty_backend("hang") | EXTRA | {"call_timeout": 0.8},
        "garbage": faulty_backend("garbage") | EXTRA,
        "unknown_ids": faulty_backend("unknown_ids") | EXTRA,
        "answers_twice": faulty_backend("answers_twice") | EXTRA,
        "no_result": faulty_backend("no_result") | EXTRA,
        "string_id": faulty_backend("string_id") | EXTRA,
        "asks": faulty_backend("asks") | EXTRA,
        "crlf": faulty_backend("crlf") | EXTRA,
        "bom": faulty_backend("bom") | EXTRA,
        "pretty": faulty_backend("pretty") | EXTRA,
        "floods_stderr": faulty_backend("floods_stderr", "--size", 4_000_000) | EXTRA,
        "flood_stdout": faulty_backend("flood_stdout") | EXTRA,
        "bad_tool": faulty_backend("bad_tool") | EXTRA,
        "dup_tools": faulty_backend("dup_tools") | EXTRA,
        **{variant: faulty_backend("odd_result", "--variant", variant) | EXTRA for variant in ODD},
        **{variant: faulty_backend("big_line", "--variant", variant) | EXTRA for variant in SIZES},
    },
    "gateway": {"start_grace": 20, "sse_after": 1},
}


@pytest.fixture(scope="module")
def gateways():
    with open_gateways(CONFIG) as found:
        yield found


def backend_of(answer):
    """The backend that a -32603 of the gateway's own blames."""
    assert answer["error"]["code"] == -32603, answer
    name = answer["error"]["data"]["backend"]
    assert name in answer["error"]["message"]
    return name


@every_cell
@pytest.mark.parametrize(
    ("backend", "notified"),
    [
        ("exits", "status 5"),
        ("killed", "SIGKILL"),
        ("half_line", "status 6"),
        ("closes_stdout", "closed its stdout"),
    ],
)
async def test_a_crash_answers_all_calls_and_restarts(gateways, cell, backend, notified):
    async with open_client(gateways, cell) as client:
        before = await client.names()
        await client.call(f"{backend}.echo")  # it may still be on its way back from the test before
        with trio.fail_after(ANSWER_WITHIN):  # none of them waits for its own 60 s
            async with (
                client.open_tool(f"{backend}.sleep", {"seconds": 60}) as first,
                client.open_tool(f"{backend}.progress", {"n": 1000, "delay": 0.06}, token=1) as second,
                client.open_tool("good.sleep", {"seconds": 0.2, "text": "well"}) as other,
            ):
                await second.next()
                async with client.open_tool(f"{backend}.go") as last:
                    for call in (last, first, second):
                        answer = await call.response()
                        assert backend_of(answer) == backend
                        assert notified in answer["error"]["message"]
                assert await client.names() == before
                assert text_of(await other.response()) == "well"
            assert text_of(await client.call(f"{backend}.echo", {"text": "again"})) == "again"
            assert await client.names() == before


@every_cell
async def test_a_hang_costs_one_call_its_timeout(gateways, cell):
    async with open_client(gateways, cell) as client:
        with trio.fail_after(ANSWER_WITHIN):
            async with client.open_tool("hangs.go") as hung:
                assert text_of(await client.call("good.echo", {"text": "well"})) == "well"
                answer = await hung.response()
            assert backend_of(answer) == "hangs"
            assert "0.8 s" in answer["error"]["message"]
            assert "hangs.echo" in await client.names()


@every_cell
@pytest.mark.parametrize(
    ("backend", "text"),
    [
        ("garbage", "amid garbage"),
        ("unknown_ids", "the right one"),
        ("answers_twice", "first"),
        ("string_id", "stringly"),
        ("asks", "asked"),
        ("crlf", "crlf"),
        ("pretty", "pretty"),
        ("bom", "marked"),
        ("floods_stderr", "flooded"),
        ("bad_tool", "fine"),
    ],
)
async def test_nonsense_around_the_answer_is_skipped(gateways, cell, backend, text):
    await check_nonsense_is_skipped(gateways, cell, backend, text)


@every_cell
async def test_a_client_may_send_boms_before_messages(gateways, cell):
    async with open_client(gateways, cell, initialize=False) as client:
        params = initialize_params()
        methods = ["tools/list"] if client.modern else ["initialize", "tools/list"]
        for number, method in enumerate(methods, 1000):
            message = make_request(number, method, client.params(params if method == "initialize" else {}))
            data = b"\xef\xbb\xbf" + json.dumps(message).encode()
            if client.stdio is not None:
                await client.stdio.send_raw(b"\xef\xbb\xbf\n" + data + b"\n")
                assert "result" in await client.stdio.response(number)
                continue
            headers = client.http.modern_headers(method) if client.modern else {}
            response = await client.http.post(data, headers=headers)
            assert "result" in response.json(), response
            client.http.session_id = response.headers.get("mcp-session-id", client.http.session_id)


async def test_garbage_before_the_answer_is_skipped(gateways):
    await check_nonsense_is_skipped(gateways, CELLS[3], "flood_stdout", "flooded")  # a second of it: once is enough


async def check_nonsense_is_skipped(gateways, cell, backend, text):
    async with open_client(gateways, cell) as client:
        with trio.fail_after(ANSWER_WITHIN):
            async with client.open_tool(f"{backend}.go", token="mine") as call:
                assert text_of(await call.response()) == text
            assert text_of(await client.call(f"{backend}.echo", {"text": "again"})) == "again"
            if client.frontend == "stdio":
                await call.assert_unanswered()  # no second answer


@every_cell
@pytest.mark.parametrize("backend", ["nan", "latin1", "number", "no_result"])
async def test_an_invalid_answer_is_an_immediate_error(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        with trio.fail_after(ANSWER_WITHIN):
            assert backend_of(await client.call(f"{backend}.go")) == backend
            assert text_of(await client.call(f"{backend}.echo", {"text": "it lives"})) == "it lives"


@every_cell
async def test_a_lone_surrogate_arrives_unchanged(gateways, cell):
    async with open_client(gateways, cell) as client:
        got = await client.exact("tools/call", {"name": "surrogate.go"})
        assert b'"text":"\\ud800"' in got


@every_cell
async def test_a_number_beyond_a_double_arrives_unchanged(gateways, cell):
    async with open_client(gateways, cell) as client:
        got = await client.exact("tools/call", {"name": "huge_float.go"})
        assert b'"huge":1e400' in got


@pytest.mark.parametrize("cell", [CELLS[0], CELLS[3]], ids="-".join)
@pytest.mark.parametrize("variant", SIZES)
async def test_a_100_mb_line_fails_only_its_call(gateways, cell, variant):
    async with open_client(gateways, cell) as client:
        with trio.fail_after(20):
            async with client.open_tool(f"{variant}.sleep", {"seconds": 20}) as other:
                answer = await client.call(f"{variant}.go")
                assert backend_of(answer) == variant
                assert "max_line_bytes" in answer["error"]["message"]
                if variant == "id_absent":  # its owner is unknown: all pending calls get the error
                    assert backend_of(await other.response()) == variant
                else:
                    assert text_of(await client.call(f"{variant}.echo", {"text": "meanwhile"})) == "meanwhile"
                    await other.cancel()
            assert text_of(await client.call(f"{variant}.echo", {"text": "it lives"})) == "it lives"
    if cell[1] == "http":
        assert (await health(gateways["http"]))["backends"][variant]["restarts"] == 0
    assert kilobytes(gateways[cell[1]].pid, "VmHWM") < 160_000, "the line was kept"


async def test_a_malformed_tool_is_dropped_and_others_stay(gateways):
    async with open_client(gateways, CELLS[0]) as client:
        tools = (await client.request("tools/list"))["result"]["tools"]
        ours = {tool["name"] for tool in tools if tool["name"].startswith("bad_tool.")}
        assert {"bad_tool.echo", "bad_tool.go", "bad_tool.params"} <= ours
        assert len(ours) == len({tool["name"] for tool in tools if tool["name"].startswith("good.")}) + 2
        assert next(tool for tool in tools if tool["name"].endswith("half_a_character"))["description"] == "\ufffd"
        assert all(isinstance(tool, dict) and tool["inputSchema"]["type"] == "object" for tool in tools)
    log = gateways["stdio"].log()
    assert all(
        text in log for text in ("tools[0] left out", "('not_a_number') left out", "('half_a_character') contains")
    )


async def test_a_name_listed_twice_is_listed_once(gateways):
    async with open_client(gateways, CELLS[1]) as client:
        names = await client.names()
        assert names.count("dup_tools.echo") == 1
        assert len(names) == len(set(names))


async def test_server_request_answers_reach_the_backend(gateways):
    async with open_client(gateways, CELLS[1]) as client:
        assert text_of(await client.call("asks.go")) == "asked"
        assert structured_of(await client.call("asks.params"))["name"] == "params"


async def test_stderr_is_logged_under_the_backends_name(gateways):
    async with open_client(gateways, CELLS[1]) as client:
        await client.call("floods_stderr.go")
    log = gateways["http"].log()
    lines = [line for line in log.splitlines() if "floods_stderr" in line and "EEEE" in line]
    assert lines
    assert len(log) < 4_000_000, "the flood went through"


async def test_health_names_what_happened(gateways):
    async with open_client(gateways, CELLS[1]) as client:
        await client.call("exits.echo")
        before = (await health(gateways["http"]))["backends"]["exits"]
        await client.call("exits.go")
        entry = await wait_health(
            gateways["http"],
            lambda report: (
                report["backends"]["exits"]["restarts"] > before["restarts"]
                and report["backends"]["exits"]["state"] == "ready"
            ),
        )
        report = entry["backends"]["exits"]
        assert "status 5" in report["last_error"]
        assert report["pid"] != before["pid"]
        assert report["in_flight"] == 0
        assert entry["status"] == "ok"
        assert entry["backends"]["good"]["restarts"] == 0
