"""Logs and the audit file: never in the way of what they tell about, and never on stdout.

`logs` owns the thread that writes to stderr, `formats` makes one line of one event, `gateway.masking` removes secrets,
`fields` names the session and backend of a task, `line_file` appends lines to a file. Whatever is logged, nothing here
waits, one event is one line, and it contains no secret of the config.
"""

from gateway.masking import SECRETS
from gateway.telemetry.fields import works_for
from gateway.telemetry.logs import LEVELS, dropped_lines, now_iso, open_logging

__all__ = ["LEVELS", "SECRETS", "dropped_lines", "now_iso", "open_logging", "works_for"]
