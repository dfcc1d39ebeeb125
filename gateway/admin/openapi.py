"""The OpenAPI document of the management API, generated from its operations and their response Structs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from gateway.admin import documents as doc
from gateway.admin.request import MAX_DIGITS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.admin.request import Request

JSON: Final = "application/json"


class Operation(msgspec.Struct, frozen=True):
    """One method of one path: its handler, summary, responses and access."""

    method: str
    path: str
    name: str
    """Its `operationId`."""
    handle: Callable[[Request], Awaitable[None]]
    """Handles a request that passed the checks. Raises Refused and GatewayError before sending anything."""
    summary: str
    answers: tuple[type[msgspec.Struct], ...] = ()
    """The possible response documents; none for text and for this document itself."""
    access: Literal["open", "read", "change"] = "read"
    problems: tuple[int, ...] = ()
    """The possible error statuses, apart from 401."""
    problem: type[msgspec.Struct] = doc.Problem
    content_type: str = JSON
    takes_config: bool = False
    """The body must be a config, in JSON."""
    query: tuple[str, ...] = ()
    """Optional parameters in the query, all of them numbers."""


_WORDS: Final = {
    200: "Success.",
    400: "The body is not JSON, or a parameter is not valid.",
    401: "The admin token is missing or wrong.",
    404: "Unknown server, or no such call.",
    409: "The server is disabled.",
    413: "The body is too large.",
    415: "The Content-Type is not application/json, or the body is compressed.",
    422: "The configuration is not valid; nothing has changed.",
    503: "Service unavailable.",
}


_NOT_EMPTY: Final = {"type": "string", "minLength": 1}
_NUMBER: Final = {"type": "integer", "minimum": 0, "maximum": 10**MAX_DIGITS - 1}
_PATH_PARAMETERS: Final = {"name": _NOT_EMPTY, "number": _NUMBER}
_CONFIG: Final = {
    "type": "object",
    "properties": {
        "mcpServers": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": "^[A-Za-z0-9_-]{1,64}$"},
            "additionalProperties": {
                "type": "object",
                "description": "A server as in the config file; see the reference of its fields.",
                "properties": {"command": _NOT_EMPTY, "url": _NOT_EMPTY},
                "oneOf": [{"required": ["command"]}, {"required": ["url"]}],
            },
        },
    },
    "required": ["mcpServers"],
}
"""Schema of the body of `POST /servers`, simplified: a schema cannot express all rules of a config."""


def openapi_document(operations: Iterable[Operation], version: str) -> dict[str, Any]:
    """Return the document of these operations, for this version of the gateway."""
    operations = tuple(operations)
    structs = {doc.Problem}.union(*(operation.answers for operation in operations))
    (*_,), components = msgspec.json.schema_components(
        sorted(structs, key=lambda struct: struct.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MCP gateway management", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation) -> dict[str, Any]:
    codes = operation.problems if operation.access == "open" else (401, *operation.problems)
    problem = {JSON: {"schema": _ref(operation.problem)}}
    schema: dict[str, Any]
    match operation.answers:
        case ():
            schema = {"type": "object" if operation.content_type == JSON else "string"}
        case (answer,):
            schema = _ref(answer)
        case answers:
            schema = {"anyOf": [_ref(answer) for answer in answers]}
    members: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": {"description": _WORDS[200], "content": {operation.content_type: {"schema": schema}}},
            **{str(code): {"description": _WORDS[code], "content": problem} for code in codes},
        },
    }
    if operation.access != "open":
        members["security"] = [{"admin": []}] if operation.access == "change" else [{}, {"admin": []}]
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": schema}
        for name, schema in _PATH_PARAMETERS.items()
        if f"{{{name}}}" in operation.path
    ]
    parameters += [{"name": name, "in": "query", "schema": _NUMBER} for name in operation.query]
    if parameters:
        members["parameters"] = parameters
    if operation.takes_config:
        members["requestBody"] = {"required": True, "content": {JSON: {"schema": _CONFIG}}}
    return members


def _ref(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}
