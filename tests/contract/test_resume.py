"""Interrupted legacy streams on real connections: missed events arrive once, on the next one."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager

import pytest
import trio

from tests.contract.support import open_client, structured_of, text_of
from tests.support.gateway_process import ANSWER_WITHIN, make_notification, make_request

CHANGED = "notifications/tools/list_changed"


def progress_call(request_id, n, *, delay=0.03, backend="legacy"):
    params = {"name": f"{backend}.progress", "arguments": {"n": n, "delay": delay}, "_meta": {"progressToken": "p"}}
    return make_request(request_id, "tools/call", params)


@asynccontextmanager
async def open_http(gateways, version="2025-11-25"):
    async with open_client(gateways, ("legacy", "http"), initialize=False) as client:
        await client.initialize(version=version)
        yield client.http


async def read(exchange, count=None):
    """Read so many events with an id or a message (None: all)."""
    found = []
    with trio.fail_after(ANSWER_WITHIN):
        async with aclosing(exchange.events()) as events:
            async for event in events:
                if event.id or event.data:
                    found.append(event)
                if len(found) == count:
                    break
    return found


def steps(events):
    """The progress and, at the end, the text of the answer."""
    return [
        message["params"]["progress"] if "method" in message else text_of(message)
        for message in (event.json() for event in events if event.data)
    ]


@pytest.mark.parametrize("backend", ["legacy", "modern"])
async def test_a_broken_stream_is_resumed_where_it_broke(gateways, backend):
    async with open_http(gateways) as http:
        async with http.stream(progress_call(1, 20, backend=backend)) as exchange:
            before = await read(exchange, 4)  # then the connection is closed, with the call under way
        assert before[0].id
        assert not before[0].data
        async with http.open_get_stream(before[-1].id) as exchange:
            between = await read(exchange, 5)
        async with http.open_get_stream(between[-1].id) as exchange:
            after = await read(exchange)
        assert steps([*before, *between, *after]) == [*range(1, 21), "20 steps"]
        ids = [event.id for event in (*before, *between, *after)]
        assert all(ids)
        assert len(set(ids)) == len(ids)


async def test_an_ended_stream_is_replayed_from_any_event(gateways):
    async with open_http(gateways) as http:
        async with http.stream(progress_call(1, 5, delay=0)) as exchange:
            events = await read(exchange)
        for index, event in enumerate(events):
            async with http.open_get_stream(event.id) as exchange:
                assert steps(await read(exchange)) == steps(events[index + 1 :])


async def test_only_a_cancel_cancels_an_interrupted_call(gateways):
    async with open_http(gateways) as http:
        before = structured_of(await http.call_tool("legacy.cancelled_log"))["cancelled"]
        async with http.stream(progress_call(50, 1000)) as exchange:
            last = (await read(exchange, 3))[-1].id
        assert structured_of(await http.call_tool("legacy.cancelled_log"))["cancelled"] == before
        async with http.open_get_stream(last) as exchange:
            await read(exchange, 2)
            await http.post(make_notification("notifications/cancelled", {"requestId": 50}))
            rest = await read(exchange)
            assert all(isinstance(step, int) for step in steps(rest))
        assert len(structured_of(await http.call_tool("legacy.cancelled_log"))["cancelled"]) == len(before) + 1
        async with http.open_get_stream(last) as exchange:
            assert exchange.status == 400


async def test_reconnecting_silences_the_older_connection(gateways):
    async with open_http(gateways) as http, http.stream(progress_call(1, 30)) as old:
        before = await read(old, 4)
        async with http.open_get_stream(before[-1].id) as new:
            rest = await read(new)
        tail = await read(old)
        assert steps([*before, *rest]) == [*range(1, 31), "30 steps"]
        assert "30 steps" not in steps(tail)


async def test_other_calls_and_sessions_keep_their_streams(gateways):
    async with open_http(gateways) as http, open_http(gateways) as stranger:
        async with http.stream(progress_call(1, 20)) as one, http.stream(progress_call(2, 10)) as other:
            mine, theirs = (await read(one, 3))[-1].id, (await read(other, 3))[-1].id
        assert (await stranger.send("GET", headers=stranger.session_headers() | {"Last-Event-ID": mine})).status == 400
        async with http.open_get_stream(theirs) as exchange:
            assert steps(await read(exchange))[-1] == "10 steps"
        async with http.open_get_stream(mine) as exchange:
            assert steps(await read(exchange))[-1] == "20 steps"
        with trio.fail_after(ANSWER_WITHIN):
            refused = await http.send("GET", headers=http.session_headers() | {"Last-Event-ID": "made-up-1"})
        assert refused.status == 400
        assert "Last-Event-ID" in refused.json()["error"]["message"]


@pytest.mark.parametrize("version", ["2025-03-26", "2025-06-18"])
async def test_older_clients_get_ids_but_no_empty_event(gateways, version):
    async with open_http(gateways, version) as http:
        async with http.stream(progress_call(1, 10)) as exchange:
            before = await read(exchange, 3)
        assert all(event.data and event.id for event in before)
        async with http.open_get_stream(before[-1].id) as exchange:
            assert steps([*before, *await read(exchange)]) == [*range(1, 11), "10 steps"]


async def test_the_own_stream_is_resumed_too(gateways):
    async with open_http(gateways) as http:
        async with http.open_get_stream() as exchange:
            (primed,) = await read(exchange, 1)
            assert not primed.data
            await http.call_tool("changing.grow")
            assert (await read(exchange, 1))[0].json()["method"] == CHANGED
        await http.call_tool("changing.shrink")
        async with http.open_get_stream(primed.id) as exchange:
            found = [event for event in await read(exchange, 3) if event.data]
            assert [event.json()["method"] for event in found] == [CHANGED, CHANGED]
