"""A backend's list_changed reaches every client once: legacy pipes, GET streams, modern listens."""

from __future__ import annotations

import pytest
import trio

from tests.contract.change_listeners import CHANGED, ListenListener, open_listener
from tests.contract.support import CELLS, open_client, text_of
from tests.support.gateway_process import META

CASES = [(cell, "changing") for cell in CELLS] + [(cell, "changing_modern") for cell in CELLS[1:3]]


@pytest.mark.parametrize(
    ("cell", "backend"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
async def test_each_change_is_notified_once(gateways, cell, backend):
    async with open_client(gateways, cell) as client, open_listener(client) as ear:
        before = await client.names()
        for tool, expected in [("grow", [*before, f"{backend}.grown_0"]), ("shrink", before)]:
            assert text_of(await client.call(f"{backend}.{tool}")).endswith("grown")
            received = await ear.next()
            assert received["method"] == CHANGED
            if ear.subscription is not None:
                assert received["params"]["_meta"] == {META + "subscriptionId": ear.subscription}
            assert sorted(await client.names()) == sorted(expected)
        await ear.assert_quiet()


@pytest.mark.parametrize("cell", [CELLS[0], CELLS[3]], ids="-".join)
async def test_a_flood_of_empty_changes_is_coalesced(gateways, cell):
    async with open_client(gateways, cell) as client, open_listener(client) as ear:
        assert text_of(await client.call("changing.go")) == "notified 50 times"
        count = 0
        with trio.move_on_after(3):
            while True:
                assert (await ear.next())["method"] == CHANGED
                count += 1
        assert 1 <= count <= 5


@pytest.mark.parametrize("cell", CELLS[2:], ids="-".join)
async def test_a_listener_receives_only_requested_changes(gateways, cell):
    async with open_client(gateways, cell) as client:
        wanted = {"promptsListChanged": True, "toolsListChanged": False, "unknownThing": True}
        async with client.open_call("subscriptions/listen", {"notifications": wanted}) as call:
            if client.frontend == "stdio":
                first = await client.stdio.notification("notifications/subscriptions/acknowledged")
            else:
                first = await call.next()
            assert first["params"]["notifications"] == {"promptsListChanged": True}
            for tool in ("grow", "shrink"):
                await client.call(f"changing.{tool}")
            ear = ListenListener(client, call)
            await ear.assert_quiet()
        for bad in ({}, {"notifications": []}, {"notifications": {"toolsListChanged": "yes"}}):
            assert (await client.request("subscriptions/listen", bad))["error"]["code"] == -32602


async def test_one_change_reaches_all_clients(gateways):
    async with (
        open_client(gateways, ("legacy", "http")) as one,
        open_client(gateways, ("legacy", "http")) as two,
        open_client(gateways, ("modern", "http")) as three,
        open_listener(one) as first,
        open_listener(two) as second,
        open_listener(three) as third,
    ):
        for tool in ("grow", "shrink"):
            await three.call(f"changing.{tool}")
            for ear in (first, second, third):
                assert (await ear.next())["method"] == CHANGED
        for ear in (first, second, third):
            await ear.assert_quiet()
