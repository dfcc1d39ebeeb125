"""Whom a task works for, so that what it logs can say so: a backend, a session, a call.

Kept in a context variable, which tasks inherit from those that start them: it is set once, where a backend's owner
begins, and costs calls nothing. A log call that knows better says so itself, with `extra`.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging

FIELDS: Final = ("call", "session", "backend", "principal")
"""What a record may say of the call that it is about; `session` is a label, never the id, which is a secret."""

_works_for: ContextVar[dict[str, object] | None] = ContextVar("works_for", default=None)


def works_for(**fields: object) -> None:
    """Note for this task, and those that it starts from now on, what its logs are about; see `FIELDS`."""
    _works_for.set({**(_works_for.get() or {}), **fields})


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """What is known of the call, session and backend that a record is about. Call it in the task that logs."""
    known = _works_for.get() or {}
    found: dict[str, object] = {}
    for name in FIELDS:
        value = record.__dict__.get(name, known.get(name))
        if value is not None:
            found[name] = value
    further = record.__dict__.get("fields")
    if isinstance(further, dict):
        found.update(further)  # pyright: ignore[reportUnknownArgumentType] - only `gateway.audit` gives any
    return found
