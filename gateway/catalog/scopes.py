"""Snapshots narrowed to a caller's scope, and views, which are selections with their own names.

Excluded items are indistinguishable from nonexistent ones: tables, lists, instructions and capabilities of the narrowed
snapshot are built from the remaining items only. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from gateway.calls import ALL, EVERYTHING, Scope
from gateway.catalog import names
from gateway.catalog.parts import Entry, Naming, Part, is_unclear, renamed
from gateway.eras.methods import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.config.model import Config, ServerConfig

_HASHED: Final = re.compile(rf"_[0-9a-f]{{{names.HASH_LENGTH}}}\Z")
"""The suffix of a name that was shortened or made distinct."""
_OF_RESOURCES: Final = (Kind.RESOURCES, Kind.TEMPLATES)


class NamedView(msgspec.Struct, frozen=True):
    """A view: its selection and its naming rules; None is the gateway's own."""

    scope: Scope = EVERYTHING
    naming: Naming | None = None


def make_views(config: Config) -> dict[str, NamedView]:
    """Make the views of a config, by name."""
    settings = config.gateway
    return {
        name: NamedView(
            Scope(
                servers=view.servers,
                tools=view.tools.include,
                excluded_tools=view.tools.exclude,
                prompts=view.prompts,
                resources=view.resources,
            ),
            Naming(view.separator or settings.separator, view.max_name_length or settings.max_name_length),
        )
        for name, view in config.views.items()
    }


class Placed(Protocol):
    """The part of a snapshot's interface that narrowing uses."""

    def placed(self, kind: Kind, backend: str) -> Sequence[Entry]:
        """Return a backend's entries as offered."""
        ...


def narrowed(snapshot: Placed, part: Part, scope: Scope) -> Part:
    """Return a backend's part reduced to this scope, under the snapshot's names."""
    backend, listing = part.backend, part.listing
    entries = {
        kind: tuple(entry for entry in part.entries[kind] if not is_unclear(kind, entry.raw))
        for kind in _OF_RESOURCES
        if kind in part.entries and scope.resources
    }
    for kind in (Kind.TOOLS, Kind.PROMPTS):
        entries[kind] = tuple(
            entry
            for entry in snapshot.placed(kind, backend)
            if _sees(scope, kind, names_of(backend, entry)) and not is_unclear(kind, entry.raw)
        )
    if not scope.whole_servers and not any(entries.values()):
        # Nothing of it may be used, so its instructions and capabilities must not reveal it either.
        listing = msgspec.structs.replace(listing, capabilities={}, instructions=None)
    elif not scope.resources and "resources" in listing.capabilities:
        left = {name: span for name, span in listing.capabilities.items() if name != "resources"}
        listing = msgspec.structs.replace(listing, capabilities=left)
    return Part(backend, listing, entries, part.namespace)


def names_of(backend: str, entry: Entry) -> tuple[str, ...]:
    """Return the names of a tool or prompt that globs are matched against."""
    known = (entry.known_as or entry.public, f"{backend}.{entry.own}")
    return (*known, f"{backend}.{entry.local}") if entry.local else known


def renamed_part(part: Part, naming: Naming) -> Part:
    """Return a backend's part under the names of a view."""

    def rename(kind: Kind, entry: Entry) -> Entry:
        local, most = entry.local or entry.own, naming.max_length
        public = names.public_name(part.namespace, naming.separator, local, most, is_strict=naming.is_strict)
        if public == entry.public:
            return entry
        raw = renamed(kind, entry.raw, entry.public, public)
        return msgspec.structs.replace(entry, public=public, raw=raw, known_as=entry.known_as or entry.public)

    entries = {
        kind: tuple(rename(kind, entry) for entry in found) if kind.namespaced else found
        for kind, found in part.entries.items()
    }
    return Part(part.backend, part.listing, entries, part.namespace)


def may_see(
    limits: Iterable[Scope], kind: Kind, server: ServerConfig, name: str, namings: tuple[Naming, Naming]
) -> bool:
    """Return whether an unknown name may belong to this backend in scope; True if undecidable.

    `namings` are the naming rules of the name and those outside views.
    """
    here, everywhere = namings
    namespace = server.effective_namespace
    prefix = f"{namespace}{here.separator}" if namespace else ""
    if not kind.namespaced or len(name) >= here.max_length or _HASHED.search(name) is not None:
        return True
    local = name.removeprefix(prefix)
    known = [names.public_name(namespace, everywhere.separator, local, everywhere.max_length), f"{server.name}.{local}"]
    if kind is Kind.TOOLS:
        own = server.tools.own_of(local)
        known.append(f"{server.name}.{own}")
        if not server.tools.offers(own):
            return False
    return all(_sees(scope, kind, tuple(known)) for scope in limits)


def _sees(scope: Scope, kind: Kind, known: tuple[str, ...]) -> bool:
    if kind is Kind.TOOLS:
        return scope.sees_tool(known)
    return scope.prompts == ALL or scope.sees_prompt(known)
