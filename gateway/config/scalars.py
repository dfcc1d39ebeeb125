"""Reading fields by their specs: scalars and the objects that contain them.

Scalars are numbers, booleans, choices and short texts. A `FieldSpec` comes from a Struct's annotation, so a new limit
needs only its line in a Struct.
"""

from __future__ import annotations

import re
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING, Any

from gateway.config.fields import BOOLEAN, names_by_spelling, read_by, specs_of
from gateway.config.findings import Entry, did_you_mean, is_object, kind
from gateway.config.substitution import resolve

if TYPE_CHECKING:
    from msgspec import Meta, Struct

    from gateway.config.fields import FieldSpec
    from gateway.config.findings import Scope

_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def read_scalar(scope: Scope, spec: FieldSpec, entry: Entry) -> Any:
    """Return the value as the field's type, or the default after reporting a problem."""
    value: Any = entry.value
    if (
        isinstance(value, str) and entry.from_variable
    ):  # variables contain only text, which may be a number or a boolean
        if spec.base is bool:
            value = _BOOLEANS.get(value.lower(), value)
        elif spec.base in {int, float} and _NUMBER.fullmatch(value):
            value = int(value) if value.lstrip("-").isdigit() else float(value)
    fault = _fault(spec, entry, value)
    if fault is None:
        return float(value) if spec.base is float else value
    scope.problem(entry.label, fault)
    return spec.default


def _fault(spec: FieldSpec, entry: Entry, value: Any) -> str | None:
    must = f"must be {spec.title}"
    if spec.base not in {int, float}:
        if type(value) is not spec.base:
            return f"{must}, not {kind(value)}"
        if spec.choices and value not in spec.choices:
            return f"{must}, not {entry.quoted}"
        return must if spec.pattern is not None and re.search(spec.pattern, value) is None else None
    if isinstance(value, str):
        quotes = not entry.from_variable and _NUMBER.fullmatch(value)
        return f"{must}, not a string" + (" (write it without quotes)" if quotes else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"{must}, not {kind(value)}"
    if isinstance(value, float) and not isfinite(value):
        return f"{must}, not infinite or NaN"
    if spec.base is int and not isinstance(value, int):
        return f"{must}, not one with a fraction"
    if (spec.above is not None and value <= spec.above) or (spec.least is not None and value < spec.least):
        return must
    return f"{must}, and at most {spec.most:g}" if spec.most is not None and value > spec.most else None


def warn_unknown(scope: Scope, key: str, known: dict[str, Any], prefix: str = "") -> None:
    """Warn of an unknown key, and name the key that it may misspell."""
    scope.warn(prefix + key, f"is unknown and ignored{did_you_mean(key, known)}")


def read_field(scope: Scope, spec: FieldSpec, entry: Entry) -> Any:
    """Return the value of one field, using its own reader if it has one."""
    return read_scalar(scope, spec, entry) if spec.reader is None else spec.reader(scope, entry)


def read_struct(scope: Scope, struct: type[Struct], entry: Entry, prefix: str) -> dict[str, Any]:
    """Read an object's members, by field name; null counts as omitted."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object, not {kind(entry.value)}")
        return {}
    specs, names = specs_of(struct), names_by_spelling(struct)
    raw = entry.raw if is_object(entry.raw) else {}
    given: dict[str, Any] = {}
    for key, value in entry.value.items():
        if not isinstance(key, str):
            continue  # substitution has reported it
        if key not in names:
            warn_unknown(scope, key, specs, prefix)
        elif value is not None:
            given[names[key]] = read_field(scope, specs[names[key]], Entry(prefix + key, value, raw.get(key)))
    return given


def read_section(scope: Scope, struct: type[Struct], raw: dict[object, object]) -> dict[str, Any]:
    """Substitute an object's variables, then read it with `read_struct`."""
    names = names_by_spelling(struct)
    values: dict[object, object] = {}
    for key, value in raw.items():
        if isinstance(key, str):
            values[key] = resolve(scope, key, value) if key in names else value
        else:
            scope.refuse(f"has a key that is not a string but {kind(key)}")
    return read_struct(scope, struct, Entry("", values, raw), "")


def read_switchable(struct: type[Struct], off: Any, scope: Scope, entry: Entry) -> Any:
    """Read an object; true means all its defaults, false means `off`."""
    if isinstance(entry.value, bool):
        return struct() if entry.value else off
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object, true or false, not {kind(entry.value)}")
        return struct()
    return struct(**read_struct(scope, struct, entry, f"{entry.label}."))


def switchable(struct: type[Struct]) -> Meta:
    """Mark a field as an object, true (its defaults) or false (None)."""
    return read_by(partial(read_switchable, struct, None), BOOLEAN)
