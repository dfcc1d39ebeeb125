"""A legacy session is brought in line with what clients wish: told once, told again after it was forgotten."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.backends.session.session_state import DesiredState, SessionReconciler
from gateway.calls import Era
from tests.backends.session.test_subscription_stream import greeting_of
from tests.support.fakes import Script, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

CAN = {"logging": {}, "resources": {"subscribe": True}}


def told(script: Script) -> list[tuple[str, Any]]:
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
            nursery.start_soon(upkeep.run, greeting_of(capabilities or CAN, Era.LEGACY))
            await settle()
            yield script, upkeep  # ruff: ignore[fallible-context-manager]
            nursery.cancel_scope.cancel()


async def wish(upkeep: SessionReconciler, level: str | None = None, *uris: str) -> None:
    upkeep.set_desired(DesiredState(level, frozenset(uris)))
    await settle()


async def test_what_is_wished_is_told_once() -> None:
    async with keeping() as (script, upkeep):
        assert script.posted == []
        await wish(upkeep, "info", "memo:b", "memo:a")
        expected = [("logging/setLevel", "info"), ("resources/subscribe", "memo:a"), ("resources/subscribe", "memo:b")]
        assert told(script) == expected
        await wish(upkeep, "info", "memo:a", "memo:b")
        assert told(script) == []
        await wish(upkeep, "debug", "memo:b", "memo:c")
        expected = [
            ("logging/setLevel", "debug"),
            ("resources/unsubscribe", "memo:a"),
            ("resources/subscribe", "memo:c"),
        ]
        assert told(script) == expected
        await wish(upkeep, None)
        assert told(script) == [("resources/unsubscribe", "memo:b"), ("resources/unsubscribe", "memo:c")]


async def test_a_subscription_that_a_client_made_itself_is_not_made_again() -> None:
    async with keeping() as (script, upkeep):
        upkeep.subscribed("memo:a")
        await wish(upkeep, None, "memo:a")
        assert told(script) == []
        await wish(upkeep, None)
        assert told(script) == [("resources/unsubscribe", "memo:a")]


async def test_a_subscription_made_while_one_is_ended_is_made_again() -> None:
    """Over HTTP the two may overtake each other."""
    async with keeping() as (script, upkeep):
        await wish(upkeep, None, "memo:a")
        told(script)

        def unsubscribed(_params: Any) -> Any:
            upkeep.subscribed("memo:a")
            return {"": None}

        script.answers["resources/unsubscribe"] = unsubscribed
        await wish(upkeep, None)
        await wish(upkeep, None, "memo:a")
        assert told(script) == [("resources/unsubscribe", "memo:a"), ("resources/subscribe", "memo:a")]


async def test_a_backend_without_levels_is_told_none() -> None:
    async with keeping({"tools": {}}) as (script, upkeep):
        await wish(upkeep, "debug")
        assert told(script) == []


async def test_a_session_that_was_forgotten_is_told_everything_again() -> None:
    async with keeping() as (script, upkeep):
        await wish(upkeep, "info", "memo:a")
        told(script)
        upkeep.forget()
        await settle()
        assert told(script) == [("logging/setLevel", "info"), ("resources/subscribe", "memo:a")]


@pytest.mark.parametrize("answer", [None, {"code": -32601, "message": "no"}])
async def test_a_backend_that_refuses_or_is_silent_keeps_nothing_back(answer: Any, autojump_clock: MockClock) -> None:
    async with keeping(answers={"logging/setLevel": answer, "resources/subscribe": {"": None}}) as (script, upkeep):
        await wish(upkeep, "info", "memo:a")
        await trio.sleep(11)
        assert ("resources/subscribe", "memo:a") in told(script)


async def test_changed_roots_are_told_to_legacy_backends_only() -> None:
    await trio.lowlevel.checkpoint()  # what is made here needs a running loop
    for era, expected in ((Era.LEGACY, ["notifications/roots/list_changed"]), (Era.MODERN, [])):
        script = Script(era=era)
        SessionReconciler(script.conversation, script.ears, timeout=10).pass_on(
            "notifications/roots/list_changed", jsonrpc.ABSENT
        )
        assert script.methods == expected
