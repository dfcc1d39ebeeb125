"""Who descends from a child, read from `/proc`: the one place that decides whom the gateway may end.

Linux only, synchronous, standard library only and nothing heavy: the sentinel loads this file by path. A process is a
child's when any evidence says so: it was seen as such before (pid *and* start time), its session or its chain of
parents leads to the child, its environment carries the child's cookie, or its limits the child's brand. Each alone can
be shed (`setsid`, a dead parent, `env -i`), so they add up, and what was once seen stays known. No tasks; the owner of
a `ProcessTree` is the guard in the gateway, and the sentinel in its own process.
"""

from __future__ import annotations

import os
import signal
import sys

COOKIE_VARIABLE = "MCP_GATEWAY_COOKIE"
"""Every child's environment has it: `instance.child`; a gateway below a gateway appends its own after a colon."""

BRAND_LIMIT = 10
"""RLIMIT_LOCKS, which Linux has not enforced since 2.4.25: a number of 60 bits in it harms nobody, and is inherited
through `fork`, `exec`, `setsid` and `env -i`. Unlike the environment it can be read of zombies, too."""

BRAND_LINE = b"Max file locks"

CAN_SCAN = sys.platform == "linux" and os.path.exists("/proc/self/stat")  # ruff: ignore[os-path-exists] - pathlib costs 2 MB in the sentinel

MAX_ENVIRON = 4 << 20  # bytes: the kernel allows argv and environment 6 MB together, nobody has more than some kB
MAX_LISTINGS = 5  # a chain of processes that forks faster than five listings of /proc is met again by the next scan
ENDED = "ZX"


class Row:  # ruff: ignore[class-as-data-structure] - dataclasses cost the sentinel 2 MB
    """One process as `/proc/PID/stat` shows it; `start` is in clock ticks since boot and tells reused pids apart."""

    __slots__ = ("pgrp", "pid", "ppid", "session", "start", "state")

    def __init__(self, pid: int, state: str, ppid: int, pgrp: int, session: int, start: int) -> None:
        self.pid = pid
        self.state = state
        self.ppid = ppid
        self.pgrp = pgrp
        self.session = session
        self.start = start


class ProcessTree:
    """What is known of one child and of those who descend from it.

    `pid` is 0 until the child has been spawned. `kin` maps the pids seen so far to their start times, the child's own
    included; `sessions` maps the sessions that the family founded to the start time of their leader. `pinned`: the
    child is the scanning process's own and not reaped yet, so that its number cannot stand for anybody else.
    """

    __slots__ = ("brand", "cookie", "kin", "ladder", "pid", "pinned", "sessions", "start")

    def __init__(self, cookie: str, ladder: tuple[float, float, float], brand: int = 0) -> None:
        self.cookie = cookie
        self.brand = brand
        self.ladder = ladder
        self.kin: dict[int, int] = {}
        self.sessions: dict[int, int] = {}
        self.pid = 0
        self.start = 0
        self.pinned = False

    def born(self, pid: int, start: int) -> None:
        """Record the child itself, which leads a session of its own."""
        self.pid = pid
        self.start = start
        self.kin[pid] = start
        self.sessions[pid] = start

    def members(self, rows: dict[int, Row]) -> list[Row]:
        """Everybody of the family in `rows`, zombies too."""
        found = [rows[pid] for pid, start in self.kin.items() if pid in rows and rows[pid].start == start]
        return sorted(found, key=lambda row: row.start)

    def living(self, rows: dict[int, Row]) -> list[Row]:
        """The members that still run; a zombie holds nothing and cannot be ended twice."""
        return [row for row in self.members(rows) if row.state not in ENDED]


def parse_stat(pid: int, data: bytes) -> Row | None:
    """Read one `/proc/PID/stat`; the name in it may hold blanks and brackets, so cut after the last bracket."""
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
    """The process `pid` as it is now; None when there is none (or no `/proc`)."""
    data = _read(f"/proc/{pid}/stat", 4096)
    return None if data is None else parse_stat(pid, data)


def read_cookies(pid: int) -> list[str]:
    """The cookies in the environment with which `pid` was started; none for a zombie or somebody else's process."""
    mark = COOKIE_VARIABLE.encode() + b"="
    data = _read(f"/proc/{pid}/environ", MAX_ENVIRON) or b""
    for entry in data.split(b"\0"):
        if entry.startswith(mark):
            return entry[len(mark) :].decode("ascii", "replace").split(":")
    return []


def read_brand(pid: int) -> int:
    """The brand of `pid`, a zombie's too; 0 when it has none."""
    for line in (_read(f"/proc/{pid}/limits", 1 << 14) or b"").splitlines():
        if line.startswith(BRAND_LINE):
            soft = line[len(BRAND_LINE) :].split(None, 1)[0]
            return int(soft) if soft.isdigit() else 0
    return 0


def scan() -> dict[int, Row]:
    """Every process that can be seen.

    A process may fork and end between the listing and the reading, and its child would be in neither: so list again
    until a listing shows no new pid (nearly always the second).
    """
    rows: dict[int, Row] = {}
    if not CAN_SCAN:
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
    """All processes at one time, and the marks (cookies, brands) of those that might be a child's."""

    __slots__ = ("brands", "cookies", "rows")

    def __init__(self, rows: dict[int, Row], cookies: dict[int, list[str]], brands: dict[int, int]) -> None:
        self.rows = rows
        self.cookies = cookies
        self.brands = brands


def survey(since: int, known: frozenset[tuple[int, int]] = frozenset()) -> ProcessScan:
    """Scan, and read the marks of whoever started after `since` and is not in `known` (pid, start).

    Reading an environment may block while its owner is stuck in the kernel: never call this on the loop's own thread.
    """
    rows = scan()
    unknown = [row for row in rows.values() if row.start >= since and (row.pid, row.start) not in known]
    cookies = {row.pid: read_cookies(row.pid) for row in unknown if row.state not in ENDED}
    brands = {row.pid: read_brand(row.pid) for row in unknown if not cookies.get(row.pid)}
    return ProcessScan(rows, cookies, brands)


def _forget_reused(family: ProcessTree, rows: dict[int, Row], sessions: set[int]) -> None:
    """Drop numbers that stand for nobody any more, before they can stand for somebody else."""
    for pid, start in list(family.kin.items()):
        if pid == family.pid and family.pinned:  # it may have been born while the scan ran
            continue
        if pid not in rows or rows[pid].start != start:
            del family.kin[pid]
    for leader, start in list(family.sessions.items()):
        if leader == family.pid and family.pinned:
            continue
        # A session's number is not given out again while the session has members, even when its leader is gone.
        if leader not in sessions or (leader in rows and rows[leader].start != start):
            del family.sessions[leader]


def claim(
    found: ProcessScan, families: dict[str, ProcessTree], *, since: int, instance: str, spare: frozenset[int]
) -> list[tuple[Row, str]]:
    """Give every process in `found` to the family it belongs to (`ProcessTree.kin`), and forget those that are gone.

    `since`: nothing older can descend from a child of ours. `spare`: pids that are never anybody's (the gateway, its
    sentinel). Returns the ghosts: processes with a cookie of this `instance` whose family is not in `families`.
    """
    rows = found.rows
    sessions = {row.session for row in rows.values()}
    owner: dict[int, ProcessTree] = {}
    for family in families.values():
        _forget_reused(family, rows, sessions)
        owner.update(dict.fromkeys(family.kin, family))
    candidates = [row for row in rows.values() if row.start >= since and row.pid not in spare and row.pid not in owner]
    candidates.sort(key=lambda row: row.start)  # parents before children, so that one pass is nearly always enough
    ghosts: list[tuple[Row, str]] = []
    branded = {family.brand: family for family in families.values() if family.brand}
    for row in candidates:
        if (brand := found.brands.get(row.pid, 0)) in branded:
            _adopt(row, branded[brand], owner)
        for cookie in found.cookies.get(row.pid, ()):
            if cookie in families:
                _adopt(row, families[cookie], owner)
            elif cookie.partition(".")[0] == instance:
                ghosts.append((row, cookie))
    _note_new_sessions(rows, families)
    _adopt_descendants([row for row in candidates if row.pid not in owner], rows, families, owner)
    return [(row, cookie) for row, cookie in ghosts if row.pid not in owner]


def _adopt(row: Row, family: ProcessTree, owner: dict[int, ProcessTree]) -> None:
    owner[row.pid] = family
    family.kin[row.pid] = row.start
    if row.session == row.pid:
        family.sessions[row.pid] = row.start


def _adopt_descendants(
    strangers: list[Row], rows: dict[int, Row], families: dict[str, ProcessTree], owner: dict[int, ProcessTree]
) -> None:
    """Adopt by session and by chain of parents until nobody new is found; each pass adopts one, so it ends."""
    while strangers:
        founded = {session: family for family in families.values() for session in family.sessions}
        left: list[Row] = []
        for row in strangers:
            family = founded.get(row.session) or _parents_family(row, rows, owner)
            if family is None:
                left.append(row)
            else:
                _adopt(row, family, owner)
        if len(left) == len(strangers):
            break
        strangers = left


def _note_new_sessions(rows: dict[int, Row], families: dict[str, ProcessTree]) -> None:
    """A member may have called `setsid` since it was first seen: what it starts there is ours too."""
    for family in families.values():
        for pid, start in family.kin.items():
            if pid in rows and rows[pid].session == pid:
                family.sessions[pid] = start


def _parents_family(row: Row, rows: dict[int, Row], owner: dict[int, ProcessTree]) -> ProcessTree | None:
    parent = rows.get(row.ppid)
    if parent is None or parent.start > row.start:  # its parent's number was given out again while we were reading
        return None
    return owner.get(row.ppid)


def send(pid: int, start: int, number: int) -> bool:
    """Signal exactly this process; False when it is gone, or not ours to signal.

    The pidfd pins whoever has the pid now, the start time says whether that is who was meant, and only then the signal
    goes out: a reused pid is never hit.
    """
    if sys.platform != "linux":
        return False
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    except OSError:  # a kernel or sandbox without pidfds
        fd = -1
    try:
        row = read_row(pid)
        if row is None or row.start != start:
            return False
        signal.pidfd_send_signal(fd, number) if fd >= 0 else os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if fd >= 0:
            os.close(fd)
    return True
