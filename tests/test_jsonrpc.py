"""Envelopes: lossless, on one line, and hostile bytes raise only `Malformed`."""

from __future__ import annotations

import contextlib
import json
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc, surrogates
from gateway.jsonrpc import ABSENT, Malformed

texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
ids = texts | st.integers(-(2**70), 2**70)


def pretty(value: object, newline: str = "\n") -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).replace("\n", newline).encode()


# -- reading -----------------------------------------------------------------------------------------------------------


def test_members_stay_as_they_were_written() -> None:
    message = jsonrpc.decode(
        b'{"jsonrpc":"2.0","id":"7","method":"a/b","params":{"x" : 1.0e5, "\\u0041":null}, "new":1}'
    )
    assert (message.id, message.method) == ("7", "a/b")
    assert bytes(message.params) == b'{"x" : 1.0e5, "\\u0041":null}'
    assert message.result is ABSENT
    assert message.error is ABSENT


@pytest.mark.parametrize("spelled", ["2.0", "2.000", "2e0", "20.0e-1"])
def test_an_integral_float_is_an_integer(spelled: str) -> None:
    message = jsonrpc.decode(b'{"jsonrpc":"2.0","id":%s,"result":{"a" : 1.0}}' % spelled.encode())
    assert type(message.id) is int
    assert message.id == jsonrpc.decode_id(spelled.encode()) == 2
    assert (message.method, bytes(message.result), message.error) == (msgspec.UNSET, b'{"a" : 1.0}', ABSENT)


@pytest.mark.parametrize(
    ("data", "code", "request_id"),
    [
        (b"", jsonrpc.PARSE_ERROR, None),
        (b"hello", jsonrpc.PARSE_ERROR, None),
        (b'{"jsonrpc":"2.0","id":5,"method":"x",', jsonrpc.PARSE_ERROR, 5),
        (b'{"id":5,"result":{"a":NaN}}', jsonrpc.PARSE_ERROR, 5),
        (b'{"id":"five","result":{"a":"\\ud80"}}', jsonrpc.PARSE_ERROR, "five"),
        (b'{"id":"five","result":{"a":"\\ud800","b":NaN}}', jsonrpc.PARSE_ERROR, "five"),
        (b'\xef\xbb\xbf{"id":"\\ud83d","result":NaN}', jsonrpc.PARSE_ERROR, "\ud83d"),
        (b'{"id":5,"result":["\\ud800' + b"\\ud83d" * 200_000 + b'"]}', jsonrpc.PARSE_ERROR, 5),
        (b'{"jsonrpc":"2.0","result":{"a":"\xff"},"id":5}', jsonrpc.PARSE_ERROR, 5),
        (b'{"result":{"a":"\xff"},"id":-5,"jsonrpc":"2.0"}\r', jsonrpc.PARSE_ERROR, -5),
        (b'{"method":"x","params":{"id":3,"a":NaN}}', jsonrpc.PARSE_ERROR, None),  # that id is not the message's
        (b'{"id":1,"result":{"a":"x\ny"}}', jsonrpc.PARSE_ERROR, 1),  # a bare newline in a string would break framing
        (b"[]", jsonrpc.INVALID_REQUEST, None),
        (b"7", jsonrpc.INVALID_REQUEST, None),
        (b'{"id":1.5,"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":1e30,"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":1e999,"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":true,"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":[1],"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":null,"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":4,"method":4}', jsonrpc.INVALID_REQUEST, 4),
        (b'{"id":' + b"1" * 5000 + b',"method":"x"}', jsonrpc.INVALID_REQUEST, None),
        (b'{"id":6,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}", jsonrpc.PARSE_ERROR, 6),
    ],
)
def test_an_invalid_message_is_refused_by_its_id(data: bytes, code: int, request_id: object) -> None:
    with pytest.raises(Malformed) as caught:
        jsonrpc.decode(data)
    assert (caught.value.code, caught.value.id) == (code, request_id)


def test_an_error_without_an_id_is_a_message() -> None:
    assert jsonrpc.decode(b'{"id":null,"error":{"code":1}}').id is None


@settings(deadline=None)  # a busy machine is not a failure
@given(st.binary(max_size=60) | st.text('{}[]":,0123456789.eE-+\\ud8idmethoresult \n').map(str.encode))
def test_decode_raises_nothing_but_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        jsonrpc.decode(data)


@settings(deadline=None)  # a busy machine is not a failure
@given(ids, values)
def test_recover_id_finds_what_decode_would_have_found(request_id: int | str, value: object) -> None:
    encoded = jsonrpc.response(request_id, jsonrpc.encode(value))
    assert jsonrpc.recover_id(encoded) == request_id
    assert jsonrpc.recover_id(encoded[:-1] + b"garbage") == request_id
    last = b'{"jsonrpc":"2.0","result":%b,"id":%b}' % (jsonrpc.encode(value), jsonrpc.encode(request_id))
    assert jsonrpc.recover_id(last) == request_id


def test_recover_id_looks_at_the_ends_only() -> None:
    filler = b"x" * jsonrpc.EDGE_BYTES
    assert jsonrpc.recover_id(b'{"a":"' + filler + b'","id":5,"b":"' + filler) is None
    assert jsonrpc.recover_id(b'{"a":"' + filler + filler + b'","id":5}') == 5


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"[1,{}]", [b"1", b"{}"]),
        (b' [{"id":1, "a":2}]', [b'{"id":1, "a":2}']),
    ],
)
def test_a_batch_is_split(data: bytes, expected: list[bytes]) -> None:
    assert jsonrpc.is_batch(data)
    assert jsonrpc.decode_batch(data, most=2) == expected


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[]", jsonrpc.INVALID_REQUEST),
        (b"[1,2,3]", jsonrpc.INVALID_REQUEST),
        (b"[1,", jsonrpc.PARSE_ERROR),
        (b'["\xff"]', jsonrpc.PARSE_ERROR),
        (b"{}", jsonrpc.PARSE_ERROR),
    ],
)
def test_a_bad_batch_is_refused(data: bytes, code: int) -> None:
    with pytest.raises(Malformed) as caught:
        jsonrpc.decode_batch(data, most=2)
    assert caught.value.code == code


def test_small_decoders_raise_value_error_only() -> None:
    for decoder in (jsonrpc.decode_object, jsonrpc.decode_array, jsonrpc.decode_string, jsonrpc.decode_id):
        for data in (b"null", b"1.5", b"", b"nope", b'"\xff"', b"[" * 100_000):
            with pytest.raises(ValueError, match=r"."):
                decoder(data)
    assert jsonrpc.decode_object(ABSENT) == {}


def test_members_of_an_object_keep_their_order() -> None:
    members = jsonrpc.decode_object(b'{"b":1,"a":{"z":1, "y":2},"c":null}')
    assert {name: bytes(span) for name, span in members.items()} == {"b": b"1", "a": b'{"z":1, "y":2}', "c": b"null"}
    assert list(members) == ["b", "a", "c"]


@pytest.mark.parametrize(
    ("data", "code", "message", "kept"),
    [
        (b'{"code":-32000,"message":"no","data":{"a":null}}', -32000, "no", b'{"a":null}'),
        (b'{"code":5}', 5, "", b""),
        (b'"no"', -32603, "the server sent an error without code and message", b'"no"'),
        (b'{"code":"x"}', -32603, "the server sent an error without code and message", b'{"code":"x"}'),
    ],
)
def test_errors_are_read(data: bytes, code: int, message: str, kept: bytes) -> None:
    body = jsonrpc.decode_error(msgspec.Raw(data))
    assert (body.code, body.message, bytes(body.data)) == (code, message, kept)


# -- writing -----------------------------------------------------------------------------------------------------------


@settings(deadline=None)  # a busy machine is not a failure
@given(values, st.sampled_from(["\n", "\r\n", "\r"]))
def test_one_line_keeps_the_value(value: object, newline: str) -> None:
    line = jsonrpc.one_line(pretty(value, newline))
    assert b"\n" not in line
    assert b"\r" not in line
    assert json.loads(line) == value


def test_one_line_keeps_single_lines_unchanged() -> None:
    span = b'{"a" : 1.00,  "b":"\\u00e9\\n"}'
    assert jsonrpc.one_line(span) == span
    assert json.loads(jsonrpc.one_line(b'{"a":\n1.00,"b":"\\u00e9\\n"}')) == json.loads(span)
    assert b"1.00" in jsonrpc.one_line(b'{"a":\n1.00}')


def test_one_line_takes_any_depth() -> None:
    # What one place could still decode may be too deep for a place that is called from further down.
    depth = sys.getrecursionlimit() + 200
    line = jsonrpc.one_line(b"[" * depth + b"\r\n" + b"]" * depth)
    assert line == b"[" * depth + b"]" * depth


@settings(deadline=None)  # a busy machine is not a failure
@given(ids, texts, values)
def test_encoded_messages_can_be_decoded(request_id: int | str, method: str, value: object) -> None:
    span = pretty(value)
    sent = {
        "request": jsonrpc.request(request_id, method, msgspec.Raw(span)),
        "notification": jsonrpc.notification(method, span),
        "bare notification": jsonrpc.notification(method),
        "response": jsonrpc.response(request_id, span),
        "error": jsonrpc.error_response(request_id, -5, method, span),
    }
    for line in sent.values():
        assert b"\n" not in line
        assert b"\r" not in line
        jsonrpc.decode(line)
    head = {"jsonrpc": "2.0", "id": request_id}
    assert json.loads(sent["request"]) == {**head, "method": method, "params": value}
    assert json.loads(sent["notification"]) == {"jsonrpc": "2.0", "method": method, "params": value}
    assert json.loads(sent["bare notification"]) == {"jsonrpc": "2.0", "method": method}
    assert json.loads(sent["response"]) == {**head, "result": value}
    assert json.loads(sent["error"]) == {**head, "error": {"code": -5, "message": method, "data": value}}


def test_an_error_without_a_recipient_has_null_id() -> None:
    assert json.loads(jsonrpc.error_response(None, -32700, "no")) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -32700, "message": "no"},
    }


# -- what msgspec refuses and peers write ------------------------------------------------------------------------------

LONE = [
    r"\ud83d",
    r"\uD83D",
    r"\uDbFf tail",
    r"cut \ude00",
    r"\ude00\ud83d",  # the right two in the wrong order
    r"\ud83d\ud83d",
    r"\ud83d\n",
    r"\ud83d\u0041",
    r"\ud83dude00",
    r"\\\ud83d",  # a backslash, then the escape
    r"\ud83d\\ude00",  # the escape, then a backslash and text
    r"\\ud83d\ude00",  # text, then the escape
    r"u\ud83d",
    r"\ufdd0 \ud83d",
    "\ufdd0\ufdd1 " + r"\uFDD2 \ud83d",  # noncharacters, which may serve as marks
    r"\ud83d\ud83d\ude00",
    r"\ud83d\ude00\ude00",
]
WHOLE = [
    r"\ud83d\ude00",
    r"\uD83D\uDE00\ud83d\ude00",
    r"\\ud83d",
    r"\\\\ude00",
    r"\ud7ff\ue000",
    r"\ufffd",
    "\U0001f600",
]


def same_everywhere(message: dict[str, object], value: str) -> bool:
    """Return whether a message's id, method and error message, if present, are this text."""
    error = message.get("error")
    found = [
        message.get("id", value),
        message.get("method", value),
        error["message"] if isinstance(error, dict) else value,
    ]
    return found == [value] * 3


@pytest.mark.parametrize("text", LONE + WHOLE)
def test_surrogates_pass_in_every_member(text: str) -> None:
    """Spans keep their bytes, strings equal Python's own, and encoding restores the value."""
    span = f'{{"{text}" : ["{text}", {{"a":"{text}"}}]}}'.encode()
    value = json.loads(f'"{text}"')
    message = jsonrpc.decode(
        b'{"id":"%b","method":"%b","params":%b,"result":%b,"error":{"code":1,"message":"%b","data":%b}}'
        % (text.encode(), text.encode(), span, span, text.encode(), span)
    )
    assert (message.id, message.method) == (value, value)
    assert bytes(message.params) == bytes(message.result) == span
    error = jsonrpc.decode_error(message.error)
    assert (error.message, bytes(error.data)) == (value, span)
    members = jsonrpc.decode_object(message.params)
    assert {name: bytes(member) for name, member in members.items()} == {
        value: span.partition(b" : ")[2].removesuffix(b"}")
    }
    (first, _), string = jsonrpc.decode_array(members[value]), f'"{text}"'.encode()
    assert bytes(first) == string
    assert jsonrpc.decode_string(first) == jsonrpc.decode_id(first) == jsonrpc.decode_any(first) == value
    assert jsonrpc.decode_batch(b"[%b]" % span, most=1) == [span]
    assert jsonrpc.recover_id(b'{"id":"%b","x' % text.encode()) in {value, None}
    for encoded in (
        jsonrpc.response(value, span),
        jsonrpc.request(value, value, msgspec.Raw(span)),
        jsonrpc.notification(value, span),
        jsonrpc.error_response(value, 1, value, span),
    ):
        assert span in encoded
        assert same_everywhere(json.loads(encoded), value)
    assert json.loads(jsonrpc.encode({value: [value, (value, 1), msgspec.Raw(span), None]})) == {
        value: [value, [value, 1], json.loads(span), None]
    }


@pytest.mark.parametrize("text", LONE + WHOLE)
def test_lone_surrogates_are_replaced_in_place(text: str) -> None:
    data = f'{{"{text}":"{text}"}}'.encode()
    found = surrogates.without_lone_surrogates(data)
    expected = json.loads(f'"{text}"').encode(errors="replace").replace(b"?", b"\xef\xbf\xbd").decode()
    assert json.loads(found) == msgspec.json.decode(found) == {expected: expected}
    assert len(found) == len(data)
    assert (found is data) == (text in WHOLE)
    assert surrogates.text_without_surrogates(json.loads(f'"{text}"')) == expected


PIECES = ["\\", '"', "u", "d83d", "\ud83d", "\udc00", "\U0001f600", "\n", "x", "\ufdd0"]


@settings(deadline=None)  # a busy machine is not a failure
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_any_text_of_surrogates_and_backslashes_arrives(text: str) -> None:
    data = json.dumps({text: text}).encode()
    assert jsonrpc.decode_any(data) == json.loads(data)
    assert json.loads(jsonrpc.encode(jsonrpc.decode_object(data))) == json.loads(data)
    assert json.loads(jsonrpc.one_line(b"\n" + data)) == json.loads(data)


def test_a_struct_with_a_lone_surrogate_is_encoded() -> None:
    error = jsonrpc.ErrorBody(1, "\ud83d", msgspec.Raw(b"[1]"))
    assert json.loads(jsonrpc.encode(error)) == {"code": 1, "message": "\ud83d", "data": [1]}


BOM = surrogates.BOM
MESSAGE = b'{"jsonrpc":"2.0","id":5,"method":"x","params":{"a":"\\ud83d"}}'


@pytest.mark.parametrize("before", [BOM, BOM + b" ", b" \r" + BOM, BOM * 2])
def test_a_bom_before_a_message_is_skipped(before: bytes) -> None:
    message = jsonrpc.decode(before + MESSAGE)
    assert (message.id, message.method, bytes(message.params)) == (5, "x", b'{"a":"\\ud83d"}')
    assert jsonrpc.is_batch(before + b"[")
    assert not jsonrpc.is_batch(before + MESSAGE)
    assert jsonrpc.decode_batch(before + b"[%b]" % MESSAGE, most=1) == [MESSAGE]
    assert jsonrpc.recover_id(before + MESSAGE[:30]) == 5


def test_a_bom_elsewhere_is_text_or_an_error() -> None:
    assert jsonrpc.decode_string(b'"' + BOM + b'x"') == "\ufeffx"
    with pytest.raises(Malformed):
        jsonrpc.decode(MESSAGE[:-1] + BOM + b"}")
