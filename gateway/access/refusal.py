"""How a request is turned away, as a value."""

from __future__ import annotations

import msgspec


class Refusal(msgspec.Struct, frozen=True):
    """What a request gets that may not come in; `challenge` is its `WWW-Authenticate`, if it has one."""

    status: int
    text: str
    hint: str = ""
    challenge: str = ""
    retry_after: int | None = None
