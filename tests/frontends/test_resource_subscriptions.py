"""Resource subscriptions of both eras: counted, bounded, delivered, and ended with their clients."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure
from gateway.eras.methods import Kind
from gateway.errors import Busy, UnknownMethod
from gateway.frontends.legacy.sessions import LegacySession
from gateway.frontends.notification_queue import NotificationQueue
from gateway.frontends.resource_subscriptions import MAX_WATCHED, Refused, subscribe, unsubscribe, watch_all
from tests.support.fakes import MODERN_CALLER, FakeBackend, make_call, settle
from tests.support.http_frontends import make_legacy_session
from tests.support.supervision import offers, running_router

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.router import Router

URI = "memo:a"
UPDATED = "notifications/resources/updated"
EMPTY = Complete(b"{}", Era.LEGACY)


@asynccontextmanager
async def watched(**capabilities: Any) -> AsyncGenerator[tuple[Router, FakeBackend]]:
    fake = offers(Kind.RESOURCES, URI, "memo:b", **(capabilities or {"resources": {"subscribe": True}}))
    async with running_router({"a": fake}) as router:
        yield router, fake


async def ask(
    act: Any, router: Router, fake: FakeBackend, session: LegacySession, uri: str = URI, **answer: Any
) -> Any:
    """Have a client (un)subscribe, and the backend answer if it is asked."""
    found: list[Any] = []
    method = "resources/subscribe" if act is subscribe else "resources/unsubscribe"
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            call = make_call(uri, method)
            call.params = {"uri": jsonrpc.raw(uri)}
            try:
                found.append(await act(router, session, call))
            except Exception as exc:
                found.append(exc)

        nursery.start_soon(run)
        await settle()
        if not found:
            fake.session.answer(**(answer or {"outcome": EMPTY}))
    return found[0]


async def notified(changes: NotificationQueue) -> list[Any]:
    with trio.move_on_after(5):
        return [json.loads(line) for line in await changes.next_batch()]
    return []


def update(router: Router, uri: str, **params: Any) -> None:
    spans = {name: jsonrpc.raw(value) for name, value in {"uri": uri, **params}.items()}
    router.fleet.resource_updated(router.fleet.supervisors["a"], uri, spans)


async def test_the_first_subscription_gets_the_backends_own_answer(autojump_clock: MockClock) -> None:
    async with watched() as (router, fake):
        one, two = make_legacy_session(), make_legacy_session()
        assert await ask(subscribe, router, fake, one) == b"{}"
        assert await ask(subscribe, router, fake, two) == b"{}"
        assert fake.session.names == [URI]  # the second is the gateway's business
        assert fake.session.upkeep.subscriptions == [URI]
        assert fake.session.upkeep.wishes.uris == {URI}
        update(router, URI, title="t")
        expected = [{"jsonrpc": "2.0", "method": UPDATED, "params": {"uri": URI, "title": "t"}}]
        assert await notified(one.changes) == await notified(two.changes) == expected
        await ask(unsubscribe, router, fake, one)
        assert fake.session.upkeep.wishes.uris == {URI}
        update(router, URI)
        assert await notified(one.changes) == []
        assert len(await notified(two.changes)) == 1
        two.end()
        await settle()
        assert fake.session.upkeep.wishes.uris == frozenset()
        assert len(router.fleet.wish_list.watched(two)) == 0


async def test_a_backend_may_refuse(autojump_clock: MockClock) -> None:
    async with watched() as (router, fake):
        failure = Failure(-32002, "no such thing", None, Era.LEGACY)
        session = make_legacy_session()
        refused = await ask(subscribe, router, fake, session, outcome=failure)
        assert isinstance(refused, Refused)
        assert refused.failure is failure
        assert router.fleet.wish_list.watched(session) == []


async def test_unwatchable_resources_are_refused(autojump_clock: MockClock) -> None:
    async with watched(resources={}) as (router, fake):
        assert isinstance(await ask(subscribe, router, fake, make_legacy_session()), UnknownMethod)


async def test_unsubscribing_without_a_subscription_is_accepted(autojump_clock: MockClock) -> None:
    async with watched() as (router, fake):
        assert await ask(unsubscribe, router, fake, make_legacy_session()) == b"{}"
        assert fake.session.names == []


async def test_subscriptions_per_client_are_bounded(autojump_clock: MockClock) -> None:
    async with watched() as (router, fake):
        session = make_legacy_session()
        for number in range(MAX_WATCHED - 1):
            router.fleet.wish_list.watch(session, "a", f"memo:{number}", lambda *_: None)
        assert await ask(subscribe, router, fake, session) == b"{}"
        assert isinstance(await ask(subscribe, router, fake, session, "memo:b"), Busy)


async def test_parts_of_a_watched_resource_are_notified(autojump_clock: MockClock) -> None:
    async with watched() as (router, fake):
        session = make_legacy_session()
        await ask(subscribe, router, fake, session)
        update(router, URI + "/part")
        update(router, URI + "x")
        update(router, "memo:b")
        assert [one["params"]["uri"] for one in await notified(session.changes)] == [URI + "/part"]


async def test_a_modern_client_receives_its_accepted_subscriptions(autojump_clock: MockClock) -> None:
    async with watched() as (router, fake):
        changes, client = NotificationQueue("sub"), object()
        honoured = await watch_all(router, client, [URI, "memo:b"], MODERN_CALLER, changes)
        assert honoured == [URI, "memo:b"]
        assert fake.session.names == []  # sent by the session's reconciler
        await settle()
        assert fake.session.upkeep.wishes.uris == {URI, "memo:b"}
        update(router, URI)
        (one,) = await notified(changes)
        assert one["params"] == {"uri": URI, "_meta": {"io.modelcontextprotocol/subscriptionId": "sub"}}
        router.fleet.forget(client)
        assert fake.session.upkeep.wishes.uris == frozenset()
    async with watched(resources={}) as (router, fake):
        assert await watch_all(router, object(), [URI, "nobody:x"], MODERN_CALLER, NotificationQueue(1)) == []


async def test_resource_lookups_in_a_flood_are_bounded(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with watched() as (router, _fake):
        looked_up: list[str] = []

        async def route(call: Any) -> Any:
            await trio.lowlevel.checkpoint()
            looked_up.append(call.name)
            raise UnknownMethod(call.name)

        monkeypatch.setattr(router, "route", route)
        flood = [f"memo:{number}" for number in range(2 * MAX_WATCHED)]
        assert await watch_all(router, object(), flood, MODERN_CALLER, NotificationQueue(1)) == []
        assert looked_up == flood[:MAX_WATCHED]
