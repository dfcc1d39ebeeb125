"""Field specifications from annotations: type, bounds, wording, aliases, short forms, and when a change applies.

The annotation is the single source: the readers, the documentation, the JSON Schema and the reload use the `FieldSpec`
derived from it. This module has the types that several sections share; `title` describes valid values. Pure.
"""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

from msgspec import NODEFAULT, Meta, Struct
from msgspec.structs import fields

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.config.findings import Entry, Scope

JsonSchema = dict[str, Any]

# About thirty years: long enough for "never", short enough for every clock that computes deadlines.
LONGEST_SECONDS = 1e9
LARGEST_COUNT = 2**53 - 1
MIN_NAME_LENGTH = 16
"""Below this a name could not contain a hash and remain recognizable."""

Seconds = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, title="a number of seconds above 0")]
Count = Annotated[int, Meta(ge=1, le=LARGEST_COUNT, title="a whole number of at least 1")]
Capacity = Annotated[int, Meta(ge=0, le=LARGEST_COUNT, title="a whole number of at least 0")]
Rate = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS, title="a number of calls a second, above 0")]
Share = Annotated[float, Meta(ge=0, le=1, title="a number from 0 to 1")]
Port = Annotated[int, Meta(ge=1, le=65_535, title="a port, 1 to 65535")]
NameLength = Annotated[
    int, Meta(ge=MIN_NAME_LENGTH, le=LARGEST_COUNT, title=f"a whole number of at least {MIN_NAME_LENGTH}")
]
Namespace = Annotated[
    str, Meta(pattern=r"\A[A-Za-z0-9_.-]{0,64}\Z", title="at most 64 letters, digits, '_', '-' and '.'")
]
Separator = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_.-]{1,8}\Z", title="1 to 8 letters, digits, '_', '-' and '.'")]
KeyList = Annotated[
    str,
    Meta(
        pattern=r"\A[A-Za-z0-9+/_-]{43}=?(,[A-Za-z0-9+/_-]{43}=?)*\Z",
        title="one or more keys of 32 bytes in Base64, with commas between (make one with `openssl rand -base64 32`)",
    ),
]
ShownName = Annotated[
    str, Meta(pattern=r"\A[^\x00-\x1f\x7f\ud800-\udfff]{1,128}\Z", title="1 to 128 characters in one line")
]
Globs = Annotated[tuple[str, ...], Meta(title="a list of globs")]

ALL = ("*",)
"""The globs that match every name."""

BOOLEAN: JsonSchema = {"type": "boolean"}
NUMBER: JsonSchema = {"type": "number", "exclusiveMinimum": 0}
STRINGS: JsonSchema = {"type": "array", "items": {"type": "string"}}
VARIABLE: JsonSchema = {"type": "string", "pattern": r"\$\{.+\}"}

_WORDS: dict[object, str] = {
    bool: "true or false",
    str: "a string",
    int: "a whole number",
    float: "a number",
    tuple: "a list of strings",
    dict: "an object of strings",
}


def doc(description: str, *, aliases: tuple[str, ...] = (), at_start_only: bool = False) -> Meta:
    """Describe a field, for the documentation and the JSON Schema.

    Args:
        description: one or more sentences.
        aliases: other names that the file may use for the field.
        at_start_only: whether a change applies only at the next start of the gateway, not on a reload.
    """
    if at_start_only:
        description += " A change applies at the next start."
    return Meta(description=description, extra={"aliases": aliases, "at_start_only": at_start_only})


def read_by(reader: Callable[[Scope, Entry], Any], *forms: JsonSchema) -> Meta:
    """Name a non-scalar field's reader, and the forms it accepts besides the type.

    A reader is defined after the Structs that it makes, so such annotations are named at the module's end: they are
    resolved when a Struct's fields are first needed.
    """
    return Meta(extra={"reader": reader, "forms": forms})


class FieldSpec(Struct, frozen=True):
    """One field according to its annotation; `title` describes valid values."""

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
    struct: type[Struct] | None = None
    """The Struct of the field's value, or of each of its members."""
    aliases: tuple[str, ...] = ()
    """Other names that the file may use."""
    reader: Callable[[Scope, Entry], Any] | None = None
    """The reader of the field; None for a scalar."""
    forms: tuple[JsonSchema, ...] = ()
    """The forms that the reader accepts besides the field's type."""
    at_start_only: bool = False
    """Whether a change applies only at the next start of the gateway."""


@cache
def specs_of(struct: type[Struct]) -> dict[str, FieldSpec]:
    """Return every field of a config Struct by name, in the order of its definition."""
    specs: dict[str, FieldSpec] = {}
    for info in fields(struct):
        default = None if info.default is NODEFAULT else info.default
        if info.default_factory is not NODEFAULT:
            default = info.default_factory()
        specs[info.name] = field_spec(info.name, info.type, default)
    return specs


@cache
def names_by_spelling(struct: type[Struct]) -> dict[str, str]:
    """Return the field name for each spelling that the file may use."""
    return {spelling: name for name, spec in specs_of(struct).items() for spelling in (name, *spec.aliases)}


def structs_within(struct: type[Struct]) -> Iterator[type[Struct]]:
    """Return a Struct and, recursively, the Structs of its fields."""
    yield struct
    for spec in specs_of(struct).values():
        if spec.struct is not None:
            yield from structs_within(spec.struct)


def field_spec(name: str, annotation: Any, default: object) -> FieldSpec:
    """Return the specification of a field from its annotation."""
    metas: list[Meta] = []
    choices: tuple[str, ...] = ()
    base, optional = annotation, False
    while (origin := get_origin(base)) in {Annotated, Union, UnionType, Literal}:
        if origin is Annotated:
            metas += [note for note in base.__metadata__ if isinstance(note, Meta)]
            base = base.__origin__
        elif origin is Literal:
            choices, base = get_args(base), cast("Any", str)
        else:
            (base,) = (member for member in get_args(base) if member is not type(None))
            optional = True

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
        struct=next(
            (each for each in (base, *get_args(base)) if isinstance(each, type) and issubclass(each, Struct)), None
        ),
        **extra,
    )
