"""Tool parameters that are also sent as `Mcp-Param-*` headers.

2026-07-28 basic/transports/streamable-http, "Custom Headers from Tool Parameters": `x-mcp-header` in the tool's
`inputSchema` marks them. An annotation counts only if a chain of `properties` leads to it; anywhere else, or with a
value that is not a header name, it makes the whole tool invalid. Pure: `find_annotations` reads a schema once,
`param_headers` applies the result to a call's arguments.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from gateway import jsonrpc
from gateway.eras.headers import PARAM_PREFIX, HeaderMismatch, decode_value, encode_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

KEYWORD: Final = "x-mcp-header"
MAX_ANNOTATIONS: Final = 32
"""Maximum annotated parameters of one tool: servers bound the headers of a request, and so does the gateway."""
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}", re.ASCII)  # RFC 9110, 5.6.2
_TYPES: Final = frozenset({"string", "integer", "boolean"})
_ONE: Final = frozenset({
    "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties",
})  # fmt: skip
_LIST: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_MAP: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties"})

Path = tuple[str, ...]
Annotations = tuple[tuple[Path, bytes], ...]
"""The path of each value in the arguments, and its whole header name."""


class InvalidAnnotation(ValueError):
    """A tool's `x-mcp-header` breaks the rules, so the tool must not be offered."""


def find_annotations(schema: object) -> Annotations:
    """Return the annotated parameters of a decoded `inputSchema`.

    Raises:
        InvalidAnnotation: one of them breaks the rules of "Schema Extension".
    """
    found: dict[str, tuple[Path, bytes]] = {}
    for path, part in _positions(schema):
        if KEYWORD not in part:
            continue
        name = part[KEYWORD]
        where = ".".join(path) if path else ""
        if not path:
            text = f"{KEYWORD} is not on a chain of 'properties'"
        elif not isinstance(name, str) or _TOKEN.fullmatch(name) is None:
            text = f"{KEYWORD} of {where!r} is not a header name"
        elif not isinstance(part.get("type"), str) or part["type"] not in _TYPES:
            text = f"{KEYWORD} of {where!r} is on a type that is not string, integer or boolean"
        elif name.lower() in found:
            text = f"{KEYWORD} of {where!r} names the same header as another one"
        elif len(found) >= MAX_ANNOTATIONS:
            text = f"{KEYWORD} is on more than {MAX_ANNOTATIONS} parameters"
        else:
            found[name.lower()] = (path, PARAM_PREFIX + name.encode())
            continue
        raise InvalidAnnotation(text)
    return tuple(found.values())


def annotations_of(tool: bytes) -> Annotations:
    """Return the annotated parameters of a listed tool; none if an annotation is invalid."""
    try:
        return find_annotations(jsonrpc.decode_any(jsonrpc.decode_object(tool)["inputSchema"]))
    except (KeyError, ValueError, *jsonrpc.UNDECODABLE):
        return ()


def _positions(root: object) -> Iterator[tuple[Path | None, dict[str, Any]]]:
    """Yield every subschema with its path, which is None off the chain of `properties`.

    Data (`default`, `enum`, `examples`) is not entered, nothing is dereferenced, and a stack bounds the depth.
    """
    stack: list[tuple[Path | None, object]] = [((), root)]
    while stack:
        path, part = stack.pop()
        if not isinstance(part, dict):
            continue
        schema = cast("dict[str, Any]", part)
        yield path, schema
        for keyword, value in schema.items():
            if keyword == "properties" and isinstance(value, dict):
                members = cast("dict[str, object]", value).items()
                stack += [(None if path is None else (*path, name), inner) for name, inner in members]
            elif keyword in _MAP and isinstance(value, dict):
                stack += [(None, inner) for inner in cast("dict[str, object]", value).values()]
            elif keyword in _LIST and isinstance(value, list):
                stack += [(None, inner) for inner in cast("list[object]", value)]
            elif keyword in _ONE:
                stack.append((None, value))


def param_headers(annotations: Annotations, arguments: msgspec.Raw | bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers for one call's arguments; an absent, null or non-primitive parameter has none."""
    try:
        values = jsonrpc.decode_any(arguments)
    except jsonrpc.UNDECODABLE:
        return []
    headers: list[tuple[bytes, bytes]] = []
    for path, name in annotations:
        value = values
        for member in path:
            value = cast("dict[str, object]", value).get(member) if isinstance(value, dict) else None
        match value:
            case bool():
                text = "true" if value else "false"
            case str():
                text = value
            case int():
                text = str(value)
            case float():  # JSON's 42.0 is an integer too, and servers compare numbers
                text = str(int(value)) if value.is_integer() else str(value)
            case _:
                continue
        headers.append((name, encode_value(text).encode()))
    return headers


def find_second_argument(annotations: Annotations, arguments: msgspec.Raw | bytes) -> str | None:
    """Find an annotated parameter with two spellings in the arguments; the header repeats one."""
    levels: dict[Path, set[str]] = {}
    for path, _ in annotations:
        for depth, name in enumerate(path):
            levels.setdefault(path[:depth], set()).add(name)
    for parent, names in levels.items():
        span = msgspec.Raw(arguments)
        try:
            for name in parent:
                span = jsonrpc.decode_object(span)[name]
        except (KeyError, ValueError):
            continue
        found = jsonrpc.Names(*names).second_spelling(span)
        if found is not None:
            return ".".join((*parent, found))
    return None


def check_param_headers(found: Mapping[bytes, bytes], annotations: Annotations, arguments: msgspec.Raw | bytes) -> None:
    """Check a modern request's `Mcp-Param-*` headers against its arguments ("Server Behavior for Custom Headers").

    Raises:
        HeaderMismatch: one is missing, malformed, different (numbers count as numbers), or has no argument.
    """
    expected = {name.lower(): value for name, value in param_headers(annotations, arguments)}
    for _, full_name in annotations:
        name, shown = full_name.lower(), full_name.decode("ascii")
        value, wanted = found.get(name), expected.get(name)
        if value is None and wanted is None:
            continue
        if value is None or wanted is None:
            missing = "is required" if value is None else "is present, but the argument is not"
            text = f"Header mismatch: the {shown} header {missing}"
            raise HeaderMismatch(text)
        got, own = decode_value(shown, value), decode_value(shown, wanted)
        if got != own and not _same_number(got, own):
            text = f"Header mismatch: {shown} header value {got!r} does not match argument {own!r}"
            raise HeaderMismatch(text)


def _same_number(one: str, other: str) -> bool:
    try:
        return len(one) < 40 and len(other) < 40 and Decimal(one) == Decimal(other)
    except InvalidOperation:
        return False
