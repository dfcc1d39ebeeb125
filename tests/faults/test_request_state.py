"""Attacks on `requestState` and other faults of suspended calls: nothing is resumed or run twice.

Tests with other principals or another clock are in tests/frontends/modern.
"""

from __future__ import annotations

import base64
import os
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.frontends.modern.suspended_calls import MAX_PARKED_EACH
from tests.contract.bridge import open_http_servers
from tests.support.gateway_process import META, HttpClient, open_gateway_process, peer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.support.gateway_process import GatewayProcess, Message

CAN = {"_meta": {META + "clientCapabilities": {"elicitation": {"form": {}, "url": {}}, "roots": {}}}}
ROOTS = {"one": {"method": "roots/list", "params": {}}}
FORM = {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {"type": "object"}}}
ANSWER = {"roots": [{"uri": "file:///a"}]}
INVALID = -32602


@dataclass
class Harness:
    """A gateway before a legacy server `l` and a modern `m`, and a modern client."""

    gateway: GatewayProcess
    client: HttpClient

    async def call(self, tool: str = "l.ask", **kwargs: Any) -> Message:
        arguments = {"requests": ROOTS} if tool.endswith((".ask", ".dare")) else {}
        params = {"name": tool, "arguments": arguments, **CAN, **kwargs}
        return await self.client.call_modern("tools/call", params)

    async def park(self, tool: str = "l.ask", **kwargs: Any) -> str:
        """Begin a call whose server sends a request; return the client's `requestState`."""
        result = (await self.call(tool, **kwargs))["result"]
        assert result["resultType"] == "input_required"
        return result["requestState"]

    async def retry(self, state: Any, responses: Any = None, **kwargs: Any) -> Message:
        responses = {"input-1": ANSWER} if responses is None else responses
        return await self.call(inputResponses=responses, requestState=state, **kwargs)

    async def count(self, tool: str = "ask", server: str = "l") -> int:
        """How often the server saw a call of this tool."""
        return (await self.call(f"{server}.count"))["result"]["structuredContent"].get(tool, 0)

    async def cancelled(self, server: str = "l") -> list[int]:
        return (await self.call(f"{server}.cancelled_log"))["result"]["structuredContent"]["cancelled"]


def answers(message: Message) -> Any:
    return message["result"]["structuredContent"]["answers"]


@asynccontextmanager
async def open_harness(servers: Any = None, **settings: Any) -> AsyncGenerator[Harness]:
    servers = servers or {"l": peer("bridge_server.py"), "m": peer("bridge_server.py", "--era", "modern")}
    config = {"mcpServers": servers, "gateway": {"start_grace": 15, **settings}}
    with trio.fail_after(60):
        async with open_gateway_process(config) as gateway:
            assert gateway.url is not None
            yield Harness(gateway, HttpClient(gateway.url))


def flipped(state: str, bit: int) -> str:
    sealed = bytearray(base64.urlsafe_b64decode(state))
    sealed[bit // 8] ^= 1 << bit % 8
    return base64.urlsafe_b64encode(sealed).decode()


async def test_a_forged_state_is_refused_without_harm() -> None:
    async with open_harness() as harness:
        state = await harness.park()
        size = len(base64.urlsafe_b64decode(state))
        forged: list[Any] = [
            state[:-4],
            state[: len(state) // 2],
            state[4:],
            state + "AAAA",
            "",
            "x",
            "\u00e9",
            "A" * 400,
        ]
        forged += [flipped(state, bit) for bit in (0, 7, 96, 97, size * 4, size * 8 - 1)]
        forged += [base64.urlsafe_b64encode(os.urandom(size)).decode(), 1, {}, [state]]
        for one in forged:
            assert (await harness.retry(one))["error"]["code"] == INVALID, one
        assert answers(await harness.retry(state)) == {"one": ANSWER}
        assert await harness.count() == 1


async def test_a_state_resumes_once_and_runs_once() -> None:
    async with open_harness() as harness:
        state = await harness.park()
        assert answers(await harness.retry(state)) == {"one": ANSWER}
        for _ in range(3):
            error = (await harness.retry(state))["error"]
            assert error["code"] == INVALID
            assert "not run again" in error["message"]
        assert await harness.count() == 1


async def test_two_concurrent_retries_resume_once() -> None:
    async with open_harness() as harness:
        state = await harness.park()
        found: list[Message] = []
        async with trio.open_nursery() as nursery:

            async def retry() -> None:
                found.append(await harness.retry(state))

            for _ in range(8):
                nursery.start_soon(retry)
        assert sorted("error" in one for one in found) == [False] + [True] * 7
        assert await harness.count() == 1


async def test_a_state_is_for_its_own_request() -> None:
    async with open_harness() as harness:
        state = await harness.park()
        other = {"arguments": {"requests": ROOTS, "more": 1}}
        assert (await harness.retry(state, **other))["error"]["code"] == INVALID
        assert (await harness.retry(state, arguments=None))["error"]["code"] == INVALID
        for name in ("l.echo", "m.ask"):
            assert (await harness.retry(state, name=name))["error"]["code"] == INVALID
        params = {"name": "l.asks", "inputResponses": {"input-1": ANSWER}, "requestState": state, **CAN}
        assert (await harness.client.call_modern("prompts/get", params))["error"]["code"] == INVALID
        params = {"uri": "memo://rich/one", "requestState": state, **CAN}
        assert (await harness.client.call_modern("resources/read", params))["error"]["code"] == INVALID
        assert answers(await harness.retry(state)) == {"one": ANSWER}
        assert await harness.count("echo") == await harness.count("ask", "m") == 0


async def test_another_connection_may_bring_the_answer() -> None:
    async with open_harness() as harness:
        state = await harness.park()
        assert harness.gateway.url is not None
        other = Harness(harness.gateway, HttpClient(harness.gateway.url))
        other.client.last_id = 1000
        assert answers(await other.retry(state)) == {"one": ANSWER}


async def test_missing_answers_are_requested_and_unknown_ones_ignored() -> None:
    async with open_harness() as harness:
        requests = {"arguments": {"requests": {**ROOTS, "two": FORM}}}
        state = await harness.park(**requests)
        part = (await harness.retry(state, {"input-1": ANSWER, "input-7": {}, "": {}}, **requests))["result"]
        assert part["resultType"] == "input_required"
        assert list(part["inputRequests"]) == ["input-2"]
        nothing = (await harness.retry(part["requestState"], {}, **requests))["result"]
        assert nothing["inputRequests"] == part["inputRequests"]
        whole = await harness.retry(nothing["requestState"], {"input-2": {"action": "decline"}}, **requests)
        assert answers(whole) == {"one": ANSWER, "two": {"action": "decline"}}
        for used in (state, part["requestState"]):
            assert (await harness.retry(used, **requests))["error"]["code"] == INVALID
        assert await harness.count() == 1


@pytest.mark.parametrize("responses", [[], "x", 1, {"input-1": 1}, {"input-1": None}, {"input-1": []}])
async def test_answers_of_a_wrong_form_are_refused(harness: Harness, responses: Any) -> None:
    state = await harness.park()
    assert (await harness.retry(state, responses))["error"]["code"] == INVALID
    assert answers(await harness.retry(state)) == {"one": ANSWER}


@pytest.fixture
async def harness() -> AsyncGenerator[Harness]:
    async with open_harness() as harness:
        yield harness


async def test_a_foreign_processs_state_is_refused(harness: Harness) -> None:
    state = await harness.park()
    async with open_harness() as other:
        error = (await other.retry(state))["error"]
        assert (error["code"], await other.count()) == (INVALID, 0)


KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]


async def test_a_replica_lacks_the_suspended_call() -> None:
    async with (
        open_harness(request_state_keys=f"{KEYS[0]},{KEYS[1]}") as one,
        open_harness(request_state_keys=f"{KEYS[1]},{KEYS[0]}") as two,
    ):
        error = (await two.retry(await one.park()))["error"]
        assert error["code"] == INVALID
        assert "not run again" in error["message"]
        assert await two.count() == 0
        # A modern server's state is complete, so any replica can continue with it.
        first = await one.park("m.ask")
        assert answers(await two.call("m.ask", inputResponses={"one": ANSWER}, requestState=first)) == {"one": ANSWER}


async def test_a_modern_state_returns_only_with_its_request(harness: Harness) -> None:
    state = await harness.park("m.ask")
    assert "round" not in base64.urlsafe_b64decode(state).decode("latin-1")
    for forged in (state[:-4], flipped(state, 100), "round \u00e9 1"):
        retried = await harness.call("m.ask", inputResponses={"one": ANSWER}, requestState=forged)
        assert retried["error"]["code"] == INVALID
    other = await harness.call("m.echo", inputResponses={"one": ANSWER}, requestState=state)
    assert other["error"]["code"] == INVALID
    assert await harness.count("ask", "m") == 1
    assert answers(await harness.call("m.ask", inputResponses={"one": ANSWER}, requestState=state)) == {"one": ANSWER}


async def test_disconnecting_the_retry_cancels_the_call(harness: Harness) -> None:
    rounds = {"arguments": {"requests": ROOTS, "rounds": 2}}
    before = await harness.cancelled()
    state = await harness.park(**rounds)
    second = (await harness.retry(state, **rounds))["result"]["requestState"]
    assert await harness.cancelled() == before  # a suspended call has no connection that could break
    late = (await harness.retry(second, {"input-1": {"roots": []}}, **rounds))["result"]  # an answer to the first round
    assert list(late["inputRequests"]) == ["input-2"]
    whole = await harness.retry(late["requestState"], {"input-2": ANSWER}, **rounds)
    assert answers(whole) == {"one": ANSWER}

    state = await harness.park("l.ask_and_sleep")
    async with trio.open_nursery() as nursery:
        retry = {"inputResponses": {"input-1": ANSWER}, "requestState": state}
        nursery.start_soon(partial(harness.call, "l.ask_and_sleep", **retry))
        with trio.fail_after(10):
            while await harness.count("answered") == 0:
                pass
        nursery.cancel_scope.cancel()  # which closes the connection
    with trio.fail_after(10):
        while len(await harness.cancelled()) == len(before):
            pass
    assert (await harness.call("l.ask_and_sleep", inputResponses={}, requestState=state))["error"]["code"] == INVALID


async def test_a_server_crash_ends_its_suspended_calls(harness: Harness) -> None:
    state = await harness.park()
    assert "error" in await harness.call("l.crash")
    error = (await harness.retry(state))["error"]
    assert error["code"] == -32603
    assert await harness.count() == 0  # of the server that was started in its place


@asynccontextmanager
async def open_crowd() -> AsyncGenerator[Harness]:
    """A server over HTTP, with a stream per call, so that many can suspend."""
    with open_http_servers(["legacy"]) as servers:
        async with open_harness({"l": servers["legacy-http"]}) as harness:
            yield harness


async def test_a_shared_pipe_receives_no_ambiguous_request(harness: Harness) -> None:
    """Two unknown clients call one server, whose request may be for either."""
    state = await harness.park()
    notified = answers(await harness.call())["one"]["error"]
    assert notified["code"] == -32603
    assert "session: client (or call)" in notified["message"]
    assert answers(await harness.retry(state)) == {"one": ANSWER}


async def test_the_gateway_stops_with_suspended_calls() -> None:
    async with open_crowd() as harness:
        for _ in range(3):
            await harness.park()
        with trio.fail_after(10):  # far less than the time for which calls stay suspended
            assert await harness.gateway.stop() == 0
        assert "Traceback" not in harness.gateway.stderr_text


async def test_suspended_calls_are_bounded() -> None:
    async with open_crowd() as harness:
        states = [await harness.park() for _ in range(MAX_PARKED_EACH)]
        refused = await harness.call()
        assert answers(refused)["one"]["error"]["code"] == -32603
        assert "too many calls wait" in answers(refused)["one"]["error"]["message"]
        assert "result" in await harness.call("l.echo")  # the server has places left
        assert answers(await harness.retry(states[0])) == {"one": ANSWER}
        await harness.park()


async def test_deeply_nested_arguments_cause_no_harm(harness: Harness) -> None:
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    for depth in (deep, 2**70):
        kwargs = {"arguments": {"requests": ROOTS, "deep": depth}}
        state = await harness.park(**kwargs)
        assert answers(await harness.retry(state, **kwargs)) == {"one": ANSWER}
