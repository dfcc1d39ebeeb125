"""Logs and the audit file, which never block their callers and never write to stdout.

`logs` owns the thread that writes to stderr, `formats` formats an event as one line, `gateway.masking` removes secrets,
`fields` names the session and backend of a task, `line_file` appends lines to a file. Nothing here waits, each event is
one line, and it contains no secret of the config.
"""

from gateway.masking import SECRETS
from gateway.telemetry.fields import works_for, works_within
from gateway.telemetry.logs import LEVELS, dropped_lines, now_iso, open_logging

__all__ = ["LEVELS", "SECRETS", "dropped_lines", "now_iso", "open_logging", "works_for", "works_within"]
