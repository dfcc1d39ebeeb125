"""Differential fuzzing of the request parser against h11, its more lenient predecessor.

Each stream of bytes goes to both, ours in random pieces. Every difference must be one of these:

- Ours refuses. h11 takes bare LF, folded headers, control characters in values, methods and versions that do not exist,
  a `Content-Length` beside chunks or repeated, chunks in HTTP/1.0, spaces around chunk sizes; and it counts the bytes
  of a head only while it is incomplete.
- Ours closes the connection after a request where h11 does not (`Proxy-Connection: close`).

Ours accepts nothing that h11 refuses. What both accept must be equal: method, target, headers, body.

`FUZZ_SECONDS=1200 python -m pytest -n 0 tests/httpd/test_request_fuzz.py -k long` runs for that long and prints each
failing stream; such a stream belongs into `SEEDS`.
"""

from __future__ import annotations

import os
import random
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support.http_requests import Parsed, read, read_by_h11, split

LINES = [
    b"GET / HTTP/1.1",
    b"POST /a?b HTTP/1.1",
    b"PUT /%20 HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
    b"GET http://h:1/x HTTP/1.1",
    b"HEAD //x HTTP/1.1",
    b"get / HTTP/1.1",
    b"BREW / HTTP/1.1",
    b"GET / HTTP/1.2",
    b"GET / HTTP/2.0",
    b"GET  / HTTP/1.1",
    b"GET / http/1.1",
    b"GET / RTSP/1.0",
    b"GET /",
    b"GET /\xc3\xbc HTTP/1.1",
    b"PRI * HTTP/2.0",
    b"",
]
HEADERS = [
    b"Host: a",
    b"host:b",
    b"Host:",
    b"Content-Length: 5",
    b"Content-Length: 05",
    b"Content-Length: 5, 5",
    b"Content-Length: 0",
    b"Content-Length: -5",
    b"Content-Length: +5",
    b"Content-Length: 5 5",
    b"Content-Length : 5",
    b"Content-Length:\t5 ",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding:chunked ",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: chunked, gzip",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding",
    b" Transfer-Encoding: chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade, close",
    b"Connection: Upgrade",
    b"Connection: close, x",
    b"Connection: , ,close",
    b"Connection: closed",
    b"Upgrade: websocket",
    b"Expect: 100-continue",
    b"Trailer: X",
    b"X: y",
    b"X: \x01",
    b"X: \xff",
    b"X: a\tb",
    b"\tfolded",
    b": y",
    b"X y: z",
    b"X\x00: z",
    b"X: \rY: z",
    b"Proxy-Connection: close",
]
LEGAL_HEADERS = [
    b"Connection: close",
    b"Connection: keep-alive",
    b"Connection: Upgrade",
    b"Connection: Upgrade, close",
    b"Connection: x, close",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"X: \xff",
    b"X: a\tb",
    b"X:",
    b"Trailer: X",
]
BODIES = [
    b"",
    b"hello",
    b"hello\r\n",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n",
    b"05\r\nhello\r\n00\r\nX: y\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r\nhello",
    b"4\r\n\r\n\r\n\r\n0\r\n\r\n",
    b"2\r\n\r\n\r\n1\r\n\r\r\n0\r\n\r\n",
    b"5 \r\nhello\r\n0\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"5\r\nhello0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"5\r\nhello\r\n0\r\n\r",
    b"-5\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhello\r\n0\r\nX : y\r\n\r\n",
    b"fffffffffffffffff\r\nhello",
    b"0\r\n",
    b"0\r\n\n",
]
ENDS = [b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n", b" \r\n", b"\r\n\r\n", b""]
ALPHABET = b"\r\n\r\n \t:;,-+0159aAfFxX/\x00\x0b\x0c\x7f\x80\xff\"'_GETHTTP/1.1"
NEXT = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CODED = b"Transfer-Encoding: chunked\r\n\r\n"
SEEDS = [
    NEXT + NEXT,
    POST + b"Content-Length: 5\r\n" + CODED + b"0\r\n\r\n" + NEXT,
    POST + CODED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n" + NEXT,
    POST + b"Upgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: 5\r\n\r\nhello" + NEXT,
    POST + b"Connection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n" + NEXT,
    POST + b"Connection: Upgrade, closee\r\nUpgrade: websocket\r\n\r\n" + NEXT,
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"PRI * HTTP/2.0\r\n\n\r\n",
]


def of(values: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.sampled_from(values)


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(line + end for line, end in parts)


REQUESTS = st.builds(
    lambda line, headers, empty, body: joined([line, *headers]) + empty + body,
    st.tuples(of(LINES), of(ENDS)),
    st.lists(st.tuples(of(HEADERS), of(ENDS)), max_size=6),
    of(ENDS),
    of(BODIES),
)
STREAMS = st.lists(REQUESTS, min_size=1, max_size=3).map(b"".join)


def compare(data: bytes, cuts: list[int]) -> None:
    """Fail where the two differ in another way than the docstring of this file allows."""
    ours, reference = read(split(data, cuts)), read_by_h11([data])
    assert read([data]).requests == ours.requests, "the result depends on how the bytes come"
    assert len(ours.requests) <= len(reference.requests), "h11 takes fewer requests"
    for mine, other in zip(ours.requests, reference.requests, strict=False):
        assert identity(mine) == identity(other)
        if mine.complete:
            assert (other.complete, other.body) == (True, mine.body), "h11 frames the body differently"
            assert other.keeps_alive or not mine.keeps_alive, "h11 closes the connection"
        else:
            assert other.body.startswith(mine.body), "h11 finds another body"
            assert ours.refused is not None or not other.complete, "h11 has come further"
    ended = bool(ours.requests) and ours.requests[-1].complete and not ours.requests[-1].keeps_alive
    assert len(ours.requests) == len(reference.requests) or ours.refused is not None or ended, "a request is missing"


def identity(request: Parsed) -> object:
    """Return what both must agree on before the body; h11 lower-cases transfer codings."""
    headers = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in request.headers]
    return request.method, request.target, request.version, headers


def mutate(data: bytes, source: random.Random) -> bytes:
    """Change, insert, delete, repeat or swap a few bytes."""
    mutable = bytearray(data)
    for _ in range(source.choice((0, 0, 0, 1, 1, 2, 3, 8))):
        at = source.randrange(len(mutable) + 1)
        length = source.choice((1, 1, 1, 2, 4, 20))
        match source.randrange(4):
            case 0:
                mutable[at:at] = bytes(source.choices(ALPHABET, k=length))
            case 1:
                del mutable[at : at + length]
            case 2:
                mutable[at : at + 1] = bytes(source.choices(ALPHABET, k=1))
            case _:
                mutable[at:at] = mutable[at : at + length]
    return bytes(mutable)


def generate(source: random.Random) -> bytes:
    """Make a stream of requests, most of which are nearly legal."""

    def request() -> bytes:
        legal = source.random() < 0.8
        chosen = [source.choice(LINES[:7] if legal else LINES)]
        chosen += [b"Host: a"] * (source.random() < 0.95)
        chosen += source.choices(LEGAL_HEADERS if legal else HEADERS, k=source.choice((0, 1, 1, 2, 3)))
        body = source.choice((b"", b"hello", *BODIES))
        if legal and body:
            chosen.append(b"Transfer-Encoding: chunked" if b"0\r\n" in body else b"Content-Length: %d" % len(body))
        ends = [b"\r\n" if legal or source.random() < 0.98 else source.choice(ENDS) for _ in chosen]
        return joined([*zip(chosen, ends, strict=True), (b"", b"\r\n")]) + body

    stream = b"".join(request() * source.choice((1, 1, 1, 2)) for _ in range(source.choice((1, 1, 2, 3))))
    return mutate(source.choice((stream, stream, stream, source.choice(SEEDS))), source)


@pytest.mark.parametrize("data", SEEDS)
def test_known_streams_are_read_as_by_h11(data: bytes) -> None:
    for at in range(len(data)):
        compare(data, [at])
        compare(data[:at], [at // 2])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(STREAMS, st.lists(st.integers(0, 300), max_size=8))
@example(SEEDS[0], [0])
def test_structured_streams_are_read_as_by_h11(data: bytes, cuts: list[int]) -> None:
    compare(data, cuts)


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False))
def test_mutated_streams_are_read_as_by_h11(source: random.Random) -> None:
    data = generate(source)
    compare(data, [source.randrange(len(data) + 1) for _ in range(source.randrange(6))])


@pytest.mark.skipif("FUZZ_SECONDS" not in os.environ, reason="runs for FUZZ_SECONDS")
def test_long_run_finds_no_difference() -> None:
    end = time.monotonic() + float(os.environ["FUZZ_SECONDS"])
    seed = int(os.environ.get("FUZZ_SEED", "0"))
    counts = {"streams": 0, "ours refused": 0, "complete requests": 0}
    while time.monotonic() < end:
        seed += 1
        source = random.Random(seed)
        data = generate(source)
        try:
            compare(data, [source.randrange(len(data) + 1) for _ in range(source.randrange(6))])
        except AssertionError as error:
            pytest.fail(f"seed {seed}: {data!r}: {error}")
        found = read([data])
        counts["streams"] += 1
        counts["ours refused"] += found.refused is not None
        counts["complete requests"] += sum(each.complete for each in found.requests)
    print(counts, "last seed", seed)
