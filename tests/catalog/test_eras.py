"""Lists of both eras in one listing: each era sees its own, under equal names."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.calls import Era
from gateway.catalog.listing import Item, Listing, merge_eras
from gateway.catalog.ownership import Route
from gateway.catalog.parts import Naming, Part, make_part
from gateway.catalog.snapshot import ListNews, Snapshot
from gateway.eras.caching import Hint
from gateway.eras.methods import Kind
from gateway.eras.tools import View

every_era = pytest.mark.parametrize("era", list(Era))
every_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.member)
VIEWS = {Era.LEGACY: View.LATEST, Era.MODERN: View.MODERN}
LISTS = st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["one", "two"]), max_size=6)


def listing(entries: dict[str, str], kind: Kind = Kind.TOOLS, hint: Hint | None = None) -> Listing:
    items = tuple(
        Item(own, jsonrpc.encode({kind.key: own, "description": text}), hint or Hint()) for own, text in entries.items()
    )
    return Listing(items={kind: items})


def in_era(found: Listing, era: Era) -> dict[str, bytes]:
    return {item.own: item.raw for item in found.in_era(era).items[Kind.TOOLS]}


def raws(found: Listing) -> dict[str, bytes]:
    return {item.own: item.raw for item in found.items[Kind.TOOLS]}


@every_era
@given(LISTS, LISTS)
def test_a_merged_listing_splits_into_its_eras(era: Era, ours: dict[str, str], theirs: dict[str, str]) -> None:
    both = merge_eras(listing(ours), era, listing(theirs))
    assert in_era(both, era) == raws(listing(ours))
    assert in_era(both, era.other) == raws(listing(theirs))
    assert both.count(Kind.TOOLS) == len(ours.keys() | theirs.keys())
    assert {item.own for item in both.items[Kind.TOOLS] if item.era is None} == {
        own for own, text in ours.items() if theirs.get(own) == text
    }


@every_era
@given(LISTS, LISTS, LISTS)
def test_an_era_without_a_session_differs_as_before(
    era: Era, ours: dict[str, str], theirs: dict[str, str], fresh: dict[str, str]
) -> None:
    both = merge_eras(listing(ours), era, listing(theirs))
    assert raws(both.in_other_era(listing(ours), era)) == raws(listing(theirs))
    found = raws(both.in_other_era(listing(fresh), era))
    apart = {own for own in ours.keys() | theirs.keys() if ours.get(own) != theirs.get(own)}
    kept = {own: text for own, text in theirs.items() if own in apart}
    assert found == raws(listing(kept | {own: text for own, text in fresh.items() if own not in apart}))


def merged(backend: str, legacy: dict[str, str], modern: dict[str, str], kind: Kind, **options: str) -> Part:
    found = merge_eras(listing(legacy, kind), Era.LEGACY, listing(modern, kind, Hint(5000, True)))
    return make_part(backend, options.get("namespace", backend), found, Naming())


def listed(found: Snapshot, kind: Kind, era: Era, size: int | None = None) -> list[tuple[str, str]]:
    cursor, entries = None, []
    while True:
        page = found.page(kind, cursor, size, VIEWS[era])
        entries += json.loads(b"[" + page.joined + b"]")
        if (cursor := page.next_cursor) is None:
            return [(entry[kind.key], entry["description"]) for entry in entries]


@every_kind
@pytest.mark.parametrize("size", [None, 1, 2])
def test_lists_and_pages_contain_their_eras_items(kind: Kind, size: int | None) -> None:
    first = merged("a", {"x": "both", "y": "old", "z": "old"}, {"x": "both", "y": "new"}, kind, namespace="")
    second = merged("b", {}, {"w": "new"}, kind, namespace="")
    found = Snapshot([first, second], listed=frozenset("ab"))
    assert listed(found, kind, Era.LEGACY, size) == [("x", "both"), ("y", "old"), ("z", "old")]
    assert listed(found, kind, Era.MODERN, size) == [("x", "both"), ("y", "new"), ("w", "new")]
    assert found.listed_by_backend(kind) == {"a": [(own, own) for own in "xyz"], "b": [("w", "w")]}
    assert [found.route(kind, own) for own in "xyzw"] == [Route("a", own) for own in "xyz"] + [Route("b", "w")]
    assert found.clashes == []
    assert found.hint(kind) == Hint(5000, True)


@every_kind
def test_both_eras_share_one_owner_per_name(kind: Kind) -> None:
    first = merged("a", {"x": "a"}, {}, kind, namespace="")
    second = merged("b", {"x": "old"}, {"x": "new"}, kind, namespace="")
    found = Snapshot([first, second], listed=frozenset("ab"))
    assert found.route(kind, "x") == Route("a", "x")
    (name,) = [name for name, text in listed(found, kind, Era.MODERN) if text == "new"]
    assert found.route(kind, name) == Route("b", "x")
    assert listed(found, kind, Era.LEGACY) == [("x", "a"), (name, "old")]


@every_kind
def test_news_are_for_the_era_whose_list_changed(kind: Kind) -> None:
    before = Snapshot([merged("a", {"x": "1"}, {"x": "1"}, kind)], listed=frozenset("a"))
    after = Snapshot([merged("a", {"x": "1"}, {"x": "2"}, kind)], listed=frozenset("a"))
    news = ListNews(before, after)
    assert news
    assert news.features(None, Era.MODERN) == {kind.feature}
    assert news.features(None, Era.LEGACY) == frozenset()


@every_era
def test_single_era_declarations_apply_to_that_tool(era: Era) -> None:
    """A tool's entry states its tasks and header parameters."""
    task = b'{"name":"x","inputSchema":{"type":"object"},"execution":{"taskSupport":"required"}}'
    schema = b'{"type":"object","properties":{"p":{"type":"string","x-mcp-header":"P"}}}'
    header = b'{"name":"x","inputSchema":%b}' % schema
    declared = {"tasks": jsonrpc.raw({"requests": {"tools": {"call": {}}}})}
    legacy = Listing(items={Kind.TOOLS: (Item("x", task),)}, capabilities=declared)
    modern = Listing(items={Kind.TOOLS: (Item("x", header),)})
    ours, theirs = (legacy, modern) if era is Era.LEGACY else (modern, legacy)
    found = Snapshot([make_part("a", "", merge_eras(ours, era, theirs), Naming())], listed=frozenset("a"))
    assert found.route(Kind.TOOLS, "x") == Route("a", "x", task=True)
    assert found.mirrored_params("x")
