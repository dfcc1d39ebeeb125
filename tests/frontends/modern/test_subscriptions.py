"""One `subscriptions/listen`: accepted filters, and the subscription id in every message."""

# ruff: noqa: RUF029 - some tests wait for nothing, but what they make needs a running loop

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from gateway import jsonrpc
from gateway.calls import Call, Caller, Era
from gateway.errors import InvalidParams
from gateway.frontends.modern.subscriptions import Subscription
from gateway.supervisor.subscriptions import ClientNotifications
from tests.support.fakes import MODERN_CALLER, make_news

ID = "io.modelcontextprotocol/subscriptionId"
ALL = {"toolsListChanged": True, "promptsListChanged": True, "resourcesListChanged": True}


class Source:
    """The source of changes."""

    def __init__(self) -> None:
        self.listeners: list[Any] = []

    def subscribe(self, listener: Any) -> None:
        self.listeners.append(listener)

    def unsubscribe(self, listener: Any) -> None:
        if listener in self.listeners:
            self.listeners.remove(listener)

    def forget(self, watcher: object) -> None:
        pass

    mailboxes = ClientNotifications()


FLEET = Source()
ANSWERS: Any = SimpleNamespace(
    server_info=msgspec.Raw(b'{"name":"gw"}'), fleet=FLEET, router=None, listeners=set(), tracing=None
)


def listen(wanted: object, request_id: jsonrpc.Id = "s1", *, caller: Caller = MODERN_CALLER) -> Subscription:
    params = {} if wanted is None else {"notifications": jsonrpc.raw(wanted)}
    call = Call(method="subscriptions/listen", name="", params=params, meta={}, caller=caller)
    return Subscription(ANSWERS, request_id, call)


async def taken(subscription: Subscription) -> list[Any]:
    with trio.fail_after(5):
        return [json.loads(line) for line in cast("list[bytes]", await subscription.next_notifications())]


@pytest.mark.parametrize(
    ("wanted", "honoured"),
    [
        ({}, {}),
        ({"toolsListChanged": None, "promptsListChanged": None, "resourceSubscriptions": None}, {}),
        (ALL, ALL),
        ({"toolsListChanged": True, "promptsListChanged": False}, {"toolsListChanged": True}),
        ({"toolsListChanged": True, "somethingNew": {"x": 1}}, {"toolsListChanged": True}),
    ],
)
@pytest.mark.parametrize("request_id", ["s1", 0])
async def test_only_what_is_honoured_is_acknowledged(wanted: Any, honoured: Any, request_id: jsonrpc.Id) -> None:
    subscription = listen(wanted, request_id)
    with trio.fail_after(5):
        acknowledgement = await subscription.open()
    assert FLEET.listeners == [subscription.notify_list_changed]
    subscription.close()
    subscription.close()
    assert FLEET.listeners == []
    assert json.loads(acknowledgement) == {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {"_meta": {ID: request_id}, "notifications": honoured},
    }


@pytest.mark.parametrize("wanted", [None, [], 3, "all", {"toolsListChanged": 1}, {"resourceSubscriptions": [1]}])
async def test_a_malformed_filter_is_refused(wanted: object) -> None:
    with pytest.raises(InvalidParams, match="notifications"):
        listen(wanted)


async def test_changes_are_notified_once_where_requested() -> None:
    subscription = listen({"toolsListChanged": True, "promptsListChanged": True}, 7)
    for _ in range(3):
        subscription.notify_list_changed(make_news("tools", "resources"))
    subscription.notify_list_changed(make_news("prompts"))
    notified = await taken(subscription)
    assert sorted(message["method"] for message in notified) == [
        "notifications/prompts/list_changed",
        "notifications/tools/list_changed",
    ]
    assert [message["params"] for message in notified] == [{"_meta": {ID: 7}}] * 2
    with trio.move_on_after(0) as empty:
        await subscription.next_notifications()
    assert empty.cancelled_caught
    subscription.notify_list_changed(make_news("tools"))
    assert [message["method"] for message in await taken(subscription)] == ["notifications/tools/list_changed"]


async def test_the_end_is_a_result_of_the_request() -> None:
    found = json.loads(listen(ALL, 7).result())
    assert (found["id"], found["result"]["resultType"]) == (7, "complete")
    assert found["result"]["_meta"] == {ID: 7, "io.modelcontextprotocol/serverInfo": {"name": "gw"}}


async def test_per_client_updates_reach_only_that_principal() -> None:
    anna, bert = (Caller(era=Era.MODERN, version="2026-07-28", principal=name) for name in ("anna", "bert"))
    tools, prompts, others, anonymous = (
        listen({"toolsListChanged": True}, "t", caller=anna),
        listen({"promptsListChanged": True}, "p", caller=anna),
        listen(ALL, "o", caller=bert),
        listen(ALL, "n"),
    )
    every = (tools, prompts, others, anonymous)
    with trio.fail_after(5):
        for subscription in every:
            await subscription.open()
    FLEET.mailboxes.deliver("anna", "notifications/tools/list_changed", {})
    FLEET.mailboxes.deliver("anna", "notifications/elicitation/complete", {"elicitationId": jsonrpc.raw("e")})
    notified = await taken(tools)
    assert [(message["method"], message["params"]["_meta"]) for message in notified] == [
        ("notifications/tools/list_changed", {ID: "t"})
    ]
    for deaf in (tools, prompts, others, anonymous):
        with trio.move_on_after(0) as scope:
            await deaf.next_notifications()
        assert scope.cancelled_caught
    for subscription in (*every, *every):
        subscription.close()
    FLEET.mailboxes.deliver("anna", "notifications/tools/list_changed", {})
    assert len(FLEET.mailboxes) == 0
