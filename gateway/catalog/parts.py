"""One backend's listing under public names: a `Part`, made once per change of that backend.

The entries of a part are already encoded, so that merging parts into a snapshot only concatenates. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc, surrogates
from gateway.calls import Era
from gateway.catalog import names, uris
from gateway.catalog.listing import declares
from gateway.catalog.offers import curate, loose_ends
from gateway.catalog.ownership import Route
from gateway.config.offered import ALL_TOOLS
from gateway.eras import blocks, tools
from gateway.eras.caching import Hint, merge_hints
from gateway.eras.methods import APPS, RELAYED_EXTENSIONS, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.calls import NameChoice
    from gateway.catalog.listing import Listing
    from gateway.config.offered import ToolChoice


_KEYS: Final = {kind: jsonrpc.Names(kind.key) for kind in Kind}


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One item under its public name; `raw` is its JSON as clients see it."""

    public: str
    own: str
    raw: bytes
    link: str = ""
    """The page of a tool (MCP Apps)."""
    task: bool = False
    """Whether this tool must be called as a task."""
    local: str = ""
    """The part after the namespace in its public name; empty for its own name."""
    known_as: str = ""
    """The public name under the config's naming, if a view or the client uses another."""
    era: Era | None = None
    """The only era whose clients see it; None for both."""


class Part(msgspec.Struct, frozen=True):
    """One backend's entries, by kind."""

    backend: str
    listing: Listing
    entries: dict[Kind, tuple[Entry, ...]]
    namespace: str = ""
    loose_ends: tuple[str, ...] = ()
    """Parts of the tool config that match no tool."""
    routes: dict[Kind, dict[str, Route] | None] = {}
    """A memo of `plain_routes`."""
    joined: dict[tuple[Kind, tools.View], bytes] = {}
    """A memo of `join_part`."""
    hints: dict[Kind, Hint] = {}
    """A memo of `hint_of_part`."""


class Naming(msgspec.Struct, frozen=True):
    """The rules for public names."""

    separator: str = "."
    max_length: int = 128
    is_strict: bool = False
    """Whether names are limited to ASCII letters, digits, `_` and `-`."""

    def chosen(self, choice: NameChoice) -> Naming:
        """Return the naming for a client's choice.

        A client that chooses a separator passes names to a model.
        """
        is_strict = self.is_strict or choice.separator is not None
        return Naming(choice.separator or self.separator, choice.max_length or self.max_length, is_strict)


def rank(part: Part) -> tuple[int, bool]:
    """Return the sort key for assigning public names: longer namespaces and own names come first."""
    return -len(part.namespace), part.namespace != part.backend


def make_part(backend: str, namespace: str, listing: Listing, naming: Naming, choice: ToolChoice = ALL_TOOLS) -> Part:
    """Make a part: one backend's items under public names, only with offered tools."""
    entries: dict[Kind, tuple[Entry, ...]] = {}
    unclear: list[str] = []
    has_tasks = declares(listing.capabilities, ("tasks", "requests", "tools", "call"))
    for kind, items in listing.items.items():
        if not kind.namespaced:
            entries[kind] = tuple(
                Entry(surrogates.text_without_surrogates(item.own), item.own, item.raw, era=item.era) for item in items
            )
            continue
        made: list[Entry] = []
        for curated in curate(items, choice if kind is Kind.TOOLS else ALL_TOOLS):
            item, local = curated.item, curated.local
            if kind is Kind.TOOLS and choice.excludes and is_unclear(kind, item.raw):
                unclear.append(
                    f"tool {item.own!r} has duplicate name members and is not offered, since tools are excluded"
                )
                continue
            public = names.public_name(namespace, naming.separator, local, naming.max_length)
            raw = renamed(kind, item.raw, item.own, public)
            task = has_tasks and tools.needs_task(item.raw)
            changed = "" if local == item.own else local
            made.append(Entry(public, item.own, raw, uris.ui_link(item.raw), task, changed, era=item.era))
        entries[kind] = tuple(made)
    unused = loose_ends(listing.items.get(Kind.TOOLS, ()), choice) if Kind.TOOLS in listing.items else ()
    return Part(backend, listing, entries, namespace, (*unused, *unclear))


def is_unclear(kind: Kind, raw: bytes) -> bool:
    """Return whether an item has ambiguous (duplicate) name or URI members."""
    return _KEYS[kind].second_spelling(raw) is not None


def plain_routes(part: Part, kind: Kind) -> dict[str, Route] | None:
    """Return the routes of a part, or None if entries need individual placement.

    Computed once for each part, so that a snapshot of hundreds only merges tables. An entry needs individual placement
    if its name is duplicated, it links to a resource, or its parameters are mirrored into headers. Names taken by other
    parts are not considered.
    """
    if kind not in part.routes:
        entries = part.entries.get(kind, ())
        found = {entry.public: Route(part.backend, entry.own, entry.task) for entry in entries}
        plain = len(found) == len(entries) and not any(entry.link or b"x-mcp-header" in entry.raw for entry in entries)
        part.routes[kind] = found if plain else None
    return part.routes[kind]


def join_part(part: Part, kind: Kind, view: tools.View) -> bytes:
    """Return a part's unchanged entries for one class of versions; computed once."""
    found = part.joined.get((kind, view))
    if found is None:
        found = join_entries(part.entries.get(kind, ()), kind, view)
        for other in part.joined.values():
            if other == found:  # nearly always the same: then it is stored once
                found = other
                break
        part.joined[kind, view] = found
    return found


def hint_of_part(part: Part, kind: Kind) -> Hint:
    """Return the cache hint of a backend's list.

    An empty list has none and may fill at any moment.
    """
    found = part.hints.get(kind)
    if found is None:
        items = part.listing.items[kind]
        found = part.hints[kind] = merge_hints(item.hint for item in items if item.era is not Era.LEGACY)
    return found


def fill_memos(part: Part) -> None:
    """Compute a part's memos in advance: a list of hundreds would wait for them."""
    for kind in part.entries:
        if kind.namespaced:
            plain_routes(part, kind)
        join_part(part, kind, tools.View.MODERN)
        hint_of_part(part, kind)


def join_entries(entries: Iterable[Entry], kind: Kind, view: tools.View) -> bytes:
    """Return the entries joined with commas."""
    raws = [entry.raw for entry in entries if entry.era is None or entry.era is view.era]
    return tools.join_shown(raws, view) if kind is Kind.TOOLS else b",".join(raws)


def renamed(kind: Kind, raw: bytes, own: str, public: str) -> bytes:
    """Return an item's JSON with another name."""
    if own == public:
        return raw
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    members[kind.key] = public
    return jsonrpc.encode(members)


def merge_instructions(parts: Sequence[Part], *, limit: int) -> str | None:
    """Merge the backends' instructions under their names, truncated to `limit` characters."""
    blocks = [f"# {part.backend}\n\n{text.strip()}" for part in parts if (text := part.listing.instructions)]
    if not blocks:
        return None
    return "\n\n".join(blocks)[:limit]


def merge_extensions(parts: Sequence[Part]) -> dict[str, msgspec.Raw]:
    """Merge the relayed extensions that backends declare, each with its first settings.

    Servers of MCP Apps seldom declare theirs, so pages are sufficient.
    """
    found: dict[str, msgspec.Raw] = {}
    for part in parts:
        declared = blocks.read(part.listing.capabilities.get("extensions")) or {}
        for name in RELAYED_EXTENSIONS.intersection(declared):
            if blocks.read(declared[name]) is not None:
                found.setdefault(name, declared[name])
    if APPS not in found and any(map(_has_pages, parts)):
        found[APPS] = jsonrpc.EMPTY_OBJECT
    return found


def _has_pages(part: Part) -> bool:
    resources = part.entries.get(Kind.RESOURCES, ())
    return any(entry.link for entry in part.entries.get(Kind.TOOLS, ())) or any(
        entry.own.startswith(uris.PAGE) for entry in resources
    )


def has_capability(parts: Sequence[Part], path: Sequence[str]) -> bool:
    """Return whether any backend declares a capability, e.g. `("resources", "subscribe")`."""
    return any(declares(part.listing.capabilities, path) for part in parts)
