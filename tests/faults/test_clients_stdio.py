"""Stdio clients that send invalid messages or stop reading."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import trio

from tests.contract.support import (
    SHUTDOWN_GRACE,
    kilobytes,
    open_client,
    open_gateways,
    open_raw,
    structured_of,
    text_of,
)
from tests.support.gateway_process import (
    LATEST_LEGACY,
    META,
    MODERN,
    STOP_WITHIN,
    echo_backend,
    make_notification,
    make_request,
    modern_params,
    open_gateway_process,
)

CONFIG = {
    "mcpServers": {"echo": echo_backend() | {"shutdown_grace": SHUTDOWN_GRACE}},
    "gateway": {"start_grace": 10, "max_client_requests": 20, "drain_grace": 0.3},
}
LEGACY = ("legacy", "stdio")


@pytest.fixture(scope="module")
def gateways():
    with open_gateways(CONFIG, ("stdio",)) as found:
        yield found


@pytest.fixture
async def stdio(gateways):
    async with open_client(gateways, LEGACY) as client:
        yield client.stdio


async def assert_alive(stdio):
    assert (await stdio.request("ping"))["result"] == {}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"nonsense", -32700),
        (b"{", -32700),
        (b"\xff\xfe", -32700),
        (b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}', -32700),
        (b'{"jsonrpc":"2.0","params":' + b"[" * 200_000, -32700),
        (b"7", -32600),
        (b"null", -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_bad_json_gets_an_error_without_an_id(stdio, line, code):
    await stdio.send_raw(line + b"\n")
    answer = await stdio.wait_for(lambda message: "error" in message, 5)
    assert answer["error"]["code"] == code
    assert answer["id"] is None
    await assert_alive(stdio)


async def test_an_id_that_can_be_found_is_answered(stdio):
    await stdio.send_raw(b'{"jsonrpc":"2.0","id":"found","method":"ping","params":{"x":NaN}}\n')
    assert (await stdio.response("found"))["error"]["code"] == -32700


@pytest.mark.parametrize("end", [b"\r\n", b"\n\n\n", b"\n   \n"])
async def test_line_ends_of_other_systems_are_fine(stdio, end):
    await stdio.send_raw(b'{"jsonrpc":"2.0","id":"e","method":"ping"}' + end)
    assert (await stdio.response("e"))["result"] == {}
    await assert_alive(stdio)
    stdio.arrived.clear()


async def test_split_and_joined_lines_are_read(stdio):
    for part in (b'{"jsonrpc":"2.0",', b'"id":"p","method":', b'"ping"}', b"\n"):
        await stdio.send_raw(part)
        await trio.lowlevel.checkpoint()
    assert (await stdio.response("p"))["result"] == {}
    await stdio.send_raw(b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"ping"}\n' % i for i in range(10)))
    for i in range(10):
        assert (await stdio.response(i))["result"] == {}


async def test_batches_are_answered_where_the_version_has_them(gateways):
    async with open_client(gateways, LEGACY, initialize=False) as client:
        stdio = client.stdio
        await stdio.initialize("2025-03-26")
        batch = [
            make_request("a", "ping"),
            make_request("b", "tools/call", {"name": "echo.echo", "arguments": {"text": "hi"}}),
            make_notification("notifications/cancelled", {"requestId": 99}),
            make_request("c", "tools/call", {"name": "nobody"}),
        ]
        await stdio.send(batch)
        answers = {answer["id"]: answer for answer in await stdio.wait_for(lambda m: isinstance(m, list), 5)}
        assert answers.keys() == {"a", "b", "c"}
        assert text_of(answers["b"]) == "hi"
        assert answers["c"]["error"]["code"] == -32602
        await stdio.send([make_notification("notifications/initialized")])  # nothing to answer
        for bad in ([], [1], [make_request(i, "ping") for i in range(65)]):
            await stdio.send(bad)
            assert (await stdio.wait_for(lambda m: isinstance(m, dict) and "error" in m, 5))["error"]["code"] == -32600
        await assert_alive(stdio)


@pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", LATEST_LEGACY])
async def test_a_batch_is_refused_elsewhere(gateways, version):
    async with open_client(gateways, LEGACY, initialize=False) as client:
        await client.initialize(version=version)
        await client.stdio.send([make_request(1, "ping")])
        answer = await client.stdio.next_message()
        assert (answer["id"], answer["error"]["code"]) == (None, -32600)


async def test_a_duplicate_request_id_is_refused_alone(stdio):
    await stdio.send(make_request("x", "tools/call", {"name": "echo.sleep", "arguments": {"seconds": 0.3}}))
    await stdio.send(make_request("x", "ping"))
    assert (await stdio.response("x"))["error"]["code"] == -32600
    assert text_of(await stdio.response("x")) == "slept"
    await stdio.send(make_request("x", "ping"))
    assert (await stdio.response("x"))["result"] == {}


async def test_calls_and_what_ends_them_in_one_write(stdio):
    def call(request_id, name, **arguments):
        return make_request(request_id, "tools/call", {"name": name, "arguments": arguments})

    lines = [
        call("kept", "echo.echo", text="kept"),
        call("cancelled", "echo.sleep", seconds=30),
        make_notification("notifications/cancelled", {"requestId": "cancelled"}),
        call("nobody's", "echo.nothing"),
        call("bare", "nothing"),
    ]
    await stdio.send_raw(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    assert text_of(await stdio.response("kept")) == "kept"
    assert (await stdio.response("bare"))["error"]["code"] == -32602
    assert (await stdio.response("nobody's"))["error"]["code"] == -32602
    await stdio.send(call("cancelled", "echo.echo", text="free again"))  # no answer to the first is behind this one
    assert text_of(await stdio.response("cancelled")) == "free again"


async def test_excess_concurrent_requests_are_refused_as_busy(stdio):
    ids = [await stdio.start("tools/call", {"name": "echo.sleep", "arguments": {"seconds": 0.5}}) for _ in range(24)]
    answers = [await stdio.response(request_id) for request_id in ids]
    refused = [answer["error"]["data"] for answer in answers if "error" in answer]
    assert refused == [{"reason": "busy", "retry": True}] * 4
    await assert_alive(stdio)


async def test_numbers_and_strings_are_different_ids(stdio):
    await stdio.send(make_request(7, "tools/call", {"name": "echo.sleep", "arguments": {"seconds": 0.2, "text": "7"}}))
    await stdio.send(make_request("7", "ping"))
    assert (await stdio.response("7"))["result"] == {}
    assert text_of(await stdio.response(7)) == "7"


async def test_notifications_and_responses_of_any_kind_are_taken(stdio):
    await stdio.notify("notifications/unknown", {"x": 1})
    await stdio.notify("notifications/cancelled")
    await stdio.send({"jsonrpc": "2.0", "id": 5, "result": {}})
    await stdio.send({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "x"}})
    await assert_alive(stdio)
    assert stdio.arrived == []


@pytest.mark.parametrize(
    "method",
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "tasks/list", "tasks/result", "vendor/unknown"],
)
async def test_methods_that_the_modern_era_does_not_have(stdio, method):
    assert (await stdio.request_modern(method))["error"]["code"] == -32601


async def test_both_eras_work_on_one_pipe(stdio):
    slow = await stdio.start("tools/call", modern_params({"name": "echo.sleep", "arguments": {"seconds": 0.3}}))
    assert "resultType" not in (await stdio.request("tools/list"))["result"]
    assert (await stdio.response(slow))["result"]["resultType"] == "complete"


async def test_modern_meta_with_a_missing_member_is_refused(stdio):
    answer = await stdio.request("tools/list", {"_meta": {META + "protocolVersion": MODERN}})
    assert answer["error"]["code"] == -32602
    assert (await stdio.request("server/discover"))["error"]["code"] == -32602


async def test_only_ping_and_modern_requests_precede_initialize():
    with open_gateways(CONFIG, ("stdio",)) as fresh:
        async with open_raw(fresh["stdio"], "stdio") as stdio:
            assert (await stdio.request("ping"))["result"] == {}
            refused = (await stdio.request("tools/list"))["error"]
            assert refused["code"] == -32600
            assert "initialize" in refused["message"]
            assert (await stdio.request_modern("tools/list"))["result"]["tools"]


async def test_the_last_line_needs_no_newline():
    async with open_gateway_process({"mcpServers": {}}, transport="stdio") as gateway:
        await gateway.stdio.send_raw(json.dumps(make_request(1, "ping")).encode())
        await gateway.stdio.sending.aclose()
        assert (await gateway.stdio.response(1))["result"] == {}
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() == 0


async def test_a_stalled_client_is_not_buffered_or_awaited():
    async with open_gateway_process(CONFIG, transport="stdio", status=None) as gateway:
        stdio = gateway.stdio
        await stdio.initialize()
        before = kilobytes(gateway.pid, "VmRSS")
        params = {"name": "echo.progress", "arguments": {"n": 5000}, "_meta": {"progressToken": 1}}
        await stdio.start("tools/call", params)
        assert (await stdio.notification("notifications/progress"))["params"]["progress"] == 1
        # The client stops reading. More requests fill the buffers, until the gateway stops reading too.
        with trio.move_on_after(0.5):
            while True:
                await stdio.start("tools/call", {"name": "echo.big", "arguments": {"n": 1_000_000}})
        assert kilobytes(gateway.pid, "VmRSS") - before < 100_000
        gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() in {0, 1}


async def test_unread_answers_are_bounded_by_bytes():
    patient = echo_backend() | {"queue_size": 200, "shutdown_grace": [1, 1, 1]}
    async with open_gateway_process({"mcpServers": {"echo": patient}}, transport="stdio") as gateway:
        stdio = gateway.stdio
        await stdio.initialize()
        pid = structured_of(await stdio.call_tool("echo.env"))["pid"]
        before = kilobytes(gateway.pid, "VmRSS")
        asked = [
            await stdio.start("tools/call", {"name": "echo.big", "arguments": {"n": 1_000_000}}) for _ in range(150)
        ]
        with trio.fail_after(60):
            while written(pid) < 150_000_000:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
        assert kilobytes(gateway.pid, "VmHWM") - before < 110_000
        answers = [await stdio.response(request_id) for request_id in asked]
        dropped = [answer for answer in answers if "is not reading" in answer.get("error", {}).get("message", "")]
        assert 75 <= len(dropped) <= 85
        assert all("result" in answer for answer in answers if answer not in dropped)


def written(pid):
    """The bytes that a process has written so far."""
    (line,) = (
        line for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines() if line.startswith("wchar:")
    )
    return int(line.split()[1])
