"""Events kept for reconnecting clients: bounded, ordered, and separate per session and stream."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.budget import Budget
from gateway.frontends.legacy import event_store
from gateway.frontends.legacy.event_store import (
    MAX_SESSION_BYTES,
    MAX_SESSION_STREAMS,
    MAX_STREAM_BYTES,
    MAX_STREAM_EVENTS,
    RESUME_WITHIN,
    EventStore,
)

LOST = b'{"lost":true}'


def store(most: int = event_store.MAX_BYTES) -> EventStore:
    return EventStore(Budget(most), Budget(2**30))


def messages(log: event_store.Log, after: int = 0) -> list[bytes]:
    return [message for _, message in log.after(after)]


def test_only_later_events_of_the_stream_are_found() -> None:
    kept = store()
    one, other = kept.open(), kept.open()
    first = kept.add(one, b"a")
    kept.add(other, b"X")
    kept.add(one, b"b")
    kept.add(other, b"Y")
    found = kept.find(first.decode(), now=0)
    assert found is not None
    log, number = found
    assert messages(log, number) == [b"b"]
    assert messages(log) == [b"a", b"b"]


def test_ids_are_unique_and_say_their_stream() -> None:
    kept = store()
    logs = [kept.standalone(), kept.open(), kept.open()]
    ids = [give(log) for log in logs for give in (kept.mark, lambda log: kept.add(log, b"m"), kept.mark)]
    assert len(set(ids)) == 9
    for index, event_id in enumerate(ids):
        found = kept.find(event_id.decode(), now=0)
        assert found == (logs[index // 3], index % 3 + 1)


def test_markers_are_not_messages() -> None:
    kept = store()
    log = kept.open()
    kept.mark(log)
    kept.add(log, b"a")
    kept.mark(log)
    assert messages(log) == [b"a"]


@pytest.mark.parametrize(
    "event_id", ["", "-", "--", "x-1-1", "{tag}-1", "{tag}-1-", "{tag}-2-1", "{tag}-1-2", "{tag}-1-1-1", "{tag}--1-1",
                 "{tag}-1-\u0661", "{tag}-1-" + "9" * 5000, "{tag}-1-1.0", " {tag}-1-1"],
)  # fmt: skip
def test_ids_that_were_never_given_are_unknown(event_id: str) -> None:
    kept = store()
    tag = kept.add(kept.open(), b"a").decode().split("-")[0]
    assert kept.find(event_id.replace("{tag}", tag), now=0) is None
    assert kept.find(f"{tag}-1-1", now=0) is not None


def test_an_id_of_another_session_is_unknown() -> None:
    mine, theirs = store(), store()
    mine.add(mine.open(), b"mine")
    assert mine.find(theirs.add(theirs.open(), b"theirs").decode(), now=0) is None
    assert store().find("-0-1", now=0) is None


@given(st.text())
def test_no_id_however_odd_breaks_the_search(event_id: str) -> None:
    kept = store()
    kept.add(kept.open(), b"a")
    assert kept.find(event_id, now=0) is None


def test_a_long_stream_keeps_its_newest_events() -> None:
    kept = store()
    log = kept.open()
    first = kept.add(log, b"0")
    for number in range(1, MAX_STREAM_EVENTS + 10):
        kept.add(log, b"%d" % number)
    assert len(log.events) == MAX_STREAM_EVENTS
    assert messages(log)[-1] == b"%d" % (MAX_STREAM_EVENTS + 9)
    assert kept.find(first.decode(), now=0) == (log, 1)  # what is left comes, the gap does not


def test_a_heavy_stream_keeps_its_newest_events() -> None:
    kept = store()
    log = kept.open()
    for letter in (b"a", b"b", b"c"):
        kept.add(log, letter * (MAX_STREAM_BYTES // 2))
    assert [message[:1] for message in messages(log)] == [b"b", b"c"]
    assert kept.size == log.size == MAX_STREAM_BYTES // 2 * 2
    kept.add(log, b"d" * (MAX_STREAM_BYTES + 1))
    assert messages(log) == []
    assert kept.size == 0


def test_an_answer_too_large_to_keep_is_replaced() -> None:
    kept = store()
    log = kept.open()
    primed = kept.mark(log)
    answer = kept.end(log, b"x" * (MAX_STREAM_BYTES + 1), LOST, now=0)
    assert messages(log) == [LOST]
    assert kept.find(primed.decode(), now=0) == (log, 1)
    assert kept.find(answer.decode(), now=0) == (log, 2)


def test_ended_streams_expire_and_others_do_not() -> None:
    kept = store()
    ended, running, own = kept.open(), kept.open(), kept.standalone()
    ids = [kept.add(log, b"m").decode() for log in (ended, running, own)]
    kept.end(ended, b"answer", LOST, now=10)
    assert kept.find(ids[0], now=10 + RESUME_WITHIN - 1) is not None
    assert kept.find(ids[0], now=10 + RESUME_WITHIN) is None
    assert [kept.find(event_id, now=10_000) is not None for event_id in ids] == [False, True, True]
    assert kept.size == 2


def test_ended_streams_per_session_are_bounded() -> None:
    kept = store()
    slow = kept.open()  # opened first, ends last
    logs = [kept.open() for _ in range(MAX_SESSION_STREAMS)]
    for log in [*logs, slow]:
        kept.end(log, b"answer", LOST, now=0)
    assert len(kept) == MAX_SESSION_STREAMS
    assert messages(logs[0]) == []
    assert messages(logs[1]) == messages(slow) == [b"answer"]


def test_bytes_per_session_are_bounded() -> None:
    kept = store()
    logs = [kept.open() for _ in range(MAX_SESSION_BYTES // MAX_STREAM_BYTES + 2)]
    for log in logs[:-1]:
        kept.end(log, b"x" * MAX_STREAM_BYTES, LOST, now=0)
    kept.add(logs[-1], b"y" * MAX_STREAM_BYTES)
    assert kept.size <= MAX_SESSION_BYTES
    assert [len(messages(log)) for log in logs] == [0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("bound", ["events", "all buffers"])
def test_bytes_of_all_sessions_are_bounded(bound: str) -> None:
    budget, larger = Budget(100), Budget(1_000)
    budgets = (budget, larger) if bound == "events" else (larger, budget)
    one, other = EventStore(*budgets), EventStore(*budgets)
    ended, running = one.open(), one.open()
    one.end(ended, b"x" * 40, LOST, now=0)
    one.add(running, b"y" * 40)
    theirs = other.open()
    other.add(theirs, b"z" * 20)
    assert budget.used == 100
    other.add(theirs, b"w" * 30)  # its own event is dropped: sessions do not pay for each other
    assert messages(theirs) == [b"w" * 30][: budget.used // 110]
    one.add(running, b"y" * 40)
    assert messages(ended) == []
    assert budget.used <= 100
    one.clear()
    other.clear()
    assert budget.used == larger.used == 0


def test_a_dropped_stream_keeps_nothing() -> None:
    kept = store()
    log = kept.open()
    event_id = kept.add(log, b"a")
    kept.drop(log)
    kept.drop(log)
    kept.add(log, b"b")
    kept.end(log, b"answer", LOST, now=0)
    assert kept.find(event_id.decode(), now=0) is None
    assert (kept.size, len(kept)) == (0, 0)
