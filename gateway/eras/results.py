"""Outcomes and the gateway's own results, encoded for a client of one era.

A result whose backend speaks the client's era is sent byte for byte (legacy), or with only `_meta` stamped (modern).
Between the eras only members that exist in just one of them are added or removed (2026-07-28 basic/index,
"ResultType").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure, InputRequired
from gateway.eras import blocks, contents, meta, tasks
from gateway.eras.methods import CACHEABLE
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import BackendProtocol

if TYPE_CHECKING:
    from gateway.calls import Outcome

_COMPLETE: Final = msgspec.Raw(b'"complete"')
_ZERO: Final = msgspec.Raw(b"0")
_SERVER_INFO: Final = meta.SERVER_INFO.encode()
_PRIVATE: Final = msgspec.Raw(b'"private"')
MODERN_ONLY: Final = ("resultType", "ttlMs", "cacheScope")


class ResultType(msgspec.Struct, gc=False):
    """Reads one member of a modern backend's result."""

    resultType: str | None = None  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name


_result_types = msgspec.json.Decoder(ResultType)


def read_modern_result(result: bytes) -> Complete | InputRequired | None:
    """Classify a modern backend's result by its `resultType`; return None for an unknown one."""
    try:
        kind = jsonrpc.read(_result_types, result).resultType
    except jsonrpc.UNDECODABLE:
        return None
    match kind:
        case "complete" | None:
            return Complete(result, Era.MODERN)
        case "input_required":
            return InputRequired(result)
        case _:
            return None


def read_response(message: jsonrpc.Message, era: Era, backend: str) -> Outcome:
    """Return the outcome in a backend's response of this era."""
    if message.error is not jsonrpc.ABSENT:
        body = jsonrpc.decode_error(message.error)
        data = None if body.data is jsonrpc.ABSENT else bytes(body.data)
        return Failure(body.code, body.message, data, era)
    result = bytes(message.result)
    if not result.startswith(b"{"):
        return BackendProtocol(backend, "answered with a result that is not an object")
    if era is Era.LEGACY:
        return Complete(result, era)
    outcome = read_modern_result(result)
    return BackendProtocol(backend, "answered with an undeclared resultType") if outcome is None else outcome


def with_strings(outcome: Outcome, strings: jsonrpc.LongStrings, size: int) -> Complete | None:
    """Return a result with the strings set aside from it; None if it needs them.

    The gateway itself reads those of a new task. The strings keep a message of `size` bytes in memory, but only the
    result is counted: it must have at least half of them.
    """
    if type(outcome) is not Complete or tasks.read_created(outcome.result, outcome.era) is not None:
        return None
    if sum(map(len, strings.restore(outcome.result))) < size / 2:
        return None
    return Complete(outcome.result, outcome.era, strings)


def for_legacy(outcome: Complete, *, method: str = "", version: str = LATEST_LEGACY) -> bytes:
    """Convert a result for a legacy client of this version."""
    result = outcome.result if version >= contents.NEWEST else outcome.whole()  # what replaces a block tells its size
    if outcome.era is Era.LEGACY:
        return result if version >= contents.NEWEST else contents.for_version(method, result, version)
    try:
        members = jsonrpc.decode_object(result)
    except ValueError:
        return result
    for name in MODERN_ONLY:
        members.pop(name, None)
    meta.drop_key(members, meta.SERVER_INFO)
    if method == "tools/call":
        contents.without_odd_structure(members)
    contents.downgrade_blocks(members, version)
    return jsonrpc.encode(members)


def for_modern(outcome: Complete | InputRequired, server_info: msgspec.Raw, *, method: str = "") -> bytes:
    """Convert a result for a modern client: set `resultType`, name the gateway in `_meta`."""
    return b"".join(spans_for_modern(outcome, server_info, method=method))


def spans_for_modern(
    outcome: Complete | InputRequired, server_info: msgspec.Raw, *, method: str = ""
) -> tuple[bytes | memoryview, ...]:
    """Return `for_modern` in spans without line breaks, to save a copy."""
    if isinstance(outcome, Complete) and method not in CACHEABLE and _is_plain(outcome.result):
        info = b',"_meta":{"%b":%b}}' % (_SERVER_INFO, server_info)
        return b'{"resultType":"complete",', memoryview(jsonrpc.one_line(outcome.result))[1:-1], info
    try:
        members = jsonrpc.decode_object(outcome.result)
    except ValueError:
        return (jsonrpc.one_line(outcome.result),)
    if isinstance(outcome, Complete):
        if "resultType" not in members:
            members = {"resultType": _COMPLETE, **members}
        members["resultType"] = _COMPLETE  # a legacy backend's member of that name has no meaning
    if method in CACHEABLE and not isinstance(outcome, InputRequired):
        for name, otherwise in (("ttlMs", _ZERO), ("cacheScope", _PRIVATE)):
            if members.get(name, jsonrpc.NULL) == jsonrpc.NULL:
                members[name] = otherwise
    own = blocks.read(members.get("_meta")) or {}
    theirs = own.get(meta.SERVER_INFO)
    if theirs is not None:
        own[meta.BACKEND_INFO] = theirs
    own[meta.SERVER_INFO] = server_info
    members["_meta"] = jsonrpc.raw(own)
    return (jsonrpc.one_line(jsonrpc.encode(members)),)


def _is_plain(result: bytes) -> bool:
    """Return whether the two members can be added without reading the result.

    That takes a non-empty object that has neither. If one of the names is nested deeper, or may be spelled with
    escapes, the answer is False, and the result is read.
    """
    return (
        result.startswith(b'{"')
        and result.endswith(b"}")
        and result.find(b'"_meta"') < 0
        and result.find(b'"resultType"') < 0
        and result.find(b"\\u") < 0
    )


def initialize_result(
    version: str, *, server_info: msgspec.Raw, capabilities: object, instructions: str | None
) -> bytes:
    """Return the result of a legacy `initialize` (2025-11-25 basic/lifecycle)."""
    result: dict[str, object] = {
        "protocolVersion": version,
        "capabilities": capabilities,
        "serverInfo": server_info,
    }
    if instructions is not None:
        result["instructions"] = instructions
    return jsonrpc.encode(result)


def modern_result(
    members: dict[str, object], *, server_info: msgspec.Raw, own_meta: dict[str, object] | None = None
) -> bytes:
    """Return a modern result of the gateway itself."""
    stamped = {**(own_meta or {}), meta.SERVER_INFO: server_info}
    return jsonrpc.encode({"resultType": "complete", **members, "_meta": stamped})
