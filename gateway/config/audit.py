"""The field `gateway.audit`: who called what, how long it took and how it ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Struct

from gateway.config.fields import doc
from gateway.config.findings import Entry, is_object, kind
from gateway.config.process import read_path
from gateway.config.scalars import read_struct

if TYPE_CHECKING:
    from gateway.config.findings import Scope


class AuditSettings(Struct, frozen=True):
    """Where a line for each call goes, and what it says; JSON `audit`."""

    file: Annotated[
        str | None,
        doc(
            "The file that lines are appended to, as JSON, made with mode 0600; SIGHUP opens it anew."
            " Left out: the lines go to the log."
        ),
    ] = None
    arguments: Annotated[bool, doc("Whether a line holds the call's arguments, which may be confidential.")] = False


def read_audit(scope: Scope, entry: Entry) -> AuditSettings | None:
    """Read it: an object, true for the defaults, false for none."""
    if isinstance(entry.value, bool):
        return AuditSettings() if entry.value else None
    if not is_object(entry.value):
        scope.problem(entry.label, f"must be an object, true or false, not {kind(entry.value)}")
        return None
    given = read_struct(scope, AuditSettings, entry, f"{entry.label}.")
    if isinstance(given.get("file"), str):
        raw = entry.raw.get("file") if is_object(entry.raw) else None
        given["file"] = read_path(scope, Entry(f"{entry.label}.file", given["file"], raw))
    return AuditSettings(**given)
