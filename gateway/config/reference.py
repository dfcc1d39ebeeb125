"""The reference of all config fields, for `--help` and the README, made from the Structs themselves."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from gateway.config.access import AccessKey, AccessSettings, Introspection, ResourceServer, Rules
from gateway.config.audit import AuditSettings
from gateway.config.lifecycle import RestartPolicy, ShutdownGrace
from gateway.config.limits import CircuitBreaker, CrashLimit, RateLimit
from gateway.config.model import NOT_WRITTEN, GatewaySettings, ServerConfig
from gateway.config.oauth import OAuthSettings
from gateway.config.offered import ToolChoice, ToolOverride
from gateway.config.scalars import FieldSpec, specs_of
from gateway.config.views import ViewConfig, ViewTools

_SERVER = "mcpServers.NAME"
_SECTIONS: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    (_SERVER, ServerConfig),
    (f"{_SERVER}.restart", RestartPolicy),
    (f"{_SERVER}.shutdown_grace", ShutdownGrace),
    (f"{_SERVER}.rate_limit", RateLimit),
    (f"{_SERVER}.circuit_breaker", CircuitBreaker),
    (f"{_SERVER}.crash_limit", CrashLimit),
    (f"{_SERVER}.oauth", OAuthSettings),
    (f"{_SERVER}.tools", ToolChoice),
    (f"{_SERVER}.tools.overrides.NAME", ToolOverride),
    ("gateway", GatewaySettings),
    ("gateway.audit", AuditSettings),
    ("views.NAME", ViewConfig),
    ("views.NAME.tools", ViewTools),
    ("access", AccessSettings),
    ("access.keys[]", AccessKey),
    ("access.keys[] and access.oauth", Rules),
    ("access.oauth", ResourceServer),
    ("access.oauth.introspection", Introspection),
)
_NO_FIELDS = {*((ServerConfig, name) for name in NOT_WRITTEN), (AccessKey, "rules"), (ResourceServer, "rules")}
"""The name of a server is the key in the file; rules stand beside what they are for."""


class FieldReference(NamedTuple):
    """One field: where it stands, its name, what its value must be, its default as JSON, what it means."""

    section: str
    field: str
    type: str
    default: str
    doc: str


def config_reference() -> list[FieldReference]:
    """Every field that a config file may hold, in the order of the file."""
    return [
        FieldReference(section, spec.name, spec.title, _default(spec), spec.description)
        for section, struct in _SECTIONS
        for spec in specs_of(struct).values()
        if (struct, spec.name) not in _NO_FIELDS
    ]


def _default(spec: FieldSpec) -> str:
    if isinstance(spec.default, float):
        return f"{spec.default:g}"
    if isinstance(spec.default, msgspec.Struct):
        return "see there"
    return "none" if spec.default is None else msgspec.json.encode(spec.default).decode()
