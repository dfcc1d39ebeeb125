"""A backend's list_changed reaches every client once: legacy pipes, GET streams, and modern listens on both faces."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager

import pytest
import trio

from tests.contract.support import CELLS, open_client, text_of
from tests.support.gateway_process import ANSWER_WITHIN, META

CHANGED = "notifications/tools/list_changed"
CASES = [(cell, "changing") for cell in CELLS] + [(cell, "changing_modern") for cell in CELLS[1:3]]


@asynccontextmanager
async def open_ear(client):
    """Where this client hears of changes; it stands when the block begins."""
    if client.modern:
        async with client.open_call("subscriptions/listen", {"notifications": {"toolsListChanged": True}}) as call:
            yield await ListenEar(client, call).open()
    elif client.face == "http":
        async with client.http.open_get_stream() as exchange:
            yield StreamEar(exchange)
    else:
        await client.request("ping")
        client.stdio.arrived.clear()  # what this conversation was told of in earlier tests
        yield PipeEar(client)


class PipeEar:
    def __init__(self, client):
        self.client = client
        self.subscription = None

    async def next(self):
        return await self.client.stdio.notification(CHANGED)

    async def assert_quiet(self):
        # Longer than the gateway waits before it announces, and before it reads a list again.
        await self.client.call("legacy.sleep", {"seconds": 0.45})
        assert [one for one in self.client.stdio.arrived if one.get("method") == CHANGED] == []


class StreamEar:
    """An SSE stream; two comments in a row are more silence than any announcement takes."""

    def __init__(self, exchange):
        self.exchange = exchange
        self.subscription = None

    async def next(self):
        return (await self.exchange.next_sse()).json()

    async def assert_quiet(self):
        comments = 0
        with trio.fail_after(ANSWER_WITHIN):
            async with aclosing(self.exchange.events()) as events:
                async for event in events:
                    assert not event.data, f"not quiet: {event.data}"
                    comments += 1
                    if comments == 3:
                        return


class ListenEar:
    def __init__(self, client, call):
        self.client, self.call = client, call
        self.subscription = call.id

    async def open(self):
        if self.client.face == "stdio":
            stdio = self.client.stdio
            first = await stdio.notification("notifications/subscriptions/acknowledged")
            while first["params"]["_meta"][META + "subscriptionId"] != self.call.id:
                first = await stdio.notification("notifications/subscriptions/acknowledged")
        else:
            first = await self.call.next()
        assert first["params"]["notifications"] == {"toolsListChanged": True}
        assert first["params"]["_meta"] == {META + "subscriptionId": self.call.id}
        return self

    async def next(self):
        if self.client.face == "http":
            return await self.call.next()
        return await self.client.stdio.wait_for(self.is_mine, 15)

    def is_mine(self, message):
        meta = message.get("params", {}).get("_meta", {})
        return message.get("method") == CHANGED and meta.get(META + "subscriptionId") == self.call.id

    async def assert_quiet(self):
        if self.client.face == "http":
            await StreamEar(self.call.exchange).assert_quiet()
            return
        await self.client.call("legacy.sleep", {"seconds": 0.45})
        assert [one for one in self.client.stdio.arrived if self.is_mine(one)] == []
        await self.call.cancel()
        await self.call.assert_unanswered()


@pytest.mark.parametrize(
    ("cell", "backend"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
async def test_each_change_is_told_once(gateways, cell, backend):
    async with open_client(gateways, cell) as client, open_ear(client) as ear:
        before = await client.names()
        for tool, expected in [("grow", [*before, f"{backend}.grown_0"]), ("shrink", before)]:
            assert text_of(await client.call(f"{backend}.{tool}")).endswith("grown")
            heard = await ear.next()
            assert heard["method"] == CHANGED
            if ear.subscription is not None:
                assert heard["params"]["_meta"] == {META + "subscriptionId": ear.subscription}
            assert sorted(await client.names()) == sorted(expected)
        await ear.assert_quiet()


@pytest.mark.parametrize("cell", [CELLS[0], CELLS[3]], ids="-".join)
async def test_a_flood_of_changes_that_change_nothing_is_not_passed_on(gateways, cell):
    async with open_client(gateways, cell) as client, open_ear(client) as ear:
        assert text_of(await client.call("changing.go")) == "told 50 times"
        await ear.assert_quiet()


@pytest.mark.parametrize("cell", CELLS[2:], ids="-".join)
async def test_a_listen_is_told_only_what_it_asked_for(gateways, cell):
    async with open_client(gateways, cell) as client:
        wanted = {"promptsListChanged": True, "toolsListChanged": False, "unknownThing": True}
        async with client.open_call("subscriptions/listen", {"notifications": wanted}) as call:
            if client.face == "stdio":
                first = await client.stdio.notification("notifications/subscriptions/acknowledged")
            else:
                first = await call.next()
            assert first["params"]["notifications"] == {"promptsListChanged": True}
            for tool in ("grow", "shrink"):
                await client.call(f"changing.{tool}")
            ear = ListenEar(client, call)
            await ear.assert_quiet()
        for bad in ({}, {"notifications": []}, {"notifications": {"toolsListChanged": "yes"}}):
            assert (await client.request("subscriptions/listen", bad))["error"]["code"] == -32602


async def test_one_change_reaches_all_clients_at_once(gateways):
    async with (
        open_client(gateways, ("legacy", "http")) as one,
        open_client(gateways, ("legacy", "http")) as two,
        open_client(gateways, ("modern", "http")) as three,
        open_ear(one) as first,
        open_ear(two) as second,
        open_ear(three) as third,
    ):
        for tool in ("grow", "shrink"):
            await three.call(f"changing.{tool}")
            for ear in (first, second, third):
                assert (await ear.next())["method"] == CHANGED
        for ear in (first, second, third):
            await ear.assert_quiet()
