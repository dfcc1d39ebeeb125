"""Two backends, one name: both are reachable under distinct, short and stable names."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.calls import Scope
from gateway.catalog import names
from gateway.catalog.listing import Item, Listing
from gateway.catalog.ownership import Route
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.scopes import NamedView
from gateway.catalog.snapshot import Snapshot
from gateway.config.fields import MIN_NAME_LENGTH
from gateway.config.offered import ToolChoice, ToolOverride
from gateway.eras.methods import Kind
from tests.support.fakes import public_names


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


def test_guarantee_g5_the_first_backend_keeps_a_shared_name() -> None:
    found = merged({"a": ["x"], "b": ["x", "y"]})
    other = names.distinct_name("x", "b", "x", 128)
    assert listed(found) == ["x", other, "y"]
    assert found.route(Kind.TOOLS, "x") == Route("a", "x")
    assert found.route(Kind.TOOLS, other) == Route("b", "x")
    assert found.clashes == [f"tools 'x' of 'b' is offered as {other!r}"]


def test_a_disambiguated_name_depends_only_on_its_backend() -> None:
    with_two, with_three = merged({"a": ["x"], "b": ["x"]}), merged({"a": ["x"], "c": ["x", "z"], "b": ["x"]})
    assert listed(with_two)[1] in listed(with_three)


def test_the_first_owner_keeps_a_shared_uri() -> None:
    item = Item("file:///a", b'{"uri":"file:///a"}')
    parts = [make_part(name, name, Listing(items={Kind.RESOURCES: (item,)}), Naming()) for name in ("a", "b")]
    found = Snapshot(parts, listed=frozenset({"a", "b"}))
    assert found.page(Kind.RESOURCES, None, None).joined == item.raw + b',{"uri":"mcp+b:file:///a"}'
    assert found.route(Kind.RESOURCES, "file:///a") == Route("a", "file:///a")
    assert found.route(Kind.RESOURCES, "mcp+b:file:///a") == Route("b", "file:///a")
    assert found.clashes == ["resources 'file:///a' of 'b' is offered as 'mcp+b:file:///a'"]


def test_a_name_imitating_a_disambiguated_one_gains_nothing() -> None:
    squatted = names.distinct_name("x", "c", "x", 128)
    found = merged({"a": ["x"], "b": [squatted], "c": ["x"]})
    assert found.route(Kind.TOOLS, squatted) == Route("b", squatted)
    assert listed(found) == ["x", squatted]
    assert found.clashes == [f"tools 'x' of 'c' is left out: {squatted!r} is also taken"]


@pytest.mark.parametrize("namespace", ["", "n"])
@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcd"), st.lists(st.text("xy", min_size=1, max_size=30), max_size=6, unique=True), max_size=4
    ),
    st.integers(MIN_NAME_LENGTH, 24),
)
def test_listed_names_are_unique_short_and_routable(namespace: str, backends: dict[str, list[str]], most: int) -> None:
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


# -- who is named in the prefix ----------------------------------------------------------------------------------------


def named(
    servers: dict[str, tuple[str, list[str]]], *, kind: Kind = Kind.TOOLS, separator: str = ".", **more: Any
) -> Snapshot:
    """A snapshot of servers, each with its namespace and listed own names (None: none yet)."""
    naming = Naming(separator)
    parts = [
        make_part(
            backend,
            namespace,
            Listing(items={kind: tuple(Item(own, jsonrpc.encode({"name": own})) for own in owns)}),
            naming,
        )
        for backend, (namespace, owns) in servers.items()
        if owns
    ]
    namespaces = {backend: namespace for backend, (namespace, _) in servers.items()}
    return Snapshot(parts, listed=frozenset(servers), naming=naming, namespaces=namespaces, **more)


CLAIMS = [
    # separator, the owner, the server that claims its name, the name
    (".", ("gh", ("gh", ["list_a"])), ("evil", ("", ["gh.list_a"])), "gh.list_a"),
    (".", ("a", ("a", ["b.c"])), ("evil", ("", ["a.b.c"])), "a.b.c"),
    (".", ("ab", ("a.b", ["c"])), ("a", ("a", ["b.c"])), "a.b.c"),
    ("_", ("a_b", ("a_b", ["c"])), ("a", ("a", ["b_c"])), "a_b_c"),
    ("__", ("a__b", ("a__b", ["c"])), ("a", ("a", ["b__c"])), "a__b__c"),
    ("-", ("a-b", ("a-b", ["c"])), ("evil", ("", ["a-b-c"])), "a-b-c"),
    (".", ("gh", ("gh", ["x"])), ("other", ("gh", ["x"])), "gh.x"),
]


@pytest.mark.parametrize("kind", [Kind.TOOLS, Kind.PROMPTS])
@pytest.mark.parametrize("is_first", [True, False], ids=["the owner first", "the owner last"])
@pytest.mark.parametrize(("separator", "owner", "other", "public"), CLAIMS)
def test_a_qualified_name_belongs_to_the_named_server(
    kind: Kind, is_first: bool, separator: str, owner: Any, other: Any, public: str
) -> None:
    found = named(dict([owner, other] if is_first else [other, owner]), kind=kind, separator=separator)
    assert found.route(kind, public) == Route(owner[0], owner[1][1][0])
    hashed = names.distinct_name(public, other[0], other[1][1][0], 128)
    assert found.route(kind, hashed) == Route(other[0], other[1][1][0])
    order = [public, hashed] if is_first else [hashed, public]
    assert list(public_names(found, kind).values()) == [[name] for name in order]
    for scope in (Scope(servers=(owner[0], other[0])), Scope(prompts=("*",), resources=False)):
        narrowed = found.within(scope)
        assert narrowed.route(kind, public) == Route(owner[0], owner[1][1][0])
        assert narrowed.route(kind, hashed) == Route(other[0], other[1][1][0])


@pytest.mark.parametrize(("separator", "owner", "other", "public"), CLAIMS[:-1])
def test_names_are_reserved_before_their_server_lists(separator: str, owner: Any, other: Any, public: str) -> None:
    silent = (owner[0], (owner[1][0], []))
    before, after = (named(dict([one, other]), separator=separator) for one in (silent, owner))
    hashed = names.distinct_name(public, other[0], other[1][1][0], 128)
    assert before.route(Kind.TOOLS, public) is None
    assert before.route(Kind.TOOLS, hashed) == after.route(Kind.TOOLS, hashed) == Route(other[0], other[1][1][0])


def test_rules_for_a_server_ignore_prefix_matches() -> None:
    found = named({"evil": ("", ["gh.new", "own"]), "gh": ("gh", ["list"])})
    assert list(public_names(found.within(Scope(tools=("gh.*",))), Kind.TOOLS)) == ["gh"]
    assert list(public_names(found.within(Scope(tools=("evil.*",))), Kind.TOOLS)) == ["evil"]


def test_a_view_reserves_names_by_its_own_separator() -> None:
    views = {"v": NamedView(naming=Naming("_", 64))}
    found = named({"evil": ("", ["gh_list"]), "gh": ("gh", ["list"])}, views=views)
    assert found.route(Kind.TOOLS, "gh_list") == Route("evil", "gh_list")
    assert found.within(Scope(view="v")).route(Kind.TOOLS, "gh_list") == Route("gh", "list")


def test_names_merely_resembling_another_servers_stay() -> None:
    found = named({"evil": ("", ["ghost", "gh", "g.h", "GH.x", "a.gh.x"]), "gh": ("gh", ["x"])})
    assert public_names(found, Kind.TOOLS)["evil"] == ["ghost", "gh", "g.h", "GH.x", "a.gh.x"]


def test_a_name_that_the_operator_gives_stays() -> None:
    listing = Listing(items={Kind.TOOLS: (Item("find", b'{"name":"find"}'),)})
    choice = ToolChoice(overrides={"find": ToolOverride(name="gh.find")})
    part = make_part("search", "", listing, Naming(), choice)
    found = Snapshot([part], listed=frozenset({"search"}), namespaces={"search": "", "gh": "gh"})
    assert found.route(Kind.TOOLS, "gh.find") == Route("search", "find")
