"""The reference of all config fields, generated from the Structs.

`mcp-gateway fields` and the documentation show it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, get_origin

import msgspec

from gateway.config.access import AccessKey, AccessSettings, ResourceServer, Rules
from gateway.config.fields import specs_of
from gateway.config.model import NOT_WRITTEN, GatewaySettings, ServerConfig
from gateway.config.views import ViewConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.config.fields import FieldSpec

_ROOTS: dict[str, type[msgspec.Struct]] = {
    "mcpServers.NAME": ServerConfig,
    "gateway": GatewaySettings,
    "views.NAME": ViewConfig,
    "access": AccessSettings,
}
_RULES_SECTION = "access.keys[] and access.oauth"
_NO_FIELDS = {*((ServerConfig, name) for name in NOT_WRITTEN), (AccessKey, "rules"), (ResourceServer, "rules")}
"""The name of a server is its key in the file; rules are listed separately."""


class FieldReference(NamedTuple):
    """One field: its section, name, type in words, default as JSON, and meaning."""

    section: str
    field: str
    type: str
    default: str
    doc: str


def config_reference() -> list[FieldReference]:
    """Return every field of the config file, in its order."""
    sections: dict[type[msgspec.Struct], str] = {}
    for root, struct in _ROOTS.items():
        for section, each in _sections(root, struct):
            sections.setdefault(each, section)
    return [
        FieldReference(section, spec.name, spec.title, _default(spec), spec.description)
        for struct, section in sections.items()
        for spec in specs_of(struct).values()
        if (struct, spec.name) not in _NO_FIELDS
    ]


def _sections(section: str, struct: type[msgspec.Struct]) -> Iterator[tuple[str, type[msgspec.Struct]]]:
    """Yield a Struct and those within it, each with its section of the file."""
    yield section, struct
    for spec in specs_of(struct).values():
        if spec.struct is Rules:
            yield _RULES_SECTION, Rules
        elif spec.struct is not None:
            members = {tuple: "[]", dict: ".NAME"}.get(get_origin(spec.base), "")
            yield from _sections(f"{section}.{spec.name}{members}", spec.struct)


def _default(spec: FieldSpec) -> str:
    if isinstance(spec.default, float):
        return f"{spec.default:g}"
    if isinstance(spec.default, msgspec.Struct):
        return "see below"
    return "none" if spec.default is None else msgspec.json.encode(spec.default).decode()
