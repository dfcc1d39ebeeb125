"""Responses byte by byte: framing, refusals, limits, and fuzzing against h11.

Each stream of bytes goes to ours and to h11, to ours in random pieces. Every difference must be one of these:

- Ours refuses. h11 takes bare LF, folded fields, control characters in values, versions and statuses that do not exist,
  a `Content-Length` beside chunks or repeated, interim responses with a body or with 101, spaces around chunk sizes.
- Ours skips empty lines before a status line, and takes any reason phrase, which it drops.
- Ours does not reuse the connection: after a response to no request, or one with a body that its status forbids.
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http_client.response_parser import MAX_FIELDS, MAX_FRAMING, InvalidResponse, ResponseParser
from tests.support.http_requests import split
from tests.support.http_responses import read_response, read_response_by_h11

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def each_byte(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


COMPLETE = [
    # data, body, ends with the connection, can be reused
    (OK + b"Content-Length: 5\r\n\r\nhello", b"hello", False, True),
    (OK + b"Content-Length: 0\r\n\r\n", b"", False, True),
    (OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello", b"hello", False, False),
    (CHUNKED + b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n", b"hello!", False, True),
    (CHUNKED + b"5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", b"hello", False, True),
    (OK + b"\r\nhello", b"hello", True, False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello", False, False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", b"hello", False, False),
    (b"HTTP/1.1 204 No Content\r\n\r\n", b"", False, True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"", False, False),
    (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", b"", False, False),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx", b"x", False, True),
    (b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\nx", b"x", False, True),
    (OK + b"Upgrade: h2c\r\nConnection: upgrade\r\nContent-Length: 1\r\n\r\nx", b"x", False, True),
]


@pytest.mark.parametrize(("data", "body", "ends", "reusable"), COMPLETE)
def test_a_body_ends_where_its_framing_says(data: bytes, body: bytes, ends: bool, reusable: bool) -> None:
    for parts in ([data], each_byte(data)):
        found = read_response(parts, ends=ends)
        assert (found.body, found.is_complete, found.keeps_alive) == (body, True, reusable)
        assert "link" not in found.headers
        assert "x-sum" not in found.headers


@pytest.mark.parametrize("rest", [OK + b"Content-Length: 0\r\n\r\n", b"HTTP/1.1 2", b"H", b"garbage", b"\x00"])
@pytest.mark.parametrize("first", [OK + b"Content-Length: 1\r\n\r\nx", CHUNKED + b"1\r\nx\r\n0\r\n\r\n"])
def test_what_follows_a_response_only_prevents_reuse(first: bytes, rest: bytes) -> None:
    found = read_response([first + rest], ends=False)
    assert (found.status, found.body, found.is_complete, found.is_refused) == (200, b"x", True, False)
    assert not found.keeps_alive


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"X Y: z\r\n\r\n",
        OK + b"X: a\x00b\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        OK + b"Content-Length: -5\r\n\r\n",
        OK + b"Content-Length: 99999999999999999999999\r\n\r\n",
        OK + b"Transfer-Encoding: gzip\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        CHUNKED + b"x\r\n",
        CHUNKED + b"5\r\nhello!\r\n",
    ],
)
def test_invalid_responses_are_refused(data: bytes) -> None:
    for parts in ([data], each_byte(data)):
        found = read_response(parts, ends=True)
        assert found.is_refused
        assert not found.is_complete


@pytest.mark.parametrize("data", [OK, OK + b"Content-Length: 5\r\n\r\nhell", CHUNKED + b"5\r\nhello\r\n0\r\n"])
def test_a_response_that_is_cut_is_incomplete(data: bytes) -> None:
    assert not read_response([data], ends=True).is_complete


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK, b"X: y\r\n"),
        (OK + b"X: ", b"yyyyyyyy"),
        (OK, b"yyyyyyyy"),
        (b"HTTP/1.1 200 ", b"OKOKOKOK"),
        (CHUNKED + b"1;", b"xxxxxxxx"),
        (CHUNKED + b"0\r\n", b"X: y\r\n"),
        (CHUNKED + b"0\r\nX: ", b"yyyyyyyy"),
        (CHUNKED, b"1;" + b"x" * 98 + b"\r\nz\r\n"),
    ],
)
def test_everything_but_the_body_is_bounded(start: bytes, more: bytes) -> None:
    found = read_response([start, *[more] * (2 * MAX_FRAMING // len(more))], ends=False)
    assert found.is_refused
    assert len(found.body) < MAX_FRAMING // 50


def test_a_long_stream_of_small_chunks_is_not_bounded() -> None:
    parser, received = ResponseParser(), 0
    parser.receive(CHUNKED)
    for _ in range(MAX_FRAMING // 4):
        parser.receive(b"1\r\nx\r\n")
        received += sum(map(len, parser.pop_pieces()))
    assert received == MAX_FRAMING // 4
    assert not parser.is_complete


def test_the_number_of_fields_is_bounded() -> None:
    with pytest.raises(InvalidResponse, match=f"more than {MAX_FIELDS} header fields"):
        ResponseParser().receive(OK + b"A:1\r\n" * (MAX_FIELDS + 2))


def test_fields_of_one_name_are_joined_but_not_cookies() -> None:
    found = read_response([OK + b"A: 1\r\na:  2 \r\nSet-Cookie: x=1\r\nset-cookie: y=2\r\n\r\n"], ends=True)
    assert (found.headers, found.cookies) == ({"a": "1, 2"}, ["x=1", "y=2"])


# -- against h11 -------------------------------------------------------------------------------------------------------

LINES = [
    OK,
    b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 204 \r\n",
    b"HTTP/1.1 304 N\r\n",
    b"HTTP/1.1 500\r\n",
    b"HTTP/1.1 404 \xff\r\n",
]
FIELDS = [
    b"Content-Length: 5", b"content-length: 0", b"Content-Length: 5, 5", b"Content-Length : 5", b"Content-Length: 05",
    b"Content-Length: +5", b"Transfer-Encoding: chunked", b"Transfer-Encoding: Chunked", b"Transfer-Encoding: x",
    b"Connection: close", b"Connection: keep-alive", b"Connection: upgrade", b"Upgrade: x", b"Connection: x, close",
    b"Set-Cookie: a=b; Path=/", b"X: y", b"x: z", b"X:", b"X: \xff", b"X: a\tb ", b" folded", b"X: \x01", b"X: \x7f",
]  # fmt: skip
BODIES = [
    b"", b"hello", b"hell", b"hello!", b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n", b"05\r\nhello\r\n00\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n", b"5\nhello\n0\n\n", b"5\r\nhello0\r\n\r\n", b"0\r\n", b"fffffffffffffffff\r\nhello",
]  # fmt: skip
INTERIM = [b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nX: interim\r\n\r\n"]
LENIENT = re.compile(
    rb"(HTTP/1.1 1\d\d [^\r\n]*\r\n([^\r\n]+\r\n)*\r\n)?([\r\n]|HTTP/1.\d \d+ [^\r\n]*\0)|HTTP/1.1 1\d\d [^\r\n]*\0"
)
ALPHABET = b"\r\n\r\n \t:;,0159aAfF\x00\x7f\xffHTTP/1.1"


def generate(source: random.Random) -> bytes:
    """Return a response, most of which are nearly legal, with a few bytes changed."""
    body = source.choice(BODIES)
    fields = source.choices(FIELDS, k=source.choice((0, 1, 1, 2, 3)))
    if source.random() < 0.7:
        fields.append(b"Transfer-Encoding: chunked" if b"0\r\n" in body else b"Content-Length: %d" % len(body))
    ends = [b"\r\n" if source.random() < 0.97 else source.choice((b"\n", b"\r", b"\r\r\n")) for _ in fields]
    head = b"".join(field + end for field, end in zip(fields, ends, strict=True))
    data = bytearray(source.choice(INTERIM) + source.choice(LINES) + head + b"\r\n" + body)
    for _ in range(source.choice((0, 0, 0, 1, 2))):
        at = source.randrange(len(data) + 1)
        data[at : at + source.randrange(2)] = bytes(source.choices(ALPHABET, k=source.randrange(3)))
    return bytes(data)


def compare(data: bytes, cuts: list[int], *, ends: bool) -> None:
    ours, whole = read_response(split(data, cuts), ends=ends), read_response([data], ends=ends)
    other = read_response_by_h11([data], ends=ends)
    assert (ours.status, ours.is_complete, ours.headers) == (whole.status, whole.is_complete, whole.headers)
    assert ours.is_refused == whole.is_refused, "the result depends on how the bytes come"
    if not ours.status or LENIENT.match(data):
        return
    assert ours.status == other.status, "h11 finds no such response"
    ours.headers.pop("transfer-encoding", None)  # h11 puts its value into lower case
    other.headers.pop("transfer-encoding", None)
    assert (ours.headers, ours.cookies) == (other.headers, other.cookies)
    if ours.is_complete:
        assert (other.is_complete, other.body) == (True, ours.body), "h11 frames the body differently"
        assert other.keeps_alive or not ours.keeps_alive, "h11 closes the connection"
    else:
        assert other.body.startswith(ours.body)
        assert ours.is_refused or not other.is_complete, "h11 has come further"


@settings(max_examples=1_000, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_what_is_taken_is_read_as_by_h11(source: random.Random, ends: bool) -> None:
    data = generate(source)
    compare(data, [source.randrange(len(data) + 1) for _ in range(source.randrange(6))], ends=ends)
