"""One HTTP exchange: bounded bodies, JSON or a stream, and disconnects at any moment."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gateway.frontends.http.exchange import ClientGone, Exchange
from tests.support.fakes import FakeExchange


def made(fake: FakeExchange) -> Exchange:
    return Exchange(fake.scope, fake.receive, fake.send)


@pytest.mark.parametrize(
    ("parts", "headers", "expected"),
    [
        ([b"12345"], {}, b"12345"),
        ([b"12", b"", b"345"], {}, b"12345"),
        ([b""], {}, b""),
        ([b"123456"], {}, None),
        ([b"123", b"456", b"789"], {}, None),
        ([b"1"], {"content-length": "6"}, None),
        ([b"12345"], {"content-length": "5"}, b"12345"),
        ([b"12345"], {"content-length": "nonsense"}, b"12345"),
    ],
)
async def test_bodies_are_read_within_their_bound(
    parts: list[bytes], headers: dict[str, str], expected: bytes | None
) -> None:
    with trio.fail_after(5):
        assert await made(FakeExchange(parts, headers=headers)).read_body(5) == expected


async def test_a_client_may_disconnect_before_its_body_completes() -> None:
    fake = FakeExchange([])
    fake.gone.set()
    with trio.fail_after(5), pytest.raises(ClientGone):
        await made(fake).read_body(5)


@pytest.mark.parametrize(
    ("accept", "json", "stream"),
    [
        (None, True, True),
        ("*/*", True, True),
        ("application/json, text/event-stream", True, True),
        ("application/json", True, False),
        ("text/event-stream;q=0.5", False, True),
        ("text/*", False, True),
        ("application/*", True, False),
        ("text/html", False, False),
        ("APPLICATION/JSON", True, False),
        ("Text/Event-Stream, Application/Json", True, True),
        ("application/json;charset=utf-8", True, False),
        ("application/json ; q=0.5 , text/event-stream;q=1", True, True),
        ("application/json;q=0, text/event-stream", False, True),
        ("application/json;q=0.000, */*;q=0.1", False, True),
        ("*/*;q=0", False, False),
        ("*/*;q=0.001", True, True),
        ("*/*;Q=0, text/*", False, True),
        ("text/*;q=0, */*", True, False),
        ("text/html, image/gif, *; q=.2, */*; q=.2", True, True),
        ("application/jsonx, application/json-seq", False, False),
        ("xapplication/json", False, False),
        ("", True, True),
        (" , ,", True, True),
    ],
)
def test_accept_headers_are_matched(accept: str | None, json: bool, stream: bool) -> None:
    exchange = made_with(accept)
    assert (exchange.accepts_json, exchange.accepts_stream) == (json, stream)


def made_with(accept: str | None) -> Exchange:
    async def never(*_: Any) -> Any:
        await trio.sleep_forever()

    pairs = [] if accept is None else [(b"accept", accept.encode())]
    return Exchange({"type": "http", "method": "POST", "headers": pairs}, never, never)


async def test_a_json_answer() -> None:
    fake = FakeExchange()
    with trio.fail_after(5):
        await made(fake).json(400, b'{"a":1}', (b"x-more", b"y"))
    assert (fake.status, fake.body, fake.ended) == (400, b'{"a":1}', True)
    assert fake.headers == {"content-type": "application/json", "content-length": "7", "x-more": "y"}


async def test_another_server_gets_the_parts_of_a_large_body_as_bytes() -> None:
    parts = (b'{"a":', memoryview(b'"long"'), b"}")
    document, stream = FakeExchange(), FakeExchange()
    with trio.fail_after(5):
        await made(document).json(200, parts)
        await made(stream).event(parts)
    assert (document.headers["content-length"], document.body, document.ended) == ("12", b'{"a":"long"}', True)
    assert stream.events == [{"a": "long"}]
    assert all(type(message.get("body", b"")) is bytes for message in document.sent + stream.sent)


async def test_an_empty_answer() -> None:
    fake = FakeExchange()
    with trio.fail_after(5):
        await made(fake).empty(202)
    assert (fake.status, fake.body, fake.headers, fake.ended) == (202, b"", {"content-length": "0"}, True)


async def test_a_stream_opens_with_its_first_event() -> None:
    fake = FakeExchange()
    exchange = made(fake)
    with trio.fail_after(5):
        await exchange.event(b'{"a":1}')
        assert not fake.ended
        await exchange.keep_alive()
        await exchange.event(b'{"b":2}')
        await exchange.end_stream()
    assert fake.status == 200
    assert fake.headers["content-type"] == "text/event-stream"
    assert fake.headers["cache-control"] == "no-cache"
    assert fake.events == [{"a": 1}, {"b": 2}]
    assert b": keep-alive\r\n\r\n" in fake.body
    assert fake.ended
    assert [message["type"] for message in fake.sent].count("http.response.start") == 1


async def test_a_stream_never_opened_is_empty() -> None:
    fake = FakeExchange()
    with trio.fail_after(5):
        await made(fake).end_stream()
    assert (fake.status, fake.body, fake.ended) == (200, b"", True)


@pytest.mark.parametrize(
    "write",
    [lambda exchange: exchange.json(200, b"{}"), lambda exchange: exchange.event(b"{}"), Exchange.end_stream],
)
async def test_writing_to_a_disconnected_client_raises(write: Any) -> None:
    fake = FakeExchange()
    fake.gone.set()
    with trio.fail_after(5), pytest.raises(ClientGone):
        await write(made(fake))


async def test_a_disconnect_is_detected() -> None:
    fake = FakeExchange([b"left", b"over"])
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made(fake).hung_up)
            fake.gone.set()


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_a_truncated_document_is_detected(taken: int) -> None:
    """Its exchange ends normally, and reports that the connection must be closed."""
    fake = FakeExchange()
    scope = trio.CancelScope()

    async def send(message: Any) -> None:
        if len(fake.sent) == taken:
            scope.cancel()
        await fake.send(message)

    exchange = Exchange(fake.scope, fake.receive, send)
    with trio.fail_after(5):
        with scope:
            await exchange.json(200, b"{}")
        if taken == 2:
            await exchange.end_stream()
        else:
            with pytest.raises(ClientGone):
                await exchange.end_stream()
    assert (len(fake.sent), fake.ended) == (taken, taken == 2)


@pytest.mark.parametrize(
    ("second", "stream"), [(b"text/event-stream", True), (b"text/html", False)], ids=["with stream", "without"]
)
def test_accept_may_be_there_on_several_lines(second: bytes, stream: bool) -> None:
    fake = FakeExchange()
    fake.scope["headers"] = [(b"accept", b"application/json"), (b"accept", second)]
    exchange = made(fake)
    assert (exchange.accepts_json, exchange.accepts_stream) == (True, stream)
