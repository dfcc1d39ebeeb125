"""Selection, renaming and redescription of tools by a server's config or the embedding program.

Excluded tools are neither listed nor routed, and calls of a renamed tool reach its backend under the own name;
everything else passes through unchanged. A config's choice is applied once, when a backend's part is made. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway import jsonrpc
from gateway.config.fields import ALL
from gateway.config.offered import ALL_TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.catalog.listing import Item
    from gateway.config.offered import ToolChoice


class Offer(msgspec.Struct, frozen=True):
    """Overrides for one tool; None keeps the backend's value."""

    description: str | None = None
    schema: msgspec.Raw | None = None
    """The `inputSchema`, an object of type `object`."""
    title: str | None = None


def described(raw: bytes, offer: Offer) -> bytes:
    """Return a tool's entry with its overrides."""
    changes: dict[str, object] = {}
    if offer.title is not None:
        changes["title"] = offer.title
    if offer.description is not None:
        changes["description"] = offer.description
    if offer.schema is not None:
        changes["inputSchema"] = offer.schema
    if not changes:
        return raw
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    return jsonrpc.encode({**members, **changes})


class Curated(msgspec.Struct, frozen=True, gc=False):
    """One offered tool: its item with all overrides but the name, and the offered name."""

    item: Item
    local: str


def curate(items: Sequence[Item], choice: ToolChoice) -> Iterable[Curated]:
    """Return the offered tools, in the server's order."""
    if choice == ALL_TOOLS:
        return [Curated(item, item.own) for item in items]
    curated: list[Curated] = []
    for item in items:
        override = choice.overrides.get(item.own)
        if not choice.offers(item.own):
            continue
        if override is None:
            curated.append(Curated(item, item.own))
            continue
        schema = None if override.input_schema is None else jsonrpc.raw(override.input_schema)
        raw = described(item.raw, Offer(override.description, schema, override.title))
        curated.append(Curated(msgspec.structs.replace(item, raw=raw), override.name or item.own))
    return curated


def loose_ends(items: Sequence[Item], choice: ToolChoice) -> tuple[str, ...]:
    """Return the parts of the tool config that match none of the server's tools."""
    listed = [item.own for item in items]
    found = [f"tools.overrides names {own!r}, which it does not list" for own in choice.overrides if own not in listed]
    if choice.include != ALL:
        for glob in choice.include:
            alone = msgspec.structs.replace(choice, include=(glob,), exclude=(), overrides={})
            if not any(alone.offers(own) for own in listed):
                found.append(f"tools.include has {glob!r}, which matches none of its tools")
    return tuple(found)
