"""The semantic conventions for one MCP request: names, attributes, status.

They are those of the OpenTelemetry GenAI conventions (docs/gen-ai/mcp.md, status: development). Attributes of metrics
are a subset, whose values are bounded: no URI, no id, no name that only a client has made up.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gateway import jsonrpc
from gateway.calls import Complete, Failure
from gateway.eras.errors import RESOURCE_NOT_FOUND
from gateway.eras.methods import BY_NAME
from gateway.errors import BackendTooSlow, GatewayError
from gateway.masking import SECRETS

if TYPE_CHECKING:
    from gateway.calls import Outcome
    from gateway.tracing.durations import Attributes

SERVER_FAULTLESS: Final = frozenset({
    jsonrpc.PARSE_ERROR,
    jsonrpc.INVALID_REQUEST,
    jsonrpc.METHOD_NOT_FOUND,
    jsonrpc.INVALID_PARAMS,
    RESOURCE_NOT_FOUND,
})
"""Codes that are not errors on the span of a server: its client sent a request that it could not serve."""
TARGETS: Final = {
    "tools/call": "gen_ai.tool.name",
    "prompts/get": "gen_ai.prompt.name",
    "resources/read": "mcp.resource.uri",
    "resources/subscribe": "mcp.resource.uri",
    "resources/unsubscribe": "mcp.resource.uri",
}
"""The attribute for the target of a request."""
URI: Final = "mcp.resource.uri"
OTHER: Final = "_OTHER"
MAX_VALUE: Final = 256
"""Characters kept of a value that a peer chose."""
MAX_STATUS: Final = 1_000
"""Characters kept of an error's message."""
TOOL_ERROR: Final = b'"isError"'


@dataclass(frozen=True, eq=False)
class Network:
    """What carries the requests of one peer; compared by identity, which is fast."""

    transport: str = "pipe"
    protocol: str = ""
    version: str = ""
    peer: str = ""
    """The address of the server, for spans of a client."""
    port: int = 0


PIPE: Final = Network()


class Operation(NamedTuple):
    """A request, as far as it determines attributes."""

    method: str
    target: str
    version: str
    """The protocol version."""
    network: Network
    backend: str = ""
    """The backend's name in the config, for requests to it and from it."""


class Ending(NamedTuple):
    """How a request ended; `status_code` is the code of an error response."""

    error_type: str = ""
    status_code: str = ""
    message: str = ""


SUCCESS: Final = Ending()


class _Result(msgspec.Struct):
    is_error: bool = msgspec.field(default=False, name="isError")


_results = msgspec.json.Decoder(_Result)


def span_name(operation: Operation) -> str:
    """Return the name of a request's span: no URI, whose number is not bounded."""
    method, target = operation.method[:MAX_VALUE], operation.target
    return f"{method} {target[:MAX_VALUE]}" if target and TARGETS.get(method) not in {None, URI} else method


def span_attributes(operation: Operation) -> dict[str, str | int]:
    """Return the attributes of a request's span that are known at its start."""
    method, target, version, network, backend = operation
    found: dict[str, str | int] = {"mcp.method.name": method[:MAX_VALUE]}
    attribute = TARGETS.get(method)
    if attribute is not None and target:
        found[attribute] = SECRETS.mask_briefly(target, MAX_VALUE) if attribute == URI else target[:MAX_VALUE]
    if method == "tools/call":
        found["gen_ai.operation.name"] = "execute_tool"
    if version:
        found["mcp.protocol.version"] = version
    if backend:
        found["mcp_gateway.backend"] = backend
    return found | network_attributes(network)


def network_attributes(network: Network) -> dict[str, str | int]:
    """Return the attributes of a transport, without those that are empty."""
    found: dict[str, str | int] = {"network.transport": network.transport}
    if network.protocol:
        found["network.protocol.name"] = network.protocol
    if network.version:
        found["network.protocol.version"] = network.version
    if network.peer:
        found["server.address"] = network.peer
    if network.port:
        found["server.port"] = network.port
    return found


def bounded(operation: Operation, *, is_known: bool) -> Operation:
    """Return an operation for a metric; `is_known` says that a backend has its target."""
    if operation.method not in BY_NAME:
        return operation._replace(method=OTHER, target="")
    if operation.target and (not is_known or TARGETS.get(operation.method) == URI):
        return operation._replace(target="")
    return operation


def metric_attributes(operation: Operation, ending: Ending) -> Attributes:
    """Return the attributes of a request's duration."""
    return tuple((span_attributes(operation) | ending_attributes(ending)).items())


def session_attributes(version: str, network: Network, error_type: str = "") -> Attributes:
    """Return the attributes of a session's duration."""
    found = network_attributes(network)
    if version:
        found["mcp.protocol.version"] = version
    if error_type:
        found["error.type"] = error_type
    return tuple(found.items())


def ending_attributes(ending: Ending) -> dict[str, str | int]:
    """Return the attributes that are known when a request ends."""
    found: dict[str, str | int] = {}
    if ending.error_type:
        found["error.type"] = ending.error_type
    if ending.status_code:
        found["rpc.response.status_code"] = ending.status_code
    return found


def server_ending(code: int | None, outcome: Outcome | None, method: str) -> Ending:
    """Return the ending on the server's side; `code` is that of an error response."""
    if code is None:
        return _tool_ending(outcome, method)
    message = outcome.message if isinstance(outcome, Failure) else str(outcome or "")
    return Ending("" if code in SERVER_FAULTLESS else str(code), str(code), _brief(message))


def client_ending(outcome: Outcome | None, method: str) -> Ending:
    """Return the ending on the client's side; a cancellation (None) is not an error."""
    match outcome:
        case Complete():  # nearly always
            return _tool_ending(outcome, method)
        case Failure():
            return Ending(str(outcome.code), str(outcome.code), _brief(outcome.message))
        case BackendTooSlow():
            return Ending("timeout", "", _brief(str(outcome)))
        case GatewayError():
            return Ending(outcome.code, "", _brief(str(outcome)))
        case _:
            return SUCCESS


def _tool_ending(outcome: Outcome | None, method: str) -> Ending:
    if type(outcome) is Complete and method == "tools/call" and TOOL_ERROR in outcome.result:
        with contextlib.suppress(*jsonrpc.UNDECODABLE):
            if jsonrpc.read(_results, outcome.result).is_error:
                return Ending("tool_error")
    return SUCCESS


def _brief(message: str) -> str:
    return SECRETS.mask_briefly(message, MAX_STATUS)
