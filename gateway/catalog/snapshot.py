"""Snapshots: listings merged into an immutable routing table with encoded lists.

A snapshot only concatenates parts, so that a change of one backend re-encodes only what that backend lists. Names stay
in the routing table while a backend is unavailable: a known name never becomes unknown. `within` returns the snapshot
for a caller's scope, computed once. Lists come in pages, with cursors between them (server/utilities/pagination), and
`ListNews` compares two snapshots.
"""

from __future__ import annotations

import base64
import binascii
import operator
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import EVERYTHING, NOTHING, Era
from gateway.catalog import names, uris
from gateway.catalog.offers import described
from gateway.catalog.ownership import Ownership, Route
from gateway.catalog.parts import (
    Entry,
    Naming,
    Part,
    hint_of_part,
    join_entries,
    join_part,
    plain_routes,
    rank,
    renamed,
)
from gateway.catalog.scopes import may_see, narrowed, renamed_part
from gateway.eras.caching import Hint, merge_hints
from gateway.eras.methods import Kind
from gateway.eras.param_headers import Annotations, annotations_of
from gateway.eras.tools import View
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from gateway.calls import Scope
    from gateway.catalog.offers import Offer
    from gateway.catalog.scopes import NamedView
    from gateway.config.model import ServerConfig

MAX_SCOPED: Final = 256
"""Limit of cached narrowed snapshots; beyond it the oldest is dropped and recomputed when next needed."""


class Page(msgspec.Struct, frozen=True):
    """A run of a list's entries, and the cursor of the next run."""

    chunks: tuple[bytes, ...]
    """Encoded entries, some of them already joined."""
    next_cursor: str | None

    @property
    def joined(self) -> bytes:
        """All entries joined with commas."""
        return b",".join(self.chunks)


class Snapshot:
    """All parts at one moment. Immutable except for memos of derived data."""

    def __init__(
        self,
        parts: Sequence[Part] = (),
        *,
        listed: frozenset[str] = frozenset(),
        naming: Naming | None = None,
        offers: Mapping[str, Offer] | None = None,
        backends: Iterable[str] | None = None,
        views: Mapping[str, NamedView] | None = None,
        namespaces: Mapping[str, str] | None = None,
        is_named: bool = False,
    ):
        """Merge parts in their order; list entries of `listed` backends, route all.

        With `offers` it contains only these tools. `backends` are all visible backends, including those that have never
        listed anything. `namespaces` are those of all servers, whose prefixes are reserved. `is_named` says that the
        entries of the parts already have their public names.
        """
        self.parts = tuple(parts)
        self.listed = listed
        self.backends = tuple(part.backend for part in parts) if backends is None else tuple(backends)
        self.naming = naming or Naming()
        self.views = views or {}
        self.clashes: list[str] = []
        self.limits: tuple[Scope, ...] = ()
        """The scopes that it was narrowed to."""
        self.known_as: dict[str, str] = {}
        """The names used by rules and the audit, where they differ from those of this snapshot."""
        self._is_personal = False
        self._everywhere = (
            self.naming
        )  # a reference cycle would keep a snapshot alive until the next garbage collection
        self._scoped: dict[Scope, Snapshot] = {}
        self._namespaces = {part.backend: part.namespace for part in parts} if namespaces is None else namespaces
        self._claims = names.Claims(() if is_named else self._namespaces.values(), self.naming.separator)
        self.uris = Ownership(self._namespaces)
        self._routes: dict[Kind, dict[str, Route]] = {kind: {} for kind in Kind}
        self._routes[Kind.RESOURCES], self._routes[Kind.TEMPLATES] = self.uris.resources, self.uris.templates
        self._mirrored: dict[str, Annotations] = {}
        self._placed: dict[tuple[Kind, str], Sequence[Entry]] = {}
        self._hints: dict[Kind, Hint] = {}
        self._pages: dict[tuple[Kind, int, int | None, View], Page] = {}
        # URIs first: tools may link to them.
        ranked = sorted(self.parts, key=rank)
        for kind in sorted(Kind, key=lambda one: one.namespaced):
            for part in ranked if kind.namespaced else self.parts:
                if kind in part.entries:
                    self._add(part, kind)
        if offers is not None:
            self._choose(offers)
        self._lists: dict[Kind, list[Entry]] = {kind: [] for kind in Kind}
        self._differing: set[Kind] = set()  # kinds that differ between the eras
        self._by_era: dict[tuple[Kind, Era], list[Entry]] = {}
        for part in self.parts:
            if part.backend in listed:
                for kind in part.entries:
                    placed = self.placed(kind, part.backend)
                    self._lists[kind] += placed
                    if part.listing.has_both_eras and any(entry.era is not None for entry in placed):
                        self._differing.add(kind)

    def _choose(self, offers: Mapping[str, Offer]) -> None:
        """Reduce the tools to the offered ones with their overrides; names have already been assigned."""
        routes = self._routes[Kind.TOOLS]
        self._routes[Kind.TOOLS] = {name: route for name, route in routes.items() if name in offers}
        for part in self.parts:
            kept: list[Entry] = []
            for entry in self.placed(Kind.TOOLS, part.backend):
                offer = offers.get(entry.public)
                if offer is None:
                    continue
                kept.append(msgspec.structs.replace(entry, raw=described(entry.raw, offer)))
                if (
                    offer.schema is not None
                ):  # clients find the parameters to mirror into headers in the schema that they see
                    self._mirrored[entry.public] = annotations_of(kept[-1].raw)
            self._placed[Kind.TOOLS, part.backend] = kept

    # Scopes.

    def within(self, scope: Scope | None) -> Snapshot:
        """Return the snapshot for this scope; the same object while it is cached."""
        if scope is None:
            return self
        known = self._scoped.get(scope)
        if known is not None:
            return known
        if scope.names is not None:
            seen = self.within(scope.without(names=None))
            if (naming := seen.naming.chosen(scope.names)) != seen.naming:
                whole, seen = seen, (seen if seen.limits else seen._narrowed(EVERYTHING))._under(naming)
                seen._is_personal = whole._is_personal
        else:
            seen, inner = self, scope.without(view=None)
            if scope.view is not None:
                whole_view = msgspec.structs.replace(EVERYTHING, view=scope.view)
                seen = self._view(scope.view) if inner == EVERYTHING else self.within(whole_view)
            if inner != EVERYTHING:
                seen = seen._narrowed(inner)
                seen._is_personal = True
        while len(self._scoped) >= MAX_SCOPED:
            del self._scoped[next(iter(self._scoped))]
        self._scoped[scope] = seen
        return seen

    def _view(self, name: str) -> Snapshot:
        view = self.views.get(name)
        if view is None:
            return self._narrowed(NOTHING)
        seen = self._narrowed(view.scope)
        return seen if view.naming is None or view.naming == self.naming else seen._under(view.naming)

    def _under(self, naming: Naming) -> Snapshot:
        """Return a narrowed snapshot under other names."""
        parts = [renamed_part(part, naming) for part in self.parts]
        found = Snapshot(parts, listed=self.listed, naming=naming, backends=self.backends, namespaces=self._namespaces)
        found.limits, found._everywhere = self.limits, self._everywhere
        placed = (
            entry for kind in (Kind.TOOLS, Kind.PROMPTS) for name in self.backends for entry in found.placed(kind, name)
        )
        found.known_as = {entry.public: entry.known_as for entry in placed}
        return found

    def _narrowed(self, scope: Scope) -> Snapshot:
        """Return the snapshot reduced to a scope, under the same names."""
        backends = [name for name in self.backends if scope.sees_server(name)]
        parts = [narrowed(self, part, scope) for part in self.parts if scope.sees_server(part.backend)]
        found = Snapshot(
            parts,
            listed=self.listed,
            naming=self.naming,
            backends=backends,
            namespaces=self._namespaces,
            is_named=True,
        )
        found.limits, found._everywhere = (*self.limits, scope), self._everywhere
        return found

    @property
    def whole_servers(self) -> bool:
        """Whether each visible backend is visible as a whole."""
        return all(scope.whole_servers for scope in self.limits)

    @property
    def any_resource(self) -> bool:
        """Whether visible backends may be asked for unlisted resources."""
        return all(scope.resources for scope in self.limits)

    def may_own(self, kind: Kind, server: ServerConfig, name: str) -> bool:
        """Return whether a backend, perhaps without a listing yet, might own this name."""
        return all(scope.sees_server(server.name) for scope in self.limits) and may_see(
            self.limits, kind, server, name, (self.naming, self._everywhere)
        )

    def placed(self, kind: Kind, backend: str) -> Sequence[Entry]:
        """Return a backend's entries as offered, even while they are not listed."""
        return self._placed.get((kind, backend), ())

    # Construction.

    def _add(self, part: Part, kind: Kind) -> None:
        entries, routes = part.entries.get(kind, ()), self._routes[kind]
        plain = plain_routes(part, kind) if kind.namespaced else None
        others = self._claims.within(part.namespace) if kind.namespaced else ()
        is_free = plain is not None and routes.keys().isdisjoint(plain)
        if plain is not None and is_free and not (others and any(name.startswith(others) for name in plain)):
            routes.update(plain)
            self._placed[kind, part.backend] = entries
            return
        placed: list[Entry] = []
        claim = self.uris.claim if kind is Kind.RESOURCES else self.uris.claim_template
        for entry in entries:
            if kind.namespaced:
                found = self._place_named(part.backend, kind, entry, others)
                if found is not None:
                    placed.append(found)
                continue
            # The URI is its identity and changes only if another backend lists it too.
            public = claim(part.backend, entry.own)
            if public == entry.public:
                placed.append(entry)
                continue
            what = f"{kind.member} {entry.public!r} of {part.backend!r}"
            if public is None:
                self.clashes.append(f"{what} is left out: its URIs are taken")
            else:
                self.clashes.append(f"{what} is offered as {public!r}")
                raw = renamed(kind, entry.raw, entry.public, public)
                placed.append(msgspec.structs.replace(entry, public=public, raw=raw))
        is_plain = len(placed) == len(entries) and all(map(operator.is_, placed, entries))
        self._placed[kind, part.backend] = entries if is_plain else placed  # the memos of a part are valid only then

    def _place_named(self, backend: str, kind: Kind, entry: Entry, others: tuple[str, ...]) -> Entry | None:
        """Route a tool or prompt; `others` are other servers' prefixes of its name."""
        routes, placed = self._routes[kind], entry

        def is_taken(name: str) -> bool:  # by another item, not by this one in the other era
            return (owner := routes.get(name)) is not None and (owner.backend, owner.own) != (backend, entry.own)

        is_claim = not entry.local and entry.public.startswith(
            others
        )  # a name from the config is the operator's choice
        if is_claim or is_taken(entry.public):
            other = names.distinct_name(entry.public, backend, entry.own, self.naming.max_length)
            if is_taken(other):  # deliberate: another server lists the exact name that this one would get
                self.clashes.append(
                    f"{kind.member} {entry.public!r} of {backend!r} is left out: {other!r} is also taken"
                )
                return None
            self.clashes.append(f"{kind.member} {entry.public!r} of {backend!r} is offered as {other!r}")
            raw = renamed(kind, entry.raw, entry.public, other)
            # Rules and views for the other server must not match this one.
            known_as = f"{backend}.{entry.own}" if is_claim else entry.known_as
            placed = msgspec.structs.replace(entry, public=other, raw=raw, known_as=known_as)
        if entry.link:
            self.uris.claim(backend, entry.link)
            raw = uris.change_item(placed.raw, lambda uri: self.uris.public(backend, uri))
            placed = msgspec.structs.replace(placed, raw=raw)
        known = routes.get(placed.public)
        routes[placed.public] = Route(backend, placed.own, entry.task or (known is not None and known.task))
        if kind is Kind.TOOLS and b"x-mcp-header" in placed.raw and entry.era is not Era.LEGACY:
            self._mirrored[placed.public] = annotations_of(placed.raw)
        return placed

    # Contents.

    def mirrored_params(self, public: str) -> Annotations:
        """Return a tool's parameters that clients must mirror into `Mcp-Param-*` headers."""
        return self._mirrored.get(public, ())

    def listed_by_backend(self, kind: Kind) -> dict[str, list[tuple[str, str]]]:
        """Return the listed (public name, own name) pairs of each backend, in list order."""
        found: dict[str, dict[str, str]] = {}
        for entry in self._lists[kind]:
            found.setdefault(self._routes[kind][entry.public].backend, {})[entry.public] = entry.own
        return {backend: list(pairs.items()) for backend, pairs in found.items()}

    def route(self, kind: Kind, public: str) -> Route | None:
        """Return the route of a name, also of backends that are not listed now."""
        return self._routes[kind].get(public)

    def hint(self, kind: Kind) -> Hint:
        """Return the cache hint of a list: the shortest of its parts."""
        found = self._hints.get(kind)
        if found is None:
            listed = [part for part in self.parts if part.backend in self.listed and kind in part.listing.items]
            found = merge_hints(hint_of_part(part, kind) for part in listed)
            if self._is_personal:  # a cache must not share it with other clients of the same endpoint
                found = msgspec.structs.replace(found, public=False)
            self._hints[kind] = found
        return found

    def same_list(self, other: Snapshot, kind: Kind, era: Era | None = None) -> bool:
        """Return whether a client of this era (None: either) would see the same list."""
        return self._seen_in(era, kind) == other._seen_in(era, kind)

    def _seen_in(self, era: Era | None, kind: Kind) -> list[Entry]:
        """Return the entries that clients of an era see; nearly always the same in both."""
        if era is None or kind not in self._differing:
            return self._lists[kind]
        found = self._by_era.get((kind, era))
        if found is None:
            seen = (entry for entry in self._lists[kind] if entry.era in {None, era})
            found = self._by_era[kind, era] = [msgspec.structs.replace(entry, era=None) for entry in seen]
        return found

    def page(self, kind: Kind, cursor: str | None, size: int | None, view: View = View.MODERN) -> Page:
        """Return one page of a list for one class of protocol versions.

        Raises:
            InvalidParams: the cursor is unknown (server/utilities/pagination).
        """
        entries, start = self._seen_in(view.era, kind), 0
        if cursor is not None:
            start, last = decode_cursor(kind, cursor)
            if not 0 < start <= len(entries) or entries[start - 1].public != last:
                # The list has changed since: continue after that entry, or at its former position.
                behind = (position for position, entry in enumerate(entries, 1) if entry.public == last)
                start = next(behind, min(start, len(entries)))
        if kind is not Kind.TOOLS and kind not in self._differing:
            view = View.MODERN  # the same for all eras
        memo = self._pages.get((kind, start, size, view))
        if memo is not None:
            return memo
        end = len(entries) if size is None else min(start + size, len(entries))
        following = encode_cursor(kind, end, entries[end - 1].public) if end < len(entries) else None
        chunks: list[bytes] = []
        if end - start < len(entries):
            joined = join_entries(entries[start:end], kind, view)
            chunks += [joined] if joined else []
        else:
            for part in self.parts:
                if part.backend in self.listed and (placed := self.placed(kind, part.backend)):
                    is_plain = placed is part.entries.get(kind)
                    joined = join_part(part, kind, view) if is_plain else join_entries(placed, kind, view)
                    if joined:  # some are visible in this era
                        chunks.append(joined)
        page = self._pages[kind, start, size, view] = Page(tuple(chunks), following)
        return page


def encode_cursor(kind: Kind, index: int, last: str) -> str:
    """Encode the cursor of the page that begins at `index`, after the entry named `last`."""
    return base64.urlsafe_b64encode(jsonrpc.encode([kind.member, index, last])).decode()


def decode_cursor(kind: Kind, cursor: str) -> tuple[int, str]:
    """Return the arguments of `encode_cursor`.

    Raises:
        InvalidParams: the cursor is unknown.
    """
    text = "params.cursor is unknown; list again without a cursor"
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
    """Encode a list method's result; `head` and `tail` are further members, with commas."""
    cursor = b"" if page.next_cursor is None else b',"nextCursor":' + jsonrpc.encode(page.next_cursor)
    before, after = b'{%b"%b":[' % (head, kind.member.encode()), b"]%b%b}" % (cursor, tail)
    if not page.chunks:
        return before + after
    first, *others = page.chunks
    if not others:
        return b"%b%b%b" % (before, first, after)
    *others, last = others
    return b",".join([before + first, *others, last + after])  # copy a list of thousands only once


class ListNews:
    """The changed lists between two snapshots, computed once for each scope and era."""

    def __init__(self, previous: Snapshot, fresh: Snapshot, announced: Collection[tuple[str, str]] = ()) -> None:
        """Compare two snapshots; `announced` are the backends that announced changes of each feature."""
        self._previous = previous
        self._fresh = fresh
        self._announced = announced
        self._seen: dict[tuple[Scope | None, Era | None], frozenset[str]] = {}

    def __bool__(self) -> bool:
        """Return whether any client may see a change; False if no part has changed."""
        return bool(self._announced or self.features(None)) or self._previous.views != self._fresh.views

    def features(self, scope: Scope | None, era: Era | None = None) -> frozenset[str]:
        """Return the features ("tools", "prompts", "resources") whose lists have changed in this scope and era."""
        found = self._seen.get((scope, era))
        if found is None:
            previous, fresh = self._previous.within(scope), self._fresh.within(scope)
            changed = {kind.feature for kind in Kind if not fresh.same_list(previous, kind, era)}
            found = frozenset(changed | {feature for name, feature in self._announced if name in fresh.backends})
            self._seen[scope, era] = found
        return found
