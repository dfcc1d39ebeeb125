"""Peers that violate the protocol: a clear error, no leak, no effect on others.

`BAD_INPUT` names every kind and the tests about it, wherever they are; those that had no better place are here.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from gateway import jsonrpc
from gateway.calls import Era, Failure, ServerRequest
from gateway.frontends.legacy.sessions import ServerRequestTable
from gateway.inflight.pending import PendingCall
from tests.peers.http_peer import LegacyServer, Reply, Request, SseServer, open_peer
from tests.support.fakes import Script
from tests.support.http_sessions import WITHIN, call, open_session, text_of
from tests.support.suspended import make_call, make_caller

TESTS = Path(__file__).parent.parent
BAD_INPUT = {
    "a backend answers HTML": ["backends.http.test_streamable.test_an_invalid_answer_ends_its_call_clearly"],
    "a redirect loop": ["backends.http.test_streamable.test_any_other_redirect_is_a_clear_error"],
    "401 without metadata": ["oauth_client.test_login.test_an_impossible_login_is_reported"],
    "an event of 100 MB": [
        "backends.http.test_streamable.test_an_invalid_answer_ends_its_call_clearly",
        "backends.http.test_sse.test_an_oversized_event_costs_its_own_call_only",
        "faults.test_backends.test_a_100_mb_line_fails_only_its_call",
    ],
    "a stream cut in the middle of an event": ["faults.test_grid_http.test_a_fault_during_a_call_ends_it"],
    "an unsolicited request before initialize": [
        "faults.test_bad_input.test_a_request_before_initialize_is_refused_harmlessly"
    ],
    "the same session id for two clients": ["faults.test_bad_input.test_two_sessions_with_the_same_id"],
    "a client answers twice": ["faults.test_bad_input.test_a_client_that_answers_twice"],
    "a client never answers": [
        "faults.test_bad_input.test_a_client_that_never_answers",
        "frontends.test_call_stream.test_a_silent_client_is_not_awaited",
    ],
    "a client answers after the cancel": ["faults.test_bad_input.test_a_client_that_answers_after_the_cancel"],
    "a subscriber that vanishes": [
        "frontends.test_resource_subscriptions.test_the_first_subscription_gets_the_backends_own_answer"
    ],
    "an elicitation URL with credentials": [
        "eras.test_asks.test_unsafe_urls_are_shown_to_no_client",
        "eras.test_errors.test_an_unsafe_page_is_never_named",
        "frontends.test_request_handler.test_modern_clients_are_not_sent_to_unsafe_pages",
    ],
}


def test_every_kind_has_its_test() -> None:
    for kind, names in BAD_INPUT.items():
        for name in names:
            module, _, function = name.rpartition(".")
            tree = ast.parse(TESTS.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8"))
            functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
            assert function in functions, (kind, name)


# -- backends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sampling/createMessage", "elicitation/create", "roots/list"])
async def test_a_request_before_initialize_is_refused_harmlessly(method: str) -> None:
    server = SseServer()

    async def initialize(request: Request, reply: Reply) -> None:
        await reply.send(202)
        await server.say({"jsonrpc": "2.0", "id": 1, "method": method, "params": {}})  # the id is ours, too
        await server.answer(request)

    server.on["initialize"] = initialize
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        refused = (await peer.received("response")).message
        assert refused["id"] == 1
        assert "no call is in flight" in refused["error"]["message"]
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"


async def test_two_sessions_with_the_same_id() -> None:
    """The server gives all clients one id, and ends all sessions with one."""
    server = LegacyServer()

    async def initialize(request: Request, reply: Reply) -> None:
        server.session = 0
        await server.on_initialize(request, reply)

    async def delete(request: Request, reply: Reply) -> None:
        server.session = -1  # invalid until a client initializes again
        await reply.send(200)

    server.on |= {"initialize": initialize, "DELETE": delete}
    async with open_peer(server) as peer, open_session(peer.url, era="legacy") as one:
        async with open_session(peer.url, era="legacy") as other:
            assert text_of(await call(one, "echo", {"text": "1"})) == "1"
            assert text_of(await call(other, "echo", {"text": "2"})) == "2"
        assert server.session == -1
        assert text_of(await call(one, "echo", {"text": "again"})) == "again"  # in a session of its own


# -- clients -----------------------------------------------------------------------------------------------------------


def asked(server_requests: ServerRequestTable) -> tuple[Any, list[bytes | Failure]]:
    """One server request, and the answer its server receives."""
    notified: list[bytes | Failure] = []
    ask = ServerRequest("roots/list", {}, notified.append)
    return (ask, msgspec.json.decode(server_requests.request(ask))["id"]), notified


def answer(server_requests: ServerRequestTable, request_id: Any, result: str = "{}") -> None:
    server_requests.handle_response(
        jsonrpc.decode(b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (request_id, result.encode()))
    )


def test_a_client_that_answers_twice() -> None:
    server_requests = ServerRequestTable()
    (_, number), notified = asked(server_requests)
    (_, other), notified_other = asked(server_requests)
    for result in ('{"a":1}', '{"a":2}'):
        answer(server_requests, number, result)
    assert notified == [b'{"a":1}']
    assert notified_other == []
    answer(server_requests, other)
    assert notified_other == [b"{}"]


def test_a_client_that_answers_after_the_cancel() -> None:
    server_requests = ServerRequestTable()
    (ask, number), notified = asked(server_requests)
    assert server_requests.withdraw(ask) is not None
    answer(server_requests, number)
    assert server_requests.withdraw(ask) is None
    assert notified == []


async def test_a_client_that_never_answers() -> None:
    """Its call ends at its deadline: the server gets an error, nothing is kept."""
    script = Script()
    one = make_call(Era.LEGACY, caller=make_caller(Era.LEGACY, session="one"))
    pending = PendingCall(one, backend="b", own_name="x", timeout=0.05)
    script.send(pending)
    script.feed({"id": "r", "method": "roots/list", "params": {}})
    with trio.fail_after(WITHIN):
        assert isinstance(await pending.next(), ServerRequest)
        found = await pending.next()
    assert "did not answer" in str(found)
    methods = [one.get("method", "refusal") for one in script.posted]
    assert methods == ["tools/call", "refusal", "notifications/cancelled"]
    assert script.posted[1]["id"] == "r"
    assert script.conversation.in_flight == 0
