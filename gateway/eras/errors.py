"""The mapping of the tree of errors to JSON-RPC codes and HTTP statuses.

Codes differ by era (2026-07-28 basic/index, "Error Codes"): -32002 and -32042 must not reach a modern client, undefined
codes from -32020 to -32099 must never be emitted, and a local error must not look like the peer's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import Era, Failure
from gateway.eras import asks
from gateway.eras.asks import URL_ELICITATION_REQUIRED
from gateway.errors import (
    BackendError,
    Busy,
    Denied,
    GatewayError,
    InvalidParams,
    Revoked,
    ShuttingDown,
    UnknownMethod,
    UnknownName,
)

if TYPE_CHECKING:
    from gateway.calls import Call

HEADER_MISMATCH: Final = -32020
MISSING_CAPABILITY: Final = -32021
UNSUPPORTED_VERSION: Final = -32022
RESOURCE_NOT_FOUND: Final = -32002
RETRY_AFTER: Final = "retryAfterMs"
"""The member of an error's data with the milliseconds after which to retry."""
_RESERVED: Final = range(-32099, -32019)
_MODERN_CODES: Final = frozenset({HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION})


class WireError(msgspec.Struct, frozen=True):
    """An error as one client sees it; `data` is an encoded JSON value or None."""

    code: int
    message: str
    data: bytes | None = None

    def encode(self, request_id: jsonrpc.Id | None) -> bytes:
        """Encode the whole error response."""
        return jsonrpc.error_response(request_id, self.code, self.message, self.data)


def to_wire(problem: GatewayError | Failure, era: Era, call: Call | None = None) -> WireError:
    """Convert a failure for a client of this era; `call` is the failed call."""
    if isinstance(problem, Failure):
        return _from_backend(problem, era, call)
    data: bytes | None = None
    match problem:
        case UnknownMethod():
            code = jsonrpc.METHOD_NOT_FOUND
        case UnknownName(uri=str(uri)):
            code = RESOURCE_NOT_FOUND if era is Era.LEGACY else jsonrpc.INVALID_PARAMS
            data = jsonrpc.encode({"uri": uri})
        case Revoked():  # a Denied that its own client may know about
            code, data = jsonrpc.INVALID_PARAMS, jsonrpc.encode({"reason": problem.code})
        case UnknownName() | Denied() | InvalidParams():
            code = jsonrpc.INVALID_PARAMS
        case Busy():
            hint = _retry_hint(problem.retry_after)
            code, data = jsonrpc.INTERNAL_ERROR, jsonrpc.encode({"reason": problem.code, "retry": True, **hint})
        case ShuttingDown():
            code, data = jsonrpc.INTERNAL_ERROR, jsonrpc.encode({"reason": problem.code, "retry": True})
        case BackendError():
            code, hint = jsonrpc.INTERNAL_ERROR, _retry_hint(problem.retry_after)
            data = jsonrpc.encode({"backend": problem.backend, "reason": problem.code, **hint})
        case _:
            code, data = jsonrpc.INTERNAL_ERROR, jsonrpc.encode({"reason": problem.code})
    return WireError(code, str(problem), data)


def _retry_hint(seconds: float | None) -> dict[str, int]:
    return {} if seconds is None else {RETRY_AFTER: math.ceil(seconds * 1000)}


def with_retry_hint(failure: Failure, seconds: float | None) -> Failure:
    """Add the retry delay to a backend's own error, unless its data forbids that.

    It does if it has one already, or is not an object.
    """
    if seconds is None:
        return failure
    try:
        members = jsonrpc.decode_object(b"{}" if failure.data is None or failure.data == b"null" else failure.data)
    except ValueError:
        return failure
    if RETRY_AFTER in members:
        return failure
    data = jsonrpc.encode({**members, **_retry_hint(seconds)})
    return Failure(failure.code, failure.message, data, failure.era)


def _from_backend(failure: Failure, era: Era, call: Call | None) -> WireError:
    """Convert a backend's own error; keep its code, unless this client would misread it."""
    unsafe = asks.unsafe_refusal(failure)
    if unsafe is not None:  # and its data, which holds the URL, is dropped too
        return WireError(jsonrpc.INTERNAL_ERROR, f"the backend asked for forbidden input: {unsafe}")
    code, data = failure.code, failure.data
    is_read = call is not None and call.method == "resources/read"
    if era is Era.MODERN and code == RESOURCE_NOT_FOUND:
        code = jsonrpc.INVALID_PARAMS
        if call is not None and is_read and data is None:
            data = jsonrpc.encode({"uri": call.name})
    elif era is Era.LEGACY and failure.era is Era.MODERN and code == jsonrpc.INVALID_PARAMS and is_read:
        code = RESOURCE_NOT_FOUND  # the modern era's form (2026-07-28 server/resources, "Error Handling")
    if code not in _RESERVED or _is_meant_for(era, failure, call):
        return WireError(code, failure.message, data)
    original = {"code": code, "message": failure.message}
    if data is not None:
        original["data"] = msgspec.Raw(data)  # pyright: ignore[reportArgumentType] - a raw span encodes as itself
    return WireError(jsonrpc.INTERNAL_ERROR, failure.message, jsonrpc.encode({"backendError": original}))


def _is_meant_for(era: Era, failure: Failure, call: Call | None) -> bool:
    """Return whether a reserved code is about the client, and exists in its version."""
    if failure.era is not era:
        return False
    if era is Era.MODERN:
        return failure.code == MISSING_CAPABILITY  # the backend got this client's own capabilities
    if failure.code != URL_ELICITATION_REQUIRED:
        return False
    url = {"mode": msgspec.Raw(b'"url"')}
    return call is None or asks.missing_capability(call.caller, asks.ELICITATION, url) is None


def http_status(code: int) -> int:
    """Return the HTTP status of a modern response that carries only this error (basic/transports/streamable-http)."""
    if code == jsonrpc.METHOD_NOT_FOUND:
        return 404
    if code in _MODERN_CODES or code in {jsonrpc.PARSE_ERROR, jsonrpc.INVALID_REQUEST}:
        return 400
    return 200
