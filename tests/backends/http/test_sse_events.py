"""Server-sent event parsing: independent of chunking, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.backends.http.sse_events import MAX_ID_BYTES, MAX_RETRY, Event, EventParser
from gateway.jsonrpc import EDGE_BYTES, recover_id
from gateway.lines import OversizedLine

LIMIT = 1 << 20


def parse(*chunks: bytes, limit: int = LIMIT) -> list[Event]:
    parser = EventParser(limit)
    return [event for chunk in chunks for event in parser.feed(chunk)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"", []),
        (b"data: one\n\n", [b"one"]),
        (b"data:one\n\n", [b"one"]),
        (b"data:  one\n\n", [b" one"]),
        (b"data: one\r\n\r\ndata: two\r\r", [b"one", b"two"]),
        (b"\xef\xbb\xbfdata: one\n\n", [b"one"]),
        (b": keep-alive\n\n:\n\ndata: one\n\n", [b"one"]),
        (b"data: one\ndata: two\n\n", [b"one\ntwo"]),
        (b"data: one\ndata\ndata:\ndata: two\n\n", [b"one\n\n\ntwo"]),
        (b"data:\n\n", []),
        (b"data\n\n", []),
        (b"id: 7\ndata:\n\n", []),
        (b"data: unfinished\n", []),
        (b"data: unfinished", []),
        (b"unknown: x\nData: y\ndata: one\n\n", [b"one"]),
        (b'data: {"a":"b: c"}\n\n', [b'{"a":"b: c"}']),
        (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
    ],
)
def test_the_data_of_events(stream: bytes, expected: list[bytes]) -> None:
    assert [event.data for event in parse(stream)] == expected


def test_a_bom_before_an_overlong_event_is_skipped() -> None:
    parser = EventParser(10)
    (event,) = parser.feed(b"\xef\xbb\xbfdata: " + b"x" * 100 + b"\n\n")
    assert isinstance(event.data, OversizedLine)
    assert event.data.head == b"x" * 100


def test_an_event_name_applies_to_that_event_only() -> None:
    events = parse(b"event: endpoint\ndata: /x\n\nevent:\ndata: a\n\ndata: b\n\nevent: lost\n\ndata: c\n\n")
    assert [event.event for event in events] == ["endpoint", "message", "message", "message"]


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"data: ", b"data", b"id: 1", b"a", b":", b" "])), st.data())
def test_any_chunking_gives_the_same_events(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert parse(*chunks) == parse(stream) == parse(*(bytes([byte]) for byte in stream))


@given(st.binary(max_size=400), st.integers(1, 40))
def test_hostile_bytes_neither_raise_nor_exceed_the_limit(stream: bytes, limit: int) -> None:
    for event in parse(stream, limit=limit):
        assert isinstance(event.data, OversizedLine) or len(event.data) <= limit


def test_the_last_id_counts_after_its_event_completes() -> None:
    parser = EventParser(LIMIT)
    parser.feed(b"id: 1\ndata: x\n\nid: 2\ndata: y\n")
    assert parser.last_id == b"1"
    parser.feed(b"\n")
    assert parser.last_id == b"2"
    parser.feed(b"data: no id of its own\n\n")
    assert parser.last_id == b"2"


def test_an_event_with_only_an_id_primes() -> None:
    parser = EventParser(LIMIT)
    assert parser.feed(b"id: stream-1/0\ndata:\n\n") == []
    assert parser.last_id == b"stream-1/0"


def test_an_empty_id_clears_the_last_one() -> None:
    parser = EventParser(LIMIT)
    parser.feed(b"id: 1\ndata: x\n\nid\ndata: y\n\n")
    assert parser.last_id == b""


@pytest.mark.parametrize("bad", [b"a\0b", b"x" * (MAX_ID_BYTES + 1), b"tab\there", b" padded", b"del\x7f"])
def test_an_id_unfit_for_a_header_is_ignored(bad: bytes) -> None:
    parser = EventParser(LIMIT)
    parser.feed(b"id: good\ndata: x\n\nid: " + bad + b"\ndata: y\n\n")
    assert parser.last_id == b"good"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"1500", 1.5), (b"0", 0.0), (b"9" * 40, MAX_RETRY), (b"-1", None), (b"1.5", None), (b"", None), (b"x", None)],
)
def test_a_servers_requested_pause_is_returned(value: bytes, expected: float | None) -> None:
    parser = EventParser(LIMIT)
    parser.feed(b"retry: " + value + b"\n\n")
    assert parser.retry == expected


MESSAGE = b'{"jsonrpc":"2.0","id":42,"result":{"text":"%b"}}'


@pytest.mark.parametrize("step", [1 << 30, 70_001, 997])
def test_an_overlong_event_keeps_its_ends(step: int) -> None:
    limit = 200_000
    message = MESSAGE % (b"x" * 300_000)
    stream = b"data: small\n\nid: 5\ndata: " + message + b"\n\ndata: next\n\n"
    parser = EventParser(limit)
    events = [event for at in range(0, len(stream), step) for event in parser.feed(stream[at : at + step])]
    first, big, last = (event.data for event in events)
    assert (first, last) == (b"small", b"next")
    assert isinstance(big, OversizedLine)
    assert len(big.head) <= EDGE_BYTES
    assert len(big.tail) <= EDGE_BYTES
    assert recover_id(big.head) == 42
    assert big.tail.endswith(b'xxx"}}')
    assert parser.last_id == b"5"


def test_many_small_data_lines_count_together() -> None:
    (event,) = parse(b"data: 0123456789\n" * 11 + b"\n", limit=100)
    assert isinstance(event.data, OversizedLine)


def test_data_of_exactly_the_limit_passes() -> None:
    (event,) = parse(b"data: " + b"x" * 100 + b"\n\n", limit=100)
    assert event.data == b"x" * 100
    (event,) = parse(b"data: " + b"x" * 101 + b"\n\n", limit=100)
    assert isinstance(event.data, OversizedLine)


def test_an_endless_line_uses_bounded_memory() -> None:
    parser = EventParser(1000)
    for _ in range(300):
        assert parser.feed(b"y" * 10_000) == []
    held = parser._line
    assert held.size == 3_000_000
    assert len(held._head or b"") + len(held._tail) <= 2 * EDGE_BYTES
