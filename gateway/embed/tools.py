"""Parsing of a program's tools (`name`, `description`, `parameters`) into offers. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from gateway import jsonrpc
from gateway.catalog.offers import Offer
from gateway.embed.errors import InvalidTools


def read_tools(tools: object) -> dict[str, Offer]:
    """Parse a list of `{"name", "description", "parameters"}` into offers.

    `description` and `parameters` (a JSON Schema of type `object`; `inputSchema` is an alias) are optional and default
    to the server's.

    Raises:
        InvalidTools: with every problem of the list.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Iterable):
        kind = type(cast("object", tools)).__name__
        raise InvalidTools([f"the tools must be a list of {{'name': ..., ...}}, not {kind}"])
    problems: list[str] = []
    found: dict[str, Offer] = {}
    for index, entry in enumerate(cast("Iterable[object]", tools)):
        try:
            name, offer = _read(entry)
        except (TypeError, ValueError) as exc:
            problems.append(f"tools[{index}]: {exc}")
            continue
        if name in found:
            problems.append(f"tools[{index}]: {name!r} appears twice")
        found[name] = offer
    if problems:
        raise InvalidTools(problems)
    return found


def _read(entry: object) -> tuple[str, Offer]:
    """Parse one entry. Raises ValueError, and TypeError for values that are not JSON."""
    if not isinstance(entry, dict):
        text = f"must be a dict with a 'name', not {type(entry).__name__}"
        raise ValueError(text)
    members = cast("dict[str, Any]", entry)
    name: object = members.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("'name' must be a public name, 'SERVER.TOOL'")
    description: object = members.get("description")
    if not isinstance(description, str | None):
        text = f"{name!r}: 'description' must be a string, not {type(description).__name__}"
        raise ValueError(text)
    schema: object = members.get("parameters", members.get("inputSchema"))
    if schema is None:
        return name, Offer(description)
    if not isinstance(schema, dict) or cast("dict[str, object]", schema).get("type", "object") != "object":
        text = f"{name!r}: 'parameters' must be a JSON Schema of type 'object'"
        raise ValueError(text)
    return name, Offer(description, jsonrpc.raw({"type": "object", **cast("dict[str, object]", schema)}))
