"""Who owns a URI that nobody lists: learned from the links in results (2025-11-25 server/tools, "Resource Links").

A link need not be in `resources/list`, but whoever gave it can be asked for it. Bounded for each backend; the link seen
longest ago is forgotten first. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.catalog import uris

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.catalog.ownership import Ownership

MAX_LINKS: Final = 1_024
"""Links remembered of one backend; a search that returns thousands must not grow the memory."""
MAX_LINK_LENGTH: Final = 2_048
"""Characters of the longest link that is remembered; longer ones are data, not names."""


class Links:
    """Links seen, by backend, in the order in which they were seen last."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, int]] = {}
        self._count = 0

    def learn(self, backend: str, uri: str) -> None:
        """Note that a backend has linked to this URI."""
        if len(uri) > MAX_LINK_LENGTH:
            return
        links = self._seen.setdefault(backend, {})
        links.pop(uri, None)
        if len(links) >= MAX_LINKS:
            del links[next(iter(links))]
        self._count += 1
        links[uri] = self._count

    def owner(self, uri: str, among: Collection[str] | None = None) -> str | None:
        """The backend (one of `among`, if they are given) that linked to this URI last, or None."""
        found = [
            (links[uri], backend)
            for backend, links in self._seen.items()
            if uri in links and (among is None or backend in among)
        ]
        return max(found)[1] if found else None

    def forget(self, backend: str) -> None:
        """Drop what was learned of a backend that is no more."""
        self._seen.pop(backend, None)


class Asked(msgspec.Struct, frozen=True, gc=False):
    """Which backend was asked what; for `resources/read` also the URI, as the backend and as the client knows it."""

    backend: str
    method: str
    own: str = ""
    public: str = ""


def publish(owners: Ownership, links: Links, asked: Asked, result: bytes) -> bytes:
    """A backend's result with each of its URIs as clients see it; what nobody lists is learned on the way.

    The very same bytes come back wherever no URI has to be changed, which is nearly always.
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
    """The data of a backend's error with the resource's URI as the client gave it (`data.uri`)."""
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
