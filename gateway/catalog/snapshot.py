"""Listings merged into one immutable whole: a table that routes, and lists that are already encoded.

A `Part` is one backend's listing under public names, made once per change of that backend; `merge` only concatenates
parts, so that a change of one backend re-encodes only what that backend lists. Names stay in the routing table while a
backend is away: a known name never becomes an unknown one.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING

import msgspec

from gateway import jsonrpc
from gateway.catalog import names, uris
from gateway.catalog.kinds import Kind
from gateway.catalog.offers import described
from gateway.catalog.ownership import Ownership, Route
from gateway.eras import tools
from gateway.eras.caching import KEEP_NOTHING, Hint, merge_hints
from gateway.eras.param_headers import Annotations, annotations_of
from gateway.eras.tools import View
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.catalog.listing import Listing
    from gateway.catalog.offers import Offer


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One item under its public name; `raw` is its JSON as clients see it."""

    public: str
    own: str
    raw: bytes
    link: str = ""
    """The resource that a tool is shown with (MCP Apps)."""
    task: bool = False
    """Whether this tool must be called as a task."""


class Part(msgspec.Struct, frozen=True):
    """One backend's entries, by kind."""

    backend: str
    listing: Listing
    entries: dict[Kind, tuple[Entry, ...]]


class Naming(msgspec.Struct, frozen=True):
    """How public names are made."""

    separator: str = "."
    max_length: int = 128


def make_part(backend: str, namespace: str, listing: Listing, naming: Naming) -> Part:
    """Give one backend's items their public names."""
    entries: dict[Kind, tuple[Entry, ...]] = {}
    has_tasks = _declares(listing.capabilities, ("tasks", "requests", "tools", "call"))
    for kind, items in listing.items.items():
        if not kind.namespaced:
            entries[kind] = tuple(Entry(item.own, item.own, item.raw) for item in items)
            continue
        made: list[Entry] = []
        for item in items:
            public = names.public_name(namespace, naming.separator, item.own, naming.max_length)
            raw = _renamed(kind, item.raw, item.own, public)
            task = has_tasks and tools.needs_task(item.raw)
            made.append(Entry(public, item.own, raw, uris.ui_link(item.raw), task))
        entries[kind] = tuple(made)
    return Part(backend, listing, entries)


def _renamed(kind: Kind, raw: bytes, own: str, public: str) -> bytes:
    if own == public:
        return raw
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    members[kind.key] = public
    return jsonrpc.encode(members)


class Page(msgspec.Struct, frozen=True):
    """A run of a list's entries, encoded and joined, and the cursor of the next run."""

    joined: bytes
    next_cursor: str | None


class Snapshot:
    """All parts at one moment. Immutable but for memos of what can be derived from it."""

    def __init__(
        self,
        parts: Sequence[Part] = (),
        *,
        listed: frozenset[str] = frozenset(),
        naming: Naming | None = None,
        offers: Mapping[str, Offer] | None = None,
    ):
        """Merge parts in their order; only entries of backends in `listed` are listed, all of them are routed.

        With `offers` there are no tools but these.
        """
        self.parts = tuple(parts)
        self.listed = listed
        self.clashes: list[str] = []
        self._max_length = (naming or Naming()).max_length
        self.uris = Ownership()
        self._routes: dict[Kind, dict[str, Route]] = {kind: {} for kind in Kind}
        self._routes[Kind.RESOURCES], self._routes[Kind.TEMPLATES] = self.uris.resources, self.uris.templates
        self._mirrored: dict[str, Annotations] = {}
        self._lists: dict[Kind, list[Entry]] = {kind: [] for kind in Kind}
        self._hints: dict[Kind, Hint] = {}
        self._pages: dict[tuple[Kind, int, int | None, View], Page] = {}
        # URIs first: tools may link to them.
        for kind in sorted(Kind, key=lambda one: one.namespaced):
            for part in self.parts:
                self._add(part.backend, kind, part.entries.get(kind, ()))
        if offers is not None:
            self._narrow(offers)

    def _narrow(self, offers: Mapping[str, Offer]) -> None:
        """Leave only the tools that are offered, as they are offered; names have been given out by now."""
        routes, entries = self._routes[Kind.TOOLS], self._lists[Kind.TOOLS]
        self._routes[Kind.TOOLS] = {name: route for name, route in routes.items() if name in offers}
        kept: list[Entry] = []
        for entry in entries:
            offer = offers.get(entry.public)
            if offer is None:
                continue
            kept.append(msgspec.structs.replace(entry, raw=described(entry.raw, offer)))
            if offer.schema is not None:  # what clients mirror into headers, they find in the schema that they see
                self._mirrored[entry.public] = annotations_of(kept[-1].raw)
        self._lists[Kind.TOOLS] = kept

    def _add(self, backend: str, kind: Kind, entries: tuple[Entry, ...]) -> None:
        entry_list, is_listed = self._lists[kind], backend in self.listed
        place = self._place_named if kind.namespaced else self._place_resource
        for entry in entries:
            placed = place(backend, kind, entry)
            if placed is not None and is_listed:
                entry_list.append(placed)

    def _place_resource(self, backend: str, kind: Kind, entry: Entry) -> Entry | None:
        """Route a resource or template; the URI is its identity, and changed only where another backend has it too."""
        claim = self.uris.claim if kind is Kind.RESOURCES else self.uris.claim_template
        public = claim(backend, entry.own)
        if public == entry.public:
            return entry
        if public is None:
            self.clashes.append(f"{kind.member} {entry.public!r} of {backend!r} is left out: its URIs are taken")
            return None
        self.clashes.append(f"{kind.member} {entry.public!r} of {backend!r} is offered as {public!r}")
        return Entry(public, entry.own, _renamed(kind, entry.raw, entry.public, public))

    def _place_named(self, backend: str, kind: Kind, entry: Entry) -> Entry | None:
        routes, placed = self._routes[kind], entry
        if entry.public in routes:
            other = names.distinct_name(entry.public, backend, entry.own, self._max_length)
            if other in routes:  # no accident: somebody lists the very name that this one would get
                self.clashes.append(
                    f"{kind.member} {entry.public!r} of {backend!r} is left out: {other!r} is taken too"
                )
                return None
            self.clashes.append(f"{kind.member} {entry.public!r} of {backend!r} is offered as {other!r}")
            raw = _renamed(kind, entry.raw, entry.public, other)
            placed = msgspec.structs.replace(entry, public=other, raw=raw)
        if entry.link:
            self.uris.claim(backend, entry.link)
            raw = uris.change_item(placed.raw, lambda uri: self.uris.public(backend, uri))
            placed = msgspec.structs.replace(placed, raw=raw)
        routes[placed.public] = Route(backend, placed.own, entry.task)
        if kind is Kind.TOOLS and b"x-mcp-header" in placed.raw:
            self._mirrored[placed.public] = annotations_of(placed.raw)
        return placed

    def mirrored_params(self, public: str) -> Annotations:
        """The parameters of a tool that its clients must mirror into `Mcp-Param-*` headers."""
        return self._mirrored.get(public, ())

    def listed_by_backend(self, kind: Kind) -> dict[str, list[tuple[str, str]]]:
        """What is listed of each backend, as (public name, own name) in the list's order."""
        found: dict[str, list[tuple[str, str]]] = {}
        for entry in self._lists[kind]:
            found.setdefault(self._routes[kind][entry.public].backend, []).append((entry.public, entry.own))
        return found

    def route(self, kind: Kind, public: str) -> Route | None:
        """Who owns this name; also of backends that are not listed now."""
        return self._routes[kind].get(public)

    def template_owner(self, uri: str) -> str | None:
        """The backend whose resource template fits this URI best (most literal characters), or None."""
        return self.uris.template_owner(uri)

    def public_names(self, kind: Kind) -> dict[str, list[str]]:
        """Listed public names by backend."""
        found: dict[str, list[str]] = {}
        for entry in self._lists[kind]:
            found.setdefault(self._routes[kind][entry.public].backend, []).append(entry.public)
        return found

    def hint(self, kind: Kind) -> Hint:
        """For how long a list may be kept: as long as the part of it that may be kept least."""
        found = self._hints.get(kind)
        if found is None:
            lists = [
                part.listing.items[kind]
                for part in self.parts
                if part.backend in self.listed and kind in part.listing.items
            ]
            # An empty list has nowhere to say it, and may be full any moment.
            hints = [item.hint for items in lists for item in items] + [KEEP_NOTHING for items in lists if not items]
            found = self._hints[kind] = merge_hints(hints)
        return found

    def same_list(self, other: Snapshot, kind: Kind) -> bool:
        """Whether a client would see the same list of this kind."""
        return self._lists[kind] == other._lists[kind]

    def page(self, kind: Kind, cursor: str | None, size: int | None, view: View = View.MODERN) -> Page:
        """One page of a list, as clients of one class of versions see it.

        Raises:
            InvalidParams: the cursor is none of ours (server/utilities/pagination).
        """
        start = 0 if cursor is None else self._start(kind, cursor)
        if kind is not Kind.TOOLS:
            view = View.MODERN  # they look the same to all
        memo = self._pages.get((kind, start, size, view))
        if memo is None:
            memo = self._pages[kind, start, size, view] = self._make_page(kind, start, size, view)
        return memo

    def _make_page(self, kind: Kind, start: int, size: int | None, view: View) -> Page:
        entries = self._lists[kind]
        end = len(entries) if size is None else min(start + size, len(entries))
        following = _encode_cursor(kind, end, entries[end - 1].public) if end < len(entries) else None
        raws = [entry.raw for entry in entries[start:end]]
        if kind is Kind.TOOLS:
            raws = [tools.shown(raw, view) for raw in raws]
        return Page(b",".join(raws), following)

    def _start(self, kind: Kind, cursor: str) -> int:
        """Where the page after a cursor begins: behind the entry it names, wherever that stands now."""
        index, last = _decode_cursor(kind, cursor)
        entries = self._lists[kind]
        if 0 < index <= len(entries) and entries[index - 1].public == last:
            return index
        # The list changed since: go on behind that entry, or where it stood if it is gone.
        return next((i + 1 for i, entry in enumerate(entries) if entry.public == last), min(index, len(entries)))


def _encode_cursor(kind: Kind, index: int, last: str) -> str:
    return base64.urlsafe_b64encode(jsonrpc.encode([kind.member, index, last])).decode()


def _decode_cursor(kind: Kind, cursor: str) -> tuple[int, str]:
    text = "params.cursor is none that this server gave; list again without a cursor"
    try:
        member, index, last = msgspec.json.decode(
            base64.b64decode(cursor, altchars=b"-_", validate=True), type=tuple[str, int, str]
        )
    except (binascii.Error, ValueError, *jsonrpc.UNDECODABLE):
        raise InvalidParams(text) from None
    if member != kind.member or index < 0:
        raise InvalidParams(text)
    return index, last


def encode_list(kind: Kind, page: Page, *, head: bytes = b"", tail: bytes = b"") -> bytes:
    """The result object of a list method; `head` and `tail` are further members with their commas."""
    cursor = b"" if page.next_cursor is None else b',"nextCursor":' + jsonrpc.encode(page.next_cursor)
    return b'{%b"%b":[%b]%b%b}' % (head, kind.member.encode(), page.joined, cursor, tail)


def merge_instructions(parts: Sequence[Part], *, limit: int) -> str | None:
    """The instructions of all backends, each under a heading with its name, cut to `limit` characters."""
    blocks = [f"# {part.backend}\n\n{text.strip()}" for part in parts if (text := part.listing.instructions)]
    if not blocks:
        return None
    return "\n\n".join(blocks)[:limit]


def has_capability(parts: Sequence[Part], path: Sequence[str]) -> bool:
    """Whether any backend declares a capability, e.g. `("resources", "subscribe")`."""
    return any(_declares(part.listing.capabilities, path) for part in parts)


def _declares(members: Mapping[str, msgspec.Raw], path: Sequence[str]) -> bool:
    span = members.get(path[0])
    if span is None or bytes(span) in {b"false", b"null"}:
        return False
    if len(path) == 1:
        return True
    try:
        return _declares(jsonrpc.decode_object(span), path[1:])
    except ValueError:
        return False
