"""A request to the management API, as an operation's handler reads and answers it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl

from gateway import jsonrpc, surrogates
from gateway.admin import documents as doc
from gateway.frontends.http.exchange import UNCOMPRESSED, compressed, explain_compressed

if TYPE_CHECKING:
    import msgspec

    from gateway.admin.access import AdminAccess
    from gateway.admin.metrics import Metrics
    from gateway.admin.servers import Management
    from gateway.frontends.http.exchange import Exchange


MAX_DIGITS: Final = 15
"""Digits of a number in an address; counting so far takes millennia."""


class Refused(Exception):
    """Makes the response this status and problem."""

    def __init__(self, status: int, problem: doc.Problem, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(problem.error)
        self.status = status
        self.problem = problem
        self.headers = headers


class Request:
    """One authorized request."""

    def __init__(self, exchange: Exchange, management: Management, access: AdminAccess, metrics: Metrics) -> None:
        self.exchange = exchange
        self.management = management
        self.access = access
        self.metrics = metrics

    @property
    def server(self) -> str:
        """The server named in the path."""
        name: str = self.exchange.scope["path_params"]["name"]
        return name

    @property
    def query(self) -> dict[str, str]:
        """The parameters in the query of the address."""
        text: bytes = self.exchange.scope.get("query_string", b"")
        return dict(parse_qsl(text.decode("latin-1"), keep_blank_values=True))

    def may_read(self) -> bool:
        """Return whether the client may read under the present config."""
        return self.access.may_read(self.exchange.headers, guarded=self.management.is_guarded)

    def may_change(self) -> bool:
        """Return whether the client may make changes under the present config."""
        return self.access.may_change(self.exchange.headers, guarded=self.management.is_guarded)

    async def read_json(self) -> bytes:
        """Return the body, which must be JSON, without a byte order mark.

        Raises:
            Refused: it is compressed, too large, or not JSON.
        """
        if (encoding := compressed(self.exchange)) is not None:
            raise Refused(415, doc.Problem(explain_compressed(encoding)), UNCOMPRESSED)
        limit = self.management.max_body
        body = await self.exchange.read_body(limit)
        if body is None:
            raise Refused(413, doc.Problem(f"The body is larger than {limit} bytes."))
        body = surrogates.without_bom(body)
        try:
            json.loads(body)
        except (ValueError, RecursionError) as exc:
            raise Refused(400, doc.Problem(f"Invalid JSON payload: {exc}")) from None
        return body

    async def answer(self, document: msgspec.Struct | dict[str, Any], status: int = 200) -> None:
        """Send one JSON document."""
        await self.exchange.json(status, jsonrpc.encode(document))


def number_in(text: str) -> int | None:
    """Return the number in a part of an address; None if it is not one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None
