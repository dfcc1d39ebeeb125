"""Fields that are one value: numbers, booleans, choices, short texts.

A `FieldSpec` is what a Struct's annotation says about a field; `read_scalar` holds a value against it. So a new
limit needs its line in a Struct and nothing here.
"""

from __future__ import annotations

import re
from functools import cache
from math import isfinite
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import fields

from gateway.config.findings import Entry, did_you_mean, is_object, kind

if TYPE_CHECKING:
    from gateway.config.findings import Scope

_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_WORDS: dict[object, str] = {
    bool: "true or false",
    str: "a string",
    int: "a whole number",
    float: "a number",
    tuple: "a list of strings",
    dict: "an object of strings",
}


class FieldSpec(Struct, frozen=True):
    """One field as its annotation has it; `title` is what its value must be, in words."""

    name: str
    base: Any
    title: str
    description: str
    default: Any
    optional: bool = False
    choices: tuple[str, ...] = ()
    above: float | None = None
    least: float | None = None
    most: float | None = None
    pattern: str | None = None
    at_start_only: bool = False
    """Whether a change applies only at the next start of the gateway."""


@cache
def specs_of(struct: type[Struct]) -> dict[str, FieldSpec]:
    """Every field of a config Struct by name, in the order of its definition."""
    return {info.name: field_spec(info.name, info.type, _default(info)) for info in fields(struct)}


def _default(info: Any) -> object:
    if info.default is not NODEFAULT:
        return info.default
    return None if info.default_factory is NODEFAULT else info.default_factory()


def field_spec(name: str, annotation: Any, default: object) -> FieldSpec:
    """Return what an annotation says about a field."""
    metas, base, optional, choices = _unpack(annotation)

    def first(attribute: str) -> Any:
        return next((found for meta in metas if (found := getattr(meta, attribute)) is not None), None)

    extra: dict[str, Any] = {key: value for meta in metas for key, value in (meta.extra or {}).items()}
    title = first("title") or (
        "one of " + ", ".join(map(repr, choices)) if choices else _WORDS.get(get_origin(base) or base, "an object")
    )
    return FieldSpec(
        name=name,
        base=base,
        title=title,
        description=first("description") or "",
        default=default,
        optional=optional,
        choices=choices,
        above=first("gt"),
        least=first("ge"),
        most=first("le"),
        pattern=first("pattern"),
        at_start_only=extra.get("at_start_only", False),
    )


def _unpack(annotation: Any) -> tuple[list[Meta], object, bool, tuple[str, ...]]:
    """Take an annotation apart: what is noted on it, the bare type, whether it may be None, its choices."""
    metas: list[Meta] = []
    optional = False
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            metas += [note for note in annotation.__metadata__ if isinstance(note, Meta)]
            annotation = annotation.__origin__
        elif origin in {Union, UnionType}:
            (annotation,) = (member for member in get_args(annotation) if member is not type(None))
            optional = True
        elif origin is Literal:
            return metas, str, optional, get_args(annotation)
        else:
            return metas, annotation, optional, ()


def read_scalar(scope: Scope, spec: FieldSpec, entry: Entry) -> Any:
    """Return the value as the field's type, or the default after noting the problem."""
    value = _typed(spec, entry)
    fault = _fault(spec, entry, value)
    if fault is None:
        return float(value) if spec.base is float else value
    scope.problem(entry.label, fault)
    return spec.default


def _typed(spec: FieldSpec, entry: Entry) -> Any:
    """Variables hold only text, so text that came out of one may be a number or a boolean."""
    text = entry.value
    if not isinstance(text, str) or not entry.from_variable:
        return text
    if spec.base is bool:
        return _BOOLEANS.get(text.lower(), text)
    if spec.base in {int, float} and _NUMBER.fullmatch(text):
        return int(text) if text.lstrip("-").isdigit() else float(text)
    return text


def _fault(spec: FieldSpec, entry: Entry, value: Any) -> str | None:
    if spec.base in {int, float}:
        return _number_fault(spec, entry, value)
    if type(value) is not spec.base:
        return f"must be {spec.title}, not {kind(value)}"
    if spec.choices and value not in spec.choices:
        return f"must be {spec.title}, not {entry.quoted}"
    if spec.pattern is not None and re.search(spec.pattern, value) is None:
        return f"must be {spec.title}"
    return None


def _number_fault(spec: FieldSpec, entry: Entry, value: Any) -> str | None:
    if isinstance(value, str):
        quotes = not entry.from_variable and _NUMBER.fullmatch(value)
        return f"must be {spec.title}, not a string" + (" (write it without quotes)" if quotes else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be {spec.title}, not {kind(value)}"
    if isinstance(value, float) and not isfinite(value):
        return f"must be {spec.title}, not infinite or NaN"
    if spec.base is int and not isinstance(value, int):
        return f"must be {spec.title}, not one with a fraction"
    if (spec.above is not None and value <= spec.above) or (spec.least is not None and value < spec.least):
        return f"must be {spec.title}"
    if spec.most is not None and value > spec.most:
        return f"must be {spec.title}, and at most {spec.most:g}"
    return None


def warn_unknown(scope: Scope, key: str, known: dict[str, Any], prefix: str = "") -> None:
    """Note a key that means nothing here, with the known one that it may be a slip of."""
    scope.warn(prefix + key, f"is unknown and ignored{did_you_mean(key, known)}")


def read_struct(scope: Scope, struct: type[Struct], entry: Entry, prefix: str) -> dict[str, Any]:
    """Read an object whose members are all scalars; null counts as left out. Returns what was given."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object, not {kind(entry.value)}")
        return {}
    specs = specs_of(struct)
    raw = entry.raw if is_object(entry.raw) else {}
    given: dict[str, Any] = {}
    for key, value in entry.value.items():
        if not isinstance(key, str):
            continue  # substitution has noted it
        if key not in specs:
            warn_unknown(scope, key, specs, prefix)
        elif value is not None:
            given[key] = read_scalar(scope, specs[key], Entry(prefix + key, value, raw.get(key)))
    return given
