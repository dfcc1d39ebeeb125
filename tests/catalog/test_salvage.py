"""Invalid JSON lists: decodable entries are kept in order, others dropped and named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.catalog.salvage import MAX_NAMED, salvage
from gateway.eras.methods import Kind

BAD = [
    b'{"name":"bad","x":"\\ud80"}',
    b'{"name":"bad","x":NaN}',
    b'{"name":"bad","x":-Infinity}',
    b'{"name":"bad","x":[' + b"[" * 50_000 + b"]" * 50_000 + b"]}",
    b'{"name":"bad","x":"\xff"}',
    b'{"name":"bad","x":1.}',
    b'{"x":{},"name":"bad",}',
    b"",
    b"nothing",
    b'{"name":"\\ud80"}',
    b'{"a":1 "b":2}',
]
SMALL = [bad for bad in BAD if len(bad) < 100]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def answer(items: list[bytes], kind: Kind = Kind.TOOLS, **kwargs: Any) -> bytes:
    rest = "".join(f", {json.dumps(name)} : {json.dumps(value)}" for name, value in kwargs.items()).encode()
    return b'{"jsonrpc":"2.0","id":1,"result": {"%s" :\n [%s]%s}}' % (kind.member.encode(), b" ,\n".join(items), rest)


def kept(data: bytes, kind: Kind = Kind.TOOLS) -> tuple[list[Any], tuple[str, ...]]:
    found = salvage(data, kind)
    assert found is not None
    return json.loads(found[0])["result"][kind.member], found[1]


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("kind", Kind)
def test_a_bad_item_costs_itself_only(bad: bytes, kind: Kind) -> None:
    good = [b'{"name":"a, \\"]}","x":[1,{"y":null}]}', b'{ "name" : "b" }', b'"c"']
    for place in range(4):
        items = [*good[:place], bad, *good[place:]]
        found, problems = kept(answer(items, kind, nextCursor="[{"), kind)
        assert found == [json.loads(item) for item in good]
        assert len(problems) == 1
        assert problems[0].startswith(f"{kind.member}[{place}]")


def test_a_dropped_entry_is_named_others_are_kept() -> None:
    data = answer([b'{"name":"good"}', b'{"name":"b\\"ad\\n","x":NaN}'], nextCursor="next")
    fixed, (problem,) = salvage(data, Kind.TOOLS) or (b"", ("",))
    assert json.loads(fixed)["result"] == {"tools": [{"name": "good"}], "nextCursor": "next"}
    assert json.loads(fixed)["id"] == 1
    assert problem.startswith("tools[1] ('b\"ad\\n') left out: invalid JSON")
    *named, last = kept(answer([b"NaN"] * 100))[1]
    assert (len(named), last) == (MAX_NAMED, f"tools: and {100 - MAX_NAMED} more")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"result":{"tools":[',
        b'{"id":1,"result":{"tools":["a]}}',
        b'{"id":1,"result":{"tools":{"a":NaN}}}',
        b'{"id":1,"result":[NaN]}',
        b'{"id":1,"result":{"prompts":[NaN]}}',
        b'{"id":1,"error":{"tools":[NaN]}}',
        b'{"id":1,"result":{"tools":[{}],"ttlMs":NaN}}',
        b'{"id":1,"result":{"tools":[NaN]},"x":NaN}',
        b'{"id":NaN,"result":{"tools":[{}]}}',
    ],
)
def test_errors_outside_entries_are_not_repaired(data: bytes) -> None:
    assert salvage(data, Kind.TOOLS) is None


def test_the_work_is_bounded() -> None:
    assert salvage(answer([b"[" * 1000 + b"]" * 1000]), Kind.TOOLS, max_tokens=1000) is None
    assert salvage(answer([b"NaN"] * 10), Kind.TOOLS, max_tokens=1000) is not None


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        values.map(lambda value: (True, json.dumps(value).encode())) | st.sampled_from(SMALL).map(lambda b: (False, b))
    )
)
def test_exactly_the_good_ones_are_kept_in_order(items: list[tuple[bool, bytes]]) -> None:
    if items == [(False, b"")]:
        return  # which is an empty array
    found, problems = kept(answer([item for _, item in items]))
    assert found == [json.loads(item) for good, item in items if good]
    assert len(problems) == min(MAX_NAMED + 1, sum(not good for good, _ in items))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 200), st.integers(0, 60))
def test_salvaging_never_raises_and_returns_json(noise: bytes, place: int, cut: int) -> None:
    data = answer([b'{"name":"a","x":["\\"",{}]}', b'{"name":"b"}'], nextCursor="c")
    for one in (noise, data[:place] + noise + data[place + cut :]):
        found = salvage(one, Kind.TOOLS)
        if found is not None:
            json.loads(bytes(jsonrpc.decode(found[0]).result))
