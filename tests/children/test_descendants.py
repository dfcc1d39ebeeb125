"""Process ownership: the rules applied to invented processes."""

import os
import signal

import pytest

from gateway.processes.process_tree import (
    ProcessScan,
    ProcessTree,
    Row,
    assign_processes,
    parse_stat,
    read_limit_mark,
    scan_processes,
    send,
)
from gateway.processes.sentinel import Watch, signal_times

INSTANCE = "cafe"
GATEWAY = 10


def tree(pid: int = 100, start: int = 50, limit_mark: int = 7) -> ProcessTree:
    made = ProcessTree(f"{INSTANCE}.1", (1.0, 1.0, 1.0), limit_mark)
    made.set_child(pid, start)
    return made


def row(pid: int, ppid: int = 1, *, session: int = 1, start: int = 60, state: str = "S") -> Row:
    return Row(pid, state, ppid, session, session, start)


CHILD = row(100, GATEWAY, session=100, start=50)


def assigned(
    *rows: Row, tree_ids=None, limit_marks=None, of: ProcessTree | None = None, excluded=frozenset({GATEWAY})
) -> set[int]:
    mine = of or tree()
    found = ProcessScan({each.pid: each for each in rows}, tree_ids or {}, limit_marks or {})
    assign_processes(found, {mine.id: mine}, since=40, instance=INSTANCE, excluded=excluded)
    return set(mine.processes)


@pytest.mark.parametrize(
    ("others", "marks", "expected"),
    [
        ([row(101, 100)], {}, {101}),
        ([row(101, 1, session=100)], {}, {101}),
        ([row(103, 102), row(102, 101), row(101, 100)], {}, {101, 102, 103}),
        ([row(101, 1)], {"tree_ids": {101: ["other.9", "cafe.1"]}}, {101}),
        ([row(101, 1)], {"limit_marks": {101: 7}}, {101}),
        ([row(101, 1, state="Z")], {"limit_marks": {101: 7}}, {101}),
        ([row(101, 1, session=101), row(102, 1, session=101)], {"limit_marks": {101: 7}}, {101, 102}),
        ([row(101, 1)], {"limit_marks": {101: 8}, "tree_ids": {101: ["beef.1"]}}, set()),
        ([row(101, 1), row(102, GATEWAY)], {}, set()),
        ([row(101, 100, start=49)], {}, set()),
        ([row(101, 100, start=30)], {}, set()),
        ([row(101, 1, session=101), row(102, 1, session=55)], {"tree_ids": {102: ["cafe.1"]}}, {102}),
    ],
    ids=[
        "its child", "its session", "a chain, in any order", "its tree id among others", "its mark", "a zombie's mark",
        "a session that a member founded", "foreign marks", "strangers", "older than its parent",
        "older than the gateway", "a tree id in a foreign session claims that process alone",
    ],
)  # fmt: skip
def test_evidence_assigns_processes_to_trees(others: list[Row], marks, expected: set[int]) -> None:
    assert assigned(CHILD, *others, **marks) == {100} | expected


def test_known_processes_stay_known_without_evidence() -> None:
    mine = tree()
    assert assigned(CHILD, row(101, 100), of=mine) == {100, 101}
    assert assigned(CHILD, row(101, 1, session=77), of=mine) == {100, 101}


def test_a_reused_number_is_forgotten() -> None:
    mine = tree()
    assigned(CHILD, row(101, 100, session=101), of=mine)
    assert mine.sessions.keys() == {100, 101}
    assert assigned(CHILD, row(101, 1, session=101, start=99), row(102, 1, session=101, start=99), of=mine) == {100}
    assert mine.sessions.keys() == {100}


def test_a_session_outlives_its_leader_until_empty() -> None:
    mine = tree()
    assigned(CHILD, row(101, 100, session=101), row(102, 101, session=101), of=mine)
    assert assigned(CHILD, row(102, 1, session=101), row(103, 1, session=101), of=mine) == {100, 102, 103}
    assert assigned(CHILD, of=mine) == {100}
    assert assigned(CHILD, row(104, 1, session=101), of=mine) == {100}


def test_a_pinned_child_born_during_the_scan_stays() -> None:
    mine = tree()
    mine.pinned = True
    assert assigned(of=mine) == {100}
    mine.pinned = False
    assert assigned(of=mine) == set()


def test_orphans_are_named_and_spared_processes_unclaimed() -> None:
    mine = tree()
    found = ProcessScan({1: row(1), 5: row(5), 6: row(6)}, {5: ["cafe.99"], 6: ["beef.1"]}, {})
    orphans = assign_processes(found, {mine.id: mine}, since=40, instance=INSTANCE, excluded=frozenset({GATEWAY}))
    assert [(orphan.pid, tree_id) for orphan, tree_id in orphans] == [(5, "cafe.99")]
    assert assigned(CHILD, row(9, 100), excluded=frozenset({9})) == {100}


def test_parse_stat_survives_any_name() -> None:
    tail = b" S 4 5 6 " + b" ".join(b"0" for _ in range(15)) + b" 777 0 0"
    parsed = parse_stat(3, b"3 (a) b) (c" + b")" + tail)
    assert parsed is not None
    assert (parsed.state, parsed.ppid, parsed.pgrp, parsed.session, parsed.start) == ("S", 4, 5, 6, 777)
    assert parse_stat(3, b"") is None


def test_a_signal_reaches_only_its_process() -> None:
    me = scan_processes(0).rows[os.getpid()]
    assert send(me, 0)
    assert not send(Row(me.pid, me.state, me.ppid, me.pgrp, me.session + 1, me.start + 1), signal.SIGKILL)
    assert read_limit_mark(me.pid) == 0


def test_the_sentinel_forgets_exited_and_ignores_new_processes() -> None:
    watch = Watch()
    child = b'{"op":"child","tree":"cafe.1","limit_mark":7,"pid":%d,"start":50,"close_stdin":1,"terminate":2,"kill":3}'
    assert watch.handle_announcement(b'{"op":"instance","instance":"cafe","pid":10,"start":40}')
    assert watch.handle_announcement(child % 0)
    assert watch.trees["cafe.1"].processes == {}
    assert watch.handle_announcement(child % 100)
    assert watch.handle_announcement(b'{"op":"processes","tree":"cafe.1","processes":[[101,60]],"sessions":[[101,60]]}')
    assert watch.trees["cafe.1"].processes == {100: 50, 101: 60}
    assert watch.handle_announcement(b'{"op":"from the future"}')
    assert watch.handle_announcement(b'{"op":"gone","tree":"cafe.1"}')
    assert watch.trees == {}
    assert not watch.handle_announcement(b'{"op":"bye"}')


def test_signals_come_earlier_after_the_child_exits() -> None:
    mine = ProcessTree("cafe.1", (2.0, 3.0, 1.0))
    assert signal_times(mine, 10.0, None) == (12.0, 15.0)
    assert signal_times(mine, 10.0, 10.5) == (10.75, 13.75)
