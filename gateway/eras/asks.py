"""What a server may ask a client: which capability each request needs, and how it is spelled in each era.

Sampling, elicitation and roots are requests in the legacy era and `inputRequests` in the modern one (2026-07-28
basic/patterns/mrtr). A client is only ever asked what it has declared that it can do.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc

if TYPE_CHECKING:
    from gateway.calls import Caller

SAMPLING: Final = "sampling/createMessage"
ELICITATION: Final = "elicitation/create"
ROOTS: Final = "roots/list"
CAPABILITY: Final = {SAMPLING: "sampling", ELICITATION: "elicitation", ROOTS: "roots"}
"""The requests that can be brought to a client, and the capability that each needs."""

BRIDGEABLE: Final = msgspec.Raw(
    b'{"roots":{"listChanged":true},"sampling":{"tools":{}},"elicitation":{"form":{},"url":{}}}'
)
"""What the gateway declares to a backend whose session serves clients that are not known yet."""


def missing_capability(caller: Caller, method: str, params: dict[str, msgspec.Raw]) -> str | None:
    """Name the capability that this client would need to be asked this, if it has not declared it."""
    name = CAPABILITY[method]
    try:
        declared = jsonrpc.decode_object(caller.capabilities)
        settings = jsonrpc.decode_object(declared[name])
    except (KeyError, ValueError):
        return name
    if method == SAMPLING and ("tools" in params or "toolChoice" in params) and "tools" not in settings:
        return "sampling.tools"
    if method == ELICITATION:
        mode = elicitation_mode(params)
        # `elicitation: {}` means form only, as it did before there were modes (client/elicitation, "Capabilities").
        if mode not in settings and not (mode == "form" and "url" not in settings):
            return f"elicitation.{mode}"
    return None


def elicitation_mode(params: dict[str, msgspec.Raw]) -> str:
    """`form` or `url`; form where none is given."""
    try:
        return jsonrpc.decode_string(params["mode"])
    except (KeyError, ValueError):
        return "form"


class InputRequest(msgspec.Struct):
    """One entry of `inputRequests`."""

    method: str
    params: dict[str, msgspec.Raw] = {}


class InputRequiredBody(msgspec.Struct):
    """What the gateway reads of an `input_required` result."""

    inputRequests: dict[str, InputRequest] = {}  # noqa: N815 - the wire's name
    requestState: msgspec.Raw = jsonrpc.ABSENT  # noqa: N815 - the wire's name


def read_input_required(result: bytes) -> InputRequiredBody:
    """Read an `input_required` result; ValueError if it has not the form that MCP gives it."""
    try:
        return msgspec.json.decode(result, type=InputRequiredBody)
    except jsonrpc.UNDECODABLE as exc:
        raise ValueError(str(exc)) from None


def for_legacy_client(method: str, params: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """An input request as the params of a legacy request, where a URL elicitation needs an id."""
    if method == ELICITATION and elicitation_mode(params) == "url" and "elicitationId" not in params:
        return {**params, "elicitationId": jsonrpc.raw(str(uuid.uuid4()))}
    return params


def for_modern_client(params: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """A legacy request's params as those of an input request, which have no task, no id and no progress token."""
    kept = {name: span for name, span in params.items() if name not in {"task", "elicitationId"}}
    try:
        own = jsonrpc.decode_object(kept.get("_meta", jsonrpc.ABSENT))
    except ValueError:
        own = {}
    own.pop("progressToken", None)
    kept.pop("_meta", None)
    if own:
        kept["_meta"] = jsonrpc.raw(own)
    return kept


def answer_to_refusal(method: str) -> bytes | None:
    """What a modern server gets for a client's error: elicitations are cancelled; for the others there is no form."""
    return b'{"action":"cancel"}' if method == ELICITATION else None
