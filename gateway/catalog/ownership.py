"""Who owns which URI, and under which URI clients see it.

A URI belongs to the first backend that lists it and stays as it is; only where a second backend lists the same one, the
second's becomes `mcp+<server>:<URI>` (`gateway.catalog.uris`), and so does one that names another server in this way,
since `mcp+<server>:` belongs to that server alone, also while it has listed nothing. Invariant: what `public` gives for
a URI that a backend lists leads back to that backend and that URI through `find`. Filled once, while a snapshot is
made. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import surrogates
from gateway.catalog import uris
from gateway.catalog.templates import template_weight

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from gateway.catalog.parts import Part

MAX_FOLDERS: Final = 32
"""Path segments of a URI that are cut off, one by one, in search of a listed resource that it may be part of."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Who owns a public name, what the owner calls it, and whether it must be called as a task."""

    backend: str
    own: str
    task: bool = False


class Claims:
    """The prefixes of all servers' public names, of which each is kept for its server."""

    def __init__(self, namespaces: Iterable[str], separator: str) -> None:
        self._separator = separator
        self._prefixes = sorted({f"{namespace}{separator}" for namespace in namespaces if namespace})

    def within(self, namespace: str) -> tuple[str, ...]:
        """The prefixes that the names of a server of this namespace can begin with and that are not its own."""
        own = f"{namespace}{self._separator}" if namespace else ""
        first = last = bisect_right(self._prefixes, own)
        while last < len(self._prefixes) and self._prefixes[last].startswith(own):
            last += 1
        return tuple(self._prefixes[first:last])


def rank(part: Part) -> tuple[int, bool]:
    """The order in which parts get their public names: who is named by more of a name, or by its own name, is first."""
    return -len(part.namespace), part.namespace != part.backend


class _Renamed(msgspec.Struct):
    """What of one backend is offered under another URI."""

    resources: dict[str, str] = {}
    templates: list[str] = []


class Ownership:
    """The resources and templates of one snapshot."""

    def __init__(self, servers: Collection[str]) -> None:
        """Make one without any; `servers` are all that there are, also those that have listed nothing."""
        self._servers = servers
        self.resources: dict[str, Route] = {}
        """Public URI -> its owner; links that tools declare included. Read only."""
        self.templates: dict[str, Route] = {}
        """Public URI template -> its owner. Read only."""
        self._renamed: dict[str, _Renamed] = {}
        self._schemes: dict[str, set[str]] = {}

    # While the snapshot is made.

    def claim(self, backend: str, own: str) -> str | None:
        """Give a backend one of its resources; returns the public URI, None if even that is taken."""
        found = self._claim(self.resources, backend, own)
        if found is not None and found != own:
            self._renamed.setdefault(backend, _Renamed()).resources[own] = found
        return found

    def claim_template(self, backend: str, own: str) -> str | None:
        """The same for a resource template."""
        found = self._claim(self.templates, backend, own)
        if found is not None and found != own:
            self._renamed.setdefault(backend, _Renamed()).templates.append(own)
        return found

    def _claim(self, table: dict[str, Route], backend: str, own: str) -> str | None:
        self._schemes.setdefault(own.partition(":")[0], set()).add(backend)
        shown = surrogates.text_without_surrogates(own)
        other = uris.public(backend, shown)
        candidates = (other,) if self._names_another(backend, own) else (shown, other)
        for candidate in candidates:
            route = table.setdefault(candidate, Route(backend, own))
            if route == Route(backend, own):
                return candidate
        return None

    def named_in(self, uri: str) -> tuple[str, str] | None:
        """The server to which a URI belongs because it is named in it, and that server's own URI."""
        named = uris.split_any_case(uri)
        return named if named is not None and named[0] in self._servers else None

    def _names_another(self, backend: str, uri: str) -> bool:
        named = self.named_in(uri)
        return named is not None and named[0] != backend

    # Afterwards.

    def public(self, backend: str, uri: str) -> str:
        """The URI under which clients see what this backend calls `uri`."""
        if self._names_another(backend, uri):
            return uris.public(backend, uri)
        renamed = self._renamed.get(backend)
        if renamed is None:
            return uri
        found = renamed.resources.get(uri)
        if found is not None:
            return found
        route = self.resources.get(uri)
        if route is not None and route.backend == backend:
            return uri
        if any(template_weight(template, uri) >= 0 for template in renamed.templates):
            route = self.find(uri)
            if route is None or route.backend != backend:
                return uris.public(backend, uri)
        return uri

    def find(self, uri: str, linked: str | None = None) -> Route | None:
        """Who is to be asked for a URI.

        In this order: who lists it; the server that is named in it; who has the template that fits best; `linked`, who
        has linked to it; who lists what it seems to be part of; the only backend that has URIs of its scheme.
        """
        route = self.resources.get(uri)
        if route is not None:
            return route
        named = self.named_in(uri)
        template, weight = self._best_template(uri)
        if named is not None:
            # A server may list a template of this form itself; those that were renamed have it from here.
            is_own = template.startswith(uris.PREFIX) and self.templates[template] == Route(named[0], template)
            return Route(named[0], uri) if is_own else Route(*named)
        if template and (weight or linked is None):
            return Route(self.templates[template].backend, uri)
        owner = linked or self._near(uri)
        return None if owner is None else Route(owner, uri)

    def template_owner(self, uri: str) -> str | None:
        """The backend whose resource template fits this URI best (most literal characters), or None."""
        template, _ = self._best_template(uri)
        return self.templates[template].backend if template else None

    def _best_template(self, uri: str) -> tuple[str, int]:
        best, weight = "", -1
        for template in self.templates:
            found = template_weight(template, uri)
            if found > weight:
                best, weight = template, found
        return best, weight

    def _near(self, uri: str) -> str | None:
        folder = uri
        for _ in range(MAX_FOLDERS):
            folder, slash, _rest = folder.rpartition("/")
            if not slash:
                break
            route = self.resources.get(folder) or self.resources.get(folder + "/")
            if route is not None:
                return route.backend
        owners = self._schemes.get(uri.partition(":")[0], set())
        return next(iter(owners)) if len(owners) == 1 else None
