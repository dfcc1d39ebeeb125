"""Tools as they are offered: chosen, renamed, described otherwise, by a server's config or by the embedding program.

What is not chosen is neither listed nor routed, and what is renamed goes to its owner under the owner's own name; all
else passes as the backend says it. A config's choice is applied once, where a backend's part is made. Pure.
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
    """How one tool is offered; None is as its backend says."""

    description: str | None = None
    schema: msgspec.Raw | None = None
    """The `inputSchema`, an object of type `object`."""
    title: str | None = None


def described(raw: bytes, offer: Offer) -> bytes:
    """A tool's entry as it is offered."""
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
    """One tool that is offered: its item with everything but the name as it is offered, and that name."""

    item: Item
    local: str


def curate(items: Sequence[Item], choice: ToolChoice) -> Iterable[Curated]:
    """The tools that are offered, in the server's order."""
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
    """What the config says of tools that the server does not list."""
    listed = [item.own for item in items]
    found = [f"tools.overrides names {own!r}, which it does not list" for own in choice.overrides if own not in listed]
    if choice.include != ALL:
        for glob in choice.include:
            alone = msgspec.structs.replace(choice, include=(glob,), exclude=(), overrides={})
            if not any(alone.offers(own) for own in listed):
                found.append(f"tools.include has {glob!r}, which fits none of its tools")
    return tuple(found)
