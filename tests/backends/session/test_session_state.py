"""Session state follows the clients' wishes, also after the backend loses its session or stream."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.backends.session.session_state import (
    ACKNOWLEDGED_WITHIN,
    LONGEST_DELAY,
    RELISTEN_DELAY,
    SOUND_AFTER,
    DesiredState,
    SessionReconciler,
)
from gateway.calls import Era
from tests.support.fakes import Script, make_introduction, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

FEATURES = {"toolsListChanged": True, "resourcesListChanged": True}
ID = "io.modelcontextprotocol/subscriptionId"
CAN = {"logging": {}, "resources": {"subscribe": True}}


def notified(script: Script) -> list[tuple[str, Any]]:
    found = [(one["method"], next(iter(one["params"].values()))) for one in script.posted]
    script.posted.clear()
    return found


@asynccontextmanager
async def keeping(capabilities: Any = None, answers: Any = None) -> AsyncGenerator[tuple[Script, SessionReconciler]]:
    names = ("logging/setLevel", "resources/subscribe", "resources/unsubscribe")
    script = Script(answers if answers is not None else {name: {"": None} for name in names})
    upkeep = SessionReconciler(script.conversation, script.ears, timeout=10)
    with trio.fail_after(1e6):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run, make_introduction(capabilities or CAN, Era.LEGACY))
            await settle()
            yield script, upkeep  # ruff: ignore[fallible-context-manager]
            nursery.cancel_scope.cancel()


async def wish(upkeep: SessionReconciler, level: str | None = None, *uris: str) -> None:
    upkeep.set_desired(DesiredState(level, frozenset(uris)))
    await settle()


async def test_desired_state_is_sent_once() -> None:
    async with keeping() as (script, upkeep):
        assert script.posted == []
        await wish(upkeep, "info", "memo:b", "memo:a")
        expected = [("logging/setLevel", "info"), ("resources/subscribe", "memo:a"), ("resources/subscribe", "memo:b")]
        assert notified(script) == expected
        await wish(upkeep, "info", "memo:a", "memo:b")
        assert notified(script) == []
        await wish(upkeep, "debug", "memo:b", "memo:c")
        expected = [
            ("logging/setLevel", "debug"),
            ("resources/unsubscribe", "memo:a"),
            ("resources/subscribe", "memo:c"),
        ]
        assert notified(script) == expected
        await wish(upkeep, None)
        assert notified(script) == [("resources/unsubscribe", "memo:b"), ("resources/unsubscribe", "memo:c")]


async def test_a_clients_own_subscription_is_not_repeated() -> None:
    async with keeping() as (script, upkeep):
        upkeep.subscribed("memo:a")
        await wish(upkeep, None, "memo:a")
        assert notified(script) == []
        await wish(upkeep, None)
        assert notified(script) == [("resources/unsubscribe", "memo:a")]


async def test_subscribing_during_unsubscribe_subscribes_again() -> None:
    """Over HTTP the two may overtake each other."""
    async with keeping() as (script, upkeep):
        await wish(upkeep, None, "memo:a")
        notified(script)

        def unsubscribed(_params: Any) -> Any:
            upkeep.subscribed("memo:a")
            return {"": None}

        script.answers["resources/unsubscribe"] = unsubscribed
        await wish(upkeep, None)
        await wish(upkeep, None, "memo:a")
        assert notified(script) == [("resources/unsubscribe", "memo:a"), ("resources/subscribe", "memo:a")]


async def test_a_backend_without_logging_gets_no_level() -> None:
    async with keeping({"tools": {}}) as (script, upkeep):
        await wish(upkeep, "debug")
        assert notified(script) == []


async def test_a_forgotten_session_receives_everything_again() -> None:
    async with keeping() as (script, upkeep):
        await wish(upkeep, "info", "memo:a")
        notified(script)
        upkeep.forget()
        await settle()
        assert notified(script) == [("logging/setLevel", "info"), ("resources/subscribe", "memo:a")]


@pytest.mark.parametrize("answer", [None, {"code": -32601, "message": "no"}])
async def test_refusing_or_silent_backends_block_nothing(answer: Any, autojump_clock: MockClock) -> None:
    async with keeping(answers={"logging/setLevel": answer, "resources/subscribe": {"": None}}) as (script, upkeep):
        await wish(upkeep, "info", "memo:a")
        await trio.sleep(11)
        assert ("resources/subscribe", "memo:a") in notified(script)


async def test_roots_changes_reach_only_legacy_backends() -> None:
    await trio.lowlevel.checkpoint()  # what is made here needs a running loop
    for era, expected in ((Era.LEGACY, ["notifications/roots/list_changed"]), (Era.MODERN, [])):
        script = Script(era=era)
        SessionReconciler(script.conversation, script.ears, timeout=10).pass_on(
            "notifications/roots/list_changed", jsonrpc.ABSENT
        )
        assert script.methods == expected


class Kept:
    """A running reconciler, with the test as its modern backend."""

    def __init__(self, script: Script, upkeep: SessionReconciler) -> None:
        self.script, self.upkeep = script, upkeep

    @property
    def listens(self) -> list[Any]:
        return [one for one in self.script.posted if one["method"] == "subscriptions/listen"]

    @property
    def filters(self) -> list[Any]:
        return [one["params"]["notifications"] for one in self.listens]

    @property
    def cancelled(self) -> list[int]:
        cancels = [one for one in self.script.posted if one["method"] == "notifications/cancelled"]
        return [one["params"]["requestId"] for one in cancels]

    async def wish(self, *uris: str, level: str | None = None) -> None:
        self.upkeep.set_desired(DesiredState(level, frozenset(uris)))
        await settle()

    async def acknowledge(self, index: int = -1) -> None:
        listen = self.listens[index]["id"]
        params = {"_meta": {ID: listen}, "notifications": {}}
        self.script.feed({"method": "notifications/subscriptions/acknowledged", "params": params})
        await settle()

    async def end(self, index: int = -1, **answer: Any) -> None:
        self.script.feed({"id": self.listens[index]["id"], **(answer or {"result": {"resultType": "complete"}})})
        await settle()


@asynccontextmanager
async def keeping_modern(capabilities: Any = None) -> AsyncGenerator[Kept]:
    script = Script(era=Era.MODERN)
    upkeep = SessionReconciler(script.conversation, script.ears, timeout=10)
    with trio.fail_after(1e6):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upkeep.run, make_introduction(capabilities))
            await settle()
            yield Kept(script, upkeep)  # ruff: ignore[fallible-context-manager]
            nursery.cancel_scope.cancel()


async def test_every_list_that_can_change_is_listened_to() -> None:
    async with keeping_modern() as kept:
        assert kept.filters == [FEATURES]


async def test_nothing_is_sent_where_nothing_can_change() -> None:
    async with keeping_modern({"tools": {}, "resources": {"subscribe": False}}) as kept:
        await kept.wish("memo:a")
        assert kept.listens == []


async def test_a_new_subscription_opens_before_the_old_closes(autojump_clock: MockClock) -> None:
    async with keeping_modern() as kept:
        await kept.acknowledge()
        await kept.wish("memo:b", "memo:a")
        assert kept.filters == [FEATURES, {**FEATURES, "resourceSubscriptions": ["memo:a", "memo:b"]}]
        assert kept.cancelled == []  # nothing must be missed between them
        await kept.acknowledge()
        assert kept.cancelled == [kept.listens[0]["id"]]
        await kept.wish()
        await kept.acknowledge()
        assert kept.filters[-1] == FEATURES


async def test_a_missing_acknowledgement_does_not_block(autojump_clock: MockClock) -> None:
    async with keeping_modern() as kept:
        await kept.wish("memo:a")
        await trio.sleep(ACKNOWLEDGED_WITHIN + 0.1)
        assert kept.cancelled == [kept.listens[0]["id"]]


async def test_subscriptions_alone_cause_a_listen(autojump_clock: MockClock) -> None:
    async with keeping_modern({"resources": {"subscribe": True}}) as kept:
        assert kept.listens == []
        await kept.wish("memo:a")
        assert kept.filters == [{"resourceSubscriptions": ["memo:a"]}]


async def test_a_reopened_stream_marks_everything_changed(autojump_clock: MockClock) -> None:
    async with keeping_modern() as kept:
        await kept.wish("memo:a")
        await kept.acknowledge()
        await kept.end()
        await trio.sleep(RELISTEN_DELAY - 0.1)
        assert len(kept.listens) == 2
        await trio.sleep(0.2)
        assert len(kept.listens) == 3
        assert kept.script.ears.received == ["tools", "prompts", "resources", "updated memo:a"]


async def test_a_repeatedly_ending_stream_is_reopened_with_backoff(autojump_clock: MockClock) -> None:
    async with keeping_modern() as kept:
        for expected in (5, 10, 20, 40, 80, 160, LONGEST_DELAY, LONGEST_DELAY):
            count = len(kept.listens)
            await kept.end(error={"code": -32603, "message": "no"})
            await trio.sleep(expected - 0.1)
            assert len(kept.listens) == count
            await trio.sleep(0.2)
            assert len(kept.listens) == count + 1
        await trio.sleep(SOUND_AFTER)
        count = len(kept.listens)
        await kept.end()
        await trio.sleep(RELISTEN_DELAY + 0.1)
        assert len(kept.listens) == count + 1


async def test_a_backend_without_the_method_is_left_alone(autojump_clock: MockClock) -> None:
    async with keeping_modern() as kept:
        await kept.end(error={"code": -32601, "message": "Method not found"})
        await trio.sleep(1000)
        assert len(kept.listens) == 1
