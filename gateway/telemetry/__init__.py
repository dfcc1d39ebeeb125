"""Logs and the audit file: never in the way of what they tell about, and never on stdout.

`logs` owns the thread that writes to stderr, `formats` makes one line of one event, `masking` takes secrets out of it,
`fields` says whom a task works for, and `trail` appends lines to a file. Invariant: whatever is logged, nothing in here
waits, one event is one line, and no secret of the config is in it.
"""

from gateway.masking import SECRETS
from gateway.telemetry.fields import works_for
from gateway.telemetry.logs import LEVELS, dropped_lines, now_iso, open_logging

__all__ = ["LEVELS", "SECRETS", "dropped_lines", "now_iso", "open_logging", "works_for"]
