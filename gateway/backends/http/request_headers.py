"""The headers of one streamable HTTP session's requests.

Legacy: the session id and the negotiated version, ready made. Modern: method, name and annotated parameters mirrored
from each body, under the backend's own names (2026-07-28 basic/transports/streamable-http, "Request Metadata").
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc, surrogates
from gateway.calls import Era
from gateway.catalog.listing import MAX_PROBLEMS, bound_problems
from gateway.eras.headers import METHOD_HEADER, NAME_HEADER, SESSION_HEADER, VERSION_HEADER, encode_value
from gateway.eras.methods import OWNER_KIND, TASK_METHODS, Kind
from gateway.eras.param_headers import KEYWORD, Annotations, InvalidAnnotation, find_annotations, param_headers
from gateway.errors import BackendProtocol

if TYPE_CHECKING:
    from gateway.catalog.listing import Item, Listing
    from gateway.eras.requests import Hop
    from gateway.http_client.pool import HeaderList
    from gateway.inflight.pending import PendingCall

BOTH_TYPES: Final = (b"accept", b"application/json, text/event-stream")
EVENT_STREAM: Final = (b"accept", b"text/event-stream")
JSON_BODY: Final = (b"content-type", b"application/json")
_SESSION_ID: Final = re.compile(r"[\x21-\x7e]{1,4096}")

log = logging.getLogger("gateway.backend")


class RequestHeaders:
    """Makes headers; holds the session's part of them."""

    def __init__(self, backend: str, base: HeaderList) -> None:
        self.session_id = ""
        self._backend = backend
        self._base = base
        self._version = ""
        self._annotations: dict[str, Annotations] = {}
        self._prepare()

    def assign(self, session_id: str) -> None:
        """Keep the session id that the server gave; empty if it keeps no sessions.

        Raises:
            BackendProtocol: it has characters that are not allowed in a header.
        """
        if session_id and _SESSION_ID.fullmatch(session_id) is None:
            raise BackendProtocol(self._backend, "gave a session id with characters that are not allowed in a header")
        self.session_id = session_id
        self._prepare()

    def negotiated(self, version: str) -> None:
        """Keep the negotiated legacy version; empty before that, and in the modern era."""
        self._version = version
        self._prepare()

    def forget(self) -> tuple[str, str]:
        """Clear session and version, and return them."""
        before = self.session_id, self._version
        self.restore(("", ""))
        return before

    def restore(self, before: tuple[str, str]) -> None:
        """Restore the values returned by `forget`."""
        self.session_id, self._version = before
        self._prepare()

    def _prepare(self) -> None:
        self._modern = [*self._base, BOTH_TYPES, JSON_BODY]
        self.legacy = [*self._modern, *self._session()]

    def _session(self) -> HeaderList:
        own: HeaderList = []
        if self.session_id:
            own.append((SESSION_HEADER, self.session_id.encode()))
        if self._version:
            own.append((VERSION_HEADER, self._version.encode()))
        return own

    def post(self, hop: Hop, method: str, pending: PendingCall | None) -> HeaderList:
        """Return the headers of a request's POST."""
        if hop.era is Era.LEGACY:
            return self.legacy
        own: HeaderList = [
            (VERSION_HEADER, hop.version.encode()),
            (METHOD_HEADER, surrogates.text_without_surrogates(method).encode()),
        ]
        if pending is not None and method in TASK_METHODS:
            own.append((NAME_HEADER, encode_value(pending.task_id).encode()))
        elif pending is not None and method in OWNER_KIND:
            own.append((NAME_HEADER, encode_value(pending.own_name).encode()))
            annotations = self._annotations.get(pending.own_name) if method == "tools/call" else None
            if annotations is not None:
                own += param_headers(annotations, pending.call.params.get("arguments", jsonrpc.EMPTY_OBJECT))
        return self._modern + own

    def get(self, last_id: bytes) -> HeaderList:
        """Return the headers of the legacy GET stream, or of a stream resumed after `last_id`."""
        resuming = [(b"last-event-id", last_id)] if last_id else []
        return [*self._base, EVENT_STREAM, *self._session(), *resuming]

    def delete(self) -> HeaderList:
        """Return the headers of the request that ends a legacy session."""
        return [*self._base, *self._session()]

    def learn(self, listing: Listing) -> Listing:
        """Remember which parameters of a modern backend's tools go into headers.

        Returns the listing without the tools whose annotations are invalid, as "Schema Extension" demands.
        """
        if Kind.TOOLS not in listing.items:
            return listing
        sound: list[Item] = []
        problems: list[str] = []
        annotated: dict[str, Annotations] = {}
        for item in listing.items[Kind.TOOLS]:
            annotations: Annotations = ()
            try:
                if KEYWORD.encode() in item.raw:  # very few
                    annotations = find_annotations(jsonrpc.decode_any(jsonrpc.decode_object(item.raw)["inputSchema"]))
            except InvalidAnnotation as problem:
                problems.append(f"tool {item.own!r} left out: {problem}")
                continue
            sound.append(item)
            if annotations:
                annotated[item.own] = annotations
        # An incomplete list may be served with entries of the previous one.
        self._annotations = {**self._annotations, **annotated} if Kind.TOOLS in listing.unread else annotated
        problems = list(bound_problems(Kind.TOOLS, problems, MAX_PROBLEMS))
        for text in problems:
            extra = {"event": "list_problem", "backend": self._backend}
            log.warning("backend %r: %s", self._backend, text, extra=extra)
        return msgspec.structs.replace(
            listing,
            items={**listing.items, Kind.TOOLS: tuple(sound)},
            problems={**listing.problems, Kind.TOOLS: (*listing.problems.get(Kind.TOOLS, ()), *problems)},
        )
