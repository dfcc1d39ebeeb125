"""Two backends, one name: both stay reachable, under names that are told apart, short enough and the same each time."""

from __future__ import annotations

import json
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.catalog import names
from gateway.catalog.kinds import Kind
from gateway.catalog.listing import Item, Listing
from gateway.catalog.ownership import Route
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot


def merged(backends: dict[str, list[str]], *, namespace: str | None = "", most: int = 128) -> Snapshot:
    naming = Naming(".", most)
    parts = [
        make_part(
            backend,
            backend if namespace is None else namespace,
            Listing(items={Kind.TOOLS: tuple(Item(own, jsonrpc.encode({"name": own})) for own in owns)}),
            naming,
        )
        for backend, owns in backends.items()
    ]
    return Snapshot(parts, listed=frozenset(backends), naming=naming)


def listed(found: Snapshot) -> list[str]:
    return [item["name"] for item in json.loads(b"[" + found.page(Kind.TOOLS, None, None).joined + b"]")]


def test_seed_g5_the_first_keeps_the_name_and_the_other_gets_another() -> None:
    found = merged({"a": ["x"], "b": ["x", "y"]})
    other = names.distinct_name("x", "b", "x", 128)
    assert listed(found) == ["x", other, "y"]
    assert found.route(Kind.TOOLS, "x") == Route("a", "x")
    assert found.route(Kind.TOOLS, other) == Route("b", "x")
    assert found.clashes == [f"tools 'x' of 'b' is offered as {other!r}"]


def test_the_other_name_depends_on_nobody_else() -> None:
    with_two, with_three = merged({"a": ["x"], "b": ["x"]}), merged({"a": ["x"], "c": ["x", "z"], "b": ["x"]})
    assert listed(with_two)[1] in listed(with_three)


def test_a_uri_stays_with_its_first_owner_and_the_other_ones_is_told_apart() -> None:
    item = Item("file:///a", b'{"uri":"file:///a"}')
    parts = [make_part(name, name, Listing(items={Kind.RESOURCES: (item,)}), Naming()) for name in ("a", "b")]
    found = Snapshot(parts, listed=frozenset({"a", "b"}))
    assert found.page(Kind.RESOURCES, None, None).joined == item.raw + b',{"uri":"mcp+b:file:///a"}'
    assert found.route(Kind.RESOURCES, "file:///a") == Route("a", "file:///a")
    assert found.route(Kind.RESOURCES, "mcp+b:file:///a") == Route("b", "file:///a")
    assert found.clashes == ["resources 'file:///a' of 'b' is offered as 'mcp+b:file:///a'"]


def test_a_name_that_looks_like_the_way_out_of_a_clash_is_not_taken_over() -> None:
    squatted = names.distinct_name("x", "c", "x", 128)
    found = merged({"a": ["x"], "b": [squatted], "c": ["x"]})
    assert found.route(Kind.TOOLS, squatted) == Route("b", squatted)
    assert listed(found) == ["x", squatted]
    assert found.clashes == [f"tools 'x' of 'c' is left out: {squatted!r} is taken too"]


@pytest.mark.parametrize("namespace", ["", "n"])
@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.text("xy", min_size=1, max_size=30), max_size=6, unique=True), max_size=4
    ),
    st.integers(names.MIN_LENGTH, 24),
)
def test_listed_names_are_unique_short_and_routed_to_their_owner(
    namespace: str, backends: dict[str, list[str]], most: int
) -> None:
    found = merged(backends, namespace=namespace, most=most)
    public = listed(found)
    assert len(public) == len(set(public)) == sum(map(len, backends.values()))
    assert all(len(name) <= most for name in public)
    owners = [found.route(Kind.TOOLS, name) for name in public]
    expected = [Route(backend, own) for backend, owns in backends.items() for own in owns]
    assert owners == expected


def test_shortened_names_of_one_backend_stay_apart() -> None:
    owns = ["".join(letters) + "x" * 40 for letters in product("ab", repeat=6)]
    public = listed(merged({"backend": owns}, namespace=None, most=24))
    assert len(set(public)) == len(owns)
