"""Conversion of a client's request to a `Call`, and of that to its backend's params.

Only the members that a gateway must rewrite are changed (name, `_meta`); all others travel as raw spans, in their
order, unknown ones included.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import ANYBODY, Call, Caller, Era
from gateway.eras import blocks, meta
from gateway.eras.asks import BRIDGEABLE
from gateway.eras.methods import BY_NAME, CLIENT_NOTIFICATIONS, FAMILIES, LISTENED, OWNER_KIND, REMOVED_IN_MODERN
from gateway.eras.tasks import RELATED, with_extension
from gateway.eras.versions import LATEST_MODERN, MODERN_VERSIONS, SUPPORTED_VERSIONS
from gateway.errors import MAX_REASON, InvalidParams, RequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.calls import BackendTracing, Identity, Trace
    from gateway.jsonrpc import Id, Message

_ENVELOPE: Final = jsonrpc.Names("jsonrpc", "id", "method", "params", "result", "error")
_PARAMS: Final = jsonrpc.Names(
    "_meta", "arguments", "capabilities", "clientInfo", "cursor", "inputResponses", "level", "name", "notifications",
    "progressToken", "protocolVersion", "ref", "requestId", "requestState", "task", "taskId", "uri",
)  # fmt: skip
_FOREIGN_PARAMS: Final = jsonrpc.Names("_meta")
"""For methods unknown to MCP, whose other members are the server's own."""
_WITHIN: Final = {
    "_meta": jsonrpc.Names(*meta.REQUEST_HOP_KEYS, RELATED),
    "ref": jsonrpc.Names("type", "name", "uri"),
    "notifications": jsonrpc.Names(*LISTENED, "resourceSubscriptions"),
    "inputResponses": jsonrpc.Names(),
}
"""The inspected members of params, and the members of these that decisions depend on."""
KEPT_METAS: Final = 256
MAX_KEPT_META: Final = 1_024
"""Maximum bytes of a modern `_meta` that is cached for the requests that repeat it, to bound the memory."""


class UnsupportedVersion(RequestError):
    """The request declares an unsupported protocol version; -32022 on the wire."""

    code: ClassVar[str] = "unsupported_version"

    def __init__(self, requested: str) -> None:
        super().__init__(f"protocol version {requested!r} is not supported")
        self.requested = requested

    def data(self) -> bytes:
        """Return the error's `data` (basic/versioning, "Protocol Version Negotiation")."""
        return jsonrpc.encode({"supported": list(SUPPORTED_VERSIONS), "requested": self.requested[:MAX_REASON]})


def find_second_spelling(data: bytes, message: Message) -> str | None:
    """Find a duplicate member, in any spelling, that a decision depends on.

    `data` is the message as received. The server may read one of the two when the gateway has decided by the other, so
    such a message is refused wherever a decision depends on it. Returns the error's text, or None.
    """
    found = _ENVELOPE.second_spelling(data)
    if found is not None:
        return ambiguous(found)
    if message.params is jsonrpc.ABSENT:
        return None
    is_foreign = message.method is not msgspec.UNSET and not is_mcp_method(message.method)
    found = (_FOREIGN_PARAMS if is_foreign else _PARAMS).second_spelling(message.params)
    if found is not None:
        return ambiguous(f"params.{found}")
    try:
        members = jsonrpc.decode_object(message.params)
    except ValueError:
        return None  # refused on reading
    for name, names in _WITHIN.items():
        if name not in members or (is_foreign and name != "_meta"):
            continue
        found = names.second_spelling(members[name])
        if found is not None:
            return ambiguous(f"params.{name}.{found}")
    return None


def ambiguous(where: str) -> str:
    """Return the text of the error for a duplicate member."""
    return (
        f"{where[:MAX_REASON]!r} appears twice or differs from a member of MCP only in case; send each member once,"
        " spelled as in the specification"
    )


def is_mcp_method(method: str) -> bool:
    """Return whether a method is MCP's own, in any letter case: never passed on."""
    folded = jsonrpc.fold(method)
    return folded in BY_NAME or folded.partition("/")[0] in FAMILIES


def is_foreign_notification(method: str) -> bool:
    """Return whether a notification may be passed on: no request, none of MCP's own.

    The letter case of its name does not matter.
    """
    folded = jsonrpc.fold(method)
    return folded not in CLIENT_NOTIFICATIONS and (folded.startswith("notifications/") or not is_mcp_method(method))


def params_of(message: Message) -> dict[str, msgspec.Raw]:
    """Return the members of a request's params, without optional ones that are null.

    Raises:
        InvalidParams: params are not an object (MCP has no positional params).
    """
    try:
        params = jsonrpc.decode_object(message.params)
    except ValueError:
        text = "params must be an object"
        raise InvalidParams(text) from None
    if jsonrpc.NULL in params.values():
        meta.drop_nulls(str(message.method), params)
    return params


def _name(method: str, params: dict[str, msgspec.Raw]) -> str:
    kind = OWNER_KIND.get(method)
    if kind is None:
        return ""
    try:
        return jsonrpc.decode_string(params[kind.key])
    except (KeyError, ValueError):
        text = f"{method} needs params.{kind.key}, a string"
        raise InvalidParams(text) from None


def legacy_call(message: Message, caller: Caller, trace: Trace | None = None) -> Call:
    """Read a legacy client's request; its capabilities are the session's, not the request's.

    Raises:
        InvalidParams: params, `_meta` or the name do not have the form that the method demands.
    """
    params = params_of(message)
    travelling, hop = meta.split_request_meta(params) if "_meta" in params else ({}, {})
    method = str(message.method)
    return Call(
        method=method,
        name=_name(method, params),
        params=params,
        meta=travelling,
        caller=caller,
        progress_token=meta.progress_token(hop) if hop else None,
        trace=trace,
        size=len(memoryview(message.params)),
    )


def is_modern(message: Message) -> bool:
    """Return whether the request carries the modern `_meta` (basic/versioning): it is then stateless."""
    if bytes(message.params).find(b"protocolVersion") < 0:
        return False
    members = blocks.read(message.params) or {}
    return meta.PROTOCOL_VERSION in (blocks.read(members.get("_meta")) or {})


def modern_call(
    message: Message, *, identity: Identity = ANYBODY, session: str | None = None, address: str | None = None
) -> Call:
    """Read a modern client's request; everything about the client is in its `_meta` (basic/index, "_meta").

    Raises:
        UnsupportedVersion: the declared version is not served as a modern one.
        InvalidParams: a required member of `_meta` is missing or has the wrong form.
    """
    params = params_of(message)
    span = bytes(params.pop("_meta", jsonrpc.ABSENT))
    read = _read_modern_meta if len(span) <= MAX_KEPT_META else _read_modern_meta.__wrapped__
    travelling, progress_token, client = read(span)
    # A new object: it alone distinguishes callers with neither key nor session (`Caller.same_client`).
    caller = msgspec.structs.replace(
        client, principal=identity.principal, scope=identity.scope, session=session, address=address
    )
    method = str(message.method)
    return Call(
        method=method,
        name="" if method in REMOVED_IN_MODERN else _name(method, params),
        params=params,
        meta=travelling,
        caller=caller,
        progress_token=progress_token,
        size=len(memoryview(message.params)),
    )


@lru_cache(KEPT_METAS)
def _read_modern_meta(span: bytes) -> tuple[dict[str, msgspec.Raw], Id | None, Caller]:
    """Read a modern request's `_meta`: the keys to pass on, progress token, client.

    An absent one is empty. Most clients repeat it with each request. Raises as `modern_call` does.
    """
    travelling, hop = meta.split_request_meta({"_meta": msgspec.Raw(span)} if span else {})
    try:
        version = jsonrpc.decode_string(hop[meta.PROTOCOL_VERSION])
    except (KeyError, ValueError):
        text = f"params._meta[{meta.PROTOCOL_VERSION!r}] is required and must be a string"
        raise InvalidParams(text) from None
    if version not in MODERN_VERSIONS:
        raise UnsupportedVersion(version)
    capabilities = hop.get(meta.CLIENT_CAPABILITIES)
    if capabilities is None or not bytes(capabilities).lstrip().startswith(b"{"):
        text = f"params._meta[{meta.CLIENT_CAPABILITIES!r}] is required and must be an object"
        raise InvalidParams(text)
    client_info = hop.get(meta.CLIENT_INFO)
    caller = Caller(
        era=Era.MODERN,
        version=version,
        capabilities=capabilities,
        client_info=jsonrpc.ABSENT if client_info is None or client_info == jsonrpc.NULL else client_info,
        log_level=meta.log_level(hop),
        gateways=meta.gateways_in(hop),
    )
    return travelling, meta.progress_token(hop), caller


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway's side of one backend session: how it describes itself, and its tracing."""

    era: Era
    client_info: msgspec.Raw
    version: str = LATEST_MODERN
    capabilities: msgspec.Raw = BRIDGEABLE
    """The capabilities sent to a legacy backend in `initialize`; modern ones get them with each request."""
    gateways: tuple[str, ...] = ()
    """This gateway, after those that started it."""
    marker: str = ""
    """The same for a child's environment, with the configs (`gateway.runtime.Lineage`)."""
    tracing: BackendTracing | None = None
    """Begins the spans of requests to the backend; None unless tracing is configured."""

    @property
    def modern_version(self) -> str:
        """The version that each request names; empty in the legacy era."""
        return self.version if self.era is Era.MODERN else ""


def backend_params(
    call: Call,
    own_name: str,
    token: Id | None,
    hop: Hop,
    *,
    as_task: bool = False,
    trace_keys: Mapping[str, str] | None = None,
) -> dict[str, object]:
    """Return a call's params for its backend: own name, this hop's `_meta` keys.

    `token` is the progress token of this hop, None if the client wants no progress; `as_task` lets the backend turn the
    call into a task, which the gateway drives. A client's own request for a task is not passed on, since clients are
    offered none. `trace_keys` replace those that the client sent.
    """
    params: dict[str, object] = dict(call.params)
    kind = OWNER_KIND.get(call.method)
    if kind is not None and own_name != call.name:
        params[kind.key] = own_name
    if call.method == "tools/call" and hop.era is Era.LEGACY:
        params.pop("task", None)
        if as_task:
            params["task"] = jsonrpc.EMPTY_OBJECT
    members: dict[str, object] = dict(call.meta)
    if token is not None:
        members[meta.PROGRESS_TOKEN] = token
    if hop.era is Era.MODERN:
        members.update(modern_meta(hop, call.caller, as_task=as_task))
    if trace_keys is not None:
        members.update(trace_keys)
    if members:
        params["_meta"] = members
    return params


def modern_meta(hop: Hop, caller: Caller | None = None, *, as_task: bool = False) -> dict[str, object]:
    """Return the `_meta` keys of every modern request; capabilities and log level are the client's.

    `as_task` declares the extension for tasks, whatever the client supports: the gateway drives them.
    """
    capabilities = hop.capabilities if caller is None else caller.capabilities
    members: dict[str, object] = {
        meta.PROTOCOL_VERSION: hop.version,
        meta.CLIENT_INFO: hop.client_info,
        meta.CLIENT_CAPABILITIES: with_extension(capabilities) if as_task else capabilities,
    }
    if caller is not None and caller.log_level is not None:
        members[meta.LOG_LEVEL] = caller.log_level
    return members
