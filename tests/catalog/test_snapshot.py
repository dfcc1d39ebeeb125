"""The merged catalog: routing, listing, and pages that survive a change in between."""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import weakref
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.calls import Scope
from gateway.catalog.listing import Item, Listing
from gateway.catalog.ownership import Route
from gateway.catalog.parts import Naming, Part, has_capability, join_part, make_part, merge_instructions
from gateway.catalog.scopes import NamedView
from gateway.catalog.snapshot import Page, Snapshot, encode_list
from gateway.eras.methods import Kind
from gateway.eras.tools import View
from gateway.errors import InvalidParams
from tests.support.fakes import public_names


def tools(*names: str, **kwargs: Any) -> Listing:
    items = tuple(Item(name, jsonrpc.encode({"name": name, "x": None})) for name in names)
    return Listing(items={Kind.TOOLS: items}, **kwargs)


def part(backend: str, listing: Listing, namespace: str | None = None, naming: Naming | None = None) -> Part:
    return make_part(backend, backend if namespace is None else namespace, listing, naming or Naming())


def snapshot(*parts: Part, listed: frozenset[str] | None = None) -> Snapshot:
    return Snapshot(parts, listed=frozenset(one.backend for one in parts) if listed is None else listed)


def listed_names(found: Snapshot, kind: Kind = Kind.TOOLS) -> list[str]:
    return [item[kind.key] for item in json.loads(b"[" + found.page(kind, None, None).joined + b"]")]


def test_names_are_public_and_everything_else_stays() -> None:
    raw = b'{"title":"T","name":"now" ,"x":1.00,"annotations":null}'
    found = snapshot(part("time", Listing(items={Kind.TOOLS: (Item("now", raw),)})))
    assert found.page(Kind.TOOLS, None, None).joined == b'{"title":"T","name":"time.now","x":1.00,"annotations":null}'
    assert found.route(Kind.TOOLS, "time.now") == Route("time", "now")
    assert found.route(Kind.TOOLS, "now") is None
    assert found.route(Kind.PROMPTS, "time.now") is None


def test_without_a_namespace_an_item_is_untouched() -> None:
    raw = b'{"name":"now" , "x":1}'
    found = snapshot(part("time", Listing(items={Kind.TOOLS: (Item("now", raw),)}), namespace=""))
    assert found.page(Kind.TOOLS, None, None).joined == raw
    assert found.route(Kind.TOOLS, "now") == Route("time", "now")


def test_resources_keep_their_uris() -> None:
    raw = b'{"uri":"file:///a","name":"a"}'
    found = snapshot(part("files", Listing(items={Kind.RESOURCES: (Item("file:///a", raw),)})))
    assert found.page(Kind.RESOURCES, None, None).joined == raw
    assert found.route(Kind.RESOURCES, "file:///a") == Route("files", "file:///a")


def test_an_absent_backend_is_routed_but_unlisted() -> None:
    found = snapshot(part("a", tools("x")), part("b", tools("x")), listed=frozenset({"b"}))
    assert listed_names(found) == ["b.x"]
    assert found.route(Kind.TOOLS, "a.x") == Route("a", "x")
    assert public_names(found, Kind.TOOLS) == {"b": ["b.x"]}


def test_same_list_compares_what_clients_see() -> None:
    a, b = part("a", tools("x")), part("b", tools("y"))
    one = snapshot(a, listed=frozenset({"a"}))
    assert one.same_list(snapshot(a, b, listed=frozenset({"a"})), Kind.TOOLS)
    assert not one.same_list(snapshot(a, b), Kind.TOOLS)
    assert one.same_list(snapshot(a, b), Kind.PROMPTS)
    changed = Listing(items={Kind.TOOLS: (Item("x", b'{"name":"x","description":"new"}'),)})
    assert not one.same_list(snapshot(part("a", changed)), Kind.TOOLS)


# -- pages and cursors -------------------------------------------------------------------------------------------------


def walk(found: Snapshot, size: int | None) -> list[list[str]]:
    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page = found.page(Kind.TOOLS, cursor, size)
        pages.append([item["name"] for item in json.loads(b"[" + page.joined + b"]")])
        cursor = page.next_cursor
        if cursor is None:
            return pages
        assert len(pages) < 100


@pytest.mark.parametrize(
    ("size", "pages"),
    [
        (None, [["a.1", "a.2", "b.3", "b.4"]]),
        (4, [["a.1", "a.2", "b.3", "b.4"]]),
        (9, [["a.1", "a.2", "b.3", "b.4"]]),
        (3, [["a.1", "a.2", "b.3"], ["b.4"]]),
        (1, [["a.1"], ["a.2"], ["b.3"], ["b.4"]]),
    ],
)
def test_pages(size: int | None, pages: list[list[str]]) -> None:
    assert walk(snapshot(part("a", tools("1", "2")), part("b", tools("3", "4"))), size) == pages


def test_an_empty_list_is_one_empty_page() -> None:
    assert walk(snapshot(), 5) == [[]]


PRINTABLE = st.characters(  # other names are served under another one
    exclude_categories=["Cs", "Cc", "Cf", "Cn", "Mn", "Zl", "Zp"], exclude_characters="\u115f\u1160\u3164\uffa0"
)


@settings(deadline=None)
@given(st.lists(st.text(PRINTABLE, min_size=1, max_size=5), unique=True), st.integers(1, 5))
def test_cursors_lead_through_the_whole_list_once(names: list[str], size: int) -> None:
    pages = walk(snapshot(part("a", tools(*names), namespace="")), size)
    assert [name for page in pages for name in page] == names


@pytest.mark.parametrize(
    ("now", "following"),
    [
        (("1", "2", "3", "4"), ["3", "4"]),  # nothing changed
        (("0", "1", "2", "3", "4"), ["3", "4"]),  # it moved back: nothing comes twice
        (("2", "3", "4"), ["3", "4"]),  # it moved forward: nothing is left out
        (("1", "3", "4"), ["4"]),  # it is gone: continue from its former position
        (("1",), []),
        ((), []),
    ],
)
def test_a_cursor_outlives_a_change_of_the_list(now: tuple[str, ...], following: list[str]) -> None:
    cursor = snapshot(part("a", tools("1", "2", "3", "4"), namespace="")).page(Kind.TOOLS, None, 2).next_cursor
    found = snapshot(part("a", tools(*now), namespace="")).page(Kind.TOOLS, cursor, None)
    assert [item["name"] for item in json.loads(b"[" + found.joined + b"]")] == following


def cursor_of(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode()


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "\xe9",
        "!!!!",
        cursor_of([]),
        cursor_of(["tools", -1, "a"]),
        cursor_of(["tools", 1]),
        cursor_of(["tools", "1", "a"]),
        cursor_of(["prompts", 1, "a"]),
        cursor_of({"tools": 1}),
        base64.urlsafe_b64encode(b"[" * 60_000).decode(),
        base64.urlsafe_b64encode(b'["tools",1,"\xff"]').decode(),
    ],
)
def test_a_foreign_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidParams, match=r"params\.cursor"):
        snapshot(part("a", tools("1", "2"))).page(Kind.TOOLS, cursor, 1)


@settings(deadline=None)
@given(st.text() | st.binary(max_size=40).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_no_cursor_raises_anything_else(cursor: str) -> None:
    found = snapshot(part("a", tools("1", "2")))
    with contextlib.suppress(InvalidParams):
        found.page(Kind.TOOLS, cursor, 1)


def test_a_forged_cursor_finds_the_end_at_most() -> None:
    found = snapshot(part("a", tools("1", "2")))
    assert found.page(Kind.TOOLS, cursor_of(["tools", 10**15, "x"]), 1) == Page((), None)


# -- the rest of what is merged ----------------------------------------------------------------------------------------


def test_a_list_is_spliced_from_its_parts() -> None:
    page = Page((b'{"name":"a"}',), 'c"')
    assert encode_list(Kind.TOOLS, page) == b'{"tools":[{"name":"a"}],"nextCursor":"c\\""}'
    several = Page((b'{"name":"a"}', b'{"name":"b"},{"name":"c"}', b'{"name":"d"}'), None)
    found = json.loads(encode_list(Kind.TOOLS, several, head=b'"h":1,', tail=b',"t":2'))
    assert found == {"h": 1, "tools": [{"name": name} for name in "abcd"], "t": 2}
    assert encode_list(Kind.TEMPLATES, Page((), None), head=b'"h":1,', tail=b',"t":2') == (
        b'{"h":1,"resourceTemplates":[],"t":2}'
    )


def test_instructions_are_merged_under_the_backends_names() -> None:
    parts = [part("a", tools(instructions=" do \n")), part("b", tools()), part("c", tools(instructions="more"))]
    assert merge_instructions(parts, limit=100) == "# a\n\ndo\n\n# c\n\nmore"
    assert merge_instructions(parts, limit=6) == "# a\n\nd"
    assert merge_instructions(parts[1:2], limit=100) is None


@pytest.mark.parametrize(
    ("capabilities", "path", "expected"),
    [
        ({"tools": {}}, ["tools"], True),
        ({"tools": None}, ["tools"], False),
        ({"tools": False}, ["tools"], False),
        ({"resources": {"subscribe": True}}, ["resources", "subscribe"], True),
        ({"resources": {"subscribe": False}}, ["resources", "subscribe"], False),
        ({"resources": {}}, ["resources", "subscribe"], False),
        ({"resources": []}, ["resources", "subscribe"], False),
        ({}, ["resources"], False),
    ],
)
def test_capabilities_are_found(capabilities: dict[str, Any], path: list[str], expected: bool) -> None:
    raws: dict[str, msgspec.Raw] = {name: jsonrpc.raw(value) for name, value in capabilities.items()}
    parts = [part("a", tools()), part("b", tools(capabilities=raws))]
    assert has_capability(parts, path) is expected


def test_a_new_snapshot_rebuilds_only_changed_parts() -> None:
    unchanged = part("a", tools("x", "y"))
    old = snapshot(unchanged, part("b", tools("x")))
    new = snapshot(unchanged, part("b", tools("x", "z")))
    for name in ("a.x", "a.y"):
        assert new.route(Kind.TOOLS, name) is old.route(Kind.TOOLS, name)
    assert [id(one) for one in new.placed(Kind.TOOLS, "a")] == [id(one) for one in old.placed(Kind.TOOLS, "a")]
    assert (new.route(Kind.TOOLS, "b.z"), old.route(Kind.TOOLS, "b.z")) == (Route("b", "z"), None)


def test_parts_are_compared_by_entry_where_names_overlap() -> None:
    first, second = part("a", tools("x", "y"), namespace="n"), part("b", tools("y", "z"), namespace="n")
    assert listed_names(snapshot(first)) == ["n.x", "n.y"]  # now its table is known, and so is the second one's
    assert listed_names(snapshot(second)) == ["n.y", "n.z"]
    both = snapshot(first, second)
    assert listed_names(both)[:2] == ["n.x", "n.y"]
    assert both.route(Kind.TOOLS, "n.y") == Route("a", "y")
    assert both.route(Kind.TOOLS, "n.z") == Route("b", "z")
    assert len(both.clashes) == 1
    assert [both.route(Kind.TOOLS, name) for name in listed_names(both)[2:]] == [Route("b", "y"), Route("b", "z")]


def test_unmodified_lists_are_joined_once() -> None:
    uris = (Item("file:///x", b'{"uri":"file:///x"}'), Item("file:///y", b'{"uri":"file:///y"}'))
    first, second = part("a", Listing(items={Kind.RESOURCES: uris})), part("b", Listing(items={Kind.RESOURCES: uris}))
    chunks = snapshot(first, second).page(Kind.RESOURCES, None, None).chunks
    assert chunks[0] is join_part(first, Kind.RESOURCES, View.MODERN)
    assert chunks[1] == b'{"uri":"mcp+b:file:///x"},{"uri":"mcp+b:file:///y"}'  # the same part, but not as it is
    assert snapshot(second).page(Kind.RESOURCES, None, None).chunks == (join_part(second, Kind.RESOURCES, View.MODERN),)


def test_an_unused_snapshot_is_freed_immediately() -> None:
    # The collector comes by when many objects were made, however large they are: lists of thousands would pile up.
    views = {"all": NamedView(), "other": NamedView(naming=Naming("_"))}
    found = Snapshot([part("a", tools("x"))], listed=frozenset("a"), views=views)
    seen = [found.within(Scope(view="all")), found.within(Scope(view="other")), found.within(Scope(tools=("a.x",)))]
    assert [listed_names(one) for one in seen] == [["a.x"], ["a_x"], ["a.x"]]
    refs = [weakref.ref(one) for one in (found, *seen)]
    gc.disable()
    try:
        del found, seen
        assert [ref() for ref in refs] == [None] * 4
    finally:
        gc.enable()
