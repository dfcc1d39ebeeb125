"""The errors of an exchange, and the text of lower layers' errors."""

from __future__ import annotations

from typing import ClassVar, Final

from gateway.errors import BackendProtocol
from gateway.masking import SECRETS

MAX_TEXT: Final = 200
"""Maximum length of a library's or a server's text in messages."""


class HttpRefused(BackendProtocol):
    """The server answered with an HTTP status without an MCP response."""

    code: ClassVar[str] = "backend_http_error"

    def __init__(
        self, backend: str, reason: str, status: int, body: bytes = b"", *, retry_after: float | None = None
    ) -> None:
        super().__init__(backend, reason, retry_after=retry_after)
        self.status = status
        self.body = body


class BodyTooLong(Exception):
    """The response's body exceeds the limit, or is `unbuffered`: all buffers together are full."""

    def __init__(self, *, unbuffered: bool = False) -> None:
        super().__init__()
        self.unbuffered = unbuffered


class Undecodable(Exception):
    """A body that does not match its Content-Encoding."""


def brief(problem: BaseException) -> str:
    """Return the error's text, or its cause's if empty, as in wrapped TLS errors."""
    seen: BaseException | None = problem
    while seen is not None:
        if text := str(seen).strip():
            return SECRETS.mask(text)[:MAX_TEXT]
        seen = seen.__cause__ or seen.__context__  # libraries raise some of them "from None"
    return type(problem).__name__
