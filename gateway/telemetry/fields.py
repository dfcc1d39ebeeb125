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

DETAILS: Final = (
    "added",
    "by",
    "calls",
    "changed",
    "code",
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
"""What a record of an event may say beyond `FIELDS`; shown in the JSON form, since the text says it to people."""
EVENTS: Final = {
    "api_changes_dropped": "changes over the API are void: the file says otherwise, or they cannot be read",
    "api_changes_not_saved": "changes over the API could not be kept for the next run",
    "backend_crash": "a process died with `calls` in flight, the last one sent first",
    "backend_failed": "a backend is marked failed, with the `code` of the error",
    "backend_not_ready": "a backend was not ready when a reload ended",
    "backend_restart": "a backend ended, with `code`; the next start is `retry_in` seconds away",
    "backend_state": "a backend entered `state`",
    "cache_unreadable": "a cached catalog or era record was left out",
    "call_resent": "a `call` that no handler had seen was sent again",
    "catalog_warning": "an option under `tools` matches nothing, or similar",
    "config_not_reloaded": "a reload could not begin, with `code`",
    "config_rejected": "a config is invalid, with `code`; the current one is kept",
    "config_reloaded": "a config was applied; `added`, `removed` and `changed` name backends",
    "config_warning": "a config has an odd place",
    "entry_left_out": "an entry was left out of a list for a program",
    "era_changed": "a child process is restarted in the `era` that its clients speak",
    "escaped_process_ended": "process `pid` of a stopped backend was killed",
    "lease_ended": "the gateway of `connect` stops: its last client has been gone long enough",
    "list_not_updated": "a list could not be read again, with `code`; the former one is kept",
    "list_problem": "a list failed, or entries were left out",
    "login_required": "a backend waits for a login",
    "login_unreadable": "a stored login was left out",
    "names_clash": "an entry was left out or renamed, since its name was taken",
    "principal_revoked": "a key was revoked; its sessions and calls ended",
    "processes_left": "processes `pids` did not end after SIGKILL",
    "relay_refused": "a process of another user wanted to connect as a client of `connect`",
    "restart_needed": "`setting` has changed and applies at the next start",
    "sentinel_restart": "the sentinel ended with `status`, or hung (`problem`), and is started again",
    "server_absent": "at the start: a server is disabled, or was removed over the API",
    "session_lost": "a remote backend lost the session; another is opened",
    "session_not_renewed": "no other session could be opened, with `code`",
    "shutdown_begun": "the gateway drains, because of `by`",
    "shutdown_forced": "the gateway stops at once, because of a second `by`",
    "tokens_not_checked": "the authorization server could not be asked, with `code`",
    "view_removed": "the served `view` is not in the config",
}
"""Values of a record's `event`, with their meaning; they stay the same when the text of a record changes."""

_works_for: ContextVar[dict[str, object] | None] = ContextVar("works_for", default=None)


def works_for(**fields: object) -> None:
    """Note for this task, and those that it starts from now on, what its logs are about; see `FIELDS`."""
    _works_for.set({**(_works_for.get() or {}), **fields})


def details_of(record: logging.LogRecord) -> dict[str, object]:
    """Return the event of a record and the details that it gives with it; empty for a record without an event."""
    event = record.__dict__.get("event")
    if event is None:
        return {}
    given = {name: record.__dict__[name] for name in DETAILS if record.__dict__.get(name) is not None}
    return {"event": event, **given}


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
