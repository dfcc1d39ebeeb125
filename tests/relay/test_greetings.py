"""Kept answers to `initialize`: given only for an equal request, replaced by a different answer."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from gateway.relay.greetings import MAX_KEPT, Greetings

PARAMS = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
RESULT = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "g", "version": "1"}}
OPTIONS = {"view": None}


def request(params=PARAMS, request_id=1, method="initialize"):
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}).encode()


def response(result=RESULT, request_id=1):
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()


@pytest.fixture
def greetings(tmp_path):
    def make(options=OPTIONS, config="1"):
        place = SimpleNamespace(greetings=str(tmp_path / "greetings"), config_digest=config)
        return Greetings(place, options)

    return make


def learn(one, line=None, answer=None):
    assert one.answer(line or request()) is None
    assert not one.confirms(answer or response())


def test_an_equal_request_gets_the_known_answer(greetings):
    learn(greetings())
    later = greetings()
    found = later.answer(request({name: PARAMS[name] for name in reversed(PARAMS)}, "another id"))
    assert json.loads(found) == json.loads(response(request_id="another id"))
    assert later.confirms(response(request_id="mcp-gateway:replayed:1"))
    assert not later.confirms(response())  # only once


@pytest.mark.parametrize(
    ("options", "config", "line"),
    [
        ({"view": "x"}, "1", request()),
        (OPTIONS, "2", request()),
        (OPTIONS, "1", request(PARAMS | {"protocolVersion": "2025-06-18"})),
        (OPTIONS, "1", request(PARAMS | {"capabilities": {"roots": {}}})),
        (OPTIONS, "1", request(method="ping")),
        (OPTIONS, "1", request(request_id=None)),
        (OPTIONS, "1", b"[" + request() + b"]"),
        (OPTIONS, "1", b'{"method": "initialize"}'),
        (OPTIONS, "1", request(params=[PARAMS])),
        (OPTIONS, "1", b"no JSON \xff"),
        (OPTIONS, "1", b"[" * 100_000),
    ],
)
def test_any_other_request_waits_for_the_gateway(greetings, options, config, line):
    learn(greetings())
    assert greetings(options, config).answer(line) is None


def test_a_different_answer_replaces_the_known_one(greetings):
    learn(greetings())
    second = greetings()
    assert second.answer(request()) is not None
    newer = RESULT | {"capabilities": {}}
    assert not second.confirms(response(newer))
    assert json.loads(greetings().answer(request()))["result"] == newer


@pytest.mark.parametrize(
    "answer",
    [b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"\\"serverInfo\\""}}', b'{"serverInfo" ', b'["serverInfo"]'],
)
def test_errors_are_not_kept(greetings, answer):
    learn(greetings(), answer=answer)
    assert greetings().answer(request()) is None


def test_nothing_after_a_refusal_is_kept(greetings):
    refusal = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32602,"message":"no"}}'
    one = greetings()
    assert one.answer(request()) is None
    for line in (refusal, response(request_id=2), response(request_id=1)):
        assert not one.confirms(line)
    assert greetings().answer(request()) is None


def test_only_the_response_to_initialize_is_kept(greetings):
    one = greetings()
    assert one.answer(request()) is None
    asked = b'{"jsonrpc":"2.0","id":1,"method":"roots/list","params":{},"result":{"serverInfo":1}}'
    for line in (response({"serverInfo": {}}, request_id=7), asked, b"[" * 100_000):
        assert not one.confirms(line)
    assert not one.confirms(response())
    assert json.loads(greetings().answer(request()))["result"] == RESULT


def test_a_trace_of_the_client_makes_no_other_request(greetings):
    learn(greetings(), request(PARAMS | {"_meta": {"traceparent": "00-1"}}))
    assert greetings().answer(request(PARAMS | {"_meta": {"traceparent": "00-2", "progressToken": 3}})) is not None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a":', b"\xff"])
def test_a_damaged_file_is_replaced(greetings, tmp_path, content):
    (tmp_path / "greetings").write_bytes(content)
    learn(greetings())
    assert greetings().answer(request()) is not None


def test_the_number_of_answers_is_bounded(greetings, tmp_path):
    lines = [request(PARAMS | {"protocolVersion": str(number)}) for number in range(MAX_KEPT + 1)]
    for line in lines:
        learn(greetings(), line)
    assert greetings().answer(lines[0]) is None
    assert greetings().answer(lines[-1]) is not None
    assert [path.name for path in tmp_path.iterdir()] == ["greetings"]
    assert (tmp_path / "greetings").stat().st_mode & 0o777 == 0o600


def test_an_unwritable_directory_only_costs_time(greetings, tmp_path):
    (tmp_path / "greetings").mkdir()
    learn(greetings())
    assert greetings().answer(request()) is None
