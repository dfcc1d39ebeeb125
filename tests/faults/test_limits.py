"""Small limits, reached: an immediate error for the caller, no effect on others. Tool names."""

from __future__ import annotations

import pytest
import trio

from tests.contract.support import (
    FRONTENDS,
    SHUTDOWN_GRACE,
    every_cell,
    open_client,
    open_gateways,
    structured_of,
    text_of,
)
from tests.support.gateway_process import ANSWER_WITHIN, HttpClient, echo_backend, open_gateway_process

QUICK = {"shutdown_grace": SHUTDOWN_GRACE}
CONFIG = {
    "mcpServers": {
        "narrow": echo_backend() | QUICK | {"max_concurrency": 1, "queue_size": 1},
        "unqueued": echo_backend() | QUICK | {"max_concurrency": 1, "queue_size": 0},
        "impatient": echo_backend() | QUICK | {"call_timeout": 0.8},
        "impatient_modern": echo_backend("--era", "modern") | QUICK | {"timeout": 0.8},
        "good": echo_backend() | QUICK,
    },
    "gateway": {"start_grace": 10, "sse_after": 1},
}


@pytest.fixture(scope="module")
def gateways():
    with open_gateways(CONFIG) as found:
        yield found


def is_busy(answer):
    return answer.get("error", {}).get("data") == {"reason": "busy", "retry": True}


@every_cell
async def test_queue_overflow_is_refused_immediately(gateways, cell, tmp_path):
    async with open_client(gateways, cell) as client:
        answers, gate = [], tmp_path / "gate"

        async def call(i):
            answers.append(await client.call("narrow.sleep", {"seconds": 60, "until": str(gate), "text": str(i)}))

        async with trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(call, i)
            assert text_of(await client.call("good.echo", {"text": "others are fine"})) == "others are fine"
            with trio.fail_after(ANSWER_WITHIN):
                while len(answers) < 3:  # ruff: ignore[async-busy-wait]
                    await trio.sleep(0.01)
            assert all(map(is_busy, answers))  # none of the others has ended by now
            gate.touch()
        busy = [answer for answer in answers if is_busy(answer)]
        assert 3 <= len(busy) <= 4  # one running, one queued, and one perhaps on its way from the queue
        assert all("narrow" in answer["error"]["message"] for answer in busy)
        assert len([text_of(answer) for answer in answers if not is_busy(answer)]) == 6 - len(busy)
        assert text_of(await client.call("narrow.echo", {"text": "again"})) == "again"


@pytest.mark.parametrize("frontend", FRONTENDS)
async def test_an_empty_queue_still_serves_calls_in_turn(gateways, frontend):
    async with open_client(gateways, ("modern", frontend)) as client:
        for i in range(5):
            assert text_of(await client.call("unqueued.echo", {"text": str(i)})) == str(i)


@every_cell
@pytest.mark.parametrize("backend", ["impatient", "impatient_modern"])
async def test_an_expired_call_is_cancelled_at_the_backend(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        before = structured_of(await client.call(f"{backend}.cancelled_log"))["cancelled"]
        shown = structured_of(await client.call(f"{backend}.params", token=1))["_meta"]["progressToken"]
        with trio.fail_after(ANSWER_WITHIN):
            error = (await client.call(f"{backend}.sleep", {"seconds": 60}))["error"]
        assert error["code"] == -32603
        assert error["data"]["backend"] == backend
        assert "0.8 s" in error["message"]
        assert "call_timeout" in error["message"]
        assert structured_of(await client.call(f"{backend}.cancelled_log"))["cancelled"] == [*before, shown + 1]


# -- names -----------------------------------------------------------------------------------------------------------


def named(*tools, **extra):
    return echo_backend("--plain", "--tools", 2, "--name", tools[0]) | QUICK | extra


NAMES = {
    "mcpServers": {
        "one": named("one"),
        "two": named("two"),
        "dotted": named("dotted", namespace="one.tool"),
        "bare": named("bare", namespace=""),
        "bare_too": named("bare_too", namespace=""),
        "shared": named("shared", namespace="one"),
        "a-name-that-is-too-long": named("long"),
    }
}


async def names_and_owners(settings):
    """Public name -> which backend answers, by a gateway of its own."""
    config = NAMES | {"gateway": {"start_grace": 10, **settings}}
    async with open_gateway_process(config) as gateway:
        client = HttpClient(gateway.url)
        await client.initialize()
        names = [tool["name"] for tool in (await client.request("tools/list"))["result"]["tools"]]
        owners = {}
        for name in names:
            owners[name] = text_of(await client.call_tool(name, {"text": "!"}))
        assert len(names) == len(owners) == 14
        return owners


async def test_equal_names_lead_to_their_own_backends():
    owners = await names_and_owners({})
    assert sorted(owners.values()) == sorted(
        f"{name}.tool_{i} !" for name in ("one", "two", "dotted", "bare", "bare_too", "shared", "long") for i in (0, 1)
    )
    assert owners["one.tool_0"] == "one.tool_0 !"
    assert owners["two.tool_0"] == "two.tool_0 !"
    assert owners["tool_0"] == "bare.tool_0 !"
    assert owners["one.tool.tool_1"] == "dotted.tool_1 !"
    assert owners["a-name-that-is-too-long.tool_0"] == "long.tool_0 !"


async def test_names_are_short_valid_and_stable_across_restarts():
    settings = {"separator": "__", "max_name_length": 24}
    first = await names_and_owners(settings)
    assert all(len(name) <= 24 for name in first)
    assert first["one__tool_0"] == "one.tool_0 !"
    long = [name for name in first if first[name].startswith("long.")]
    assert all(name.startswith("a-name-that") for name in long)
    assert await names_and_owners(settings) == first


# -- sessions --------------------------------------------------------------------------------------------------------

FEW = {"mcpServers": {}, "gateway": {"max_sessions": 3, "session_idle_timeout": 0.6}}


async def test_sessions_are_bounded_and_end_when_idle():
    async with open_gateway_process(FEW) as gateway:
        clients = [HttpClient(gateway.url) for _ in range(3)]
        for client in clients:
            await client.initialize()
            await client.request("ping")  # one that has served nothing would make room
        refused = await HttpClient(gateway.url).post({
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {"protocolVersion": "2025-11-25"},
        })
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) > 0
        assert refused.json()["id"] == 1
        assert "mcp-session-id" not in refused.headers
        # A modern client needs none, and one that goes makes room.
        assert "result" in await HttpClient(gateway.url).call_modern("tools/list")
        assert (await clients[0].delete_session()).status == 200
        newcomer = HttpClient(gateway.url)
        await newcomer.initialize()
        await newcomer.request("ping")
        # An open stream keeps its session; the others end.
        with trio.fail_after(10):
            async with clients[1].open_get_stream():
                while True:
                    again = HttpClient(gateway.url)
                    response = await again.post({
                        "jsonrpc": "2.0",
                        "id": 1,
                        "method": "initialize",
                        "params": {"protocolVersion": "2025-11-25"},
                    })
                    if response.status == 200:
                        break
                assert (await clients[1].request("ping"))["result"] == {}
                for client in (clients[2], newcomer):
                    assert (await client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})).status == 404
