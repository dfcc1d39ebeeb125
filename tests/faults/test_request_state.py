"""Attacks on `requestState`, and everything else that can go wrong with a parked call: nothing is resumed or run twice.

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
class House:
    """A gateway before a legacy server `l` and a modern one `m`, and one modern client of it."""

    gateway: GatewayProcess
    client: HttpClient

    async def call(self, tool: str = "l.ask", **further: Any) -> Message:
        arguments = {"requests": ROOTS} if tool.endswith((".ask", ".dare")) else {}
        params = {"name": tool, "arguments": arguments, **CAN, **further}
        return await self.client.call_modern("tools/call", params)

    async def park(self, tool: str = "l.ask", **further: Any) -> str:
        """Begin a call whose server asks; the `requestState` that the client was given."""
        result = (await self.call(tool, **further))["result"]
        assert result["resultType"] == "input_required"
        return result["requestState"]

    async def retry(self, state: Any, responses: Any = None, **further: Any) -> Message:
        responses = {"input-1": ANSWER} if responses is None else responses
        return await self.call(inputResponses=responses, requestState=state, **further)

    async def count(self, tool: str = "ask", server: str = "l") -> int:
        """How often the server saw a call of this tool."""
        return (await self.call(f"{server}.count"))["result"]["structuredContent"].get(tool, 0)

    async def cancelled(self, server: str = "l") -> list[int]:
        return (await self.call(f"{server}.cancelled_log"))["result"]["structuredContent"]["cancelled"]


def answers(message: Message) -> Any:
    return message["result"]["structuredContent"]["answers"]


@asynccontextmanager
async def open_house(servers: Any = None, **settings: Any) -> AsyncGenerator[House]:
    servers = servers or {"l": peer("bridge_server.py"), "m": peer("bridge_server.py", "--era", "modern")}
    config = {"mcpServers": servers, "gateway": {"start_grace": 15, **settings}}
    with trio.fail_after(60):
        async with open_gateway_process(config) as gateway:
            assert gateway.url is not None
            yield House(gateway, HttpClient(gateway.url))


def flipped(state: str, bit: int) -> str:
    sealed = bytearray(base64.urlsafe_b64decode(state))
    sealed[bit // 8] ^= 1 << bit % 8
    return base64.urlsafe_b64encode(sealed).decode()


async def test_a_forged_state_is_refused_and_the_true_one_still_resumes() -> None:
    async with open_house() as house:
        state = await house.park()
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
            assert (await house.retry(one))["error"]["code"] == INVALID, one
        assert answers(await house.retry(state)) == {"one": ANSWER}
        assert await house.count() == 1


async def test_a_state_resumes_once_and_the_call_is_never_run_again() -> None:
    async with open_house() as house:
        state = await house.park()
        assert answers(await house.retry(state)) == {"one": ANSWER}
        for _ in range(3):
            error = (await house.retry(state))["error"]
            assert error["code"] == INVALID
            assert "not run again" in error["message"]
        assert await house.count() == 1


async def test_two_retries_at_once_resume_once() -> None:
    async with open_house() as house:
        state = await house.park()
        found: list[Message] = []
        async with trio.open_nursery() as nursery:

            async def retry() -> None:
                found.append(await house.retry(state))

            for _ in range(8):
                nursery.start_soon(retry)
        assert sorted("error" in one for one in found) == [False] + [True] * 7
        assert await house.count() == 1


async def test_a_state_is_for_its_own_request() -> None:
    async with open_house() as house:
        state = await house.park()
        other = {"arguments": {"requests": ROOTS, "more": 1}}
        assert (await house.retry(state, **other))["error"]["code"] == INVALID
        assert (await house.retry(state, arguments=None))["error"]["code"] == INVALID
        for name in ("l.echo", "m.ask"):
            assert (await house.retry(state, name=name))["error"]["code"] == INVALID
        params = {"name": "l.asks", "inputResponses": {"input-1": ANSWER}, "requestState": state, **CAN}
        assert (await house.client.call_modern("prompts/get", params))["error"]["code"] == INVALID
        params = {"uri": "memo://rich/one", "requestState": state, **CAN}
        assert (await house.client.call_modern("resources/read", params))["error"]["code"] == INVALID
        assert answers(await house.retry(state)) == {"one": ANSWER}
        assert await house.count("echo") == await house.count("ask", "m") == 0


async def test_another_connection_may_bring_the_answer() -> None:
    async with open_house() as house:
        state = await house.park()
        assert house.gateway.url is not None
        other = House(house.gateway, HttpClient(house.gateway.url))
        other.client.last_id = 1000
        assert answers(await other.retry(state)) == {"one": ANSWER}


async def test_missing_answers_are_asked_for_again_and_unknown_ones_ignored() -> None:
    async with open_house() as house:
        requests = {"arguments": {"requests": {**ROOTS, "two": FORM}}}
        state = await house.park(**requests)
        part = (await house.retry(state, {"input-1": ANSWER, "input-7": {}, "": {}}, **requests))["result"]
        assert part["resultType"] == "input_required"
        assert list(part["inputRequests"]) == ["input-2"]
        nothing = (await house.retry(part["requestState"], {}, **requests))["result"]
        assert nothing["inputRequests"] == part["inputRequests"]
        whole = await house.retry(nothing["requestState"], {"input-2": {"action": "decline"}}, **requests)
        assert answers(whole) == {"one": ANSWER, "two": {"action": "decline"}}
        for used in (state, part["requestState"]):
            assert (await house.retry(used, **requests))["error"]["code"] == INVALID
        assert await house.count() == 1


@pytest.mark.parametrize("responses", [[], "x", 1, {"input-1": 1}, {"input-1": None}, {"input-1": []}])
async def test_answers_of_a_wrong_form_are_refused(house: House, responses: Any) -> None:
    state = await house.park()
    assert (await house.retry(state, responses))["error"]["code"] == INVALID
    assert answers(await house.retry(state)) == {"one": ANSWER}


@pytest.fixture
async def house() -> AsyncGenerator[House]:
    async with open_house() as house:
        yield house


async def test_a_state_of_another_process_is_refused_and_its_call_not_run(house: House) -> None:
    state = await house.park()
    async with open_house() as other:
        error = (await other.retry(state))["error"]
        assert (error["code"], await other.count()) == (INVALID, 0)


KEYS = [base64.b64encode(bytes([number]) * 32).decode() for number in range(3)]


async def test_a_replica_knows_the_keys_but_not_the_parked_call() -> None:
    async with (
        open_house(request_state_keys=f"{KEYS[0]},{KEYS[1]}") as one,
        open_house(request_state_keys=f"{KEYS[1]},{KEYS[0]}") as two,
    ):
        error = (await two.retry(await one.park()))["error"]
        assert error["code"] == INVALID
        assert "not run again" in error["message"]
        assert await two.count() == 0
        # A modern server's state holds all that there is to know, so any replica goes on with it.
        first = await one.park("m.ask")
        assert answers(await two.call("m.ask", inputResponses={"one": ANSWER}, requestState=first)) == {"one": ANSWER}


async def test_a_modern_servers_state_comes_back_as_it_was_and_only_for_its_request(house: House) -> None:
    state = await house.park("m.ask")
    assert "round" not in base64.urlsafe_b64decode(state).decode("latin-1")
    for forged in (state[:-4], flipped(state, 100), "round \u00e9 1"):
        retried = await house.call("m.ask", inputResponses={"one": ANSWER}, requestState=forged)
        assert retried["error"]["code"] == INVALID
    other = await house.call("m.echo", inputResponses={"one": ANSWER}, requestState=state)
    assert other["error"]["code"] == INVALID
    assert await house.count("ask", "m") == 1
    assert answers(await house.call("m.ask", inputResponses={"one": ANSWER}, requestState=state)) == {"one": ANSWER}


async def test_a_hang_up_of_the_retry_cancels_the_call_for_good(house: House) -> None:
    rounds = {"arguments": {"requests": ROOTS, "rounds": 2}}
    before = await house.cancelled()
    state = await house.park(**rounds)
    second = (await house.retry(state, **rounds))["result"]["requestState"]
    assert await house.cancelled() == before  # a parked call has no connection that could break
    late = (await house.retry(second, {"input-1": {"roots": []}}, **rounds))["result"]  # an answer to the first round
    assert list(late["inputRequests"]) == ["input-2"]
    whole = await house.retry(late["requestState"], {"input-2": ANSWER}, **rounds)
    assert answers(whole) == {"one": ANSWER}

    state = await house.park("l.ask_and_sleep")
    async with trio.open_nursery() as nursery:
        retry = {"inputResponses": {"input-1": ANSWER}, "requestState": state}
        nursery.start_soon(partial(house.call, "l.ask_and_sleep", **retry))
        with trio.fail_after(10):
            while await house.count("answered") == 0:
                pass
        nursery.cancel_scope.cancel()  # which closes the connection
    with trio.fail_after(10):
        while len(await house.cancelled()) == len(before):
            pass
    assert (await house.call("l.ask_and_sleep", inputResponses={}, requestState=state))["error"]["code"] == INVALID


async def test_a_server_that_dies_ends_its_parked_calls(house: House) -> None:
    state = await house.park()
    assert "error" in await house.call("l.crash")
    error = (await house.retry(state))["error"]
    assert error["code"] == -32603
    assert await house.count() == 0  # of the server that was started in its place


@asynccontextmanager
async def open_crowd() -> AsyncGenerator[House]:
    """With a server over HTTP, where each call's requests come on the call's own stream, so that many may be parked."""
    with open_http_servers(["legacy"]) as servers:
        async with open_house({"l": servers["legacy-http"]}) as house:
            yield house


async def test_on_a_shared_pipe_nobody_is_asked_what_may_be_meant_for_another(house: House) -> None:
    """Two unknown clients have calls at one server that does not say for which of them it asks."""
    state = await house.park()
    told = answers(await house.call())["one"]["error"]
    assert told["code"] == -32603
    assert "session: client (or call)" in told["message"]
    assert answers(await house.retry(state)) == {"one": ANSWER}


async def test_the_gateway_stops_with_calls_parked() -> None:
    async with open_crowd() as house:
        for _ in range(3):
            await house.park()
        with trio.fail_after(10):  # far less than the time for which calls stay parked
            assert await house.gateway.stop() == 0
        assert "Traceback" not in house.gateway.stderr_text


async def test_parked_calls_are_bounded() -> None:
    async with open_crowd() as house:
        states = [await house.park() for _ in range(MAX_PARKED_EACH)]
        refused = await house.call()
        assert answers(refused)["one"]["error"]["code"] == -32603
        assert "too many calls wait" in answers(refused)["one"]["error"]["message"]
        assert "result" in await house.call("l.echo")  # the server has places left
        assert answers(await house.retry(states[0])) == {"one": ANSWER}
        await house.park()


async def test_arguments_that_nest_too_deep_do_no_harm(house: House) -> None:
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    for depth in (deep, 2**70):
        further = {"arguments": {"requests": ROOTS, "deep": depth}}
        state = await house.park(**further)
        assert answers(await house.retry(state, **further)) == {"one": ANSWER}
