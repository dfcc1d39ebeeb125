"""The limits of one server that are objects: `rate_limit`, `circuit_breaker`, `crash_limit`, `tool_timeouts`.

Each has a short form for the usual case: a number of calls per second, true for the defaults.
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
    """Rate limit for a server's calls; JSON `rate_limit`. Excess calls are refused immediately as busy."""

    per_second: Annotated[Rate, doc("Sustained calls per second.")]
    burst: Annotated[Count, doc("Maximum burst, after a time with fewer calls.")] = 10


class CircuitBreaker(Struct, frozen=True):
    """Circuit breaker of a server; JSON `circuit_breaker`."""

    failures: Annotated[Count, doc("Consecutive failures (timeouts or crashes) that open the breaker.")] = 5
    open_for: Annotated[Seconds, doc("Seconds for which calls are refused before one is tried.")] = 30.0


class CrashLimit(Struct, frozen=True):
    """Limit of crashes caused by one client's calls; JSON `crash_limit`."""

    crashes: Annotated[
        Count,
        doc("Crashes after which a client's calls are refused; each counts against the sender of the latest call."),
    ] = 3
    within: Annotated[Seconds, doc("Period in which crashes are counted.")] = 600.0


def read_rate(scope: Scope, entry: Entry) -> RateLimit | None:
    """Read the rate limit: an object, or just the number of calls per second."""
    if is_object(entry.value):
        given = read_struct(scope, RateLimit, entry, f"{entry.label}.")
        if "per_second" in given:
            return RateLimit(**given)
        scope.problem(entry.label, "needs 'per_second', the sustained calls per second")
        return None
    if is_list(entry.value):
        scope.problem(entry.label, f"must be a number of calls per second or an object, not {kind(entry.value)}")
        return None
    # Read as the object's field, so that the same wording and bounds apply.
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
        if isinstance(glob, str)  # substitution has reported the others
    }


RateLimitField = Annotated[RateLimit | None, read_by(read_rate, NUMBER)]
CircuitBreakerField = Annotated[CircuitBreaker | None, switchable(CircuitBreaker)]
CrashLimitField = Annotated[CrashLimit | None, switchable(CrashLimit)]
ToolTimeouts = Annotated[dict[str, Seconds], Meta(title="an object of seconds by glob"), read_by(read_tool_timeouts)]
