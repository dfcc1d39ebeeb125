"""Trace context of W3C (level 2), read from and written to headers and `_meta`.

SEP-414 gives `traceparent`, `tracestate` and `baggage` their names in `params._meta`. The latter two are passed on as
they are: a gateway changes neither.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from gateway import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
BAGGAGE: Final = "baggage"
SAMPLED: Final = 1
RANDOM: Final = 2
"""The flag that says that the trace id is random."""
DRAWN_BYTES: Final = 4_096
MAX_STATE: Final = 8_192
"""Maximum characters of `tracestate` and `baggage`; W3C asks for 512 and 8,192 at least."""
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_FORBIDDEN_VERSION: Final = "ff"


class TraceContext(NamedTuple):
    """The identity of a span; ids are in hexadecimal, as on the wire."""

    trace_id: str
    span_id: str
    flags: int
    state: str = ""
    baggage: str = ""

    @property
    def is_sampled(self) -> bool:
        """Whether the trace is recorded."""
        return bool(self.flags & SAMPLED)

    def child(self, *, sampled: bool) -> TraceContext:
        """Return the context of a new span of the same trace."""
        flags = self.flags & RANDOM | sampled
        return TraceContext(self.trace_id, new_id(8), flags, self.state, self.baggage)

    def keys(self) -> dict[str, str]:
        """Return the keys for headers or `_meta`."""
        keys = {TRACEPARENT: f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"}
        if self.state:
            keys[TRACESTATE] = self.state
        if self.baggage:
            keys[BAGGAGE] = self.baggage
        return keys


class _Ids:
    """Random ids, drawn many at a time, since each draw is a system call."""

    def __init__(self) -> None:
        self._drawn, self._at = "", 0

    def take(self, size: int) -> str:
        end = self._at + 2 * size
        if end > len(self._drawn):
            self._drawn, self._at, end = os.urandom(DRAWN_BYTES).hex(), 0, 2 * size
        taken = self._drawn[self._at : end]
        self._at = end
        return taken


new_id: Final = _Ids().take
"""Returns a random id of this many bytes; that it is zero is less likely than a bit flipped by a cosmic ray."""


def parse(traceparent: str, state: str = "", baggage: str = "") -> TraceContext | None:
    """Return the context that these values describe; None if `traceparent` is not valid."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == _FORBIDDEN_VERSION or (version == "00" and rest) or not (trace_id.strip("0") and span_id.strip("0")):
        return None
    return TraceContext(trace_id, span_id, int(flags, 16), _bounded(state), _bounded(baggage))


def _bounded(text: str) -> str:
    """Return a value that may be passed on in a header; empty for any other."""
    text = text.strip(" \t")
    return text if len(text) <= MAX_STATE and text.isascii() and text.isprintable() else ""


def from_meta(members: Mapping[str, msgspec.Raw]) -> TraceContext | None:
    """Return the context in a `_meta`; None without a valid one."""
    span = members.get(TRACEPARENT)
    if span is None:
        return None
    try:
        return parse(jsonrpc.decode_string(span), *(_text(members.get(name)) for name in (TRACESTATE, BAGGAGE)))
    except ValueError:
        return None


def from_params(params: Mapping[str, msgspec.Raw]) -> TraceContext | None:
    """Return the context in the `_meta` of params; None without a valid one."""
    try:
        return from_meta(jsonrpc.decode_object(params.get("_meta", jsonrpc.EMPTY_OBJECT)))
    except ValueError:
        return None


def _text(span: msgspec.Raw | None) -> str:
    try:
        return "" if span is None else jsonrpc.decode_string(span)
    except ValueError:
        return ""


def from_headers(headers: Mapping[bytes, bytes]) -> TraceContext | None:
    """Return the context in HTTP headers (names in lower case); None without one."""
    value = headers.get(b"traceparent")
    if value is None:
        return None
    state, baggage = (headers.get(name, b"").decode("latin-1") for name in (b"tracestate", b"baggage"))
    return parse(value.decode("latin-1").strip(), state, baggage)
