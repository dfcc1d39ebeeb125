"""A relay's record of a session: pending requests, and the messages that restore it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.relay.copying import EDGE_BYTES, HOLD_BYTES, Direction
from gateway.relay.record import SessionRecord
from tests.support.wire import initialize_params, make_notification, make_request


def encode(message):
    return json.dumps(message, separators=(",", ":")).encode()


def answer(request_id, result=None):
    return encode({"jsonrpc": "2.0", "id": request_id, "result": result or {}})


def restart(record):
    """What the client gets for the dead gateway, and what the next gateway gets."""
    failed = [json.loads(line) for line in record.fail_pending().splitlines()]
    return failed, [json.loads(line) for line in record.replay().splitlines()]


@pytest.mark.parametrize(
    ("line", "ids"),
    [
        (b'{"method":"tools/call","params":{"name":"x"},"jsonrpc":"2.0","id":3}', [3]),
        (b'{"method": "tools/call", "params": {"id": 4}, "jsonrpc": "2.0", "id": 3}\r', [3]),
        (b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"id":4}}', [3]),
        (b'{"jsonrpc":"2.0","method":"ping","id":"a\\u0062,\\"c"}', ['ab,"c']),
        (b'{"method":"ping","id":"x","jsonrpc":"2.0"}', ["x"]),
        (b'{"jsonrpc":"2.0","method":"ping","id":2.0}', [2]),
        (b'{"jsonrpc":"2.0","method":"ping","id":-7}', [-7]),
        (b'\xef\xbb\xbf{"id":3,"method":"ping","params":{}}', [3]),
        (b'{"params":{"arguments":{"text":"\\"id\\":9}"}},"id":3,"method":"tools/call"}', [3]),
        (b'{"jsonrpc":"2.0","id":3,"method":"x","params":{"list":[{"id":9}]}}', [3]),
        (b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]', [1, 2]),
        (b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"id":3}}', []),
        (b'{"jsonrpc":"2.0","id":3,"result":{"method":"POST"}}', []),
        (b'{"result":{"method":"POST"},"jsonrpc":"2.0","id":3}', []),
        (b'{"jsonrpc":"2.0","id":3,"error":{"code":-1,"message":"\\"method\\""}}', []),
        (b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"result":1,"error":2}}', [3]),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', []),
        (b'{"jsonrpc":"2.0","id":3,"method":"ping"', []),
        (b"[]", []),
        (b'"id"', []),
        (b"", []),
    ],
)
def test_requests_are_distinguished_from_other_messages(line, ids):
    record = SessionRecord()
    record.note_request(line)
    assert list(record.pending) == ids


@pytest.mark.parametrize(
    "request_line",
    [
        b'{"method":"tools/call","params":{"text":"%b"},"jsonrpc":"2.0","id":3}',
        b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"text":"%b","id":4}}',
        b'{"jsonrpc":"2.0","method":"tools/call","id":3,"params":{"text":"%b","id":4}}',
    ],
)
def test_the_id_is_found_at_either_end(request_line):
    line = request_line % (b"x" * 3 * EDGE_BYTES)
    record = SessionRecord()
    record.note_request(line[:EDGE_BYTES] + line[-EDGE_BYTES:], cut=True)
    assert list(record.pending) == [3]


@pytest.mark.parametrize("request_id", [1, "a", 'a,"b', "é\\"])
def test_an_answer_ends_its_request(request_id):
    record = SessionRecord()
    record.note_request(encode(make_request(request_id, "ping")))
    line = answer(request_id)
    assert record.note_answer(line) is line
    assert restart(record) == ([], [])


def test_an_error_and_a_batch_are_answers_too():
    record = SessionRecord()
    for request_id in (1, 2, 3):
        record.note_request(encode(make_request(request_id, "ping")))
    record.note_answer(encode({"jsonrpc": "2.0", "id": 1, "error": {"code": -32603, "message": "x"}}))
    record.note_answer(b"[" + answer(2) + b"," + answer(3) + b"]")
    assert not record.pending


def test_a_cancelled_request_is_not_answered():
    record = SessionRecord()
    record.note_request(encode(make_request(0, "tools/list")))
    record.note_request(encode(make_request(1, "tools/list")))
    record.note_request(encode(make_notification("notifications/cancelled", {"requestId": 0})))
    failed, _ = restart(record)
    assert [message["id"] for message in failed] == [1]
    assert failed[0]["error"]["data"] == {"reason": "gateway_restarted"}


def test_the_state_of_a_session_is_replayed_once():
    record = SessionRecord()
    for message in (
        make_request(1, "initialize", initialize_params()),
        make_notification("notifications/initialized"),
        make_request(2, "logging/setLevel", {"level": "debug"}),
        make_request(3, "logging/setLevel", {"level": "error"}),
        make_request(4, "resources/subscribe", {"uri": "a:"}),
        make_request(5, "resources/subscribe", {"uri": "b:"}),
        make_request(6, "resources/unsubscribe", {"uri": "a:"}),
        make_request(7, "tools/call", {"name": "x"}),
    ):
        record.note_request(encode(message))
    for request_id in range(1, 7):
        record.note_answer(answer(request_id))
    failed, replayed = restart(record)
    assert [message["id"] for message in failed] == [7]
    assert [(message["method"], message.get("params")) for message in replayed] == [
        ("initialize", initialize_params()),
        ("notifications/initialized", None),
        ("logging/setLevel", {"level": "error"}),
        ("resources/subscribe", {"uri": "b:"}),
    ]
    # The answers are for the relay; the client gets what they mean for its lists.
    capabilities = {"tools": {"listChanged": True}, "resources": {}, "logging": {}}
    changes = record.note_answer(answer(replayed[0]["id"], {"capabilities": capabilities}))
    assert [json.loads(line)["method"] for line in changes.splitlines()] == [
        "notifications/tools/list_changed",
        "notifications/resources/list_changed",
    ]
    assert record.is_replaying
    assert [record.note_answer(answer(message["id"])) for message in replayed[2:]] == [b"", b""]
    assert not record.is_replaying
    assert restart(record)[0] == []


def test_an_initialize_without_an_answer_is_sent_again():
    record = SessionRecord()
    first = make_request("i", "initialize", initialize_params())
    record.note_request(encode(first))
    assert restart(record) == ([], [first])
    line = answer("i")
    assert record.note_answer(line) is line
    assert not record.pending


def test_ids_of_requests_to_the_client_are_counted():
    record = SessionRecord()
    for request_id in (1, 7, 3):
        record.note_answer(encode(make_request(request_id, "roots/list")))
    assert record.last_asked == 7


LINES = st.lists(
    st.builds(
        lambda number, size: encode(make_request(number, "tools/call", {"text": "x" * size})),
        st.integers(0, 99),
        st.sampled_from([0, 10, HOLD_BYTES, 2 * HOLD_BYTES]),
    ),
    max_size=5,
)


@given(LINES, st.lists(st.integers(1, 2 * HOLD_BYTES), max_size=20))
def test_the_cuts_between_reads_change_nothing(lines, sizes):
    record = SessionRecord()

    def note(line, cut):
        record.note_request(line, cut=cut)
        return line + b"\n"

    direction = Direction(note)
    data = b"".join(line + b"\n" for line in lines)
    copied, position = b"", 0
    for size in [*sizes, len(data)]:
        copied += direction.feed(data[position : position + size])
        position += size
    assert copied == data
    assert not direction.is_inside
    assert set(record.pending) == {json.loads(line)["id"] for line in lines}
