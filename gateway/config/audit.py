"""The field `gateway.audit`: who called what, how long it took and how it ended."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from gateway.config.fields import doc
from gateway.config.transport import FilePath  # noqa: TC001 - msgspec reads it


class AuditSettings(Struct, frozen=True):
    """Where a line for each call goes, and what it says; JSON `audit`."""

    file: Annotated[
        FilePath,
        doc(
            "The file that lines are appended to, as JSON, made with mode 0600; SIGHUP opens it anew."
            " Left out: the lines go to the log."
        ),
    ] = None
    arguments: Annotated[bool, doc("Whether a line holds the call's arguments, which may be confidential.")] = False
