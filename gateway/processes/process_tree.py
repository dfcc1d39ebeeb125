"""The descendants of a child, from `/proc` or `ps`: what the gateway may kill.

Synchronous, standard library only and nothing heavy: the sentinel loads this file by path. A process belongs to a
child's tree when any evidence says so: it was seen there before (pid *and* start time), its session or its chain of
parents leads to the child, its environment has the id of the tree, or its limits have the mark of the tree (Linux).
Each alone can be lost (`setsid`, a dead parent, `env -i`), so they add up, and a process once seen stays in the tree.
No tasks; a `ProcessTree` is owned by the guard in the gateway, and by the sentinel in its own process.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # the sentinel must stay small
if TYPE_CHECKING:
    from collections.abc import Sequence

TREE_ID_VARIABLE = "MCP_GATEWAY_COOKIE"
"""Environment variable with the id of the child's tree, `instance.child`; a nested gateway appends its own ids after a
colon. The name must not change: gateways of other versions may be above or below this one."""

MARK_LIMIT = 10
"""RLIMIT_LOCKS, not enforced by Linux since 2.4.25. A random 60-bit number in it, the mark of a tree, has no effect and
is inherited through `fork`, `exec`, `setsid` and `env -i`. Unlike the environment, zombies still have it."""

MARK_LIMIT_LINE = b"Max file locks"

HAS_PROC = sys.platform == "linux" and os.path.exists("/proc/self/stat")  # ruff: ignore[os-path-exists] - pathlib costs 2 MB in the sentinel
CAN_SCAN = HAS_PROC or sys.platform == "darwin"

PS = (
    "ps", "-A", "-E", "-ww", "-o", "pid=", "-o", "ppid=", "-o", "pgid=", "-o", "stat=", "-o", "lstart=",
    "-o", "command=",
)  # fmt: skip
"""The `ps` of macOS: all processes, with the environments that this user may read after the commands."""

PS_TIMEOUT = 4.0  # s; it takes some 20 ms
MAX_PS_OUTPUT = 64 << 20  # bytes: a thousand processes with the 64 kB of a large environment
MONTHS = (b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec")

MAX_ENVIRON = 4 << 20  # bytes: the kernel allows argv and environment 6 MB together; usual ones have a few kB
MAX_LISTINGS = 5  # a chain of processes that forks faster than that is found by the next scan
ENDED = "ZX"


class Row:  # ruff: ignore[class-as-data-structure] - dataclasses cost the sentinel 2 MB
    """One process as in `/proc/PID/stat`; `start`, in clock ticks since boot, distinguishes reused pids.

    From `ps`, `start` has a resolution of one second and an arbitrary origin.
    """

    __slots__ = ("pgrp", "pid", "ppid", "session", "start", "state")

    def __init__(self, pid: int, state: str, ppid: int, pgrp: int, session: int, start: int) -> None:
        self.pid = pid
        self.state = state
        self.ppid = ppid
        self.pgrp = pgrp
        self.session = session
        self.start = start


class ProcessTree:
    """A child and the processes that descend from it.

    `pid` is 0 until the child has been spawned, `start` also until a scan by `ps` shows it. `processes` maps the pids
    seen so far to their start times, the child's own included; `sessions` maps the sessions that members of the tree
    lead to the start times of their leaders.
    `pinned`: the child is one of the scanning process and not reaped yet, so that its pid cannot be reused. `grace` is
    that of each step of the shutdown sequence: close stdin, SIGTERM, SIGKILL.
    """

    __slots__ = ("grace", "id", "limit_mark", "pid", "pinned", "processes", "sessions", "start")

    def __init__(self, tree_id: str, grace: tuple[float, float, float], limit_mark: int = 0) -> None:
        self.id = tree_id
        self.limit_mark = limit_mark
        self.grace = grace
        self.processes: dict[int, int] = {}
        self.sessions: dict[int, int] = {}
        self.pid = 0
        self.start = 0
        self.pinned = False

    def set_child(self, pid: int, start: int) -> None:
        """Record the child itself, which leads a session of its own."""
        self.pid = pid
        self.start = start
        self.processes[pid] = start
        self.sessions[pid] = start

    def members(self, rows: dict[int, Row]) -> list[Row]:
        """Return the processes of the tree in `rows`, zombies included, oldest first."""
        members = [rows[pid] for pid, start in self.processes.items() if pid in rows and rows[pid].start == start]
        return sorted(members, key=lambda row: row.start)

    def living(self, rows: dict[int, Row]) -> list[Row]:
        """Return the running processes of the tree; zombies hold no resources and have already ended."""
        return [row for row in self.members(rows) if row.state not in ENDED]


def parse_stat(pid: int, data: bytes) -> Row | None:
    """Parse one `/proc/PID/stat`.

    The name in it may contain spaces and parentheses, so split after the last parenthesis.
    """
    fields = data[data.rfind(b")") + 2 :].split()
    if len(fields) < 20:
        return None
    return Row(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def _read(path: str, limit: int) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = b""
        while len(data) < limit and (part := os.read(fd, min(limit, 1 << 16))):
            data += part
        return data
    except OSError:  # the process ended between open and read
        return None
    finally:
        os.close(fd)


def read_row(pid: int) -> Row | None:
    """Return the process `pid` as it is now; None without one (or `/proc`)."""
    data = _read(f"/proc/{pid}/stat", 4096)
    return None if data is None else parse_stat(pid, data)


def read_tree_ids(pid: int) -> list[str]:
    """Return the tree ids in the initial environment of `pid`.

    Empty for a zombie or another user's process.
    """
    prefix = TREE_ID_VARIABLE.encode() + b"="
    data = _read(f"/proc/{pid}/environ", MAX_ENVIRON) or b""
    for entry in data.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode("ascii", "replace").split(":")
    return []


def read_limit_mark(pid: int) -> int:
    """Return the limit mark of `pid`, even of a zombie; 0 without one."""
    for line in (_read(f"/proc/{pid}/limits", 1 << 14) or b"").splitlines():
        if line.startswith(MARK_LIMIT_LINE):
            soft = line[len(MARK_LIMIT_LINE) :].split(None, 1)[0]
            return int(soft) if soft.isdigit() else 0
    return 0


def list_processes() -> dict[int, Row]:
    """Return every visible process.

    A process may fork and end between the listing and the reading, and its child would be in neither. So list again
    until a listing shows no new pid (nearly always the second).
    """
    rows: dict[int, Row] = {}
    if not HAS_PROC:
        return rows
    seen: set[str] = set()
    for _ in range(MAX_LISTINGS):
        names = {name for name in os.listdir("/proc") if name.isdigit()} - seen  # ruff: ignore[os-listdir] - see CAN_SCAN
        if not names:
            break
        seen |= names
        for name in names:
            if (row := read_row(int(name))) is not None:
                rows[row.pid] = row
    return rows


class ProcessScan:  # ruff: ignore[class-as-data-structure] - see Row
    """All processes at one time, with tree ids and limit marks of possible descendants."""

    __slots__ = ("limit_marks", "rows", "tree_ids")

    def __init__(self, rows: dict[int, Row], tree_ids: dict[int, list[str]], limit_marks: dict[int, int]) -> None:
        self.rows = rows
        self.tree_ids = tree_ids
        self.limit_marks = limit_marks


def parse_ps(output: bytes) -> ProcessScan:
    """Parse what `PS` prints; read sessions from the system, since macOS prints addresses.

    Lines without a start time are skipped: those of processes that are about to exit have none.

    Raises:
        OSError: this process is not listed, so that others may be missing too.
    """
    rows: dict[int, Row] = {}
    tree_ids: dict[int, list[str]] = {}
    for line in output.splitlines():
        try:
            pid, ppid, pgrp, state, _, month, day, clock, year, *command = line.split(None, 9)
            hour, minute, second = map(int, clock.split(b":"))
            days = (int(year) * 12 + MONTHS.index(month)) * 31 + int(day)
            row = Row(int(pid), state[:1].decode(), int(ppid), int(pgrp), int(pgrp), 0)
        except ValueError:
            continue
        row.start = ((days * 24 + hour) * 60 + minute) * 60 + second
        row.session = _read_session(row)
        rows[row.pid] = row
        _, found, value = b" ".join([b"", *command]).rpartition(b" " + TREE_ID_VARIABLE.encode() + b"=")
        if found:
            tree_ids[row.pid] = value.split(b" ", 1)[0].decode("ascii", "replace").split(":")
    if os.getpid() not in rows:
        raise OSError(f"ps printed {output[:80]!r}")
    return ProcessScan(rows, tree_ids, {})


def _read_session(row: Row) -> int:
    try:
        return os.getsid(row.pid)
    except OSError:  # a zombie, or it ended meanwhile
        return row.pgrp


def run_ps(command: Sequence[str] = PS, timeout: float = PS_TIMEOUT) -> bytes:
    """Return what `ps` prints. Raises OSError, also when it fails or takes too long."""
    import subprocess  # not on Linux, where the sentinel has no use for it

    deadline = time.monotonic() + timeout
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}  # `lstart` has a fixed format then
    null = subprocess.DEVNULL
    output = bytearray()
    # In a group of its own: Ctrl-C at a terminal must not cut the list.
    with subprocess.Popen(
        command, stdin=null, stdout=subprocess.PIPE, stderr=null, env=env, process_group=0, bufsize=0
    ) as ps:
        try:
            poll = select.poll()
            poll.register(ps.stdout or 0, select.POLLIN)
            while poll.poll(max(0.0, deadline - time.monotonic()) * 1000) and ps.stdout is not None:
                part = ps.stdout.read(1 << 16)
                output += part
                if not part or len(output) > MAX_PS_OUTPUT:
                    break
            else:
                raise subprocess.TimeoutExpired(command, timeout)
            status = ps.wait(max(0.0, deadline - time.monotonic())) if not part else -1
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{command[0]} took more than {timeout:g} s") from None
        finally:
            ps.kill()
    if status:
        raise OSError(f"{command[0]} failed (status {status}, {len(output)} bytes)")
    return bytes(output)


def scan_processes(since: int, known: frozenset[tuple[int, int]] = frozenset()) -> ProcessScan:
    """List processes; read ids and marks of those started after `since`, not `known`.

    Reading an environment may block while its owner is stuck in the kernel: never call this on the loop's own thread.

    Raises:
        OSError: `ps` has failed.
    """
    if not HAS_PROC and CAN_SCAN:
        return parse_ps(run_ps())
    rows = list_processes()
    unknown = [row for row in rows.values() if row.start >= since and (row.pid, row.start) not in known]
    tree_ids = {row.pid: read_tree_ids(row.pid) for row in unknown if row.state not in ENDED}
    limit_marks = {row.pid: read_limit_mark(row.pid) for row in unknown if not tree_ids.get(row.pid)}
    return ProcessScan(rows, tree_ids, limit_marks)


def _forget_reused(tree: ProcessTree, rows: dict[int, Row], sessions: set[int]) -> None:
    """Remove pids and sessions that have ended, before their numbers can be reused."""
    for pid, start in list(tree.processes.items()):
        if pid == tree.pid and tree.pinned:  # it may have started during the scan
            continue
        if pid not in rows or rows[pid].start != start:
            del tree.processes[pid]
    for leader, start in list(tree.sessions.items()):
        if leader == tree.pid and tree.pinned:
            continue
        # A session id is not reused while the session has members, even after its leader has ended.
        if leader not in sessions or (leader in rows and rows[leader].start != start):
            del tree.sessions[leader]


def assign_processes(
    found: ProcessScan, trees: dict[str, ProcessTree], *, since: int, instance: str, excluded: frozenset[int]
) -> list[tuple[Row, str]]:
    """Add every process in `found` to its tree, and remove those that have ended.

    `since`: start time before which no process can descend from a child. `excluded`: pids in no tree (the gateway, its
    sentinel). Returns the orphans, each with its tree id: processes of this `instance` whose tree is not in `trees`.
    """
    rows = found.rows
    sessions = {row.session for row in rows.values()}
    owner: dict[int, ProcessTree] = {}
    for tree in trees.values():
        if tree.pid and not tree.start and (row := rows.get(tree.pid)) is not None and row.session == row.pid:
            tree.set_child(row.pid, row.start)  # `spawn` reads no start time where there is no `/proc`
        _forget_reused(tree, rows, sessions)
        owner.update(dict.fromkeys(tree.processes, tree))
    unassigned = [
        row for row in rows.values() if row.start >= since and row.pid not in excluded and row.pid not in owner
    ]
    unassigned.sort(key=lambda row: row.start)  # parents before children, so that one pass is nearly always enough
    orphans: list[tuple[Row, str]] = []
    marked = {tree.limit_mark: tree for tree in trees.values() if tree.limit_mark}
    for row in unassigned:
        if (limit_mark := found.limit_marks.get(row.pid, 0)) in marked:
            _assign(row, marked[limit_mark], owner)
        for tree_id in found.tree_ids.get(row.pid, ()):
            if tree_id in trees:
                _assign(row, trees[tree_id], owner)
            elif tree_id.partition(".")[0] == instance:
                orphans.append((row, tree_id))
    for tree in trees.values():
        for pid, start in tree.processes.items():
            if pid in rows and rows[pid].session == pid:  # it may have called `setsid` since it was first seen
                tree.sessions[pid] = start
    # By session and by chain of parents, until a pass finds none; each pass assigns at least one, so it ends.
    progress = True
    while progress:
        unassigned = [row for row in unassigned if row.pid not in owner]
        by_session = {session: tree for tree in trees.values() for session in tree.sessions}
        progress = False
        for row in unassigned:
            parent = rows.get(row.ppid)
            has_parent = parent is not None and parent.start <= row.start  # else the parent's pid was reused meanwhile
            tree = by_session.get(row.session) or (owner.get(row.ppid) if has_parent else None)
            if tree is not None:
                _assign(row, tree, owner)
                progress = True
    return [(row, tree_id) for row, tree_id in orphans if row.pid not in owner]


def _assign(row: Row, tree: ProcessTree, owner: dict[int, ProcessTree]) -> None:
    owner[row.pid] = tree
    tree.processes[row.pid] = row.start
    if row.session == row.pid:
        tree.sessions[row.pid] = row.start


def send(row: Row, number: int) -> bool:
    """Signal exactly this process; return False when it has ended or may not be signalled.

    The pidfd pins the process that has the pid now, and the signal is sent only if its start time matches, so that a
    reused pid is never signalled. Where there are no pidfds, its group and session must match, which leaves a moment in
    which the pid can be reused.
    """
    pid = row.pid
    if sys.platform != "linux":
        try:
            if (os.getpgid(pid), os.getsid(pid)) != (row.pgrp, row.session):
                return False
            os.kill(pid, number)
        except OSError:
            return False
        return True
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # a kernel or sandbox without pidfds
        fd = -1
    try:
        now = read_row(pid)
        if now is None or now.start != row.start:
            return False
        signal.pidfd_send_signal(fd, number) if fd >= 0 else os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True
