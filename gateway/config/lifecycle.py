"""Restart policy and shutdown sequence: the fields `restart` and `shutdown_grace` of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

from msgspec import Struct

from gateway.config.fields import (
    BOOLEAN,
    LONGEST_SECONDS,
    NUMBER,
    VARIABLE,
    Count,
    Seconds,
    Share,
    doc,
    read_by,
    specs_of,
)
from gateway.config.findings import Entry, is_list, is_object, kind
from gateway.config.scalars import read_scalar, read_struct, read_switchable

if TYPE_CHECKING:
    from gateway.config.findings import Scope


class ShutdownGrace(Struct, frozen=True):
    """Grace periods of the shutdown sequence; JSON `shutdown_grace`."""

    close_stdin: Annotated[Seconds, doc("Wait after closing the child's stdin, before SIGTERM.")] = 2.0
    terminate: Annotated[Seconds, doc("Wait after SIGTERM to the group, before SIGKILL.")] = 2.0
    kill: Annotated[Seconds, doc("Wait after SIGKILL to the group, before giving up.")] = 1.0


class RestartPolicy(Struct, frozen=True):
    """Restart policy of a backend; JSON `restart`."""

    initial_delay: Annotated[Seconds, doc("Wait before the first restart; it doubles with each failure.")] = 0.5
    max_delay: Annotated[Seconds, doc("The longest wait between two starts.")] = 30.0
    jitter: Annotated[Share, doc("Random part of each wait, so that backends do not restart in step.")] = 0.2
    max_quick_failures: Annotated[
        Count,
        doc(
            "Consecutive quick failures until the backend is marked failed; a session that served calls does not count."
        ),
    ] = 5
    healthy_after: Annotated[
        Seconds, doc("Uptime after which the failure count is reset; a session that served calls resets it too.")
    ] = 30.0


# `"restart": false`: no uptime is ever long enough to reset the failure count.
NEVER_RESTART = RestartPolicy(max_quick_failures=1, healthy_after=LONGEST_SECONDS)


def read_restart(scope: Scope, entry: Entry) -> RestartPolicy:
    """Read the restart policy: an object, true for the defaults, false for never."""
    policy = read_switchable(RestartPolicy, NEVER_RESTART, scope, entry)
    if policy.max_delay < policy.initial_delay:
        scope.problem(f"{entry.label}.max_delay", "must not be less than 'initial_delay'")
    return policy


def read_shutdown_grace(scope: Scope, entry: Entry) -> ShutdownGrace:
    """Read the shutdown sequence: an object, a list of three waits, or the first one."""
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


RestartField = Annotated[RestartPolicy, read_by(read_restart, BOOLEAN)]
ShutdownGraceField = Annotated[
    ShutdownGrace,
    read_by(
        read_shutdown_grace,
        NUMBER,
        {"type": "array", "items": {"anyOf": [NUMBER, VARIABLE]}, "minItems": 3, "maxItems": 3},
    ),
]
