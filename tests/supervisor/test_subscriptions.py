"""Clients' subscriptions: counted, found by backend and by client, and removed with them."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway.supervisor import subscriptions
from gateway.supervisor.subscriptions import SubscriptionRegistry
from tests.support.fakes import settle


@pytest.mark.parametrize(
    ("watched", "updated", "notified"),
    [
        ("memo:a", "memo:a", True),
        ("memo:a", "memo:a/b/c", True),
        ("memo:a/", "memo:a/b", True),
        ("memo:a/", "memo:a/", True),
        ("memo:a", "memo:a/", True),
        ("memo:a/", "memo:a", False),
        ("memo:a", "memo:ab", False),
        ("memo:a/b", "memo:a", False),
        ("file:///", "file:///x", True),
        ("file:///", "file://", True),
        ("memo:a", "memo:a" + "/" * 100_000, True),
        ("memo:b", "memo:a" + "/" * 100_000, False),
    ],
)
def test_watching_a_parent_includes_its_parts(watched: str, updated: str, notified: bool) -> None:
    wish_list, received = SubscriptionRegistry(), list[str]()
    wish_list.watch("client", "a", watched, lambda uri, _params: received.append(uri))
    wish_list.updated("b", updated, {})
    assert received == []
    wish_list.updated("a", updated, {})
    assert received == [updated] * notified
    wish_list.unwatch("client", "a", watched)
    wish_list.updated("a", updated, {})
    assert received == [updated] * notified
    assert "client" not in wish_list


def test_each_watcher_gets_one_notification_per_update() -> None:
    wish_list, received = SubscriptionRegistry(), list[Any]()
    for client in ("one", "two"):
        for uri in ("memo:a", "memo:a/b"):
            wish_list.watch(client, "a", uri, lambda _u, _p, who=(client, uri): received.append(who), key=client)
    wish_list.updated("a", "memo:a/b", {})
    assert sorted(received) == [("one", "memo:a"), ("one", "memo:a/b"), ("two", "memo:a"), ("two", "memo:a/b")]
    received.clear()
    wish_list.updated("a", "memo:a", {}, "two")
    assert received == [("two", "memo:a")]
    assert wish_list.of("a").uris == wish_list.of("a", "one").uris == {"memo:a", "memo:a/b"}
    assert wish_list.of("a", "three").uris == wish_list.of("b").uris == frozenset()
    assert wish_list.forget("one") == {"a"}
    assert wish_list.watched("one") == []
    assert wish_list.of("a", "one").uris == frozenset()
    assert wish_list.of("a").uris == {"memo:a", "memo:a/b"}


async def test_a_temporary_log_level_expires(autojump_clock: MockClock) -> None:
    wish_list, changes = SubscriptionRegistry(), list[float]()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wish_list.run, lambda: changes.append(trio.current_time() - began))
        wish_list.want_level("client", "error")
        assert wish_list.lend_level("debug")
        assert wish_list.of("a").log_level == "debug"
        await trio.sleep(subscriptions.LEVEL_KEPT / 2)
        assert not wish_list.lend_level("debug")  # it is still in effect
        await trio.sleep(subscriptions.LEVEL_KEPT * 0.75)
        assert wish_list.of("a").log_level == "debug"
        await trio.sleep(subscriptions.LEVEL_KEPT)
        assert wish_list.of("a").log_level == "error"
        assert wish_list.lend_level("info")
        await settle()
        assert wish_list.of("a").log_level == "info"
        nursery.cancel_scope.cancel()
    assert [round(when / subscriptions.LEVEL_KEPT, 3) for when in changes] == [1, 1.5]
