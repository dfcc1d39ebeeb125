"""The request parser: accepted and refused requests, independent of chunking."""

from __future__ import annotations

import pytest

from gateway.httpd.request_parser import RequestHead, RequestParser
from tests.support.http_requests import MAX_HEAD, Parsed, Reading, read, split

HOST = b"Host: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
ACCEPTED = {
    "get": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "target as a URL": (b"GET http://a/b?c HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", b""),
    "empty header": (b"GET / HTTP/1.1\r\nHost:\r\nX:\r\n\r\n", b""),
    "space around a value": (b"GET / HTTP/1.1\r\nHost: \t a \t \r\n\r\n", b""),
    "value beyond ASCII": (b"GET / HTTP/1.1\r\nHost: a\r\nX: \xc3\xbc\xff\r\n\r\n", b""),
    "length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n\r\n\r\nbody", b"\r\n\r\nbody"),
    "length with zeros": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0004 \r\n\r\nbody", b"body"),
    "no body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", b""),
    "chunks": (CHUNKED + b"2\r\nab\r\n0000A\r\n0123456789\r\n0\r\n\r\n", b"ab0123456789"),
    "chunk of empty lines": (CHUNKED + b"6\r\n\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n\r\n"),
    "chunk extensions": (CHUNKED + b'2;a=b;c="d"\r\nab\r\n0;e\r\n\r\n', b"ab"),
    "trailers": (CHUNKED + b"2\r\nab\r\n0\r\nX: y\r\nContent-MD5: z\r\n\r\n", b"ab"),
    "no chunks": (CHUNKED + b"0\r\n\r\n", b""),
    "upgrade": (b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"\r\n", b""),
    "upgrade with a body": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n" + UPGRADE + b"\r\nab", b"ab"),
    "upgrade with chunks": (CHUNKED[:-2] + UPGRADE + b"\r\n2\r\nab\r\n0\r\n\r\n", b"ab"),
}
REFUSED = {
    "TLS": (b"\x16\x03\x01\x02\x00", 400),
    "empty line": (b"\r\n", 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF at the end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare LF after a header": (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    "bare CR in a header": (b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400),
    "NUL in a header": (b"GET / HTTP/1.1\r\nHost: a\0b\r\n\r\n", 400),
    "control character in a header": (b"GET / HTTP/1.1\r\nHost: a\x0bb\r\n\r\n", 400),
    "folded header": (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
    "folded first header": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
    "space in a name": (b"GET / HTTP/1.1\r\nHost: a\r\nX Y: b\r\n\r\n", 400),
    "no colon": (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
    "no name": (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space after the version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "tab for a space": (b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space in the target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "target beyond ASCII": (b"GET /\xc3\xbc HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "control character in the target": (b"GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no target": (b"GET HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no version": (b"GET /\r\nHost: a\r\n\r\n", 400),
    "another version": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "HTTP/0.9": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another protocol": (b"GET / RTSP/1.0\r\nHost: a\r\n\r\n", 400),
    "unknown method": (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "method in lower case": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\nX: a\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    "two hosts in 1.0": (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400),
    "the same length twice": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", 400),
    "list of lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab", 400),
    "empty length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\n", 400),
    "negative length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400),
    "length with a sign": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\na", 400),
    "length in hex": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x1\r\n\r\na", 400),
    "length with an underscore": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\na", 400),
    "length with a form feed": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\x0c\r\n\r\na", 400),
    "enormous length": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\na", 400),
    "length and chunks": (CHUNKED[:-2] + b"Content-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (b"POST / HTTP/1.1\r\nContent-Length: 3\r\n" + CHUNKED[17:] + b"0\r\n\r\n", 400),
    "another coding": (CHUNKED.replace(b"chunked", b"gzip"), 501),
    "two codings": (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", 501),
    "chunked twice": (CHUNKED.replace(b"chunked", b"chunked, chunked") + b"0\r\n\r\n", 400),
    "coding in two headers": (CHUNKED[:-2] + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "coding before another": (CHUNKED.replace(b"chunked", b"chunked, identity") + b"0\r\n\r\n", 400),
    "quoted coding": (CHUNKED.replace(b"chunked", b'"chunked"') + b"0\r\n\r\n", 501),
    "coding with a tab before it": (CHUNKED.replace(b"chunked", b"\x0bchunked") + b"0\r\n\r\n", 400),
    "chunks in 1.0": (CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n", 400),
    "bare LF after a chunk size": (CHUNKED + b"2\nab\r\n0\r\n\r\n", 400),
    "bare LF after a chunk": (CHUNKED + b"2\r\nab\n0\r\n\r\n", 400),
    "chunk longer than its size": (CHUNKED + b"2\r\nabc\r\n0\r\n\r\n", 400),
    "chunk size with a sign": (CHUNKED + b"+2\r\nab\r\n0\r\n\r\n", 400),
    "chunk size with a prefix": (CHUNKED + b"0x2\r\nab\r\n0\r\n\r\n", 400),
    "chunk size with a space": (CHUNKED + b" 2\r\nab\r\n0\r\n\r\n", 400),
    "no chunk size": (CHUNKED + b"\r\nab\r\n0\r\n\r\n", 400),
    "enormous chunk": (CHUNKED + b"f" * 17 + b"\r\nab", 400),
    "bare LF in an extension": (CHUNKED + b"2;a\nb\r\nab\r\n0\r\n\r\n", 400),
    "bare CR in an extension": (CHUNKED + b"2;a\rb\r\nab\r\n0\r\n\r\n", 400),
    "bad trailer": (CHUNKED + b"0\r\nX Y: z\r\n\r\n", 400),
    "length as a trailer": (CHUNKED + b"0\r\nContent-Length: 3\r\n\r\n", 400),
    "bare LF at the end of trailers": (CHUNKED + b"0\r\nX: y\r\n\n", 400),
    "long head": (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * MAX_HEAD + b"\r\n\r\n", 431),
    "long target": (b"GET /" + b"y" * MAX_HEAD, 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * 3000, 431),
    "long extension": (CHUNKED + b"2;" + b"e" * MAX_HEAD + b"\r\n", 431),
    "extensions of small chunks": (CHUNKED + (b"1;" + b"e" * 200 + b"\r\nx\r\n") * 100, 431),
    "long trailer": (CHUNKED + b"0\r\nX: " + b"y" * MAX_HEAD, 431),
    "many trailers": (CHUNKED + b"0\r\n" + b"X: y\r\n" * 3000, 431),
}
NEXT = b"GET /next HTTP/1.1\r\nHost: b\r\n\r\n"


def plain(reading: Reading) -> Reading:
    """Leave out how much of the rest had come when a request was refused."""
    reading.left = b""
    return reading


@pytest.mark.parametrize(("data", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_requests_are_read_however_they_come(data: bytes, body: bytes) -> None:
    whole = read([data + NEXT])
    assert [(each.body, each.complete, each.keeps_alive) for each in whole.requests] == [
        (body, True, True),
        (b"", True, True),
    ]
    assert (whole.refused, whole.left, whole.requests[1].target) == (None, b"", b"/next")
    assert plain(read(split(data + NEXT, range(len(data + NEXT))))) == whole
    for at in range(len(data + NEXT)):
        assert plain(read(split(data + NEXT, [at]))) == whole


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED)
def test_protocol_violations_are_refused(data: bytes, status: int) -> None:
    for parts in ([data], [data + NEXT], split(data, range(len(data)))):
        reading = read(parts)
        assert reading.refused == status
        assert not any(each.complete for each in reading.requests)


@pytest.mark.parametrize(("data", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_the_same_request_is_read_again(data: bytes, body: bytes) -> None:
    first, other, *again = read([data + NEXT + data * 3]).requests
    assert (first.body, other.target, again) == (body, b"/next", [first] * 3)


@pytest.mark.parametrize("data", [each for each, _ in ACCEPTED.values()], ids=ACCEPTED)
def test_a_request_that_breaks_off_is_never_complete(data: bytes) -> None:
    for end in range(len(data)):
        reading = read([data[:end]])
        assert reading.refused is None
        assert not any(each.complete for each in reading.requests)


def test_names_are_in_lower_case_and_values_stripped() -> None:
    (request,) = read([b"GET /a?b HTTP/1.1\r\nHost: a\r\nX-Thing: \t One \t\r\nx-thing: two\r\n\r\n"]).requests
    headers = [(b"host", b"a"), (b"x-thing", b"One"), (b"x-thing", b"two")]
    assert request == Parsed("GET", b"/a?b", "1.1", headers, keeps_alive=True, complete=True)


@pytest.mark.parametrize(
    ("head", "keeps_alive"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x\r\nConnection: close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + UPGRADE + b"Connection: close\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: closed\r\n", True),
        (b"GET / HTTP/1.0\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n", False),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n", False),
    ],
)
def test_the_last_request_of_a_connection_is_known(head: bytes, keeps_alive: bool) -> None:
    (request, *more) = read([head + b"\r\n" + NEXT]).requests
    assert request.keeps_alive == keeps_alive
    assert bool(more) == keeps_alive


def test_a_head_of_the_greatest_size_is_read() -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    data = start + b"y" * (MAX_HEAD - len(start) - 4) + b"\r\n\r\n"
    assert len(data) == MAX_HEAD
    assert read([data]).requests[0].complete
    assert read([data.replace(b"X", b"XX")]).refused == 431


def test_bytes_after_a_request_stay_buffered() -> None:
    reading = read([b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" + NEXT])
    assert reading.left == NEXT


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_complete_body_is_taken_immediately(size: int) -> None:
    parser = RequestParser(MAX_HEAD)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
    for _ in range(2):  # what follows a request is the next one
        parser.receive((head + b"body"[:size]) * 2)
    for _ in range(4):
        assert isinstance(parser.next_event(), RequestHead)
        assert parser.take_body() == b"body"[:size]
    assert parser.next_event() is None


@pytest.mark.parametrize("framing", [b"Content-Length: 4", b"Transfer-Encoding: chunked"])
def test_other_bodies_are_not_taken(framing: bytes) -> None:
    parser = RequestParser(MAX_HEAD)
    parser.receive(b"POST / HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % framing + b"3\r\n")
    assert isinstance(parser.next_event(), RequestHead)
    assert parser.take_body() is None
    parser.receive(b"abc\r\n0\r\n\r\n")
    assert parser.next_event() == (b"3\r\na" if b"Length" in framing else b"abc")
