"""Results: unchanged inside the legacy era, otherwise converted only where the eras differ."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.calls import Complete, Era, InputRequired
from gateway.eras import meta, results

GATEWAY = msgspec.Raw(b'{"name":"gw","version":"1"}')
STAMP = {meta.SERVER_INFO: {"name": "gw", "version": "1"}}
texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
bodies = st.dictionaries(texts.filter(lambda key: key != "_meta"), values, max_size=5)


def modern(outcome: Complete | InputRequired, method: str = "") -> Any:
    return json.loads(results.for_modern(outcome, GATEWAY, method=method))


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


@settings(deadline=None)  # a busy machine is not a failure
@given(st.binary(max_size=40))
def test_legacy_to_legacy_is_byte_for_byte(data: bytes) -> None:
    assert results.for_legacy(Complete(data, Era.LEGACY)) is data


@settings(deadline=None)  # a busy machine is not a failure
@given(bodies, st.dictionaries(texts, values, max_size=3))
def test_from_legacy_to_modern_nothing_is_lost(body: dict[str, Any], own: dict[str, Any]) -> None:
    full = {**body, "unknown": None, "_meta": own}
    out = modern(Complete(encoded(full), Era.LEGACY))
    assert out == {**full, "resultType": "complete", "_meta": {**own, **STAMP}}
    assert [key for key in out if key != "resultType"] == list(full)


@settings(deadline=None)  # a busy machine is not a failure
@given(bodies, st.booleans(), st.booleans())
def test_a_result_without_meta_is_only_extended(body: dict[str, Any], ascii_only: bool, deeper: bool) -> None:
    if deeper:
        body = {**body, "resource": {"_meta": {}, "resultType": 1}}
    data = json.dumps(body, ensure_ascii=ascii_only, separators=(",", ":")).encode()
    out = results.for_modern(Complete(data, Era.LEGACY), GATEWAY)
    assert json.loads(out) == {**body, "resultType": "complete", "_meta": STAMP}
    if b"\\" not in data:  # else a key may be spelled in another way
        assert data[1:-1] in out


@pytest.mark.parametrize(
    "data", [b"{}", b"{ }", b'{"\\u005fmeta":{"x":1}}', b'{"result\\u0054ype":"else"}', b'{ "a" : 1 }']
)
def test_members_spelled_otherwise_are_found(data: bytes) -> None:
    out = results.for_modern(Complete(data, Era.LEGACY), GATEWAY)
    assert out.count(b"resultType") == out.count(b'"_meta"') == 1
    own = json.loads(data)
    meta_of = {**own.pop("_meta", {}), **STAMP}
    assert json.loads(out) == {**own, "resultType": "complete", "_meta": meta_of}


@settings(deadline=None)  # a busy machine is not a failure
@given(bodies, st.dictionaries(texts, values, max_size=3))
def test_modern_to_legacy_removes_only_modern_members(body: dict[str, Any], own: dict[str, Any]) -> None:
    full = {"resultType": "complete", **body, "ttlMs": 5, "cacheScope": "public", "_meta": own}
    out = json.loads(results.for_legacy(Complete(encoded(full), Era.MODERN)))
    assert out == {**body, "_meta": own}
    assert list(out) == [*body, "_meta"]


def test_there_and_back_is_the_same() -> None:
    body = {"content": [{"type": "new", "x": None}], "structuredContent": None, "isError": True}
    there = results.for_modern(Complete(encoded(body), Era.LEGACY), GATEWAY)
    assert json.loads(results.for_legacy(Complete(there, Era.MODERN))) == body


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        ({"a": 1}, STAMP),
        ({"_meta": {"x": None}}, {"x": None, **STAMP}),
        ({"_meta": {meta.SERVER_INFO: {"name": "b"}}}, {**STAMP, meta.BACKEND_INFO: {"name": "b"}}),
        ({"_meta": None}, STAMP),
        ({"_meta": []}, STAMP),
    ],
)
def test_meta_names_the_gateway(theirs: dict[str, Any], expected: object) -> None:
    for era in Era:
        assert modern(Complete(encoded({"resultType": "complete", **theirs}), era))["_meta"] == expected


def test_legacy_clients_do_not_see_the_backends_stamp() -> None:
    for own, expected in [({}, {}), ({"x": 1}, {"_meta": {"x": 1}})]:
        full = {"resultType": "complete", "_meta": {**own, meta.SERVER_INFO: {"name": "b"}}}
        assert json.loads(results.for_legacy(Complete(encoded(full), Era.MODERN))) == expected


@pytest.mark.parametrize("era", list(Era))
@pytest.mark.parametrize("theirs", [{}, {"content": []}])
def test_a_modern_result_always_has_its_type(theirs: dict[str, Any], era: Era) -> None:
    # A modern backend that leaves it out means "complete" (basic/index, "ResultType"); the client needs it.
    assert modern(Complete(encoded(theirs), era))["resultType"] == "complete"


def test_a_legacy_results_own_resulttype_means_nothing() -> None:
    full = {"content": [], "resultType": "input_required"}
    assert modern(Complete(encoded(full), Era.LEGACY))["resultType"] == "complete"


def test_a_read_states_its_cache_lifetime() -> None:
    for era in Era:
        out = modern(Complete(b'{"resultType":"complete","contents":[]}', era), "resources/read")
        assert (out["ttlMs"], out["cacheScope"]) == (0, "private")
    kept = modern(Complete(b'{"resultType":"complete","ttlMs":9,"cacheScope":"public"}', Era.MODERN), "resources/read")
    assert (kept["ttlMs"], kept["cacheScope"]) == (9, "public")
    assert "ttlMs" not in modern(Complete(b"{}", Era.LEGACY), "tools/call")
    assert "ttlMs" not in modern(InputRequired(b'{"resultType":"input_required"}'), "resources/read")


def test_input_required_passes_with_our_stamp() -> None:
    body = {"resultType": "input_required", "inputRequests": {"a": {}}, "requestState": "s"}
    assert modern(InputRequired(encoded(body))) == {**body, "_meta": STAMP}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"resultType":"complete","x":1}', Complete),
        (b'{"x":1}', Complete),
        (b'{"resultType":"input_required"}', InputRequired),
        (b'{"resultType":"task"}', type(None)),
        (b'{"resultType":null}', Complete),
        (b"[]", type(None)),
        (b"{", type(None)),
    ],
)
def test_results_are_classed(data: bytes, expected: type) -> None:
    found = results.read_modern_result(data)
    assert isinstance(found, expected)
    if found is not None:
        assert found.result is data


@pytest.mark.parametrize("data", [b"[]", b"null", b"3"])
def test_non_objects_pass_unchanged(data: bytes) -> None:
    assert results.for_legacy(Complete(data, Era.MODERN)) == data
    assert results.for_modern(Complete(data, Era.LEGACY), GATEWAY) == data


def test_the_gateways_own_results() -> None:
    own = results.modern_result({"tools": []}, server_info=GATEWAY, own_meta={"x": 1})
    assert json.loads(own) == {"resultType": "complete", "tools": [], "_meta": {"x": 1, **STAMP}}
    for instructions in (None, "do"):
        made = results.initialize_result(
            "2025-11-25", server_info=GATEWAY, capabilities={"tools": {}}, instructions=instructions
        )
        expected = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "gw", "version": "1"},
        }
        if instructions is not None:
            expected["instructions"] = instructions
        assert json.loads(made) == expected
