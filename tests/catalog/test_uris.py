"""URIs shared by two backends: disambiguated, restored, and rewritten throughout results."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import jsonrpc
from gateway.calls import Caller, Era
from gateway.catalog import uris
from gateway.catalog.listing import Item, Listing
from gateway.catalog.ownership import MAX_LINK_LENGTH, MAX_LINKS, Asked, Links, Pages, Route, publish
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.eras.methods import Kind

names = st.text("abAB09_-", min_size=1, max_size=8)
texts = st.text(st.characters(codec="utf-8"), max_size=12)


def merged(backends: dict[str, dict[str, list[str]]], *silent: str) -> Snapshot:
    """A snapshot of backends with lists of `resources`, `templates` and tools' `links`.

    Those in `silent` are there too, but have listed nothing.
    """
    parts = []
    for backend, lists in backends.items():
        items = {
            Kind.RESOURCES: tuple(
                Item(uri, jsonrpc.encode({"uri": uri, "x": 1})) for uri in lists.get("resources", [])
            ),
            Kind.TEMPLATES: tuple(
                Item(uri, jsonrpc.encode({"uriTemplate": uri})) for uri in lists.get("templates", [])
            ),
            Kind.TOOLS: tuple(
                Item(f"t{i}", jsonrpc.encode({"name": f"t{i}", "_meta": {"ui": {"resourceUri": uri, "y": None}}}))
                for i, uri in enumerate(lists.get("links", []))
            ),
        }
        parts.append(make_part(backend, backend, Listing(items=items), Naming()))
    return Snapshot(parts, listed=frozenset(backends), namespaces={name: name for name in (*backends, *silent)})


def listed(found: Snapshot, kind: Kind) -> list[str]:
    return [item[kind.key] for item in json.loads(b"[" + found.page(kind, None, None).joined + b"]")]


# -- names and back ----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(names, texts | texts.map("ui://{}".format))
def test_every_rewritten_uri_can_be_changed_back(backend: str, uri: str) -> None:
    public = uris.public(backend, uri)
    assert uris.split(public) == uris.split_any_case(public) == (backend, uri)
    assert public.startswith("ui://") == uri.startswith("ui://")  # a page of MCP Apps must have this scheme
    scheme, _, rest = public.partition(":")
    named = rest.split("/", 3)[2] if uri.startswith("ui://") else scheme
    assert scheme == scheme.lower()
    assert set(named) <= set("abcdefghijklmnopqrstuvwxyz0123456789+-.")
    assert uris.split(uris.public("outer", public)) == ("outer", public)  # a gateway behind a gateway


NEVER = ["", "file:///a", "mcp+:x", "mcp+A:x", "mcp+a", "mcp+a.4g:x", "mcp+.61:x", "mcp+.ff:x"]


@pytest.mark.parametrize("uri", [*NEVER, "ui://mcp+a", "ui://mcp+A/x", "ui://a/x"])
def test_unrewritten_uris_are_not_changed_back(uri: str) -> None:
    assert uris.split(uri) is None


# -- ownership ---------------------------------------------------------------------------------------------------------


def test_clashing_templates_are_disambiguated_too() -> None:
    found = merged({"a": {"templates": ["m:///{id}"]}, "B": {"templates": ["m:///{id}"]}})
    assert listed(found, Kind.TEMPLATES) == ["m:///{id}", "mcp+.42:m:///{id}"]
    assert found.uris.find("m:///1") == Route("a", "m:///1")
    assert found.uris.find("mcp+.42:m:///1") == Route("B", "m:///1")
    assert found.uris.templates["mcp+.42:m:///{id}"] == Route("B", "m:///{id}")
    assert found.uris.public("B", "m:///1") == "mcp+.42:m:///1"
    assert found.uris.public("a", "m:///1") == "m:///1"


def test_a_page_of_a_tool_follows_the_resources() -> None:
    found = merged({
        "a": {"resources": ["ui://x"], "links": ["ui://x", "ui://y"]},
        "b": {"links": ["ui://x", "ui://z"]},
    })
    tools = json.loads(b"[" + found.page(Kind.TOOLS, None, None).joined + b"]")
    links = [tool["_meta"]["ui"] for tool in tools]
    assert links == [{"resourceUri": uri, "y": None} for uri in ("ui://x", "ui://y", "ui://mcp+b/x", "ui://z")]
    assert found.uris.find("ui://mcp+b/x") == found.uris.find("mcp+b:ui://x") == Route("b", "ui://x")
    assert found.uris.find("ui://z") == Route("b", "ui://z")
    assert listed(found, Kind.RESOURCES) == ["ui://x"]


OFFICE = {
    "a": {"resources": ["m://a/1", "f:///dir/"], "templates": ["m://a/{id}", "{+any}"]},
    "b": {"resources": ["m://b/1", "only:b"], "templates": ["m://b/{id}"]},
    "c": {"resources": ["n://c/folder"]},
}


@pytest.mark.parametrize(
    ("uri", "linked", "expected"),
    [
        ("m://a/1", None, Route("a", "m://a/1")),
        ("m://b/1", "a", Route("b", "m://b/1")),  # listed: a link says less
        ("m://b/2", "a", Route("b", "m://b/2")),  # and less than a template that says something
        ("m://q/2", "b", Route("b", "m://q/2")),  # but more than one that fits everything
        ("m://q/2", None, Route("a", "m://q/2")),
        ("mcp+b:m://a/1", None, Route("b", "m://a/1")),  # from a clash that is over
        ("mcp+nobody:m://a/1", None, Route("a", "mcp+nobody:m://a/1")),
    ],
)
def test_a_uri_leads_to_its_owner(uri: str, linked: str | None, expected: Route | None) -> None:
    assert merged(OFFICE).uris.find(uri, linked) == expected


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("n://c/folder/file", "c"),
        ("f:///dir/deep/er", "a"),
        ("only:other", "b"),
        ("m://q", None),  # two have this scheme
        ("none:x", None),
        ("", None),
    ],
)
def test_unlisted_uris_belong_to_the_closest_match(uri: str, expected: str | None) -> None:
    harness = {name: {"resources": lists["resources"]} for name, lists in OFFICE.items()}
    found = merged(harness).uris.find(uri)
    assert (None if found is None else found.backend) == expected


uri_lists = st.lists(st.sampled_from(["m:1", "m:2", "n://x/y", "n://x/y/z"]), max_size=4, unique=True)
template_lists = st.lists(st.sampled_from(["m:{i}", "n://x/{i}", "{+all}"]), max_size=3, unique=True)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "B_", "c-1"]),
        st.fixed_dictionaries({"resources": uri_lists, "templates": template_lists, "links": uri_lists}),
        max_size=3,
    )
)
def test_every_uri_of_a_backend_leads_back(harness: dict[str, dict[str, list[str]]]) -> None:
    found = merged(harness)
    for backend, lists in harness.items():
        for uri in [*lists["resources"], *lists["links"]]:
            assert found.uris.find(found.uris.public(backend, uri)) == Route(backend, uri)
        for template in lists["templates"]:
            public = next(key for key, route in found.uris.templates.items() if route == Route(backend, template))
            assert public in {template, uris.public(backend, template)}
    for kind in (Kind.RESOURCES, Kind.TEMPLATES):
        assert len(set(listed(found, kind))) == sum(
            len(lists[kind.feature if kind is Kind.RESOURCES else "templates"]) for lists in harness.values()
        )


CLAIMS = [
    ("mcp+b:x:1", "b", "x:1"),
    ("MCP+b:x:1", "b", "x:1"),
    ("Mcp+B:x:1", "b", "x:1"),
    ("mcp+c:x:1", "c", "x:1"),
    ("mcp+b:", "b", ""),
    ("ui://mcp+b/x", "b", "ui://x"),
    ("UI://MCP+B/X", "b", "ui://X"),
    ("ui://mcp+c/", "c", "ui://"),
]


@pytest.mark.parametrize("order", [["a", "b"], ["b", "a"]])
@pytest.mark.parametrize(("claim", "owner", "own"), CLAIMS)
@pytest.mark.parametrize("how", ["resources", "templates", "links"])
def test_a_qualified_uri_belongs_to_the_named_server(
    how: str, claim: str, owner: str, own: str, order: list[str]
) -> None:
    harness = {"a": {how: [claim]}, "b": {"resources": ["x:1"]}}
    found = merged({name: harness[name] for name in order}, "c")  # c has listed nothing
    assert found.uris.find(claim, "a") == Route(owner, own)
    public = found.uris.public("a", claim)
    assert public == uris.public("a", claim) != claim
    assert found.uris.find(public) == Route("a", claim)
    assert found.uris.public(owner, claim) == claim


def test_a_template_cannot_capture_what_names_another_server() -> None:
    templates = ["mcp+b:{+x}", "mcp+{+x}", "{+x}", "mcp+{server}:{+x}", "ui://{+x}", "ui://mcp+{server}/{+x}"]
    found = merged({"a": {"templates": templates}, "b": {}}, "c")
    for server in ("b", "c"):
        assert found.uris.find(f"mcp+{server}:x:1", "a") == Route(server, "x:1")
        assert found.uris.find(f"ui://mcp+{server}/x", "a") == Route(server, "ui://x")
    assert found.uris.find("mcp+nobody:x:1") == Route("a", "mcp+nobody:x:1")


def test_a_disambiguated_uri_cannot_be_taken_over() -> None:
    found = merged({"a": {"resources": ["x:1", "mcp+b:x:1"]}, "b": {"resources": ["x:1"]}})
    assert found.uris.find("mcp+b:x:1") == Route("b", "x:1")
    assert listed(found, Kind.RESOURCES) == ["x:1", "mcp+a:mcp+b:x:1", "mcp+b:x:1"]
    assert found.uris.find("mcp+a:mcp+b:x:1") == Route("a", "mcp+b:x:1")


def test_result_links_naming_another_server_are_disambiguated() -> None:
    found, links = merged({"a": {}, "b": {"resources": ["x:1"]}}), Links()
    for uri in ("mcp+b:x:1", "mcp+a:x:1"):
        result = jsonrpc.encode({"content": [{"type": "resource_link", "uri": uri, "name": "n"}]})
        shown = json.loads(publish(found.uris, links, Asked("a", "tools/call"), result))["content"][0]["uri"]
        assert shown == ("mcp+a:mcp+b:x:1" if uri == "mcp+b:x:1" else uri)
    assert links.owner("mcp+b:x:1") is None


# -- the pages that clients have read ----------------------------------------------------------------------------------


def caller(session: str | None = None, principal: str | None = None, address: str | None = None) -> Caller:
    return Caller(era=Era.MODERN, version="", session=session, principal=principal, address=address)


def test_pages_are_known_by_session_principal_or_address() -> None:
    pages = Pages()
    pages.learn(caller(session="s", principal="ada"), "a")
    pages.learn(caller(principal="ada"), "b")
    pages.learn(caller(address="192.0.2.1"), "c")
    assert pages.owners(caller(session="s")) == {"a"}
    assert pages.owners(caller(principal="ada", address="192.0.2.1")) == {"b"}
    assert pages.owners(caller(address="192.0.2.1")) == {"c"}
    for stranger in (caller(session="t"), caller(principal="bob"), caller(address="192.0.2.2"), caller()):
        assert not pages.owners(stranger)


def test_the_client_that_read_longest_ago_is_forgotten() -> None:
    pages = Pages(most=2)
    for session, backend in [("s", "a"), ("t", "a"), ("s", "b"), ("u", "c")]:
        pages.learn(caller(session=session), backend)
    assert [pages.owners(caller(session=session)) for session in "stu"] == [{"a", "b"}, set(), {"c"}]
    pages.retain({"b"})
    assert [pages.owners(caller(session=session)) for session in "su"] == [{"b"}, set()]


# -- results -----------------------------------------------------------------------------------------------------------


def tagged(uri: str) -> str:
    return f"mcp+b:{uri}"


RESULTS = [
    ("resources/read", {"contents": [{"uri": "u", "text": "u"}, {"uri": "v", "blob": ""}], "ttlMs": 1}, ["u", "v"]),
    ("tools/call", {"content": [{"type": "resource_link", "uri": "u", "name": "u"}]}, ["u"]),
    ("tools/call", {"content": [{"type": "resource", "resource": {"uri": "u", "text": ""}, "x": None}]}, ["u"]),
    ("tools/call", {"content": [{"type": "text", "text": "", "uri": "u"}], "structuredContent": {"uri": "u"}}, []),
    ("tools/call", {"content": [3, None, {"type": "resource"}, {"type": "resource_link", "uri": 7}]}, []),
    ("tools/call", {"content": {"uri": "u"}}, []),
    ("tools/call", {"content": [], "_meta": {"ui": {"resourceUri": "u"}, "ui/resourceUri": "v"}}, ["v", "u"]),
    ("prompts/get", {"messages": [{"role": "user", "content": {"type": "resource_link", "uri": "u"}}]}, ["u"]),
    ("prompts/get", {"messages": [{"content": [{"type": "resource", "resource": {"uri": "u"}}]}, {}]}, ["u"]),
    ("completion/complete", {"completion": {"values": []}, "uri": "u"}, []),
]


@pytest.mark.parametrize(("method", "result", "expected"), RESULTS)
def test_uris_are_found_where_they_are_resources(method: str, result: Any, expected: list[str]) -> None:
    raw = json.dumps(result).encode()
    seen: list[str] = []
    assert uris.change_result(method, raw, lambda uri: (seen.append(uri), uri)[1]) is raw
    assert seen == expected
    assert uris.may_link(raw) or not expected
    there = uris.change_result(method, raw, tagged)
    assert (there is raw) == (not expected)
    assert there.count(b"mcp+b:") == len(expected)
    back = uris.change_result(method, there, lambda uri: (uris.split(uri) or ("", uri))[1])
    assert json.loads(back) == result


@pytest.mark.parametrize("data", [b"[]", b"{", b"null", b'{"contents":7}'])
def test_invalid_results_pass_unchanged(data: bytes) -> None:
    assert uris.change_result("resources/read", data, tagged) is data


# -- links -------------------------------------------------------------------------------------------------------------


def test_the_backend_that_linked_last_is_asked() -> None:
    links = Links()
    assert links.owner("u") is None
    links.learn("a", "u")
    links.learn("b", "u")
    assert links.owner("u") == "b"
    links.learn("a", "u")
    assert links.owner("u") == "a"
    links.retain({"b"})
    assert links.owner("u") == "b"


def test_links_are_bounded_for_each_backend() -> None:
    links = Links()
    links.learn("b", "kept")
    for i in range(MAX_LINKS):
        links.learn("a", f"u{i}")
    links.learn("a", "u0")
    links.learn("a", "one more")
    assert [links.owner(uri) for uri in ("u0", "u1", "u2", "one more", "kept")] == ["a", None, "a", "a", "b"]
    links.learn("a", "x" * (MAX_LINK_LENGTH + 1))
    assert links.owner("x" * (MAX_LINK_LENGTH + 1)) is None
