"""One backend's listing under public names: a `Part`, made once per change of that backend.

What a part holds is encoded already, so that merging parts into a snapshot only concatenates. Pure.
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
    """The resource that a tool is shown with (MCP Apps)."""
    task: bool = False
    """Whether this tool must be called as a task."""
    local: str = ""
    """What follows the namespace in its public name; empty for its own name."""
    known_as: str = ""
    """The public name in the config's own naming, where a view or the client gives another one."""
    era: Era | None = None
    """The era whose clients alone see it; None for both."""


class Part(msgspec.Struct, frozen=True):
    """One backend's entries, by kind."""

    backend: str
    listing: Listing
    entries: dict[Kind, tuple[Entry, ...]]
    namespace: str = ""
    loose_ends: tuple[str, ...] = ()
    """What the config says of tools that are not there."""
    routes: dict[Kind, dict[str, Route] | None] = {}
    """A memo of `plain_routes`."""
    joined: dict[tuple[Kind, tools.View], bytes] = {}
    """A memo of `join_part`."""
    hints: dict[Kind, Hint] = {}
    """A memo of `hint_of_part`."""


class Naming(msgspec.Struct, frozen=True):
    """How public names are made."""

    separator: str = "."
    max_length: int = 128
    is_strict: bool = False
    """Whether they hold ASCII letters, digits, `_` and `-` alone."""

    def chosen(self, choice: NameChoice) -> Naming:
        """Return the naming for a client with this choice; one that chooses a separator passes names to a model."""
        is_strict = self.is_strict or choice.separator is not None
        return Naming(choice.separator or self.separator, choice.max_length or self.max_length, is_strict)


def rank(part: Part) -> tuple[int, bool]:
    """The order in which parts get their public names: who is named by more of a name, or by its own name, is first."""
    return -len(part.namespace), part.namespace != part.backend


def make_part(backend: str, namespace: str, listing: Listing, naming: Naming, choice: ToolChoice = ALL_TOOLS) -> Part:
    """Give one backend's items their public names; of its tools, those that its config offers."""
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
                unclear.append(f"tool {item.own!r} spells its name twice, so it is not offered beside exclusions")
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
    """Whether an item spells its name or URI a second time, so that a client may read another one than the gateway."""
    return _KEYS[kind].second_spelling(raw) is not None


def plain_routes(part: Part, kind: Kind) -> dict[str, Route] | None:
    """Who owns what of a part whose entries can all be placed as they are, unless another part has one of the names.

    Made once a part, so that a snapshot of hundreds only merges tables. None: an entry must be looked at by itself,
    since its name comes twice, it links to a resource, or its parameters are mirrored into headers.
    """
    if kind not in part.routes:
        entries = part.entries.get(kind, ())
        found = {entry.public: Route(part.backend, entry.own, entry.task) for entry in entries}
        plain = len(found) == len(entries) and not any(entry.link or b"x-mcp-header" in entry.raw for entry in entries)
        part.routes[kind] = found if plain else None
    return part.routes[kind]


def join_part(part: Part, kind: Kind, view: tools.View) -> bytes:
    """A part's entries as they are, as clients of one class of versions see them; made once a part."""
    found = part.joined.get((kind, view))
    if found is None:
        found = join_entries(part.entries.get(kind, ()), kind, view)
        for other in part.joined.values():
            if other == found:  # as nearly always: then it is kept once
                found = other
                break
        part.joined[kind, view] = found
    return found


def hint_of_part(part: Part, kind: Kind) -> Hint:
    """For how long a backend's list may be kept. An empty one has nowhere to say it, and may be full any moment."""
    found = part.hints.get(kind)
    if found is None:
        items = part.listing.items[kind]
        found = part.hints[kind] = merge_hints(item.hint for item in items if item.era is not Era.LEGACY)
    return found


def fill_memos(part: Part) -> None:
    """Make what every list takes from a part, as soon as there is one: whoever lists hundreds would wait for it."""
    for kind in part.entries:
        if kind.namespaced:
            plain_routes(part, kind)
        join_part(part, kind, tools.View.MODERN)
        hint_of_part(part, kind)


def join_entries(entries: Iterable[Entry], kind: Kind, view: tools.View) -> bytes:
    """What stands between the brackets of a list."""
    raws = [entry.raw for entry in entries if entry.era is None or entry.era is view.era]
    return tools.join_shown(raws, view) if kind is Kind.TOOLS else b",".join(raws)


def renamed(kind: Kind, raw: bytes, own: str, public: str) -> bytes:
    """An item's JSON under another name."""
    if own == public:
        return raw
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    members[kind.key] = public
    return jsonrpc.encode(members)


def merge_instructions(parts: Sequence[Part], *, limit: int) -> str | None:
    """The instructions of all backends, each under a heading with its name, cut to `limit` characters."""
    blocks = [f"# {part.backend}\n\n{text.strip()}" for part in parts if (text := part.listing.instructions)]
    if not blocks:
        return None
    return "\n\n".join(blocks)[:limit]


def merge_extensions(parts: Sequence[Part]) -> dict[str, msgspec.Raw]:
    """The extensions that backends declare, with the settings of the first that does; only those that are relayed.

    Servers of MCP Apps seldom declare theirs: to have pages is enough.
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
    """Whether any backend declares a capability, e.g. `("resources", "subscribe")`."""
    return any(declares(part.listing.capabilities, path) for part in parts)
