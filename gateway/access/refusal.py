"""Reasons for refusing a request, as values."""

from __future__ import annotations

from typing import Final

import msgspec

from gateway import jsonrpc

CODES: Final = (
    "missing_credentials",
    "invalid_token",
    "insufficient_scope",
    "view_not_allowed",
    "unknown_host",
    "unknown_origin",
    "repeated_header",
)
"""Codes of refusals without an underlying error; the others use the error's code."""


class Refusal(msgspec.Struct, frozen=True):
    """The response to a refused request; `challenge` is its `WWW-Authenticate` header, if any."""

    status: int
    code: str
    """The reason's name in the response, in the audit and in `gateway.errors.CODES`."""
    text: str
    hint: str = ""
    challenge: str = ""
    retry_after: int | None = None

    def encode(self) -> bytes:
        """Return the response body: a JSON-RPC error without an id, with the code as `data.reason`."""
        text = f"{self.text}; {self.hint}" if self.hint else self.text
        return jsonrpc.error_response(None, jsonrpc.INVALID_REQUEST, text, jsonrpc.encode({"reason": self.code}))
