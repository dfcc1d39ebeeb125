"""A server's tools as its config wants them offered: chosen, renamed, described otherwise. Pure.

Done once, where a backend's part is made: what is not chosen is neither listed nor routed, and what is renamed goes to
its owner under the owner's own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway import jsonrpc
from gateway.catalog.offers import Offer, described
from gateway.config.offered import ALL, ALL_TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.catalog.listing import Item
    from gateway.config.offered import ToolChoice


class Curated(msgspec.Struct, frozen=True, gc=False):
    """One tool that is offered: its item with everything but the name as it is offered, and that name."""

    item: Item
    local: str


def curate(items: Sequence[Item], choice: ToolChoice) -> Iterable[Curated]:
    """The tools that are offered, in the server's order."""
    if choice == ALL_TOOLS:
        return [Curated(item, item.own) for item in items]
    return [_curated(item, choice) for item in items if choice.offers(item.own)]


def _curated(item: Item, choice: ToolChoice) -> Curated:
    override = choice.overrides.get(item.own)
    if override is None:
        return Curated(item, item.own)
    schema = None if override.input_schema is None else jsonrpc.raw(override.input_schema)
    raw = described(item.raw, Offer(override.description, schema, override.title))
    return Curated(msgspec.structs.replace(item, raw=raw), override.name or item.own)


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
