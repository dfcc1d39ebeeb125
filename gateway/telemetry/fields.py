"""Log context of a task: its backend, session and call.

It is a context variable, inherited by child tasks: it is set once, when a backend's owner starts, and costs calls
nothing. A log call can override it with `extra`.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import logging
    from collections.abc import Generator, Mapping

FIELDS: Final = ("call", "session", "backend", "principal", "trace_id", "span_id")
"""Fields of a record about its call; `session` is a label, never the id, which is a secret. The last two are those of
its span, if tracing is configured."""

DETAILS: Final = (
    "added",
    "by",
    "calls",
    "changed",
    "code",
    "count",
    "pid",
    "pids",
    "problem",
    "removed",
    "retry_in",
    "setting",
    "era",
    "state",
    "status",
    "view",
)
"""Further fields of an event's record, shown only as JSON, since the text has their values."""
EVENTS: Final = {
    "api_changes_dropped": "changes over the API were discarded, because the file has changed or they cannot be read",
    "api_changes_not_saved": "changes over the API could not be saved for the next run",
    "backend_crash": "a process died with `calls` in flight, the last one sent first",
    "backend_failed": "a backend is marked failed, with the `code` of the error",
    "backend_not_ready": "a backend was not ready when a reload ended",
    "backend_restart": "a backend ended, with `code`; the next start is `retry_in` seconds away",
    "backend_state": "a backend entered `state`",
    "cache_unreadable": "a cached catalog or era could not be read and was ignored",
    "call_resent": "a `call` that no handler had seen was sent again",
    "catalog_warning": "an option under `tools` has no effect, such as a name that the server does not list",
    "config_not_reloaded": "a reload could not start, with `code`",
    "config_rejected": "a config is invalid, with `code`; the current one is kept",
    "config_reloaded": "a config was applied; `added`, `removed` and `changed` name backends",
    "config_warning": "a config is valid, but has a warning",
    "entry_left_out": "an entry could not be converted for an embedding program and was left out of its list",
    "era_changed": "a child process is restarted in the `era` that its clients speak",
    "escaped_process_ended": "process `pid` of a stopped backend was killed",
    "lease_ended": "a gateway started by `connect` stops, because `--linger` has passed since its last client",
    "list_not_updated": "a list could not be refreshed, with `code`; the previous one is kept",
    "list_problem": "a list failed, or entries were left out",
    "login_required": "a backend waits for a login",
    "login_unreadable": "a stored login could not be read and was ignored",
    "names_clash": "an entry was left out or renamed, because another one has its name",
    "principal_revoked": "a key was revoked; its sessions and calls ended",
    "processes_left": "processes `pids` did not end after SIGKILL",
    "relay_refused": "a process of another user tried to connect as a client of `connect`",
    "restart_needed": "`setting` has changed and applies at the next start",
    "sentinel_restart": "the sentinel ended with `status`, or hung (`problem`), and is restarted",
    "server_absent": "logged at the start: a server is disabled, or was removed over the API",
    "session_lost": "a remote backend lost the session; a new one is opened",
    "session_not_renewed": "no new session could be opened, with `code`",
    "shutdown_begun": "the gateway starts to drain; `by` is the signal",
    "shutdown_forced": "the gateway stops immediately, because the signal `by` was repeated",
    "spans_dropped": "`count` spans were dropped: the OpenTelemetry endpoint was too slow, or failed",
    "tracing_off": "`OTEL_*` variables ask for tracing, which is not possible",
    "tokens_not_checked": "the authorization server could not be reached, with `code`",
    "view_removed": "the served `view` is not in the config",
}
"""Values of a record's `event` with their meaning; stable when the text of a record changes."""

_works_for: ContextVar[dict[str, object] | None] = ContextVar("works_for", default=None)


def works_for(**fields: object) -> None:
    """Set the log context of this task and of tasks it starts later (`FIELDS`)."""
    _works_for.set({**(_works_for.get() or {}), **fields})


@contextmanager
def works_within(fields: Mapping[str, object]) -> Generator[None]:
    """Set fields of the log context for the length of a block."""
    token = _works_for.set({**(_works_for.get() or {}), **fields})
    try:
        yield
    finally:
        _works_for.reset(token)


def details_of(record: logging.LogRecord) -> dict[str, object]:
    """Return a record's event and its details; empty for a record without an event."""
    event = record.__dict__.get("event")
    if event is None:
        return {}
    given = {name: record.__dict__[name] for name in DETAILS if record.__dict__.get(name) is not None}
    return {"event": event, **given}


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return a record's known call, session and backend. Call it in the logging task."""
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
