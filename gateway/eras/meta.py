"""The keys of `_meta`: which are replaced on each hop, and which pass.

Everything passes in both directions except the keys named here (2026-07-28 basic/index, "_meta").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.eras import blocks
from gateway.eras.methods import OPTIONAL
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    import msgspec

PREFIX: Final = "io.modelcontextprotocol/"
PROTOCOL_VERSION: Final = PREFIX + "protocolVersion"
CLIENT_INFO: Final = PREFIX + "clientInfo"
CLIENT_CAPABILITIES: Final = PREFIX + "clientCapabilities"
LOG_LEVEL: Final = PREFIX + "logLevel"
SUBSCRIPTION_ID: Final = PREFIX + "subscriptionId"
SERVER_INFO: Final = PREFIX + "serverInfo"
PROGRESS_TOKEN: Final = "progressToken"  # ruff: ignore[hardcoded-password-string] - a protocol key, not a secret
BACKEND_INFO: Final = "trio-mcp-gateway/backendInfo"
"""Our own key under which a backend's `serverInfo` is kept when the gateway stamps its own."""

GATEWAYS: Final = "trio-mcp-gateway/gateways"
"""Our own key under which gateways identify themselves to one another. Their own requests (`initialize`, lists) name
the gateways between the client and this one, lists name those behind the server. Calls never carry it."""
MAX_GATEWAYS: Final = 64
"""Maximum gateways read from a message."""

REQUEST_HOP_KEYS: Final = frozenset({
    GATEWAYS,
    PROTOCOL_VERSION,
    CLIENT_INFO,
    CLIENT_CAPABILITIES,
    LOG_LEVEL,
    SUBSCRIPTION_ID,
    PROGRESS_TOKEN,
})
"""Keys of a request's `_meta` that are never copied to the next hop."""

LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")


def drop_nulls(method: str, params: dict[str, msgspec.Raw]) -> None:
    """Remove optional members that are null: many peers write them, others refuse them.

    The optional members of a vendor's method are unknown here, so they stay.
    """
    if jsonrpc.NULL in params.values():
        optional = OPTIONAL.get(method, ())
        for name in [name for name, span in params.items() if span == jsonrpc.NULL]:
            if name == "_meta" or name in optional:
                del params[name]


def split_request_meta(
    params: dict[str, msgspec.Raw],
) -> tuple[dict[str, msgspec.Raw], dict[str, msgspec.Raw]]:
    """Remove `_meta` from a request's params and split it into (passed keys, hop keys).

    Raises:
        InvalidParams: `_meta` is not an object.
    """
    span = params.pop("_meta", None)
    if span is None:
        return {}, {}
    try:
        members = jsonrpc.decode_object(span)
    except ValueError:
        message = "params._meta must be an object"
        raise InvalidParams(message) from None
    hop = {key: members.pop(key) for key in REQUEST_HOP_KEYS & members.keys()}
    return members, hop


def gateways_in(members: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """Return the gateways that a `_meta` names; none if their form is invalid."""
    span = members.get(GATEWAYS)
    if span is None:
        return ()
    try:
        return tuple(jsonrpc.decode_string(each) for each in jsonrpc.decode_array(span)[:MAX_GATEWAYS])
    except ValueError:
        return ()


def gateways_in_meta(members: Mapping[str, msgspec.Raw]) -> tuple[str, ...]:
    """Return the gateways in the `_meta` of params or of a result."""
    try:
        return gateways_in(jsonrpc.decode_object(members.get("_meta", jsonrpc.ABSENT)))
    except ValueError:
        return ()


def progress_token(hop: dict[str, msgspec.Raw]) -> jsonrpc.Id | None:
    """Return the client's progress token, or None.

    Raises:
        InvalidParams: it is neither a string nor an integer.
    """
    span = hop.get(PROGRESS_TOKEN)
    if span is None or span == jsonrpc.NULL:
        return None
    try:
        return jsonrpc.decode_id(span)
    except ValueError:
        message = "params._meta.progressToken must be a string or an integer"
        raise InvalidParams(message) from None


def log_level(hop: dict[str, msgspec.Raw]) -> str | None:
    """Return the log level of this request, or None.

    Raises:
        InvalidParams: it is not a level (server/utilities/logging).
    """
    span = hop.get(LOG_LEVEL)
    if span is None or span == jsonrpc.NULL:
        return None
    try:
        level = jsonrpc.decode_string(span)
    except ValueError:
        level = ""
    if level not in LOG_LEVELS:
        message = f"params._meta[{LOG_LEVEL!r}] must be one of {', '.join(LOG_LEVELS)}"
        raise InvalidParams(message)
    return level


def drop_key(members: dict[str, msgspec.Raw], key: str) -> bool:
    """Remove a key from the `_meta` of params or a result; return whether it existed."""
    own = blocks.read(members.get("_meta")) or {}
    if own.pop(key, None) is None:
        return False
    members["_meta"] = jsonrpc.raw(own)
    if not own:
        del members["_meta"]
    return True
