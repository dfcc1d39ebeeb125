"""Compressed answers of HTTP backends: gzip and deflate are decoded, others refused by name."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trio

from gateway.calls import Complete, Era, Failure
from gateway.errors import BackendProtocol, BackendUnavailable
from gateway.http_client.body import PIECE_BYTES, BodyDecoder
from gateway.http_client.errors import Undecodable
from gateway.oauth_client.http import OAuthHttp
from tests.peers.http_peer import LegacyServer, ModernServer, Reply, Request, SseServer, open_peer, text
from tests.support.http_sessions import Received, call, make_config, open_session, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.leak_check

CODINGS = {  # Content-Encoding -> wbits
    "gzip": 31,
    "x-gzip": 31,
    "GZip": 31,
    "gzip, identity": 31,
    "deflate": 15,
    "Deflate": -15,
}
REFUSED = ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "vendor-packed"]


def squeeze(data: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(wbits=wbits)
    return packer.compress(data) + packer.flush()


class Encoded(Reply):
    """A reply whose body is packed; event streams are flushed after each event."""

    def __init__(self, reply: Reply, coding: str, wbits: int | None) -> None:
        super().__init__(reply.stream, reply.connection, reply.request)
        self.coding = coding
        self.packer = None if wbits is None else zlib.compressobj(wbits=wbits)

    async def send(self, status: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        if body and self.packer is not None:
            body = self.packer.compress(body) + self.packer.flush()
        await super().send(status, body, kind, content_encoding=self.coding, **headers)

    async def begin(self, **headers: str) -> None:
        await super().begin(content_encoding=self.coding, **headers)

    async def raw(self, data: bytes) -> None:
        if self.packer is not None:
            data = self.packer.compress(data) + self.packer.flush(zlib.Z_SYNC_FLUSH)
        await super().raw(data)


def encoding(server: Any, coding: str, wbits: int | None, *, only: str | None = None) -> Any:
    """The same server behind something that compresses all its answers, or those to one method."""

    async def handler(request: Request, reply: Reply) -> None:
        if only is not None and request.rpc != only:
            await server(request, reply)
            return
        packed = Encoded(reply, coding, wbits)
        try:
            await server(request, packed)
        finally:
            reply.begun, reply.ended = packed.begun, packed.ended

    return handler


async def as_events(request: Request, reply: Reply) -> None:
    await reply.begin()
    await reply.event({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}})
    await reply.answer_event(text("by event"))


SERVERS: dict[str, tuple[Callable[[], Any], dict[str, str]]] = {
    "legacy": (LegacyServer, {"transport": "streamable-http"}),
    "modern": (ModernServer, {"transport": "streamable-http"}),
    "sse": (SseServer, {"transport": "sse"}),
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("kind", SERVERS)
async def test_a_server_may_compress_every_answer(kind: str, coding: str) -> None:
    make, fields = SERVERS[kind]
    async with (
        open_peer(encoding(make(), coding, CODINGS[coding])) as peer,
        open_session(peer.url, **fields) as session,
    ):
        assert text_of(await call(session, "echo", {"text": "é" * 5_000})) == "é" * 5_000
        assert {request.headers["accept-encoding"] for request in peer.requests} == {"identity"}


@pytest.mark.parametrize("coding", CODINGS)
async def test_a_compressed_event_stream_is_decoded(coding: str) -> None:
    server = LegacyServer()
    server.on["tools/call"] = as_events
    handler = encoding(server, coding, CODINGS[coding], only="tools/call")
    async with open_peer(handler) as peer, open_session(peer.url) as session:
        assert text_of(await call(session)) == "by event"


async def test_compressed_get_stream_events_arrive_when_sent() -> None:
    server, listener, hold = LegacyServer(), Received(), trio.Event()

    async def stream(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        await hold.wait()

    server.on["GET"] = stream
    async with open_peer(encoding(server, "gzip", 31)) as peer, open_session(peer.url, listener=listener):
        await listener.change()
        hold.set()


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_compressed_error_reaches_its_call(status: int) -> None:
    server = LegacyServer()

    async def fail(request: Request, reply: Reply) -> None:
        await reply.error(-32050, "own", status=status)

    server.on["tools/call"] = fail
    async with open_peer(encoding(server, "gzip", 31)) as peer, open_session(peer.url) as session:
        assert await call(session) == Failure(-32050, "own", None, Era.LEGACY)


@pytest.mark.parametrize("coding", REFUSED)
@pytest.mark.parametrize("events", [False, True])
async def test_any_other_coding_is_refused_by_name(coding: str, events: bool) -> None:
    server = LegacyServer()
    if events:
        server.on["tools/call"] = as_events
    handler = encoding(server, coding, None, only="tools/call")
    async with open_peer(handler) as peer, open_session(peer.url) as session:
        found = await call(session)
        assert isinstance(found, BackendProtocol), found
        assert f"Content-Encoding {coding!r}" in found.reason


@pytest.mark.parametrize("kind", SERVERS)
async def test_an_unknown_content_coding_is_refused_by_name(kind: str) -> None:
    make, fields = SERVERS[kind]
    async with open_peer(encoding(make(), "br", None)) as peer:
        with pytest.raises(BackendProtocol, match="Content-Encoding 'br'"):
            async with open_session(peer.url, **fields):
                pytest.fail("opened")


@pytest.mark.parametrize("coding", ["identity", "", "utf-8", "none"])
async def test_an_identity_coding_changes_nothing(coding: str) -> None:
    handler = encoding(LegacyServer(), coding, None)
    async with open_peer(handler) as peer, open_session(peer.url) as session:
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"jsonrpc":"2.0"}', "not gzip"),
        (gzip.compress(b'{"jsonrpc":"2.0"}', mtime=0)[:-9], "ends too early"),
        (squeeze(b'{"jsonrpc":"2.0"}', 15), "not gzip"),
    ],
)
async def test_a_body_that_contradicts_its_coding_fails_clearly(body: bytes, says: str) -> None:
    server = LegacyServer()

    async def broken(request: Request, reply: Reply) -> None:
        await reply.send(200, body, content_encoding="gzip")

    server.on["tools/call"] = broken
    async with open_peer(server) as peer, open_session(peer.url) as session:
        found = await call(session)
        assert isinstance(found, BackendProtocol)
        assert says in found.reason


LIMIT = 200_000
BOMB = 20_000_000


@pytest.mark.parametrize("wbits", [31, 15, -15])
@pytest.mark.parametrize("events", [False, True])
async def test_a_decompression_bomb_stays_within_the_message_limit(wbits: int, events: bool) -> None:
    head = b'{"jsonrpc":"2.0","id":%d,"result":{"x":"'
    padding = zlib.compressobj(9, wbits=wbits)
    server = LegacyServer()

    async def bomb(request: Request, reply: Reply) -> None:
        start = head % request.message["id"]
        body = padding.compress(b"data: " + start if events else start)
        body += b"".join(padding.compress(b"x" * 1_000_000) for _ in range(BOMB // 1_000_000))
        body += padding.compress(b'"}}' + b"\n\n" * events) + padding.flush()
        tracemalloc.start()
        kind = "text/event-stream" if events else "application/json"
        await reply.send(200, body, kind, content_encoding="gzip" if wbits == 31 else "deflate")

    server.on["tools/call"] = bomb
    async with open_peer(server) as peer, open_session(peer.url, max_line_bytes=LIMIT) as session:
        found = await call(session)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert isinstance(found, BackendProtocol)
        assert "max_line_bytes" in found.reason
        assert peak < 5_000_000
        server.on.clear()
        assert isinstance(await call(session, "echo", {"text": "x"}), Complete)


@pytest.mark.parametrize(("coding", "wbits"), CODINGS.items())
@pytest.mark.parametrize("step", [1, 7, 1 << 30])
def test_pieces_are_small_and_together_the_whole(coding: str, wbits: int, step: int) -> None:
    plain = b"".join(b"%d " % (number * 7919 % 1000) for number in range(60_000)) + b"\0" * 300_000
    packed = squeeze(plain, wbits)
    decoder = BodyDecoder(coding)
    pieces = [piece for at in range(0, len(packed), step) for piece in decoder.feed(packed[at : at + step])]
    assert b"".join(pieces) == plain
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert decoder.complete


def test_gzip_members_and_padding_are_decoded() -> None:
    first, rest = gzip.compress(b"one "), gzip.compress(b"two") + b"\0" * 8
    for split in range(len(first + rest)):
        decoder = BodyDecoder("gzip")
        parts = (first + rest)[:split], (first + rest)[split:]
        assert b"".join(piece for part in parts for piece in decoder.feed(part)) == b"one two"
        assert decoder.complete


def test_a_body_without_bytes_needs_no_decoding() -> None:
    assert BodyDecoder("br").complete
    assert BodyDecoder("gzip").complete
    with pytest.raises(Undecodable):
        list(BodyDecoder("br").feed(b"x"))


async def _oauth(body: bytes, coding: str) -> httpx2.Response:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        return httpx2.Response(200, headers={"content-encoding": coding}, stream=httpx2.ByteStream(body))

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
        http = OAuthHttp(client, make_config("https://127.0.0.1/mcp"))
        return await http.send(httpx2.Request("GET", "https://127.0.0.1/metadata"))


async def test_oauth_answers_are_decoded_within_their_bound() -> None:
    assert (await _oauth(gzip.compress(b'{"issuer":"x"}'), "gzip")).json() == {"issuer": "x"}
    with pytest.raises(BackendUnavailable, match="more than 1048576 bytes"):
        await _oauth(gzip.compress(b" " * 2_000_000), "gzip")
    with pytest.raises(BackendUnavailable, match="Content-Encoding 'br'"):
        await _oauth(b"x", "br")
