"""One session as a transcript: `<<` posted by the gateway, `>>` received from the backend."""

# ruff: noqa: RUF029 - many tests wait for nothing, but tickets need the clock of a running loop

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.backends.session.conversation import MAX_BATCH, MAX_WITHDRAWN, SUSPECT_FOR
from gateway.calls import Complete, Era, Failure, InputRequired, Notification, ServerRequest
from gateway.eras import asks
from gateway.eras.meta import GATEWAYS
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow
from gateway.lines import OversizedLine
from gateway.rates import BURST, LINES_PER_SECOND
from tests.support.fakes import LEGACY_CALLER, MODERN_CALLER, SOON, Script, make_pending, settle
from tests.support.playbook import play_backend

GONE = BackendExited("b", "exited with status 3")


def plain(notification: object) -> Any:
    assert isinstance(notification, Notification)
    return {name: json.loads(bytes(span)) for name, span in notification.params.items()}


# -- calls -------------------------------------------------------------------------------------------------------------


async def test_calls_are_renumbered_and_answers_matched() -> None:
    script = Script()
    tickets = [make_pending("a"), make_pending("b", token="t")]
    assert [script.send(ticket) for ticket in tickets] == [1, 2]
    play = play_backend(script)
    await play("""
        << {"id": 1, "method": "tools/call", "params": {"name": "a"}}
        << {"id": 2, "method": "tools/call", "params": {"name": "b", "_meta": {"progressToken": 2}}}
    """)
    assert script.conversation.in_flight == 2
    script.conversation.feed(b'{"jsonrpc":"2.0","id":2,"result":{ "x":1.00}}')
    assert tickets[1].outcome == Complete(b'{ "x":1.00}', Era.LEGACY)
    assert tickets[0].outcome is None
    await play('>> {"id": 1, "error": {"code": -5, "message": "no", "data": null}}')
    assert len(script.posted) == 2
    assert tickets[0].outcome == Failure(-5, "no", b"null", Era.LEGACY)
    assert script.conversation.in_flight == 0
    assert script.ears.received == ["freed", "freed"]


async def test_suspects_are_unanswered_calls_newest_first(
    autojump_clock: trio.testing.MockClock,
) -> None:
    script = Script()
    answered, first, cancelled, late, last = [make_pending(name) for name in ("ok", "first", "gone", "late", "last")]
    for ticket in (answered, first, cancelled, late, last):
        script.send(ticket)
    script.feed({"id": 1, "result": {}})
    cancelled.close()
    late.close()
    script.feed({"id": 4, "result": {}})
    assert [one.name for one in script.conversation.suspects()] == ["last", "gone", "first"]
    assert script.conversation.suspects()[0] == (last.number, "last", last.call.caller.origin)
    await trio.sleep(SUSPECT_FOR + 1)
    assert [one.name for one in script.conversation.suspects()] == ["last", "first"]
    for _ in range(MAX_WITHDRAWN + 5):
        ticket = make_pending("more")
        script.send(ticket)
        ticket.close()
    assert len(script.conversation.suspects()) == MAX_WITHDRAWN + 2


async def test_ids_that_became_strings_are_understood() -> None:
    script = Script()
    ticket = make_pending()
    script.send(ticket)
    script.feed({"id": "1", "result": {}})
    assert ticket.outcome == Complete(b"{}", Era.LEGACY)


@pytest.mark.parametrize(
    "message",
    [
        {"id": 7, "result": {}},
        {"id": -1, "result": {}},
        {"id": "", "result": {}},
        {"id": "1x", "result": {}},
        {"id": "-1", "result": {}},
        {"id": "\u00b9", "result": {}},
        {"id": "\u0661", "result": {}},
        {"id": "9" * 5000, "result": {}},  # int() refuses so many digits
    ],
)
async def test_unexpected_answers_are_counted(message: dict[str, Any]) -> None:
    script = Script()
    ticket = make_pending()
    script.send(ticket)
    script.feed(message)
    assert script.conversation.unmatched == 1
    assert ticket.outcome is None
    script.feed({"id": 1, "result": {}})
    assert ticket.outcome is not None


async def test_a_late_answer_is_dropped() -> None:
    script = Script()
    ticket = make_pending()
    script.send(ticket)
    ticket.close("the client hung up")
    play = play_backend(script)
    await play("""
        << {"id": "$call", "method": "tools/call", "params": "..."}
        << {"method": "notifications/cancelled", "params": {"requestId": "$call", "reason": "the client hung up"}}
    """)
    assert script.ears.received == ["freed"]
    await play('>> {"id": "$call", "result": {}}')
    assert (script.conversation.unmatched, ticket.outcome) == (1, None)
    ticket.close()
    assert len(script.posted) == 2


async def test_an_ended_call_is_not_cancelled() -> None:
    script = Script()
    ticket = make_pending()
    script.send(ticket)
    script.feed({"id": 1, "result": {}})
    ticket.close()
    assert script.methods == ["tools/call"]


@pytest.mark.parametrize(
    ("era", "message", "expected"),
    [
        (Era.LEGACY, b'"result":{}', Complete(b"{}", Era.LEGACY)),
        (Era.LEGACY, b'"result":{},"error":null', Complete(b"{}", Era.LEGACY)),
        (Era.LEGACY, b'"result":{"resultType":"new"}', Complete(b'{"resultType":"new"}', Era.LEGACY)),
        (Era.MODERN, b'"result":{"resultType":"complete"}', Complete(b'{"resultType":"complete"}', Era.MODERN)),
        (Era.MODERN, b'"result":{}', Complete(b"{}", Era.MODERN)),
        (Era.MODERN, b'"result":{"resultType":"input_required"}', InputRequired(b'{"resultType":"input_required"}')),
        (Era.MODERN, b'"result":{"resultType":"new"}', "an undeclared resultType"),
        (Era.LEGACY, b'"result":[]', "a result that is not an object"),
        (Era.LEGACY, b'"result":null', "a result that is not an object"),
        (Era.LEGACY, b'"x":1', "a result that is not an object"),
        (Era.LEGACY, b'"result":{"a":NaN}', "not valid JSON"),
        (Era.LEGACY, b'"result":{"a":"\xff"}', "not valid JSON"),
        (Era.LEGACY, b'"result":' + b"[" * 100_000, "not valid JSON"),
        (
            Era.LEGACY,
            b'"error":"no"',
            Failure(-32603, "the server sent an error without code and message", b'"no"', Era.LEGACY),
        ),
    ],
    ids=str,
)
async def test_outcomes(era: Era, message: bytes, expected: Any) -> None:
    script = Script(era=era)
    ticket = make_pending()
    script.send(ticket)
    script.conversation.feed(b'{"jsonrpc":"2.0","id":1,' + message + b"}")
    if isinstance(expected, str):
        assert isinstance(ticket.outcome, BackendProtocol)
        assert expected in str(ticket.outcome)
    else:
        assert ticket.outcome == expected
    assert script.conversation.in_flight == 0


@settings(deadline=None)
@given(st.binary(max_size=60) | st.text('{}[]":,0129-\\idmethorsulparn \n').map(str.encode))
def test_no_bytes_break_a_conversation(data: bytes) -> None:
    async def main() -> None:
        script = Script()
        ticket = make_pending()
        script.send(ticket)
        script.conversation.feed(data)
        if ticket.outcome is None:
            script.feed({"id": 1, "result": {}})
        assert ticket.outcome is not None

    trio.run(main)


@pytest.mark.parametrize(
    "data",
    [
        b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"result":{}}',
        b'{"jsonrpc":"2.0","id":"' + b"9" * 5000 + b'","result":{NaN}}',
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"what?"}}',
        b'{"jsonrpc":"2.0","id":null,"error":3}',
        b'{"jsonrpc":"2.0","error":{"code":1}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress"}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":[1]}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":null}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":{}}}',
        b'{"jsonrpc":"2.0","method":"notifications/unheard_of","params":3}',
        b"Listening on port 8000",
        b"[]",
    ],
)
async def test_garbage_is_skipped(data: bytes) -> None:
    script = Script()
    ticket = make_pending()
    script.send(ticket)
    script.conversation.feed(data)
    assert script.methods == ["tools/call"]
    assert ticket.outcome is None


async def test_garbage_is_logged_at_a_limited_rate(
    caplog: pytest.LogCaptureFixture, mock_clock: trio.testing.MockClock
) -> None:
    script = Script()
    for _ in range(1000):
        script.conversation.feed(b"garbage")
    assert len(caplog.records) == BURST
    mock_clock.jump(1.0)
    for _ in range(1000):
        script.conversation.feed(b"garbage")
    assert len(caplog.records) == BURST + LINES_PER_SECOND + 1
    assert "800 warnings not logged" in caplog.messages[BURST]


async def test_invalid_json_in_a_list_drops_only_itself() -> None:
    problems: list[str] = []
    tools = b'{"id":1,"result":{"tools":[{"name":"a"},{"name":"b","x":NaN}]}}'
    script = Script({"tools/list": tools, "x": b'{"id":2,NaN}'})
    listed = await script.conversation.request("tools/list", timeout=SOON, on_problem=problems.append)
    assert listed == Complete(b'{"tools":[{"name":"a"}]}', Era.LEGACY)
    assert [problem[:23] for problem in problems] == ["tools[1] ('b') left out"]
    assert isinstance(await script.conversation.request("x", timeout=SOON), BackendProtocol)


async def test_an_overlong_answer_costs_its_own_call() -> None:
    script = Script()
    tickets = [make_pending("a"), make_pending("b")]
    for ticket in tickets:
        script.send(ticket)
    head, tail = b'{"jsonrpc":"2.0","id":2,"result":{"x":"', b'"}}'
    script.conversation.feed_overlong(OversizedLine(head, tail, 5000), 1000)
    assert "sent a message of 5000 bytes; the limit is 1000 (max_line_bytes)" in str(tickets[1].outcome)
    assert tickets[0].outcome is None
    script.conversation.feed_overlong(OversizedLine(b'{"result":{"x":"', b'"},"id":1}', 5000), 1000)
    assert tickets[0].outcome is not None


async def test_an_unattributable_overlong_answer_fails_all_calls() -> None:
    script = Script()
    tickets = [make_pending("a"), make_pending("b")]
    for ticket in tickets:
        script.send(ticket)
    script.conversation.feed_overlong(OversizedLine(b'{"id":9,"result":{"x', b"}}", 5000), 1000)
    assert [ticket.outcome for ticket in tickets] == [None, None]  # it is known, and known to be none of them
    script.conversation.feed_overlong(OversizedLine(b'{"result":{"x', b"}}", 5000), 1000)
    assert all(isinstance(ticket.outcome, BackendProtocol) for ticket in tickets)


# -- what comes on its own ---------------------------------------------------------------------------------------------


async def test_progress_comes_under_the_clients_own_token() -> None:
    script = Script()
    one, other, none = make_pending("a", token="mine"), make_pending("b", token=1), make_pending("c")
    ids = [script.send(ticket) for ticket in (one, other, none)]
    for request_id in ids:
        script.feed({
            "method": "notifications/progress",
            "params": {"progressToken": request_id, "progress": 0.5, "new": None},
        })
    with trio.fail_after(5):
        assert plain(await one.next()) == {"progressToken": "mine", "progress": 0.5, "new": None}
        assert plain(await other.next()) == {"progressToken": 1, "progress": 0.5, "new": None}
    assert script.conversation.unmatched == 1  # the third wanted none
    script.feed({"id": ids[0], "result": {}})
    script.feed({"method": "notifications/progress", "params": {"progressToken": ids[0], "progress": 1}})
    assert script.conversation.unmatched == 2


@pytest.mark.parametrize("feature", ["tools", "prompts", "resources"])
async def test_list_changes_are_noticed(feature: str) -> None:
    script = Script()
    script.feed({"method": f"notifications/{feature}/list_changed"})
    assert script.ears.received == [feature]


async def test_a_ping_is_answered() -> None:
    script = Script()
    play = play_backend(script)
    for request_id in (0, "p", 10**30):
        await play(
            """
            >> {"id": "$id", "method": "ping"}
            << {"id": "$id", "result": {}}
            """,
            id=request_id,
        )
    assert len(script.posted) == 3


async def test_unknown_requests_are_refused() -> None:
    script = Script()
    await play_backend(script)("""
        >> {"id": 5, "method": "vendor/thing", "params": {}}
        << {"id": 5, "error": {"code": -32601, "...": "..."}}
    """)


# -- the gateway's own requests ----------------------------------------------------------------------------------------


async def test_own_requests_are_answered() -> None:
    script = Script({"tools/list": {"tools": []}})
    with trio.fail_after(5):
        assert await script.conversation.request("tools/list", timeout=5) == Complete(b'{"tools": []}', Era.LEGACY)
    await play_backend(script)('<< {"id": 1, "method": "tools/list", "params": {}}')
    assert len(script.posted) == 1


async def test_own_modern_requests_carry_the_envelope() -> None:
    script = Script(era=Era.MODERN)
    script.conversation.begin("tools/list", {"cursor": "c"})
    params = script.posted[0]["params"]
    assert params["cursor"] == "c"
    assert params["_meta"]["io.modelcontextprotocol/protocolVersion"] == MODERN_CALLER.version


@pytest.mark.parametrize(
    ("method", "notified"),
    [("tools/list", True), ("initialize", False)],  # initialize must not be cancelled
)
async def test_a_silent_backend_times_out(method: str, notified: bool, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock
    script = Script()
    started = trio.current_time()
    outcome = await script.conversation.request(method, timeout=7)
    assert trio.current_time() - started == pytest.approx(7)
    assert isinstance(outcome, BackendTooSlow)
    assert f"did not answer {method} within 7 s" in str(outcome)
    assert script.methods == [method, *(["notifications/cancelled"] if notified else [])]
    script.feed({"id": 1, "result": {}})
    assert script.conversation.unmatched == 1


async def test_a_cancelled_wait_notifies_the_backend() -> None:
    script = Script()
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            await script.conversation.request("tools/list", timeout=100)

        nursery.start_soon(ask)
        await settle()
        nursery.cancel_scope.cancel()
    assert script.methods == ["tools/list", "notifications/cancelled"]


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_the_end_finishes_all_waiters() -> None:
    script = Script()
    tickets = [make_pending("a"), make_pending("b")]
    for ticket in tickets:
        script.send(ticket)
    _, waiter = script.conversation.begin("tools/list")
    posted = len(script.posted)
    script.conversation.close(GONE)
    assert [ticket.outcome for ticket in tickets] == [GONE, GONE]
    assert waiter.outcome is GONE
    assert script.conversation.in_flight == 0
    for ticket in tickets:
        ticket.close()
    assert len(script.posted) == posted  # no recipient is left


async def test_requests_after_the_end_are_answered_immediately() -> None:
    script = Script()
    script.conversation.close(GONE)
    with trio.fail_after(5):
        assert await script.conversation.request("tools/list", timeout=100) is GONE


async def test_closing_again_finishes_a_late_call() -> None:
    script = Script()
    script.conversation.close(GONE)
    ticket = make_pending()
    script.conversation.encode_call(ticket)
    script.conversation.close(BackendExited("b", "was stopped"))
    assert ticket.over
    assert script.conversation.in_flight == 0


async def test_a_legacy_backends_batch_is_split() -> None:
    script = Script()
    first, second = script.conversation.begin("tools/list"), script.conversation.begin("prompts/list")
    batch = [
        {"jsonrpc": "2.0", "id": second[0], "result": {"prompts": []}},
        [],
        {"jsonrpc": "2.0", "id": first[0], "result": {"tools": []}},
    ]
    script.conversation.feed(json.dumps(batch).encode())
    assert [waiter.outcome for _, waiter in (first, second)] == [
        Complete(b'{"tools": []}', Era.LEGACY),
        Complete(b'{"prompts": []}', Era.LEGACY),
    ]


async def test_a_batch_without_end_is_skipped() -> None:
    script = Script()
    request_id, waiter = script.conversation.begin("tools/list")
    answer = {"jsonrpc": "2.0", "id": request_id, "result": {}}
    script.conversation.feed(json.dumps([answer] * (MAX_BATCH + 1)).encode())
    assert waiter.outcome is None


# -- nulls in the place of what is absent ------------------------------------------------------------------------------


@pytest.mark.parametrize("era", Era)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"result": {"content": []}, "error": None}, "Complete"),
        ({"result": {"content": []}, "error": None, "method": None, "params": None}, "Complete"),
        ({"result": None, "error": {"code": -5, "message": None, "data": None}}, "Failure"),
        ({"result": None, "error": {"code": -5, "message": "no"}, "method": None}, "Failure"),
        ({"result": {"content": [], "resultType": None, "_meta": None}}, "Complete"),
        ({"result": {"content": None, "isError": None, "structuredContent": None}}, "Complete"),
        ({"result": None, "error": None}, "BackendProtocol"),
        ({"result": None}, "BackendProtocol"),
    ],
)
async def test_nulls_beside_an_answer_are_absence(era: Era, answer: dict[str, Any], expected: str) -> None:
    script, ticket = Script(era=era), make_pending()
    number = script.send(ticket)
    script.feed({"id": number, **answer})
    with trio.fail_after(SOON):
        outcome = await ticket.next()
    assert type(outcome).__name__ == expected
    if isinstance(outcome, Complete):
        assert json.loads(outcome.result) == answer["result"]  # its null members pass to the client
    if isinstance(outcome, Failure):
        assert (outcome.code, outcome.message) == (-5, answer["error"]["message"] or "")


async def test_nulls_in_input_requests_are_absence() -> None:
    body = {"resultType": "input_required", "requestState": None, "inputRequests": None}
    found = asks.read_input_required(json.dumps(body).encode())
    assert (found.wanted, found.state) == (None, jsonrpc.NULL)
    wanted = {"r": {"method": asks.ROOTS, "params": None}, "s": {"method": asks.SAMPLING, "params": {"tools": None}}}
    found = asks.read_input_required(json.dumps({**body, "inputRequests": wanted}).encode())
    assert [one.params for one in (found.wanted or {}).values()] == [{}, {}]


@pytest.mark.parametrize("params", [None, {"_meta": None}], ids=["params", "_meta"])
@pytest.mark.parametrize(
    ("method", "optional"),
    [
        ("roots/list", {}),
        ("sampling/createMessage", {"tools": None, "toolChoice": None, "systemPrompt": None, "temperature": None}),
        ("elicitation/create", {"mode": None, "task": None}),
    ],
)
async def test_nulls_in_backend_requests_mean_absent(method: str, optional: Any, params: Any) -> None:
    capabilities = jsonrpc.raw({"roots": {}, "sampling": {}, "elicitation": {}})
    caller = msgspec.structs.replace(LEGACY_CALLER, capabilities=capabilities)
    script, ticket = Script(), make_pending(caller=caller)
    script.send(ticket)
    given = {**params, **optional, "x": None} if params is not None else None
    script.feed({"id": "r", "method": method, "params": given})
    with trio.fail_after(SOON):
        found = await ticket.next()
    assert isinstance(found, ServerRequest), script.posted
    assert {name: bytes(span) for name, span in found.params.items()} == ({} if given is None else {"x": b"null"})


@pytest.mark.parametrize(
    ("method", "params", "arrives"),
    [
        ("notifications/progress", {"progress": 1, "total": None, "message": None, "_meta": None}, {"progress": 1}),
        (
            "notifications/message",
            {"level": "info", "logger": None, "data": None, "_meta": None},
            {"level": "info", "data": None},
        ),
        ("vendor/note", None, {}),
        ("vendor/note", {"total": None, "_meta": None}, {"total": None}),
    ],
)
async def test_nulls_in_backend_notifications_mean_absent(method: str, params: Any, arrives: Any) -> None:
    script, ticket = Script(), make_pending(token="t")
    number = script.send(ticket)
    if method == "notifications/progress":
        params, arrives = {"progressToken": number, **params}, {"progressToken": "t", **arrives}
    script.feed({"method": method, "params": params})
    with trio.fail_after(SOON):
        found = await ticket.next()
    assert isinstance(found, Notification)
    assert {name: json.loads(bytes(span)) for name, span in found.params.items()} == arrives


@pytest.mark.parametrize(
    ("era", "carries"),
    [(Era.LEGACY, {"server/discover", "initialize"}), (Era.MODERN, {"server/discover", "initialize", "tools/list"})],
)
async def test_gateways_are_named_in_initialize_and_lists(era: Era, carries: set[str]) -> None:
    script = Script(era=era)
    script.conversation.hop = msgspec.structs.replace(script.conversation.hop, gateways=("a", "b"))
    for method in ("server/discover", "initialize", "tools/list", "ping"):
        script.conversation.begin(method)
    named = {one["method"]: one.get("params", {}).get("_meta", {}).get(GATEWAYS) for one in script.posted}
    assert named == {method: ["a", "b"] if method in carries else None for method in named}


@pytest.mark.parametrize("besides", [b'"%b"' % (b"x" * 2**20), b"[%b0]" % (b"0," * 2**19)], ids=["string", "numbers"])
async def test_a_small_result_does_not_keep_a_large_message(besides: bytes) -> None:
    script, ticket = Script(), make_pending()
    script.send(ticket)
    result = b'{"a":"%b"}' % (b"y" * 2**18)
    await script.conversation.feed_large(b'{"jsonrpc":"2.0","id":1,"besides":%b,"result":%b}' % (besides, result))
    assert ticket.outcome == Complete(result, Era.LEGACY)


async def test_a_large_message_without_long_strings_is_handled_in_steps() -> None:
    script, ticket = Script(), make_pending()
    script.send(ticket)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while not ticket.over:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        result = b'{"a":[%b0]}' % (b"0," * 2**19)
        await script.conversation.feed_large(b'{"jsonrpc":"2.0","id":1,"result":%b}' % result)
    assert ticket.outcome == Complete(result, Era.LEGACY)
    assert turns >= 2
