"""One backend as people see it, in `/health`, in `ps` and in the management API."""

from __future__ import annotations

import msgspec

from gateway.supervisor.states import State  # ruff: ignore[typing-only-first-party-import] - msgspec reads it


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as people see it; the form of `GET /health`'s entries."""

    state: State
    since: str
    restarts: int
    last_error: str | None
    tools: int
    in_flight: int
    sessions: int
    """Sessions that belong to single clients or calls."""
    queued: int
    pid: int | None
    era: str | None
    stale: bool
    """Whether what is listed is the last-good state of a backend that is away."""
    breaker: str | None = None
    """The circuit breaker: closed, open or half-open; null where there is none."""
    warnings: tuple[str, ...] = ()
    """What is wrong with its lists (one failed, entries were left out), and with what the config says of its tools."""
