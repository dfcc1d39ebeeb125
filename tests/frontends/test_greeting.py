"""The single answer to `initialize`: a one-second wait for first starts, and later capabilities."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Era
from gateway.frontends.legacy.sessions import SessionTable
from gateway.frontends.legacy.sse import SseFrontend
from gateway.frontends.legacy.streamable import StreamableFrontend
from tests.support.fakes import FakeBackend, FakeExchange, make_listing
from tests.support.http_frontends import HELLO, STREAM, Harness, message_of, open_harness
from tests.support.sse_client import SseClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PROMISED = {"io.modelcontextprotocol/ui": {}}
ALL = {"completions": {}, "resources": {"listChanged": True, "subscribe": True}, "extensions": PROMISED}
NONE = {"resources": {"listChanged": True}}


def starting(seconds: float) -> FakeBackend:
    """A backend with instructions and nothing else, which needs so long to start."""

    async def on_start(_number: int) -> None:
        await trio.sleep(seconds)

    return FakeBackend(make_listing("x", instructions="how to"), on_start=on_start)


async def greet_http(harness: Harness) -> Any:
    sessions = SessionTable(most=5, idle_timeout=1e5, max_requests=5)
    exchange = FakeExchange(headers=STREAM)
    await harness.start(StreamableFrontend(harness.answers, sessions).post, exchange, decoded("initialize"))
    for _ in range(50):
        if exchange.ended:
            break
        await trio.sleep(0.1)
    return json.loads(exchange.body)["result"]


async def greet_sse(harness: Harness) -> Any:
    client = SseClient(harness, SseFrontend(harness.answers, "/messages/", trio.Event()))
    await client.open()
    accepted = await client.ask("initialize", HELLO)
    assert accepted.status == 202  # the POST waits for nothing
    pinged = await client.ask("ping", {}, 2)
    assert pinged.status == 202
    for _ in range(50):
        if len(client.messages) == 2:
            break
        await trio.sleep(0.1)
    (found,) = [one for one in client.messages if one["id"] == 1]
    return found["result"]


def decoded(method: str) -> Any:
    return jsonrpc.decode(jsonrpc.encode(message_of(method, HELLO, 1)))


@pytest.mark.parametrize("greet", [greet_http, greet_sse])
@pytest.mark.parametrize(
    ("seconds", "waited", "instructions", "declared"),
    [(0, 0, "how to", NONE), (0.5, 0.5, "how to", NONE), (5, 1, None, ALL)],
)
async def test_initialize_waits_a_second_for_a_cold_start(
    greet: Callable[[Harness], Awaitable[Any]],
    seconds: float,
    waited: float,
    instructions: str | None,
    declared: Any,
    autojump_clock: MockClock,
) -> None:
    began = trio.current_time()
    async with open_harness(starting(seconds)) as harness:
        result = await greet(harness)
        assert waited <= trio.current_time() - began < waited + 0.5
        assert (instructions or "") in result.get("instructions", "")
        assert ("instructions" in result) == (instructions is not None)
        found = {name: value for name, value in result["capabilities"].items() if name in ALL}
        assert found == declared


async def test_permanently_failed_features_are_not_advertised(autojump_clock: MockClock) -> None:
    fake = FakeBackend(make_listing("x"))
    fake.fail(*range(1, 100))
    async with open_harness(fake) as harness:
        assert "completions" in harness.answers._capabilities(Era.LEGACY, None)
        await harness.answers.fleet.supervisors["a"].known.wait()
        assert "completions" not in harness.answers._capabilities(Era.LEGACY, None)
