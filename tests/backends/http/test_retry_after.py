"""`Retry-After` of a busy backend becomes `retryAfterMs` in the client's error data."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from gateway.calls import Era
from gateway.eras.errors import to_wire
from gateway.http_client.body import MAX_RETRY_AFTER, retry_after
from tests.peers.http_peer import LegacyServer, ModernServer, Reply, Request, SseServer, open_peer
from tests.support.http_sessions import call, open_session

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.leak_check

SERVERS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "legacy": (LegacyServer, {"transport": "streamable-http"}),
    "modern": (ModernServer, {"transport": "streamable-http"}),
    "sse": (SseServer, {"transport": "sse"}),
}
OWN = '{"jsonrpc":"2.0","id":ID,"error":{"code":-32000,"message":"busy"%s}}'


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("slow down", {"backend": "b", "reason": "backend_http_error", "retryAfterMs": 3000}),
        ("", {"backend": "b", "reason": "backend_http_error", "retryAfterMs": 3000}),
        (OWN % "", {"retryAfterMs": 3000}),
        (OWN % ',"data":null', {"retryAfterMs": 3000}),
        (OWN % ',"data":{"a":1}', {"a": 1, "retryAfterMs": 3000}),
        (OWN % ',"data":{"retryAfterMs":5}', {"retryAfterMs": 5}),
        (OWN % ',"data":"text"', "text"),
        (OWN.replace("ID", "null") % "", {"retryAfterMs": 3000}),
    ],
)
async def test_a_busy_backend_says_when_to_retry(kind: str, status: int, body: str, expected: Any) -> None:
    make, fields = SERVERS[kind]
    server = make()

    async def busy(request: Request, reply: Reply) -> None:
        await reply.send(status, body.replace("ID", str(request.message["id"])).encode(), retry_after="3")

    server.on["tools/call"] = busy
    async with open_peer(server) as peer, open_session(peer.url, **fields) as session:
        found = await call(session)
        for era in Era:
            assert json.loads(to_wire(found, era).data or b"null") == expected
        assert len(peer.all("tools/call")) == 1


async def test_a_busy_backends_error_states_the_retry_delay() -> None:
    server = LegacyServer()

    async def busy(request: Request, reply: Reply) -> None:
        await reply.send(429, b"slow down", "text/plain", retry_after="1.5")

    server.on["tools/call"] = busy
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert str(await call(session)).endswith("HTTP 429 and text/plain, not MCP; it asks to retry in 1.5 s")


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True).removesuffix(" GMT")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("0.25", 0.25),
        ("{in an hour} GMT", 3600),
        ("{an hour ago} GMT", 0),
        ("{in an hour} -0000", 3600),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0),
        ("Sun Nov  6 08:49:37 1994", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MAX_RETRY_AFTER),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("9" * 30, None),
        ("٣", None),
        ("soon", None),
        ("", None),
        ("x" * 100_000, None),
    ],
)
def test_forms_of_the_header(value: str, expected: float | None) -> None:
    value = value.replace("{in an hour}", in_seconds(3600)).replace("{an hour ago}", in_seconds(-3600))
    headers = [(b"retry-after", value.encode())]
    found = retry_after(httpx2.Response(503, headers=headers))
    assert found == (None if expected is None else pytest.approx(expected, abs=60))
    assert retry_after(httpx2.Response(500, headers=headers)) is None
    assert retry_after(httpx2.Response(503)) is None


@pytest.mark.parametrize("clock", [0.0, 36_000.0, -36_000.0])
def test_a_date_is_compared_with_the_servers_clock(clock: float) -> None:
    """Either clock may be wrong by hours."""
    headers = {"date": f"{in_seconds(clock)} GMT", "retry-after": f"{in_seconds(clock + 20)} GMT"}
    assert retry_after(httpx2.Response(503, headers=headers)) == pytest.approx(20, abs=1)
    assert retry_after(httpx2.Response(503, headers=headers | {"date": "soon"})) == pytest.approx(
        max(clock + 20, 0), abs=60
    )
