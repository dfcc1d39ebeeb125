"""Requests of both eras become a call and reach either era without loss."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp.shared.inbound import NAME_BEARING_METHODS

from gateway import jsonrpc
from gateway.calls import Call, Caller, Era
from gateway.eras import meta, requests
from gateway.eras.methods import OWNER_KIND
from gateway.eras.requests import Hop, UnsupportedVersion
from gateway.errors import InvalidParams

LEGACY = Caller(era=Era.LEGACY, version="2025-11-25", capabilities=msgspec.Raw(b'{"roots":{}}'))
LEGACY_HOP = Hop(era=Era.LEGACY, client_info=msgspec.Raw(b'{"name":"gw"}'))
MODERN_HOP = Hop(era=Era.MODERN, client_info=msgspec.Raw(b'{"name":"gw"}'))
ENVELOPE = {
    meta.PROTOCOL_VERSION: "2026-07-28",
    meta.CLIENT_INFO: {"name": "client", "version": "1"},
    meta.CLIENT_CAPABILITIES: {"sampling": {}},
}


def message(method: str, params: object = None) -> jsonrpc.Message:
    body = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params is not None:
        body["params"] = params  # type: ignore[assignment]
    return jsonrpc.decode(json.dumps(body).encode())


def sent(call: Call, hop: Hop, own: str = "", token: Any = None) -> Any:
    return json.loads(jsonrpc.encode(requests.backend_params(call, own or call.name, token, hop)))


texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
params_of_calls = st.dictionaries(texts.filter(lambda key: key != "_meta"), values, max_size=5)
metas = st.dictionaries(texts, values, max_size=3)


@settings(deadline=None)  # a busy machine is not a failure
@given(params_of_calls, metas, texts, texts, st.sampled_from(sorted(OWNER_KIND)))
def test_nothing_of_a_legacy_request_is_lost(
    params: dict[str, Any], own_meta: dict[str, Any], name: str, own: str, method: str
) -> None:
    member = OWNER_KIND[method].key
    params = {**params, member: name, "_meta": own_meta, "last": None}
    call = requests.legacy_call(message(method, params), LEGACY)
    assert (call.method, call.name, call.progress_token) == (method, name, own_meta.get("progressToken"))
    out = json.loads(jsonrpc.encode(requests.backend_params(call, own, None, LEGACY_HOP)))
    expected = {**params, member: own}
    del expected["_meta"]
    travelling = {key: value for key, value in own_meta.items() if key not in meta.REQUEST_HOP_KEYS}
    if travelling:
        expected["_meta"] = travelling
    assert out == expected
    assert list(out) == list(expected)  # the order of the members too


@settings(deadline=None)  # a busy machine is not a failure
@given(params_of_calls, metas)
def test_nothing_of_a_modern_request_is_lost(params: dict[str, Any], own_meta: dict[str, Any]) -> None:
    full = {**params, "name": "t", "_meta": {**own_meta, **ENVELOPE, meta.PROGRESS_TOKEN: "p"}}
    call = requests.modern_call(message("tools/call", full))
    out = sent(call, MODERN_HOP, "own", 9)
    assert out.pop("_meta") == {**own_meta, **ENVELOPE, meta.CLIENT_INFO: {"name": "gw"}, meta.PROGRESS_TOKEN: 9}
    assert out == {**params, "name": "own"}


def test_equal_metas_do_not_make_one_client() -> None:
    """A request to one of two unknown, identical clients must not reach the other."""
    one, other = (requests.modern_call(message("tools/call", {"name": "t", "_meta": ENVELOPE})).caller for _ in "12")
    assert one == other
    assert one.same_client(one)
    assert not one.same_client(other)


def test_spans_travel_as_they_were_written() -> None:
    raw = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"arguments":{"b" : 1.00,"a":1e2},"name":"t"}}'
    call = requests.legacy_call(jsonrpc.decode(raw), LEGACY)
    params = jsonrpc.encode(requests.backend_params(call, "t", None, LEGACY_HOP))
    assert params == b'{"arguments":{"b" : 1.00,"a":1e2},"name":"t"}'


def test_per_hop_keys_are_recreated() -> None:
    params = {"name": "t", "_meta": {**ENVELOPE, meta.LOG_LEVEL: "error", meta.PROGRESS_TOKEN: 1, "trace": "x"}}
    call = requests.modern_call(message("tools/call", params))
    assert (call.caller.log_level, call.progress_token) == ("error", 1)
    assert sent(call, LEGACY_HOP, token=5)["_meta"] == {"trace": "x", "progressToken": 5}
    assert sent(call, MODERN_HOP)["_meta"] == {
        "trace": "x",
        meta.PROTOCOL_VERSION: "2026-07-28",
        meta.CLIENT_INFO: {"name": "gw"},
        meta.CLIENT_CAPABILITIES: {"sampling": {}},
        meta.LOG_LEVEL: "error",
    }


def test_a_legacy_client_brings_its_sessions_capabilities() -> None:
    call = requests.legacy_call(message("tools/call", {"name": "t"}), LEGACY)
    assert sent(call, MODERN_HOP)["_meta"][meta.CLIENT_CAPABILITIES] == {"roots": {}}
    assert "_meta" not in sent(call, LEGACY_HOP)


def test_gateway_requests_declare_deliverable_capabilities() -> None:
    found = json.loads(jsonrpc.encode(requests.modern_meta(MODERN_HOP)))
    assert found == {
        meta.PROTOCOL_VERSION: "2026-07-28",
        meta.CLIENT_INFO: {"name": "gw"},
        meta.CLIENT_CAPABILITIES: json.loads(bytes(MODERN_HOP.capabilities)),
    }
    assert set(found[meta.CLIENT_CAPABILITIES]) == {"roots", "sampling", "elicitation", "extensions"}


@pytest.mark.parametrize(
    ("method", "params", "said"),
    [
        ("tools/call", None, "tools/call needs params.name"),
        ("tools/call", {}, "tools/call needs params.name"),
        ("tools/call", {"name": 3}, "tools/call needs params.name"),
        ("tools/call", {"name": None}, "tools/call needs params.name"),
        ("prompts/get", {"uri": "x"}, "prompts/get needs params.name"),
        ("resources/read", {"name": "x"}, "resources/read needs params.uri"),
        ("tools/call", [1], "params must be an object"),
        ("tools/list", "x", "params must be an object"),
        ("tools/list", {"_meta": 3}, "_meta must be an object"),
        ("tools/list", {"_meta": {"progressToken": []}}, "progressToken"),
    ],
)
def test_malformed_legacy_requests(method: str, params: object, said: str) -> None:
    with pytest.raises(InvalidParams, match=said):
        requests.legacy_call(message(method, params), LEGACY)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in ENVELOPE.items() if name != key}


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (None, "protocolVersion"),
        ({}, "protocolVersion"),
        ({"_meta": without(meta.PROTOCOL_VERSION)}, "protocolVersion"),
        ({"_meta": {**ENVELOPE, meta.PROTOCOL_VERSION: 3}}, "protocolVersion"),
        ({"_meta": without(meta.CLIENT_CAPABILITIES)}, "clientCapabilities"),
        ({"_meta": {**ENVELOPE, meta.CLIENT_CAPABILITIES: None}}, "clientCapabilities"),
        ({"_meta": {**ENVELOPE, meta.CLIENT_CAPABILITIES: []}}, "clientCapabilities"),
        ({"_meta": {**ENVELOPE, meta.LOG_LEVEL: "loud"}}, "logLevel"),
    ],
)
def test_malformed_modern_requests(params: object, said: str) -> None:
    with pytest.raises(InvalidParams, match=said):
        requests.modern_call(message("tools/list", params))


@pytest.mark.parametrize("version", ["2025-11-25", "2099-01-01", ""])
def test_a_modern_request_in_an_unknown_version(version: str) -> None:
    params = {"_meta": {**ENVELOPE, meta.PROTOCOL_VERSION: version}}
    with pytest.raises(UnsupportedVersion) as caught:
        requests.modern_call(message("tools/list", params))
    data = json.loads(caught.value.data())
    assert data["requested"] == version
    assert data["supported"][0] == "2026-07-28"


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"_meta": {meta.PROTOCOL_VERSION: "2026-07-28"}}, True),
        ({"_meta": {meta.PROTOCOL_VERSION: 3}}, True),  # it is to be refused as a modern one
        ({"_meta": {"protocolVersion": "2026-07-28"}}, False),
        ({"protocolVersion": "2025-11-25"}, False),
        ({"arguments": {"_meta": {meta.PROTOCOL_VERSION: "2026-07-28"}}}, False),
        ({"_meta": [meta.PROTOCOL_VERSION]}, False),
        ([meta.PROTOCOL_VERSION], False),
        ({}, False),
        (None, False),
    ],
)
def test_the_era_of_a_request(params: object, expected: bool) -> None:
    assert requests.is_modern(message("tools/call", params)) is expected


def test_owner_name_members_match_the_sdk() -> None:
    legacy_only = {"resources/subscribe": "uri", "resources/unsubscribe": "uri"}
    assert dict(NAME_BEARING_METHODS) | legacy_only == {name: kind.key for name, kind in OWNER_KIND.items()}


@pytest.mark.parametrize("era", Era)
def test_a_call_does_not_name_gateways(era: Era) -> None:
    hop = Hop(era=era, client_info=msgspec.Raw(b"{}"), gateways=("a",))
    call = Call(method="tools/call", name="x", params={}, meta={}, caller=Caller(era=era, version=""))
    assert meta.GATEWAYS.encode() not in jsonrpc.encode(requests.backend_params(call, "x", None, hop))
