"""Fields that are objects of scalars: `restart`, `shutdown_grace`, and the section `gateway`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from gateway.config.audit import read_audit
from gateway.config.findings import Entry, is_list, is_object, kind
from gateway.config.model import NEVER_RESTART, GatewaySettings, RestartPolicy, ShutdownGrace
from gateway.config.scalars import read_scalar, read_struct, specs_of, warn_unknown
from gateway.config.substitution import resolve

if TYPE_CHECKING:
    from gateway.config.findings import Scope


def read_restart(scope: Scope, entry: Entry) -> RestartPolicy:
    """Read the restart policy: an object, true for the defaults, false for never."""
    if isinstance(entry.value, bool):
        return RestartPolicy() if entry.value else NEVER_RESTART
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object, true or false, not {kind(entry.value)}")
        return RestartPolicy()
    policy = RestartPolicy(**read_struct(scope, RestartPolicy, entry, f"{entry.label}."))
    if policy.max_delay < policy.initial_delay:
        scope.problem(f"{entry.label}.max_delay", "must not be less than 'initial_delay'")
    return policy


def read_ladder(scope: Scope, entry: Entry) -> ShutdownGrace:
    """Read the stop ladder: an object, a list of three waits, or one number for the first of them."""
    if is_object(entry.value):
        return ShutdownGrace(**read_struct(scope, ShutdownGrace, entry, f"{entry.label}."))
    specs = list(specs_of(ShutdownGrace).values())
    if not is_list(entry.value):
        if isinstance(entry.value, bool) or not isinstance(entry.value, int | float | str):
            scope.problem(entry.label, f"must be a number, a list of three or an object, not {kind(entry.value)}")
            return ShutdownGrace()
        return ShutdownGrace(close_stdin=read_scalar(scope, specs[0], entry))
    if len(entry.value) != len(specs):
        scope.problem(entry.label, f"must have three waits (close stdin, terminate, kill), not {len(entry.value)}")
        return ShutdownGrace()
    raws = cast("list[object]", entry.raw)
    waits = [
        read_scalar(scope, spec, Entry(f"{entry.label}[{index}]", entry.value[index], raws[index]))
        for index, spec in enumerate(specs)
    ]
    return ShutdownGrace(*waits)


_READERS = {"audit": read_audit}
"""Fields of the section `gateway` that are no scalars."""


def read_gateway(raw: object, scope: Scope) -> GatewaySettings:
    """Read the `gateway` section; null or nothing means all defaults."""
    if raw is None:
        return GatewaySettings()
    if not is_object(raw):
        scope.refuse(f"must be an object, not {kind(raw)}")
        return GatewaySettings()
    values: dict[object, object] = {}
    structs: dict[str, Any] = {}
    for key, value in raw.items():
        if not isinstance(key, str):
            scope.refuse(f"has a key that is not a string but {kind(key)}")
        elif key in _READERS:
            if value is not None:
                structs[key] = _READERS[key](scope, Entry(key, resolve(scope, key, value), value))
        elif key in specs_of(GatewaySettings):
            values[key] = resolve(scope, key, value)
        else:
            warn_unknown(scope, key, specs_of(GatewaySettings))
    return GatewaySettings(**read_struct(scope, GatewaySettings, Entry("gateway", values, raw), ""), **structs)
