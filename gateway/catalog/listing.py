"""Validation of one backend's lists: malformed items are dropped and reported, the rest is kept.

SDK clients validate a list as one model, so an item that would break them (no name, a schema that is not an object)
must be dropped; everything else passes through unchanged.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc, surrogates
from gateway.calls import Era
from gateway.eras.caching import KEEP_NOTHING, Hint
from gateway.eras.methods import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

MAX_ITEMS: Final = 20_000
"""Limit of items of one kind for one backend; further ones are dropped, which bounds the memory."""
MAX_PROBLEMS: Final = 20
"""Limit of reported problems for one list."""


class Item(msgspec.Struct, frozen=True, gc=False):
    """One tool, prompt, resource or template: own name (or URI), and JSON without newlines."""

    own: str
    raw: bytes
    hint: Hint = KEEP_NOTHING
    """The cache hint of the item's list."""
    era: Era | None = None
    """The only era whose session lists it in this form; None if the eras do not differ."""


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """One backend's lists; replaced whole on any change."""

    items: dict[Kind, tuple[Item, ...]] = {}
    capabilities: dict[str, msgspec.Raw] = {}
    instructions: str | None = None
    problems: dict[Kind, tuple[str, ...]] = {}
    """The problems of each list, as readable sentences."""
    unread: dict[Kind, bool] = {}
    """Incomplete lists, each with whether reading it again may help."""

    gateways: tuple[str, ...] = ()
    """The gateways behind the backend, if it is a gateway."""
    has_both_eras: bool = False
    """Whether it includes the lists of both eras (`merge_eras`)."""

    def count(self, kind: Kind) -> int:
        """Return the number of items of a kind."""
        return len({item.own for item in self.items.get(kind, ())})

    @property
    def warnings(self) -> tuple[str, ...]:
        """The problems of all lists."""
        return tuple(text for kind in Kind for text in self.problems.get(kind, ()))

    def in_era(self, era: Era) -> Listing:
        """Return the listing of a session of one era."""
        if not self.has_both_eras:
            return self
        items = {
            kind: tuple(msgspec.structs.replace(item, era=None) for item in found if item.era in {None, era})
            for kind, found in self.items.items()
        }
        return msgspec.structs.replace(self, items=items, has_both_eras=False)

    def in_other_era(self, fresh: Listing, era: Era) -> Listing:
        """Return the other era's assumed listing when `era` now lists `fresh`.

        There is no session of that era. This listing counts only where the eras differed; everything else is assumed to
        be in both.
        """
        items: dict[Kind, tuple[Item, ...]] = {}
        for kind in {**self.items, **fresh.items}:
            apart = [item for item in self.items.get(kind, ()) if item.era is not None]
            theirs = [msgspec.structs.replace(item, era=None) for item in apart if item.era is not era]
            owns = {item.own for item in apart}
            items[kind] = (*(item for item in fresh.items.get(kind, ()) if item.own not in owns), *theirs)
        return msgspec.structs.replace(fresh, items=items)

    def after(self, previous: Listing | None, era: Era) -> Listing:
        """Return this new session's listing, with previous entries where a retry may succeed."""
        if previous is None:
            return self
        return keep_entries(self, previous.in_era(era), [kind for kind, again in self.unread.items() if again])

    def relisted(self, fresh: Listing) -> Listing:
        """Return this listing with its lists replaced by those of `fresh`, from the same session."""
        kept = keep_entries(fresh, self, fresh.unread)
        items = {**self.items, **kept.items}
        unread = {kind: again for kind, again in self.unread.items() if kind not in kept.items} | kept.unread
        problems = {kind: texts for kind, texts in self.problems.items() if kind not in kept.items} | kept.problems
        return msgspec.structs.replace(
            self,
            items=items,
            capabilities=offered_capabilities(self.capabilities, items),
            problems=problems,
            unread=unread,
            gateways=fresh.gateways or self.gateways,
        )


def keep_entries(fresh: Listing, previous: Listing, kinds: Iterable[Kind]) -> Listing:
    """Return `fresh` with the previous entries of these incomplete lists.

    An incomplete list replaces the previous one only if it has at least as many entries.
    """
    items, problems = dict(fresh.items), dict(fresh.problems)
    for kind in kinds:
        known = previous.items.get(kind, ())
        if len(known) > len(items.get(kind, ())):
            items[kind] = known
            problems[kind] = (*problems.get(kind, ()), f"keeping the {len(known)} {kind.member} listed before")
    capabilities = offered_capabilities(fresh.capabilities, items)
    return msgspec.structs.replace(fresh, items=items, problems=problems, capabilities=capabilities)


def merge_eras(listing: Listing, era: Era, other: Listing) -> Listing:
    """Merge a backend's `listing` in `era` with its listing `other` in the other era."""
    items: dict[Kind, tuple[Item, ...]] = {}
    for kind in Kind:
        if kind not in listing.items and kind not in other.items:
            continue
        theirs = {item.own: item for item in other.items.get(kind, ())}
        merged: list[Item] = []
        for item in listing.items.get(kind, ()):
            twin = theirs.pop(item.own, None)
            if twin is not None and twin.raw == item.raw:
                merged.append(item if era is Era.MODERN else twin)  # only modern lists have hints
                continue
            merged.append(msgspec.structs.replace(item, era=era))
            if twin is not None:
                merged.append(msgspec.structs.replace(twin, era=era.other))
        merged += [msgspec.structs.replace(item, era=era.other) for item in theirs.values()]
        items[kind] = tuple(merged)
    problems = {kind: (*listing.problems.get(kind, ()), *other.problems.get(kind, ())) for kind in items}
    return Listing(
        items=items,
        capabilities=other.capabilities | listing.capabilities,
        instructions=listing.instructions or other.instructions,
        problems={kind: tuple(dict.fromkeys(texts)) for kind, texts in problems.items()},
        unread=other.unread | listing.unread,
        gateways=tuple(dict.fromkeys((*listing.gateways, *other.gateways))),
        has_both_eras=True,
    )


def offered_capabilities(
    declared: dict[str, msgspec.Raw], items: Mapping[Kind, tuple[Item, ...]]
) -> dict[str, msgspec.Raw]:
    """Return a backend's declared and undeclared capabilities."""
    silent = {kind.feature for kind, found in items.items() if found and not declares(declared, (kind.feature,))}
    return declared | dict.fromkeys(sorted(silent), jsonrpc.EMPTY_OBJECT) if silent else declared


def declares(capabilities: Mapping[str, msgspec.Raw], path: Sequence[str]) -> bool:
    """Return whether a backend's capabilities include this one, e.g. `("resources", "subscribe")`."""
    span = capabilities.get(path[0])
    if span is None or bytes(span) in {b"false", b"null"}:
        return False
    if len(path) == 1:
        return True
    try:
        return declares(jsonrpc.decode_object(span), path[1:])
    except ValueError:
        return False


class _Schema(msgspec.Struct, gc=False):
    type: str = ""


_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_schemas = msgspec.json.Decoder(_Schema)


def clean(
    kind: Kind, raws: Iterable[msgspec.Raw], hint: Hint = KEEP_NOTHING, *, max_items: int = MAX_ITEMS
) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """Turn the members of a list result into items; return (items, problems)."""
    items: dict[str, Item] = {}
    problems: list[str] = []
    for index, span in enumerate(raws):
        if len(items) >= max_items:
            problems.append(f"{kind.member} after the first {max_items}: left out")
            break
        try:
            item = _item(kind, span, hint)
        except ValueError as exc:
            problems.append(f"{kind.member}[{index}] left out: {exc}")
            continue
        shown = surrogates.without_lone_surrogates(item.raw)
        if shown is not item.raw:
            # Many clients' parsers reject a whole list for one such escape.
            item = msgspec.structs.replace(item, raw=shown)
            problems.append(f"{kind.member}[{index}] ({item.own!r}) contains lone surrogates, served as U+FFFD")
        if item.own in items:
            problems.append(f"{kind.member}[{index}] left out: {item.own!r} is listed twice")
            continue
        items[item.own] = item
    return tuple(items.values()), bound_problems(kind, problems, MAX_PROBLEMS)


def bound_problems(kind: Kind, problems: Sequence[str], most: int) -> tuple[str, ...]:
    """Return the first problems of one list and the number of further ones."""
    more = len(problems) - most
    return (*problems[:most], f"{kind.member}: and {more} more") if more > 0 else tuple(problems)


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
        text = f"its {kind.key} {own!r} contains control characters, which are invalid in a URI"
        raise ValueError(text)
    if kind is Kind.TOOLS:
        # SDK clients reject the whole list if one tool's inputSchema is not `{"type": "object", ...}`.
        try:
            schema = jsonrpc.read(_schemas, members.get("inputSchema", jsonrpc.ABSENT)).type
        except jsonrpc.UNDECODABLE:
            schema = ""
        if schema != "object":
            text = f"tool {own!r} has no inputSchema of type 'object'"
            raise ValueError(text)
    return Item(own, jsonrpc.one_line(span), hint)
