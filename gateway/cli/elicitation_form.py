"""An elicitation form, one field at a time: questions and validation of the answers.

The schemas are the flat ones of 2025-11-25 client/elicitation: strings, numbers, booleans, and choices. Pure.
"""

from __future__ import annotations

import math
import re
from typing import Any

from msgspec import Struct

MAX_TRIES = 5
"""Invalid answers to one field before the form is cancelled."""
_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_YES = {"y": True, "yes": True, "true": True, "1": True, "n": False, "no": False, "false": False, "0": False}


class WrongAnswer(ValueError):
    """The answer is invalid for the field; the message says what is valid."""


class Field(Struct, frozen=True):
    """One field; `choices` are the values with their labels."""

    name: str
    kind: str
    schema: dict[str, Any]
    required: bool = False
    choices: dict[str, str] = {}
    several: bool = False
    """Whether several choices may be selected."""


def fields_of(schema: dict[str, Any]) -> list[Field]:
    """Return the fields of a form, in its order."""
    required: list[str] = schema.get("required") or []
    properties: dict[str, dict[str, Any]] = schema.get("properties") or {}
    found: list[Field] = []
    for name, each in properties.items():
        several = each.get("type") == "array"
        inner: dict[str, Any] = each.get("items") or {} if several else each
        titled: list[dict[str, Any]] = inner.get("oneOf") or inner.get("anyOf") or []
        values: list[Any] = inner.get("enum") or []
        names: list[Any] = inner.get("enumNames") or values
        choices = {str(value): str(name) for value, name in zip(values, names, strict=False)}
        if titled:
            choices = {str(one.get("const")): str(one.get("title", one.get("const"))) for one in titled}
        found.append(Field(name, str(each.get("type", "string")), each, name in required, choices, several))
    return found


def describe(field: Field) -> str:
    """Return the question in one or more lines; the last is the prompt."""
    title = field.schema.get("title") or field.name
    lines = [f"  {field.schema['description']}"] if field.schema.get("description") else []
    lines += [
        f"    {index}) {shown}" + (f" ({value})" if shown != value else "")
        for index, (value, shown) in enumerate(field.choices.items(), 1)
    ]
    kind = "numbers or values, separated by commas" if field.several else "number or value" if field.choices else ""
    notes = [kind or field.kind, "required" if field.required else "may be empty"]
    if "default" in field.schema:
        notes[1] = f"default {field.schema['default']}"
    return "\n".join([*lines, f"  {title} ({', '.join(notes)}): "])


def read_answer(field: Field, text: str) -> Any:
    """Parse an answer; None for an omitted field.

    Raises:
        WrongAnswer: it is invalid.
    """
    text = text.strip()
    if not text:
        if "default" in field.schema:
            return field.schema["default"]
        if field.required:
            raise WrongAnswer("this is required (end the input with Ctrl-D to cancel)")
        return None
    if field.several:
        taken = list(dict.fromkeys(_choice(field, word.strip()) for word in text.split(",") if word.strip()))
        least, most = field.schema.get("minItems", 0), field.schema.get("maxItems", len(field.choices))
        if not least <= len(taken) <= most:
            raise WrongAnswer(f"choose {least} to {most} of them")
        return taken
    if field.choices:
        return _choice(field, text)
    if field.kind == "boolean":
        if text.lower() not in _YES:
            raise WrongAnswer("answer yes or no")
        return _YES[text.lower()]
    return _number(field, text) if field.kind in {"integer", "number"} else _string(field.schema, text)


def _choice(field: Field, text: str) -> str:
    values = list(field.choices)
    if text in values:
        return text
    if text.isdigit() and 1 <= int(text) <= len(values):
        return values[int(text) - 1]
    raise WrongAnswer(f"choose 1 to {len(values)}, or one of {', '.join(values)}")


def _number(field: Field, text: str) -> int | float:
    try:
        value = int(text) if field.kind == "integer" else float(text)
    except ValueError:
        raise WrongAnswer("this is not a whole number" if field.kind == "integer" else "this is not a number") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise WrongAnswer("this is not a number")
    least, most = field.schema.get("minimum", -math.inf), field.schema.get("maximum", math.inf)
    if not least <= value <= most:
        raise WrongAnswer(f"it must be {_between(least, most)}")
    return value


def _between(least: float, most: float) -> str:
    if math.isinf(most):
        return f"at least {least:g}"
    return f"at most {most:g}" if math.isinf(least) else f"from {least:g} to {most:g}"


def _string(schema: dict[str, Any], text: str) -> str:
    least, most = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    if not least <= len(text) <= most:
        raise WrongAnswer(f"its length must be {_between(least, most)}")
    form = schema.get("format")
    fits = {
        "email": lambda: _EMAIL.fullmatch(text),
        "uri": lambda: "://" in text or text.startswith(("urn:", "mailto:")),
        "date": lambda: _DATE.fullmatch(text),
        "date-time": lambda: _is_moment(text),
    }.get(str(form))
    if fits is not None and not fits():
        raise WrongAnswer(f"this is not a valid {form}")
    return text


def _is_moment(text: str) -> bool:
    from datetime import datetime

    try:
        return "T" in text.upper() and bool(datetime.fromisoformat(text))
    except ValueError:
        return False
