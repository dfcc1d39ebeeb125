"""Listings: one bad item is dropped and named, the others keep their bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway import jsonrpc
from gateway.catalog import listing
from gateway.catalog.listing import Item, Listing, clean, offered_capabilities
from gateway.catalog.ownership import Route
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.eras.methods import FEATURES, LISTED_KIND, OWNER_KIND, Kind

SCHEMA = b'"inputSchema":{"type":"object"}'


def spans(*items: bytes) -> list[msgspec.Raw]:
    return [msgspec.Raw(item) for item in items]


def test_the_kinds_are_distinguished() -> None:
    assert {kind.feature for kind in Kind} == set(FEATURES)
    assert LISTED_KIND["resources/templates/list"] is Kind.TEMPLATES
    assert [kind.namespaced for kind in Kind] == [True, True, False, False]
    named = {"tools/call", "prompts/get", "resources/read", "resources/subscribe", "resources/unsubscribe"}
    assert OWNER_KIND.keys() == named


@pytest.mark.parametrize(
    ("kind", "span", "said"),
    [
        (Kind.TOOLS, b"{" + SCHEMA + b"}", "it has no 'name'"),
        (Kind.TOOLS, b'{"name":"",' + SCHEMA + b"}", "its 'name' is empty"),
        (Kind.TOOLS, b'{"name":3,' + SCHEMA + b"}", "tools[1] left out: "),
        (Kind.TOOLS, b"[]", "tools[1] left out: "),
        (Kind.TOOLS, b"null", "tools[1] left out: "),
        (Kind.TOOLS, b'{"name":"bad"}', "tool 'bad' has no inputSchema of type 'object'"),
        (Kind.TOOLS, b'{"name":"bad","inputSchema":{}}', "tool 'bad' has no inputSchema"),
        (Kind.TOOLS, b'{"name":"bad","inputSchema":{"type":"array"}}', "tool 'bad' has no inputSchema"),
        (Kind.TOOLS, b'{"name":"bad","inputSchema":{"type":["object"]}}', "tool 'bad' has no inputSchema"),
        (Kind.TOOLS, b'{"name":"bad","inputSchema":null}', "tool 'bad' has no inputSchema"),
        (Kind.TOOLS, b'{"name":"first",' + SCHEMA + b',"title":"other"}', "'first' is listed twice"),
        (Kind.PROMPTS, b'{"uri":"x"}', "prompts[1] left out: it has no 'name'"),
        (Kind.RESOURCES, b'{"name":"x"}', "resources[1] left out: it has no 'uri'"),
        (Kind.TEMPLATES, b'{"uri":"x"}', "resourceTemplates[1] left out: it has no 'uriTemplate'"),
    ],
)
def test_one_bad_item_is_dropped_and_named(kind: Kind, span: bytes, said: str) -> None:
    first, last = (b'{"%b":"%b",%b}' % (kind.key.encode(), name, SCHEMA) for name in (b"first", b"last"))
    items, problems = clean(kind, spans(first, span, last))
    assert items == (Item("first", first), Item("last", last))
    assert len(problems) == 1
    assert said in problems[0]


def test_everything_else_about_an_item_stays() -> None:
    raw = b'{"name":"t\\u00e9","inputSchema":{"type":"object","x":[1.0]} ,"new":{"a":null},"annotations":null}'
    items, problems = clean(Kind.TOOLS, spans(raw))
    assert items == (Item("t\xe9", raw),)
    assert problems == ()


@pytest.mark.parametrize("kind", Kind)
def test_lone_surrogates_are_replaced_and_named(kind: Kind) -> None:
    """A client with a strict parser would lose its whole list for one of them."""
    key = kind.key.encode()
    cut = (
        b'{"%b":"cut\\ud83d","description":"\\uDE00","inputSchema":{"type":"object","properties":{"\\ud83d":{"enum":["\\ud83d"]}}},'
        b'"annotations":{"title":"\\ud83d"},"whole":"\\ud83d\\ude00 \\\\ud83d"}' % key
    )
    whole = b'{"%b":"whole","inputSchema":{"type":"object"},"x":"\\ud83d\\ude00"}' % key
    items, problems = clean(kind, spans(cut, whole))
    replaced = (
        cut
        .replace(b"\\ud83d\\ude00 \\\\ud83d", b"KEPT")
        .replace(b"\\ud83d", b"\\ufffd")
        .replace(b"\\uDE00", b"\\ufffd")
    )
    assert items == (
        Item("cut\ud83d", replaced.replace(b"KEPT", b"\\ud83d\\ude00 \\\\ud83d")),
        Item("whole", whole),
    )
    assert problems == (f"{kind.member}[0] ('cut\\ud83d') contains lone surrogates, served as U+FFFD",)
    part = make_part("b", "b", Listing(items={kind: items}), Naming())
    snapshot = Snapshot([part], listed=frozenset({"b"}))
    public = ("b." if kind.namespaced else "") + "cut\ufffd"
    assert public in msgspec.json.decode(b"[%b]" % b",".join(snapshot.page(kind, None, None).chunks))[0].values()
    if kind.namespaced:
        assert snapshot.route(kind, public) == Route("b", "cut\ud83d")
    elif kind is Kind.RESOURCES:
        assert snapshot.uris.find(public) == Route("b", "cut\ud83d")
        assert snapshot.uris.public("b", "cut\ud83d") == public


def test_items_are_on_one_line() -> None:
    items, _ = clean(Kind.PROMPTS, spans(b'{\n  "name": "p",\r\n  "title": "a\\nb"\n}'))
    assert items == (Item("p", b'{"name":"p","title":"a\\nb"}'),)


def test_too_many_items_and_problems_are_cut() -> None:
    items, problems = clean(Kind.PROMPTS, spans(*[b'{"name":"p%d"}' % n for n in range(9)]), max_items=3)
    assert [item.own for item in items] == ["p0", "p1", "p2"]
    assert problems == ("prompts after the first 3: left out",)
    _, problems = clean(Kind.PROMPTS, spans(*[b"{}"] * 100))
    assert len(problems) == listing.MAX_PROBLEMS + 1
    assert problems[-1] == f"prompts: and {100 - listing.MAX_PROBLEMS} more"


def test_items_are_counted() -> None:
    one = Listing(items={Kind.TOOLS: (Item("a", b"{}"), Item("b", b"{}"))})
    assert (one.count(Kind.TOOLS), one.count(Kind.PROMPTS)) == (2, 0)
    assert one.capabilities is not Listing().capabilities


def test_control_characters_exclude_a_uri_not_a_name() -> None:
    for kind in Kind:
        items, problems = clean(kind, [jsonrpc.raw({kind.key: "a:\nb", "inputSchema": {"type": "object"}})])
        assert [item.own for item in items] == (["a:\nb"] if kind.namespaced else [])
        assert len(problems) == (not kind.namespaced)
        assert all(text.isprintable() for text in problems)


@pytest.mark.parametrize(
    ("before", "now", "unread", "served", "is_kept"),
    [
        (["a", "b"], ["c"], None, ["c"], False),  # read to its end
        (["a", "b"], [], None, [], False),
        (["a", "b"], [], True, ["a", "b"], True),
        (["a", "b"], [], False, ["a", "b"], True),
        (["a", "b"], ["c"], True, ["a", "b"], True),
        (["a", "b"], ["c", "d"], True, ["c", "d"], False),
        ([], [], True, [], False),
    ],
)
def test_an_incomplete_list_replaces_only_a_shorter_one(
    before: list[str], now: list[str], unread: bool | None, served: list[str], is_kept: bool
) -> None:
    def listing_of(names: list[str], **kwargs: Any) -> Listing:
        return Listing(items={Kind.TOOLS: tuple(Item(name, b"{}") for name in names)}, **kwargs)

    fresh = listing_of(now, problems={Kind.TOOLS: ("broken",)}, unread={} if unread is None else {Kind.TOOLS: unread})
    prompts = {Kind.PROMPTS: (Item("p", b"{}"),)}
    old = listing_of(before, problems={Kind.TOOLS: ("odd",), Kind.PROMPTS: ("else",)}, unread={Kind.PROMPTS: True})
    found = msgspec.structs.replace(old, items=old.items | prompts).relisted(fresh)
    assert [item.own for item in found.items[Kind.TOOLS]] == served
    assert found.items[Kind.PROMPTS] == prompts[Kind.PROMPTS]
    assert found.unread == {Kind.PROMPTS: True, **fresh.unread}
    kept = [f"keeping the {len(before)} tools listed before"] if is_kept else []
    assert list(found.warnings) == ["broken", *kept, "else"]


@pytest.mark.parametrize(
    ("declared", "offered"),
    [
        ({}, {"tools": {}}),
        ({"tools": {"listChanged": True}, "x": {}}, {"tools": {"listChanged": True}, "x": {}}),
        ({"tools": None, "prompts": {}}, {"tools": {}, "prompts": {}}),
    ],
)
def test_listed_items_are_offered(declared: dict[str, Any], offered: dict[str, Any]) -> None:
    spans = {name: jsonrpc.raw(value) for name, value in declared.items()}
    found = offered_capabilities(spans, {Kind.TOOLS: (Item("a", b"{}"),), Kind.PROMPTS: ()})
    assert {name: jsonrpc.decode_any(span) for name, span in found.items()} == offered
