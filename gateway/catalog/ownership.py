"""Ownership of URIs: the backend of each URI and the URI that clients see.

A URI belongs to the first backend that lists it and stays unchanged. If a second backend lists the same one, the
second's becomes `mcp+<server>:<URI>` or `ui://mcp+<server>/...` (`gateway.catalog.uris`). So does a URI that names
another server in this form, since such URIs are reserved for that server even before it has listed anything. Invariant:
for each URI that a backend lists, `find` maps the result of `public` back to that backend and URI. Filled once, while a
snapshot is made.

A link in a result need not be listed (2025-11-25 server/tools, "Resource Links"), but the backend that sent it can be
asked for it: `Links` remembers that backend, with a bound for each backend and least-recently-seen eviction. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc, surrogates
from gateway.catalog import uris

if TYPE_CHECKING:
    from collections.abc import Collection, Container

    from gateway.calls import Caller

MAX_FOLDERS: Final = 32
"""Limit of path segments removed one by one in search of a listed parent resource."""
MAX_LINKS: Final = 1_024
"""Limit of remembered links for one backend; a search result may contain thousands."""
MAX_READERS: Final = 4_096
"""Limit of clients whose pages are remembered, in at most 2 MB; a forgotten client must read its page again."""
MAX_LINK_LENGTH: Final = 2_048
"""Maximum length of a remembered link; longer ones are data, not names."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """The backend of a public name, the own name, and whether calls need a task."""

    backend: str
    own: str
    task: bool = False


class _Renamed(msgspec.Struct):
    """The resources of one backend that are offered under another URI."""

    resources: dict[str, str] = {}
    templates: list[str] = []


class Ownership:
    """The resources and templates of one snapshot."""

    def __init__(self, servers: Collection[str]) -> None:
        """Create it empty; `servers` are all servers, including those that have listed nothing."""
        self._servers = servers
        self.resources: dict[str, Route] = {}
        """Public URI -> its owner; links that tools declare included. Read only."""
        self.templates: dict[str, Route] = {}
        """Public URI template -> its owner. Read only."""
        self._renamed: dict[str, _Renamed] = {}
        self._schemes: dict[str, set[str]] = {}

    # Used while the snapshot is made.

    def claim(self, backend: str, own: str) -> str | None:
        """Assign a resource to its backend; return its public URI, None if taken."""
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
        """Return the server named in a URI and that server's own URI."""
        named = uris.split_any_case(uri)
        return named if named is not None and named[0] in self._servers else None

    def _names_another(self, backend: str, uri: str) -> bool:
        named = self.named_in(uri)
        return named is not None and named[0] != backend

    # Used afterwards.

    def public(self, backend: str, uri: str) -> str:
        """Return the public URI of this backend's `uri`."""
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
        """Resolve a URI to its backend.

        The candidates, in this order: the backend that lists it; the server named in it; the backend with the best
        matching template; `linked`, the backend that linked to it; the backend that lists a parent of it; the only
        backend with URIs of its scheme.
        """
        route = self.resources.get(uri)
        if route is not None:
            return route
        named = self.named_in(uri)
        template, weight = "", -1
        for each in self.templates:
            if (found := template_weight(each, uri)) > weight:
                template, weight = each, found
        if named is not None:
            # A server may list a template of this form itself; renamed ones get it here.
            is_own = template.startswith(uris.PREFIXES) and self.templates[template] == Route(named[0], template)
            return Route(named[0], uri) if is_own else Route(*named)
        if template and (weight or linked is None):
            return Route(self.templates[template].backend, uri)
        owner = linked or self._near(uri)
        return None if owner is None else Route(owner, uri)

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


def template_weight(template: str, uri: str) -> int:
    """Return how many literal characters of a URI template match in order, or -1.

    RFC 6570. Linear in the URI's length, so that a hostile template is cheap; sufficient to find a backend, which then
    decides.
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


class Links:
    """Links seen in results, by backend, in the order of their last use."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, int]] = {}
        self._count = 0

    def learn(self, backend: str, uri: str) -> None:
        """Record that a backend has linked to this URI."""
        if len(uri) > MAX_LINK_LENGTH:
            return
        links = self._seen.setdefault(backend, {})
        links.pop(uri, None)
        if len(links) >= MAX_LINKS:
            del links[next(iter(links))]
        self._count += 1
        links[uri] = self._count

    def owner(self, uri: str, among: Collection[str] | None = None) -> str | None:
        """Return the backend (of `among`, if given) that last linked to this URI."""
        found = [
            (links[uri], backend)
            for backend, links in self._seen.items()
            if uri in links and (among is None or backend in among)
        ]
        return max(found)[1] if found else None

    def retain(self, backends: Container[str]) -> None:
        """Forget the links of all backends but these."""
        self._seen = {backend: links for backend, links in self._seen.items() if backend in backends}


class Pages:
    """The backends whose pages (MCP Apps) each client has read and may show.

    A client is a session, else a principal, else an address: the requests of a modern client have nothing else in
    common. The least recently active client is forgotten first.
    """

    def __init__(self, *, most: int = MAX_READERS) -> None:
        self._most = most
        self._owners: dict[str | None, frozenset[str]] = {}

    def learn(self, caller: Caller, backend: str) -> None:
        """Record that a client has read a page of this backend."""
        key = caller.session or caller.origin
        owners = self._owners.pop(key, frozenset[str]())
        if len(self._owners) >= self._most:
            del self._owners[next(iter(self._owners))]
        self._owners[key] = owners | {backend}

    def owners(self, caller: Caller) -> frozenset[str]:
        """Return the backends whose pages this client has read."""
        return self._owners.get(caller.session or caller.origin, frozenset())

    def retain(self, backends: Collection[str]) -> None:
        """Forget the pages of all backends but these."""
        self._owners = {key: owners.intersection(backends) for key, owners in self._owners.items()}


class Asked(msgspec.Struct, frozen=True, gc=False):
    """A request to a backend; for `resources/read` with both its own and its public URI."""

    backend: str
    method: str
    own: str = ""
    public: str = ""


def publish(owners: Ownership, links: Links, asked: Asked, result: bytes) -> bytes:
    """Return a backend's result with public URIs, and learn the unlisted ones as links.

    Returns the same object if no URI changes, which is nearly always the case.
    """
    if not uris.may_link(result):
        return result

    def change(uri: str) -> str:
        if uri == asked.own:
            return asked.public
        public = owners.public(asked.backend, uri)
        if public not in owners.resources:
            links.learn(asked.backend, public)
        return public

    return uris.change_result(asked.method, result, change)


def publish_error(asked: Asked, data: bytes | None) -> bytes | None:
    """Return the data of a backend's error with the client's URI as `data.uri`."""
    if data is None or asked.own == asked.public:
        return data
    try:
        members = jsonrpc.decode_object(data)
        if jsonrpc.decode_string(members["uri"]) != asked.own:
            return data
    except (KeyError, ValueError):
        return data
    members["uri"] = jsonrpc.raw(asked.public)
    return jsonrpc.encode(members)
