"""The field `gateway.audit`: caller, target, duration and outcome of each call."""

from __future__ import annotations

from typing import Annotated

from msgspec import Struct

from gateway.config.fields import doc
from gateway.config.transport import FilePath  # noqa: TC001 - msgspec reads it


class AuditSettings(Struct, frozen=True):
    """Destination and content of the audit lines; JSON `audit`."""

    file: Annotated[
        FilePath,
        doc("File to append the lines to, as JSON, created with mode 0600; SIGHUP reopens it. Default: the log."),
    ] = None
    arguments: Annotated[bool, doc("Include the call's arguments, which may be confidential.")] = False
