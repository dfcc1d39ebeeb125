"""The list of processes by `ps`, where there is no `/proc`."""

import os
import time

import pytest

from gateway.processes.process_tree import ProcessScan, ProcessTree, Row, assign_processes, parse_ps, run_ps

ME, MY_SESSION = os.getpid(), os.getsid(0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("%d 1 9 Ss+  Mon Mar  2 09:05:07 2026 /bin/zsh -l", ("S", 1, 9, None)),
        ("%d 4 9 Z    Mon Mar  2 09:05:07 2026 (zsh)", ("Z", 4, 9, None)),
        ("%d 4 9 R    Mon Mar  2 09:05:07 2026", ("R", 4, 9, None)),
        ("%d 1 9 S Mon Mar  2 09:05:07 2026 n A=b MCP_GATEWAY_COOKIE=be.1:ca.2 B=c", ("S", 1, 9, ["be.1", "ca.2"])),
        ("%d 1 9 S Mon Mar  2 09:05:07 2026 MCP_GATEWAY_COOKIE=be.1 A=b node", ("S", 1, 9, ["be.1"])),
        ("%d 1 9 S Mon Mar  2 09:05:07 2026 node XMCP_GATEWAY_COOKIE=be.1", ("S", 1, 9, None)),
        ("%d 1 9 S Mon Mar  2 09:05:07 2026 node \udcff MCP_GATEWAY_COOKIE=be.1", ("S", 1, 9, ["be.1"])),
    ],
    ids=["a command", "a zombie", "no command", "tree ids", "in front", "another variable", "bytes"],
)  # fmt: skip
def test_a_line_of_ps_is_a_row(line: str, expected) -> None:
    found = parse_ps(f"{line % ME}\n".encode(errors="surrogateescape"))
    (row,) = found.rows.values()
    assert (row.state, row.ppid, row.pgrp, found.tree_ids.get(ME)) == expected
    assert (row.pid, row.session) == (ME, MY_SESSION)


def test_start_times_are_ordered() -> None:
    times = ["Dec 31 23:59:59 2025", "Jan  1 00:00:00 2026", "Jan  1 00:00:01 2026", "Jan 31 12:00:00 2026"]
    times += ["Feb  1 00:00:00 2026", "Feb  1 00:01:00 2026", "Feb  1 01:00:00 2026", "Nov 29 12:00:00 2026"]
    starts = [parse_ps(f"{ME} 1 1 S Mon {each} x".encode()).rows[ME].start for each in times]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize(
    "line", ["", "1 2 3 Z - (zsh)", "x 2 3 S Mon Mar  2 09:05:07 2026 x", "1 2 3 S lun. mars 2 9:05 2026 x"]
)
def test_an_unknown_line_is_skipped(line: str) -> None:
    mine = f"{ME} 0 1 S Mon Mar  2 09:05:07 2026 python"
    assert parse_ps(f"{line}\n{mine}\n".encode()).rows.keys() == {ME}


@pytest.mark.parametrize(
    "output",
    ["", "1 0 1 S Mon Mar  2 09:05:07 2026 init\n", f"{ME} 0 1 S lun. mars 2 9:05 2026 x\n"],
    ids=["empty", "others", "another date"],
)
def test_a_list_without_this_process_fails(output: str) -> None:
    with pytest.raises(OSError, match="ps printed"):
        parse_ps(output.encode())


@pytest.mark.parametrize(
    ("command", "error", "text"),
    [
        (["no-such-ps"], FileNotFoundError, "no-such-ps"),
        (["sh", "-c", "echo 1; exit 3"], OSError, "status 3"),
        (["sh", "-c", "echo 1; kill -9 $$"], OSError, "status -9"),
        (["sh", "-c", "echo 1; exec sleep 60"], TimeoutError, "more than 0.3 s"),
        (["sh", "-c", "exec >&-; exec sleep 60"], TimeoutError, "more than 0.3 s"),
        (["yes"], OSError, "failed"),
    ],
    ids=["none", "fails", "killed", "hangs", "hangs silently", "endless"],
)
def test_ps_is_bounded(command, error, text) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=text):
        run_ps(command, 60 if command == ["yes"] else 0.3)
    assert time.monotonic() - began < 30


def test_a_process_of_an_unknown_start_is_adopted_by_its_session() -> None:
    tree = ProcessTree("cafe.1", (1.0, 1.0, 1.0))
    tree.set_child(100, 0)
    rows = {100: Row(100, "S", 1, 100, 100, 50), 101: Row(101, "S", 1, 100, 100, 51)}
    assign_processes(ProcessScan(rows, {}, {}), {tree.id: tree}, since=0, instance="cafe", excluded=frozenset())
    assert (tree.start, tree.processes, tree.sessions) == (50, {100: 50, 101: 51}, {100: 50})


def test_a_reused_pid_is_not_adopted() -> None:
    tree = ProcessTree("cafe.1", (1.0, 1.0, 1.0))
    tree.set_child(100, 0)
    rows = {100: Row(100, "S", 1, 7, 7, 50), 102: Row(102, "S", 100, 7, 7, 51)}
    assign_processes(ProcessScan(rows, {}, {}), {tree.id: tree}, since=0, instance="cafe", excluded=frozenset())
    assert tree.processes == {}
