"""Backends with a session per client: routing of requests and of notifications to all sessions."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Caller, Complete, Era
from gateway.config.model import Config, ServerConfig
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, Busy
from gateway.frontends.resource_subscriptions import subscribe
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import LEGACY_CALLER, FakeBackend, make_call, settle
from tests.support.http_frontends import make_legacy_session
from tests.support.supervision import offers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.inflight.pending import PendingCall


URI = "memo:a"


@asynccontextmanager
async def open_harness(session: str) -> AsyncGenerator[tuple[Router, FakeBackend]]:
    fake = offers(Kind.RESOURCES, URI, resources={"subscribe": True}, logging={})

    def open_session(config: ServerConfig, listener: Any, **_capabilities: Any) -> Any:
        return fake(config, listener)

    fleet = Fleet(Config(servers={"a": ServerConfig(name="a", session=session)}), open_session)
    with trio.fail_after(100_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await settle()
            yield Router(fleet), fake  # ruff: ignore[fallible-context-manager]
            fleet.stop()


def caller(session: str = "one") -> Caller:
    return Caller(era=Era.LEGACY, version="2025-11-25", session=session)


@pytest.mark.parametrize("session", ["client", "call"])
async def test_the_session_that_is_listened_to_subscribes(session: str, autojump_clock: MockClock) -> None:
    async with open_harness(session) as (router, fake):
        client = make_legacy_session()
        (shared,) = fake.sessions
        async with trio.open_nursery() as nursery:
            call = make_call(URI, "resources/subscribe", caller=caller())
            call.params = {"uri": jsonrpc.raw(URI)}
            nursery.start_soon(subscribe, router, client, call)
            await settle()
            shared.answer(outcome=Complete(b"{}", Era.LEGACY))
        assert fake.sessions == [shared]
        assert shared.names == [URI]
        assert shared.upkeep.wishes.uris == {URI}


async def test_a_log_level_reaches_existing_client_sessions(autojump_clock: MockClock) -> None:
    async with open_harness("client") as (router, fake):
        pending = await router.submit(make_call(URI, "resources/read", caller=caller()))
        await settle()
        shared, own = fake.sessions
        router.fleet.wish_list.want_level("somebody", "debug")
        router.fleet.apply_subscriptions()
        assert (shared.upkeep.wishes.log_level, own.upkeep.wishes.log_level) == ("debug", "debug")
        own.answer(outcome=Complete(b"{}", Era.LEGACY))
        router.release(pending)


async def test_client_notifications_reach_the_clients_own_session(autojump_clock: MockClock) -> None:
    async with open_harness("client") as (router, fake):
        router.pass_on("vendor/note", jsonrpc.ABSENT, caller())  # it has none yet
        pending = await router.submit(make_call(URI, "resources/read", caller=caller()))
        await settle()
        shared, own = fake.sessions
        router.pass_on("vendor/note", jsonrpc.ABSENT, caller())
        router.fleet.roots_changed("one")
        router.pass_on("vendor/note", jsonrpc.ABSENT, LEGACY_CALLER)
        assert shared.upkeep.passed_on == []
        assert own.upkeep.passed_on == [("vendor/note", b""), ("notifications/roots/list_changed", b"")]
        own.answer(outcome=Complete(b"{}", Era.LEGACY))
        router.release(pending)


@pytest.mark.parametrize("session", ["client", "call"])
async def test_a_client_crashing_its_sessions_is_refused(session: str, autojump_clock: MockClock) -> None:
    async with open_harness(session) as (router, fake):
        for _ in range(3):
            pending = await router.submit(make_call(URI, "resources/read", caller=caller()))
            await settle()
            fake.session.crash(BackendExited("a", "exited", [pending.as_suspect()]))
            await settle()
            router.release(pending)
            await trio.sleep(10)  # a client's own session is started again
        started = len(fake.sessions)
        with pytest.raises(Busy, match="crash_limit"):
            await router.submit(make_call(URI, "resources/read", caller=caller()))
        await trio.sleep(1)
        assert len(fake.sessions) == started
        pending = await router.submit(make_call(URI, "resources/read", caller=caller("two")))
        await settle()
        fake.session.answer(outcome=Complete(b"{}", Era.LEGACY))
        router.release(pending)


def note(box: list[tuple[str, Any]], what: str, params: Any) -> None:
    box.append((what, params))


async def test_a_clients_own_session_notifies_only_that_client(autojump_clock: MockClock) -> None:
    async with open_harness("client") as (router, fake):
        fleet = router.fleet
        boxes: dict[str, list[tuple[str, Any]]] = {"one": [], "two": []}
        for key, box in boxes.items():
            fleet.mailboxes.register(key, partial(note, box))
            fleet.wish_list.watch(object(), "a", URI, partial(note, box), key=key)
        fleet.apply_subscriptions()
        pending_calls: list[PendingCall] = []
        for key in boxes:
            pending_calls.append(await router.submit(make_call(URI, "resources/read", caller=caller(key))))
            await settle()
        shared, one, two = fake.sessions
        assert [session.upkeep.wishes.uris for session in (shared, one, two)] == [{URI}] * 3
        assert boxes == {"one": [], "two": []}  # the start of a session is not a change
        one.update(URI)
        one.update("memo:b")  # without a subscriber
        assert boxes == {"one": [(URI, {})], "two": []}
        one.on_relist = lambda _feature: {Kind.RESOURCES: ()}
        shared.relisted.clear()
        for _ in range(5):
            one.change("resources")
        await trio.sleep(10)
        assert boxes == {"one": [(URI, {}), ("notifications/resources/list_changed", {})], "two": []}
        assert [feature for feature, _ in shared.relisted] == ["resources"]  # it may be about what all are shown
        for pending in pending_calls:
            router.release(pending)


async def test_stderr_of_all_sessions_is_kept_together(autojump_clock: MockClock) -> None:
    async with open_harness("client") as (router, fake):
        pending = await router.submit(make_call(URI, "resources/read", caller=caller("one")))
        await settle()
        for number, session in enumerate(fake.sessions):
            session.write_stderr(f"session {number}")
        assert list(router.fleet.supervisors["a"].history.stderr) == ["session 0", "session 1"]
        router.release(pending)


async def test_a_single_call_session_notifies_no_client(autojump_clock: MockClock) -> None:
    async with open_harness("call") as (router, fake):
        notified: list[str] = []
        router.fleet.wish_list.watch(object(), "a", URI, lambda uri, _params: notified.append(uri), key="one")
        pending = await router.submit(make_call(URI, "resources/read", caller=caller()))
        await settle()
        _, own = fake.sessions
        assert own.upkeep.wishes.uris == frozenset()
        own.update(URI)
        own.change("resources")
        await trio.sleep(10)
        assert notified == []
        router.release(pending)


@pytest.mark.parametrize("given_up_after", [0.5, 1.1])
async def test_an_abandoned_call_starts_nothing(given_up_after: float, autojump_clock: MockClock) -> None:
    async with open_harness("call") as (router, fake):
        pending = await router.submit(make_call(URI, "resources/read", caller=caller()))

        async def start(_number: int) -> None:
            await trio.sleep(1)
            raise BackendExited("a", "exited with status 1")

        fake.on_start = start
        await trio.sleep(given_up_after)  # while it starts, and while it waits for the next start
        assert (len(fake.starts), router.fleet.supervisors["a"].sessions) == (2, 1)
        router.release(pending)
        await settle()
        assert router.fleet.supervisors["a"].sessions == 0
        await trio.sleep(10)
        assert len(fake.starts) == 2


async def test_a_call_that_crashed_its_server_restarts_nothing(autojump_clock: MockClock) -> None:
    async with open_harness("call") as (router, fake):
        pending = await router.submit(make_call(URI, "resources/read", caller=caller()))
        await settle()
        fake.session.crash(BackendExited("a", "exited with status 1"))
        assert isinstance(await pending.next(), BackendExited)
        router.release(pending)
        await trio.sleep(10)
        assert (len(fake.starts), router.fleet.supervisors["a"].sessions) == (2, 0)


async def test_a_returning_client_gets_another_session(autojump_clock: MockClock) -> None:
    async with open_harness("client") as (router, fake):

        async def on_close() -> None:
            await trio.sleep(2)

        for _ in range(2):
            call = await router.submit(make_call(URI, "resources/read", caller=caller()))
            await settle()
            fake.session.answer(outcome=Complete(b"{}", Era.LEGACY))
            router.release(call)
            fake.on_close = on_close
            router.fleet.client_gone("one")
            await settle()
        assert len(fake.sessions) == 3
