"""Arguments of a tool or prompt, from `key=value` words or one JSON object.

A tool's `inputSchema` determines the type: `n=3` is the number 3 or the text "3", as the schema requires. Without a
type in the schema, valid JSON is JSON and anything else is text. Pure.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, cast

from gateway.cli.output import UsageError

_KINDS: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
_WORDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false", "array": "a JSON list",
          "object": "a JSON object", "null": "null"}  # fmt: skip


def split_words(words: list[str]) -> dict[str, str]:
    """Split the words into keys and texts. Raises UsageError."""
    found: dict[str, str] = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            problem = f"{word!r} is not an argument"
            raise UsageError(problem, "write KEY=VALUE, or all of them as JSON: --args '{\"key\": 1}'")
        found[key] = text
    return found


def read_object(text: str) -> dict[str, Any]:
    """Parse the arguments as one JSON object. Raises ValueError, as a flag's reader does."""
    try:
        value = json.loads(text)
    except ValueError as exc:
        message = f"this is not JSON: {exc}"
        raise ValueError(message) from None
    if not isinstance(value, dict):
        message = "this must be a JSON object"
        raise ValueError(message)
    return cast("dict[str, Any]", value)


def typed(texts: dict[str, str], schema: dict[str, Any]) -> dict[str, Any]:
    """Convert the texts to the types of the schema. Raises UsageError."""
    properties: dict[str, Any] = schema.get("properties") or {}
    if schema.get("additionalProperties") is False:
        for key in texts:
            if key not in properties:
                problem = f"there is no argument {key!r}"
                raise UsageError(problem, f"there are: {', '.join(properties) or 'none'}")
    found: dict[str, Any] = {}
    for key, text in texts.items():
        kinds = _kinds(properties.get(key), schema)
        value: Any = text
        if kinds != ["string"]:
            with suppress(ValueError):
                value = json.loads(text)
        if kinds and not any(_is(value, kind) for kind in kinds):
            if "string" not in kinds:
                problem = f"{key}: {text!r} is not {' or '.join(_WORDS.get(kind, kind) for kind in kinds)}"
                raise UsageError(problem)
            value = text
        found[key] = value
    return found


def _kinds(schema: Any, root: dict[str, Any], depth: int = 0) -> list[str]:
    """Return the JSON types that a schema allows; none if undetermined."""
    if not isinstance(schema, dict) or depth > 8:  # references may be circular
        return []
    members = cast("dict[str, Any]", schema)
    reference = members.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/"):
        found: Any = root
        for part in reference[2:].split("/"):
            found = cast("dict[str, Any]", found).get(part) if isinstance(found, dict) else None
        return _kinds(found, root, depth + 1)
    kind = members.get("type")
    if kind is not None:
        return [kind] if isinstance(kind, str) else list(kind)
    values: list[Any] = members.get("enum") or ([members["const"]] if "const" in members else [])
    if values:
        return ["string"] if all(isinstance(value, str) for value in values) else []
    branches = [*(members.get("anyOf") or ()), *(members.get("oneOf") or ()), *(members.get("allOf") or ())]
    return [kind for branch in branches for kind in _kinds(branch, root, depth + 1)]


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return False
    return isinstance(value, _KINDS.get(kind, (str,)))
