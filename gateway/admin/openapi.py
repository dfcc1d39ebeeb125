"""The OpenAPI document of the management API, made from the Structs that the answers are made of.

`OPERATIONS` is the one list of what there is: the routes come from it too, so that the document cannot forget one.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from gateway.admin import documents as doc

JSON: Final = "application/json"


class Operation(msgspec.Struct, frozen=True):
    """One method of one path: the name of its handler, what it is for, what it answers."""

    method: str
    path: str
    name: str
    summary: str
    answers: type[msgspec.Struct] | None
    """The document that it answers with; None for the event stream, the metrics and this document itself."""
    access: str = "read"
    """`open`, `read` or `change`."""
    problems: tuple[int, ...] = ()
    status: int = 200


OPERATIONS: Final = (
    Operation("GET", "/livez", "livez", "Whether the process works at all.", doc.Probe, "open"),
    Operation("GET", "/readyz", "readyz", "Whether all required servers are ready.", doc.Probe, "open", (503,)),
    Operation("GET", "/health", "health", "The gateway and its servers; details only to those who may read.",
              doc.Health, "open"),
    Operation("GET", "/servers", "list_servers", "All servers.", doc.ServerList),
    Operation("POST", "/servers", "add_servers", "Add or replace servers; the body is a config.", doc.Added,
              "change", (400, 413, 415, 422, 503)),
    Operation("GET", "/servers/{name}", "show_server", "Everything about one server.", doc.ServerDetail, "read",
              (404,)),
    Operation("DELETE", "/servers/{name}", "remove_server", "Remove a server.", doc.Removed, "change", (404, 422, 503)),
    Operation("POST", "/servers/{name}/restart", "restart_server", "Start a server anew, beside the one that runs.",
              doc.Done, "change", (404, 409, 415, 503)),
    Operation("POST", "/servers/{name}/enable", "enable_server", "Turn a server on.", doc.Done, "change",
              (404, 415, 422, 503)),
    Operation("POST", "/servers/{name}/disable", "disable_server", "Turn a server off.", doc.Done, "change",
              (404, 415, 422, 503)),
    Operation("POST", "/reload", "reload", "Read the config file anew.", doc.Reloaded, "change", (415, 422, 503)),
    Operation("GET", "/tools", "list_tools", "Public names of tools, by server.", doc.Tools),
    Operation("GET", "/tree", "show_tree", "The calls under way and the processes.", doc.Tree),
    Operation("GET", "/metrics", "read_metrics", "What is counted, in the text format of Prometheus.", None),
    Operation("GET", "/events", "read_events", "State changes, calls and reloads as they"
              " happen, as server-sent events.", None,
              "read", (503,)),
    Operation("GET", "/openapi.json", "show_openapi", "This document.", None),
)  # fmt: skip

_WORDS: Final = {
    200: "Done.",
    400: "The body is not JSON.",
    401: "The admin token is missing or wrong.",
    404: "There is no such server.",
    409: "The server is disabled.",
    413: "The body is too large.",
    415: "The Content-Type is not application/json, or the body is compressed.",
    422: "The configuration is not valid; nothing has changed.",
    503: "Not now.",
}


def openapi_document(version: str) -> dict[str, Any]:
    """The document, for this version of the gateway."""
    structs = {one.answers for one in OPERATIONS if one.answers is not None} | {doc.Problem}
    (*_,), components = msgspec.json.schema_components(
        sorted(structs, key=lambda struct: struct.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MCP gateway management", "version": version},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"admin": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    codes = operation.problems if operation.access == "open" else (401, *operation.problems)
    problem = doc.Probe if operation.name == "readyz" else doc.Problem
    members: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            str(operation.status): _success(operation),
            **{str(code): {"description": _WORDS[code], "content": _content(_ref(problem))} for code in codes},
        },
    }
    if operation.access != "open":
        members["security"] = [{"admin": []}] if operation.access == "change" else [{}, {"admin": []}]
    if "{name}" in operation.path:
        parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        members["parameters"] = [parameter]
    if operation.name == "add_servers":
        members["requestBody"] = {"required": True, "content": _content(_config_schema())}
    return members


def _success(operation: Operation) -> dict[str, Any]:
    if operation.name == "read_metrics":
        return {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    if operation.name == "read_events":
        return {"description": "The stream.", "content": {"text/event-stream": {"schema": {"type": "string"}}}}
    schema: dict[str, Any] = {"type": "object"} if operation.answers is None else _ref(operation.answers)
    if operation.name == "health":
        schema = {"anyOf": [_ref(doc.Health), _ref(doc.Probe)]}
    return {"description": _WORDS[operation.status], "content": _content(schema)}


def _ref(struct: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{struct.__name__}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {JSON: {"schema": schema}}


def _config_schema() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    server = {
        "type": "object",
        "description": "A server as in the config file; see the reference of its fields.",
        "properties": {"command": text, "url": text},
        "oneOf": [{"required": ["command"]}, {"required": ["url"]}],
    }
    names = {"pattern": "^[A-Za-z0-9_-]{1,64}$"}
    servers = {"type": "object", "minProperties": 1, "propertyNames": names, "additionalProperties": server}
    return {"type": "object", "properties": {"mcpServers": servers}, "required": ["mcpServers"]}
