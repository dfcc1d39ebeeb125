"""Answers as event streams, cut anywhere: their results, and reuse of the connection."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.calls import Notification
from tests.support.http_sessions import call, open_session, outcome, start_call, text_of
from tests.support.raw_server import RawConnection, RawServer, open_raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.backends.session.interface import Session

pytestmark = pytest.mark.leak_check

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
RESULTS: dict[str, Any] = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "raw", "version": "1"},
    },
    "tools/list": {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]},
}
PROGRESS = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": 0, "progress": 1}}
PING = {"jsonrpc": "2.0", "id": "s1", "method": "ping"}


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def event(message: dict[str, Any]) -> bytes:
    return b"event: message\ndata: %b\n\n" % encode(message)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Streams:
    """A server that answers calls with event streams.

    A stream is `before`, the response and `after`, with the line ends `eol`; it is sent in parts that end at `cuts`.
    """

    def __init__(self) -> None:
        self.before: list[bytes] = []
        self.after: list[bytes] = []
        self.eol = b"\n"
        self.cuts: tuple[int, ...] = ()
        self.size = 0
        """Bytes of the last answer."""
        self.is_sent = trio.Event()
        self.calls: list[int] = []
        """The numbers of the connections that carried them."""
        self.replies: list[dict[str, Any]] = []
        """The responses to `PING`."""

    def encode(self, request_id: int, token: int) -> bytes:
        result = {"content": [{"type": "text", "text": f"answer {request_id}"}]}
        answer = event({"jsonrpc": "2.0", "id": request_id, "result": result})
        events = [*(part.replace(b'"progressToken":0', b'"progressToken":%d' % token) for part in self.before)]
        events += [answer, *self.after]
        return HEAD + b"".join(chunk(part.replace(b"\n", self.eol)) for part in events) + END

    async def serve(self, connection: RawConnection) -> None:
        while request := await connection.request():
            head, _, body = request.partition(b"\r\n\r\n")
            if not head.startswith(b"POST"):
                await connection.send(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
                continue
            message = json.loads(body)
            match message.get("method"):
                case "tools/call":
                    self.calls.append(connection.number)
                    self.is_sent = trio.Event()
                    whole = self.encode(message["id"], message["params"].get("_meta", {}).get("progressToken", 0))
                    self.size = len(whole)
                    for start, end in zip((0, *self.cuts), (*self.cuts, len(whole)), strict=True):
                        await connection.send(whole[start:end])
                        await wait_all_tasks_blocked()  # until the gateway has read it
                    self.is_sent.set()
                case method if method in RESULTS:
                    data = encode({"jsonrpc": "2.0", "id": message["id"], "result": RESULTS[method]})
                    start = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                    await connection.send(start % len(data) + data)
                case method:
                    if method is None:
                        self.replies.append(message)
                    await connection.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")


@asynccontextmanager
async def open_streams() -> AsyncGenerator[tuple[Streams, RawServer, Session]]:
    streams = Streams()
    async with open_raw_server(streams.serve) as server, open_session(server.url, era="legacy") as session:
        yield streams, server, session


async def call_once(session: Session, streams: Streams) -> None:
    assert text_of(await call(session)).startswith("answer ")
    await streams.is_sent.wait()
    await wait_all_tasks_blocked()  # until the gateway has read the end
    assert len(set(streams.calls)) == 1, "the connection was not reused"


@pytest.mark.parametrize("eol", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
async def test_a_stream_may_be_cut_at_every_byte(eol: bytes) -> None:
    async with open_streams() as (streams, _server, session):
        streams.eol = eol
        await call_once(session, streams)
        cut = 0
        while (cut := cut + 1) < streams.size:  # which grows with the ids
            streams.cuts = (cut,)
            await call_once(session, streams)


async def test_a_stream_may_arrive_byte_by_byte() -> None:
    async with open_streams() as (streams, _server, session):
        streams.eol = b"\r\n"
        streams.before = [b": comment\n\n", b"id: 1\ndata:\n\n"]
        await call_once(session, streams)
        streams.cuts = tuple(range(1, streams.size))
        await call_once(session, streams)


@pytest.mark.parametrize("eol", [b"\n", b"\r", b"\r\n"], ids=["LF", "CR", "CRLF"])
@pytest.mark.parametrize("is_whole", [True, False], ids=["one segment", "end apart"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        ([b": comment\n\n", b":\n"], [b": bye\n\n"]),
        ([b"retry: 100\n\n"], [b"retry: 5\n\n"]),
        ([b"id: 7\ndata:\n\n"], [b"id: 9\ndata:\n\n"]),
        ([b"event: other\ndata: {}\n\n"], [b"data: unfinished"]),
        ([], [event(PROGRESS), event(PROGRESS)]),
    ],
    ids=["alone", "comments", "retry", "ids", "other events", "late messages"],
)
async def test_a_stream_may_have_more_than_the_response(
    before: list[bytes], after: list[bytes], is_whole: bool, eol: bytes
) -> None:
    async with open_streams() as (streams, _server, session):
        streams.before, streams.after, streams.eol = before, after, eol
        for _ in range(3):
            await call_once(session, streams)
            streams.cuts = () if is_whole else (streams.size - len(END),)


@pytest.mark.parametrize("is_whole", [True, False], ids=["one segment", "by events"])
async def test_messages_before_the_response_are_handled(is_whole: bool) -> None:
    async with open_streams() as (streams, _server, session):
        streams.before = [event(PROGRESS), event(PING), event(PROGRESS)]
        for number in (1, 2):
            pending = start_call(session, progress=True)
            for _ in range(2):
                assert isinstance(await pending.next(), Notification)
            assert text_of(await outcome(pending)).startswith("answer ")
            await streams.is_sent.wait()
            await wait_all_tasks_blocked()
            assert [reply["id"] for reply in streams.replies] == ["s1"] * number
            if not is_whole:
                whole = streams.encode(4, 4)
                streams.cuts = tuple(at for at in range(1, len(whole)) if whole.startswith(b"event: ", at))
        assert session.can_send
