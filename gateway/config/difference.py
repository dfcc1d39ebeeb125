"""The difference between two configs, so that a reload changes only that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from gateway.config.fields import specs_of
from gateway.config.model import GatewaySettings

if TYPE_CHECKING:
    from gateway.config.model import Config, ServerConfig


class ConfigDiff(Struct, frozen=True):
    """Names of servers, in the order of the new config.

    A server that was disabled or enabled has changed.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    retouched: tuple[str, ...] = ()
    """Changed only in settings that do not affect their processes and connections."""


def diff_configs(old: Config, new: Config) -> ConfigDiff:
    """Compare the meaning of two configs, regardless of source and spelling."""
    both = [name for name in new.servers if name in old.servers]
    same = {name for name in both if _meant(old.servers[name]) == _meant(new.servers[name])}
    retouched = [
        name
        for name in both
        if name not in same
        and _meant(replace(old.servers[name], tools=new.servers[name].tools)) == _meant(new.servers[name])
    ]
    return ConfigDiff(
        added=tuple(name for name in new.servers if name not in old.servers),
        removed=tuple(name for name in old.servers if name not in new.servers),
        changed=tuple(name for name in both if name not in same and name not in retouched),
        unchanged=tuple(name for name in both if name in same),
        retouched=tuple(retouched),
    )


def changed_at_start_only(old: GatewaySettings, new: GatewaySettings) -> list[str]:
    """Return the changed settings that apply only at the next start of the gateway."""
    return [
        name
        for name, spec in specs_of(GatewaySettings).items()
        if spec.at_start_only and getattr(old, name) != getattr(new, name)
    ]


def _meant(server: ServerConfig) -> ServerConfig:
    """Return the server without the origins of its values and the reason for being disabled."""
    return replace(server, masked={}, disabled_since=None)
