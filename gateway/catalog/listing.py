"""One backend's lists, cleaned item by item: a malformed item is left out and named, it never spoils the list.

SDK clients validate a whole list as one model, so what would break them (no name, a schema that is no object) has to
go; everything else about an item passes as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.catalog.kinds import Kind
from gateway.eras.caching import KEEP_NOTHING, Hint

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ITEMS: Final = 20_000
"""Most items of one kind that one backend may list; the rest is left out, so that no backend can fill the memory."""
MAX_PROBLEMS: Final = 20
"""Most problems that are reported for one list."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One tool, prompt, resource or template: its own name (or URI) and its JSON, on one line."""

    own: str
    raw: bytes
    hint: Hint = KEEP_NOTHING
    """For how long the list that it came with may be kept."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """What one backend offers; replaced whole when any of it changes."""

    items: dict[Kind, tuple[Item, ...]] = {}
    capabilities: dict[str, msgspec.Raw] = {}
    instructions: str | None = None

    def count(self, kind: Kind) -> int:
        """How many items of a kind there are."""
        return len(self.items.get(kind, ()))


class _Schema(msgspec.Struct, gc=False):
    type: str = ""


_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_schemas = msgspec.json.Decoder(_Schema)


def clean(
    kind: Kind, raws: Iterable[msgspec.Raw], hint: Hint = KEEP_NOTHING
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Turn the members of a list result into items; returns (items, what was left out and why)."""
    items: dict[str, Item] = {}
    problems: list[str] = []
    for index, span in enumerate(raws):
        if len(items) >= MAX_ITEMS:
            problems.append(f"{kind.member} after the first {MAX_ITEMS}: left out")
            break
        try:
            item = _item(kind, span, hint)
        except ValueError as exc:
            problems.append(f"{kind.member}[{index}] left out: {exc}")
            continue
        if item.own in items:
            problems.append(f"{kind.member}[{index}] left out: {item.own!r} is listed twice")
            continue
        items[item.own] = item
    return tuple(items.values()), tuple(problems[:MAX_PROBLEMS])


def _item(kind: Kind, span: msgspec.Raw, hint: Hint) -> Item:
    members = jsonrpc.decode_object(span)
    if kind.key not in members:
        text = f"it has no {kind.key!r}"
        raise ValueError(text)
    own = jsonrpc.decode_string(members[kind.key])
    if not own:
        text = f"its {kind.key!r} is empty"
        raise ValueError(text)
    if not kind.namespaced and _CONTROLS.search(own):
        text = f"its {kind.key} {own!r} holds control characters, which no URI may"
        raise ValueError(text)
    if kind is Kind.TOOLS:
        _check_schema(own, members)
    return Item(own, jsonrpc.one_line(span), hint)


def _check_schema(own: str, members: dict[str, msgspec.Raw]) -> None:
    """SDK clients refuse the whole list if one tool's inputSchema is not `{"type": "object", ...}`."""
    try:
        kind = _schemas.decode(members.get("inputSchema", jsonrpc.ABSENT)).type
    except jsonrpc.UNDECODABLE:
        kind = ""
    if kind != "object":
        text = f"tool {own!r} has no inputSchema of type 'object'"
        raise ValueError(text)
