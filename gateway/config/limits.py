"""The limits of one server that are objects: `rate_limit`, `circuit_breaker`, `crash_limit`, `tool_timeouts`.

Each has a short form for the usual case: a number of calls a second, true for the defaults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from gateway.config.fields import NUMBER, Count, Rate, Seconds, doc, field_spec, read_by, specs_of
from gateway.config.findings import Entry, is_list, is_object, kind
from gateway.config.scalars import read_scalar, read_struct, switchable

if TYPE_CHECKING:
    from gateway.config.findings import Scope


class RateLimit(Struct, frozen=True):
    """How many calls a server gets; JSON `rate_limit`. What is more is refused at once, as busy."""

    per_second: Annotated[Rate, doc("Calls a second that are let through in the long run.")]
    burst: Annotated[Count, doc("Calls that may come at once after a quiet time.")] = 10


class CircuitBreaker(Struct, frozen=True):
    """When a server that keeps failing gets no calls for a while; JSON `circuit_breaker`."""

    failures: Annotated[
        Count, doc("After so many calls in a row that timed out or that the server did not live to answer, it opens.")
    ] = 5
    open_for: Annotated[Seconds, doc("Calls are refused for so long; then one is let through to try.")] = 30.0


class CrashLimit(Struct, frozen=True):
    """When a client whose calls crash a server gets no more calls there for a while; JSON `crash_limit`."""

    crashes: Annotated[
        Count, doc("Crashes after which calls are refused; each counts to the sender of the call that was sent last.")
    ] = 3
    within: Annotated[Seconds, doc("Time in which they must happen; a crash that is longer ago counts no more.")] = (
        600.0
    )


def read_rate(scope: Scope, entry: Entry) -> RateLimit | None:
    """Read the rate limit: an object, or the number of calls a second alone."""
    if is_object(entry.value):
        given = read_struct(scope, RateLimit, entry, f"{entry.label}.")
        if "per_second" in given:
            return RateLimit(**given)
        scope.problem(entry.label, "needs 'per_second', the calls a second that are let through in the long run")
        return None
    if is_list(entry.value):
        scope.problem(entry.label, f"must be a number of calls a second or an object, not {kind(entry.value)}")
        return None
    # Read as the field of the object, so that the same words and bounds hold.
    return RateLimit(per_second=read_scalar(scope, specs_of(RateLimit)["per_second"], entry) or 1.0)


def read_tool_timeouts(scope: Scope, entry: Entry) -> dict[str, float]:
    """Read seconds by glob over the server's own tool names."""
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object of seconds by tool, such as {{'build_*': 600}}, not"
                      f" {kind(entry.value)}")  # fmt: skip
        return {}
    spec = field_spec("tool_timeouts", Seconds, 0.0)
    raw = entry.raw if is_object(entry.raw) else {}
    return {
        glob: read_scalar(scope, spec, Entry(f"{entry.label}.{glob}", value, raw.get(glob)))
        for glob, value in entry.value.items()
        if isinstance(glob, str)  # substitution has noted the others
    }


RateLimitField = Annotated[RateLimit | None, read_by(read_rate, NUMBER)]
CircuitBreakerField = Annotated[CircuitBreaker | None, switchable(CircuitBreaker)]
CrashLimitField = Annotated[CrashLimit | None, switchable(CrashLimit)]
ToolTimeouts = Annotated[dict[str, Seconds], Meta(title="an object of seconds by glob"), read_by(read_tool_timeouts)]
