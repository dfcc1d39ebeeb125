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
from gateway.catalog import names
from gateway.catalog.kinds import Kind
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gateway.catalog.listing import Listing


class Route(msgspec.Struct, frozen=True, gc=False):
    """Who owns a public name, and what the owner calls it."""

    backend: str
    own: str


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One item under its public name; `raw` is its JSON as clients see it."""

    public: str
    own: str
    raw: bytes


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
    for kind, items in listing.items.items():
        if not kind.namespaced:
            entries[kind] = tuple(Entry(item.own, item.own, item.raw) for item in items)
            continue
        made: list[Entry] = []
        for item in items:
            public = names.public_name(namespace, naming.separator, item.own, naming.max_length)
            made.append(Entry(public, item.own, _renamed(item.raw, item.own, public)))
        entries[kind] = tuple(made)
    return Part(backend, listing, entries)


def _renamed(raw: bytes, own: str, public: str) -> bytes:
    if own == public:
        return raw
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    members["name"] = public
    return jsonrpc.encode(members)


class Page(msgspec.Struct, frozen=True):
    """A run of a list's entries, encoded and joined, and the cursor of the next run."""

    joined: bytes
    next_cursor: str | None


class Snapshot:
    """All parts at one moment. Immutable but for memos of what can be derived from it."""

    def __init__(
        self, parts: Sequence[Part] = (), *, listed: frozenset[str] = frozenset(), naming: Naming | None = None
    ):
        """Merge parts in their order; only entries of backends in `listed` are listed, all of them are routed."""
        self.parts = tuple(parts)
        self.listed = listed
        self.clashes: list[str] = []
        self._max_length = (naming or Naming()).max_length
        self._routes: dict[Kind, dict[str, Route]] = {kind: {} for kind in Kind}
        self._lists: dict[Kind, list[Entry]] = {kind: [] for kind in Kind}
        self._pages: dict[tuple[Kind, int, int | None], Page] = {}
        for part in self.parts:
            for kind, entries in part.entries.items():
                self._add(part.backend, kind, entries)

    def _add(self, backend: str, kind: Kind, entries: tuple[Entry, ...]) -> None:
        routes, entry_list, is_listed = self._routes[kind], self._lists[kind], backend in self.listed
        for entry in entries:
            placed = entry
            if entry.public in routes:
                if not kind.namespaced:
                    # The URI is the identity; the first owner keeps it.
                    self.clashes.append(f"{kind.member} {entry.public!r} of {backend!r} is already offered")
                    continue
                other = names.distinct_name(entry.public, backend, entry.own, self._max_length)
                if other in routes:  # no accident: somebody lists the very name that this one would get
                    self.clashes.append(
                        f"{kind.member} {entry.public!r} of {backend!r} is left out: {other!r} is taken too"
                    )
                    continue
                self.clashes.append(f"{kind.member} {entry.public!r} of {backend!r} is offered as {other!r}")
                placed = Entry(other, entry.own, _renamed(entry.raw, entry.public, other))
            routes[placed.public] = Route(backend, placed.own)
            if is_listed:
                entry_list.append(placed)

    def route(self, kind: Kind, public: str) -> Route | None:
        """Who owns this name; also of backends that are not listed now."""
        return self._routes[kind].get(public)

    def template_owner(self, uri: str) -> str | None:
        """The backend whose resource template fits this URI best (most literal characters), or None."""
        best, owner = -1, None
        for template, route in self._routes[Kind.TEMPLATES].items():
            weight = template_weight(template, uri)
            if weight > best:
                best, owner = weight, route.backend
        return owner

    def public_names(self, kind: Kind) -> dict[str, list[str]]:
        """Listed public names by backend."""
        found: dict[str, list[str]] = {}
        for entry in self._lists[kind]:
            found.setdefault(self._routes[kind][entry.public].backend, []).append(entry.public)
        return found

    def same_list(self, other: Snapshot, kind: Kind) -> bool:
        """Whether a client would see the same list of this kind."""
        return self._lists[kind] == other._lists[kind]

    def page(self, kind: Kind, cursor: str | None, size: int | None) -> Page:
        """One page of a list.

        Raises:
            InvalidParams: the cursor is none of ours (server/utilities/pagination).
        """
        start = 0 if cursor is None else self._start(kind, cursor)
        memo = self._pages.get((kind, start, size))
        if memo is None:
            memo = self._pages[kind, start, size] = self._make_page(kind, start, size)
        return memo

    def _make_page(self, kind: Kind, start: int, size: int | None) -> Page:
        entries = self._lists[kind]
        end = len(entries) if size is None else min(start + size, len(entries))
        following = _encode_cursor(kind, end, entries[end - 1].public) if end < len(entries) else None
        return Page(b",".join([entry.raw for entry in entries[start:end]]), following)

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


def template_weight(template: str, uri: str) -> int:
    """How well a URI template (RFC 6570) fits: its number of literal characters, or -1 if they do not occur in order.

    Linear in the URI's length, so that a hostile template costs nothing; enough to find an owner, which then decides.
    """
    first, *rest = template.split("{")
    if not uri.startswith(first):
        return -1
    literals = [piece.partition("}")[2] for piece in rest]
    if not literals:
        return len(first) if uri == first else -1
    position, weight = len(first), len(first)
    for literal in literals[:-1]:
        position = uri.find(literal, position)
        if position < 0:
            return -1
        position += len(literal)
        weight += len(literal)
    last = literals[-1]
    if not uri.endswith(last) or len(uri) - len(last) < position:
        return -1
    return weight + len(last)


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
