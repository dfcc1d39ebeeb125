"""Calls that are sent once more, because the backend died before it said anything about them.

Only to tools that say of themselves that a second call does no more than the first (`retry` in the config). Bounded by
what a session may work on at once: only calls of one that has died are kept, until the next is due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.catalog.kinds import Kind
from gateway.errors import BackendExited

if TYPE_CHECKING:
    from gateway.calls import Outcome
    from gateway.catalog.listing import Listing
    from gateway.inflight.pending import PendingCall


class _Hints(msgspec.Struct):
    readOnlyHint: object = False  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name
    idempotentHint: object = False  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name


class _Tool(msgspec.Struct):
    annotations: _Hints | None = None


def may_repeat(tool: bytes) -> bool:
    """Whether a tool says of itself that a second call does no more than the first (server/tools, annotations)."""
    try:
        hints = msgspec.json.decode(tool, type=_Tool).annotations
    except (ValueError, RecursionError):
        return False
    return hints is not None and (hints.readOnlyHint is True or hints.idempotentHint is True)


class RetryQueue:
    """The calls of one backend that wait to be sent once more."""

    def __init__(self) -> None:
        self.kept: list[PendingCall] = []

    def add(self, ticket: PendingCall, outcome: Outcome, listing: Listing | None) -> bool:
        """Keep a call with this outcome, if it may be sent once more; returns whether it is kept."""
        if not isinstance(outcome, BackendExited) or ticket.call.method != "tools/call" or listing is None:
            return False
        if not ticket.is_untouched or ticket.task_id:
            return False
        tools = listing.items.get(Kind.TOOLS, ())
        if not any(tool.own == ticket.own_name and may_repeat(tool.raw) for tool in tools):
            return False
        ticket.retry = None  # once
        self.kept.append(ticket)
        return True

    def pop_all(self) -> list[PendingCall]:
        """All of them; they are kept no longer."""
        kept, self.kept = self.kept, []
        return [ticket for ticket in kept if not ticket.over]
