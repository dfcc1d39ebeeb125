"""Tool declarations of programs, and their effect on a catalog. Pure."""

from __future__ import annotations

import json

from gateway import jsonrpc
from gateway.catalog.listing import Item, Listing
from gateway.catalog.offers import Offer
from gateway.catalog.parts import Naming, Part, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.embed.tools import read_tools
from gateway.eras.methods import Kind


def part(backend: str, namespace: str, **tools: dict[str, object]) -> Part:
    items = tuple(
        Item(name, json.dumps({"name": name, "inputSchema": {"type": "object"}, **more}).encode())
        for name, more in tools.items()
    )
    return make_part(backend, namespace, Listing(items={Kind.TOOLS: items}), Naming())


def shown(snapshot: Snapshot) -> list[dict[str, object]]:
    return json.loads(b"[" + snapshot.page(Kind.TOOLS, None, None).joined + b"]")


def test_only_what_is_offered_is_listed_and_routed() -> None:
    parts = [part("a", "a", x={"title": "X"}, y={}), part("b", "b", x={})]
    offers = read_tools([
        {"name": "a.x", "description": "D", "parameters": {"properties": {"p": {"type": "string"}}}},
        {"name": "b.x"},
    ])
    snapshot = Snapshot(parts, listed=frozenset({"a"}), offers=offers)
    assert shown(snapshot) == [
        {
            "name": "a.x",
            "inputSchema": {"type": "object", "properties": {"p": {"type": "string"}}},
            "title": "X",
            "description": "D",
        }
    ]
    assert snapshot.route(Kind.TOOLS, "a.x") is not None
    assert snapshot.route(Kind.TOOLS, "b.x") is not None  # away, but known
    assert snapshot.route(Kind.TOOLS, "a.y") is None


def test_a_disambiguated_name_stays_assigned() -> None:
    parts = [part("a", "", x={}), part("b", "", x={})]
    both = frozenset({"a", "b"})
    (_, second) = [tool["name"] for tool in shown(Snapshot(parts, listed=both))]
    narrowed = Snapshot(parts, listed=both, offers={str(second): Offer()})
    route = narrowed.route(Kind.TOOLS, str(second))
    assert route is not None
    assert (route.backend, route.own) == ("b", "x")
    assert narrowed.route(Kind.TOOLS, "x") is None


def test_headers_follow_the_schema_that_clients_see() -> None:
    schema = {"type": "object", "properties": {"p": {"type": "string", "x-mcp-header": "P"}}}
    parts = [part("a", "a", x={"inputSchema": schema})]
    listed = frozenset({"a"})
    assert Snapshot(parts, listed=listed, offers={"a.x": Offer()}).mirrored_params("a.x")
    bare = Offer(schema=jsonrpc.raw({"type": "object"}))
    assert not Snapshot(parts, listed=listed, offers={"a.x": bare}).mirrored_params("a.x")
