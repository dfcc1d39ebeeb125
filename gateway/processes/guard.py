"""The guard over all child processes of a gateway: it knows them, finds who left their groups, reaps, and hurries.

Opened once. It owns its tasks in a nursery of its own: a slow tick (reaping, a look at the process_tree) and the watch
over the sentinel. Invariant: a family is enrolled, and the sentinel knows its cookie, before the child is forked, and
is dismissed only after its ladder is done. All but `census` and `prepare` is synchronous, so no lock is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from gateway.processes import process_tree
from gateway.processes.process_tree import COOKIE_VARIABLE, ProcessTree, Row
from gateway.processes.sentinel_client import SentinelClient

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator, Generator, Mapping

    from gateway.config import ShutdownGrace

logger: Final = logging.getLogger("gateway.children")

TICK: Final = 0.5  # s between two looks for zombies, each one system call; bounds how long an adopted zombie is seen
CENSUS_EVERY: Final = 5.0  # s between two full looks at /proc (some ms each) while children live; see `_tick`
CENSUS_SHARE: Final = 0.15  # of one core that looking at /proc may take while many children are being stopped
CENSUS_PAUSE: Final = 0.1  # s at most between two looks while somebody waits
CENSUS_BOUND: Final = 5.0  # s: reading an environment hangs while its owner hangs in the kernel
STRANGER_PATIENCE: Final = 5.0  # s that a zombie of unknown origin may wait for whoever started it
SWEEP_BOUND: Final = 2.0  # s for ending, when the guard closes, who escaped all ladders
MAX_COOKIES: Final = 16  # gateways below gateways whose cookies a child carries along
BRAND_BITS: Final = 60  # random ones, below a leading one: no limit that somebody sets is so large
SPAWN_THREADS: Final = 4  # forks at once; they take turns at the interpreter lock anyway (measured: 8 are slower)
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37


class ChildReport(msgspec.Struct, frozen=True):
    """One living child: `started_at` in seconds since the epoch, `descendants` as of the last census."""

    backend: str
    pid: int
    started_at: float
    descendants: tuple[int, ...]


class TrackedProcess:
    """A family with what the gateway alone knows of it."""

    __slots__ = ("backend", "family", "started_at")

    def __init__(self, backend: str, family: ProcessTree) -> None:
        self.backend = backend
        self.family = family
        self.started_at = time.time()


class ChildGuard:
    """Made by `open_guard`; `open_child` takes it, the composition root asks for `snapshot` and says `hurry`."""

    def __init__(self, *, subreaper: bool, sentinel: bool) -> None:
        self.instance: Final = secrets.token_hex(8)
        self.force_stopped: Final = trio.Event()
        self.limiter: Final = trio.CapacityLimiter(SPAWN_THREADS)
        self.adopts: Final = subreaper or os.getpid() == 1
        self._wards: dict[str, TrackedProcess] = {}
        self._rows: dict[int, Row] = {}
        self._since = row.start if (row := process_tree.read_row(os.getpid())) else 0
        self._inherited = os.environ.get(COOKIE_VARIABLE, "").split(":")[-MAX_COOKIES:]
        self._spawning = 0
        self._strangers: dict[tuple[int, int], float] = {}
        self._census_lock = trio.Lock()
        self._census_limiter = trio.CapacityLimiter(2)  # one that hangs must not stop all others
        self._begun = self._finished = 0
        self._pause_until = self._next_census = -float("inf")
        self._link = SentinelClient(self._announcements) if sentinel else None
        self._lost: list[tuple[ProcessTree, subprocess.Popen[bytes]]] = []
        self._closed = False

    # What the rest of the gateway asks.

    def snapshot(self) -> tuple[ChildReport, ...]:
        """All living children. Descendants are those of the last census: at most 5 s old; await `census` for newer."""
        return tuple(
            ChildReport(
                backend=ward.backend,
                pid=ward.family.pid,
                started_at=ward.started_at,
                descendants=tuple(row.pid for row in self.living(ward.family) if row.pid != ward.family.pid),
            )
            for ward in self._wards.values()
            if ward.family.pid
        )

    def force_stop(self) -> None:
        """Every ladder, running or yet to come, goes straight to SIGKILL."""
        self.force_stopped.set()

    @property
    def sentinel_pid(self) -> int | None:
        """The living sentinel's pid, once the first child was started."""
        return None if self._link is None else self._link.pid

    # What `open_child` does, in this order.

    async def prepare(self) -> None:
        """See to it that a sentinel exists before the first child does."""
        await trio.lowlevel.checkpoint()
        if self._link is not None:
            await self._link.ensure()

    def register(self, backend: str, ladder: ShutdownGrace) -> ProcessTree:
        """Found a family for a child that is about to be forked; its cookie is known to the sentinel from here on."""
        if self._closed:
            raise RuntimeError("the guard is closed")
        family = ProcessTree(
            f"{self.instance}.{secrets.token_hex(4)}",
            (float(ladder.close_stdin), float(ladder.terminate), float(ladder.kill)),
            brand=secrets.randbits(BRAND_BITS) | 1 << BRAND_BITS,
        )
        self._wards[family.cookie] = TrackedProcess(backend, family)
        self._spawning += 1
        self._announce(_announce(family))
        return family

    def environment(self, family: ProcessTree, env: Mapping[str, str]) -> dict[str, str]:
        """`env` with the family's cookie, after those of the gateways above this one."""
        return {**env, COOKIE_VARIABLE: ":".join([*filter(None, self._inherited), family.cookie])}

    def spawned(self, family: ProcessTree, pid: int, start: int) -> None:
        """The child lives."""
        self._spawning -= 1
        family.born(pid, start)
        family.pinned = True
        self._announce(_announce(family))
        self._next_census = min(self._next_census, trio.current_time() + TICK)  # wrappers fork right after they start

    def dismiss(self, family: ProcessTree, *, spawned: bool = True) -> None:
        """Its ladder is done, or (`spawned=False`) it was never forked."""
        if not spawned:
            self._spawning -= 1
        del self._wards[family.cookie]
        self._announce({"op": "gone", "cookie": family.cookie})

    def abandon(self, family: ProcessTree, popen: subprocess.Popen[bytes]) -> None:
        """Its ladder failed: keep it, so that it is reaped when it ends, and the sentinel still knows it."""
        pids = sorted({row.pid for row in self.living(family)} | {family.pid})
        logger.error("backend %r: processes %s did not end after SIGKILL", self._wards[family.cookie].backend, pids)
        self._lost.append((family, popen))

    # Who is there.

    def living(self, family: ProcessTree) -> list[Row]:
        """The family's members that lived at the last census, the child itself included."""
        return family.living(self._rows)

    async def scan(self) -> None:
        """Look at all processes once, after this call; whoever asks meanwhile shares the next look.

        Brings every family's `kin` up to date, reaps their zombies that are ours, and tells the sentinel who is new.
        """
        wanted = self._begun + 1
        async with self._census_lock:
            if self._finished >= wanted or not process_tree.CAN_SCAN:
                return
            await trio.sleep_until(self._pause_until)
            self._begun += 1
            began, number = trio.current_time(), self._begun
            known = frozenset(item for ward in self._wards.values() for item in ward.family.kin.items())
            with trio.move_on_after(CENSUS_BOUND) as scope:
                found = await trio.to_thread.run_sync(
                    process_tree.survey, self._since, known, abandon_on_cancel=True, limiter=self._census_limiter
                )
                self._scan_once(found)
            if scope.cancelled_caught:
                logger.warning("looking at /proc took more than %.0f s; descendants may be missing", CENSUS_BOUND)
            now = trio.current_time()
            self._finished = number
            self._pause_until = now + min((now - began) / CENSUS_SHARE, CENSUS_PAUSE)
            self._next_census = now + CENSUS_EVERY

    def _scan_once(self, found: process_tree.ProcessScan) -> None:
        families = {cookie: ward.family for cookie, ward in self._wards.items()}
        before = {cookie: dict(family.kin) for cookie, family in families.items()}
        ghosts = process_tree.claim(found, families, since=self._since, instance=self.instance, spare=self._spare())
        self._rows = found.rows
        for cookie, family in families.items():
            if family.kin.keys() - before[cookie].keys():
                kin, sessions = list(family.kin.items()), list(family.sessions.items())
                self._announce({"op": "kin", "cookie": cookie, "kin": kin, "sessions": sessions})
            for row in family.members(found.rows):
                self._reap_kin(family, row)
        for row, _ in ghosts:
            if process_tree.send(row.pid, row.start, signal.SIGKILL):
                logger.warning("ended process %d, which had escaped when its backend was stopped", row.pid)
        self._reap_strangers(found.rows)
        for family, popen in self._lost.copy():
            if popen.poll() is not None and not family.living(found.rows):
                self._lost.remove((family, popen))
                self.dismiss(family)

    # Zombies.

    def _reap_kin(self, family: ProcessTree, row: Row) -> None:
        """Reap a descendant that was reparented to us.

        By pid, never `waitpid(-1)`: that takes the exit status of trio's children, and of a child that dies while a
        worker thread is still busy starting it, and turns it into 0. Of the families whose own child is known the rest
        can be neither of them, so that other spawns under way need not be waited for.
        """
        if not family.pid:  # being spawned: this may be the child itself
            return
        if row.state in process_tree.ENDED and row.ppid == os.getpid() and row.pid != family.pid:
            _reap(row.pid)
            family.kin.pop(row.pid, None)

    def _reap_strangers(self, rows: dict[int, Row]) -> None:
        """Reap zombies of unknown origin: they shed their brand and lived between two looks; or, as PID 1, anybody's.

        One that is not ours has an owner in this process who waits for it, so it gets time for that; and while a spawn
        is under way, every unknown zombie may be the one being spawned.
        """
        if not self.adopts:
            return
        now = trio.current_time()
        taken = {pid for ward in self._wards.values() for pid in ward.family.kin} | self._spare()
        zombies = {
            (row.pid, row.start)
            for row in rows.values()
            if row.state in process_tree.ENDED and row.ppid == os.getpid() and row.pid not in taken
        }
        self._strangers = {key: since for key, since in self._strangers.items() if key in zombies}
        if self._spawning:
            return
        for key in zombies:
            if now - self._strangers.setdefault(key, now) >= STRANGER_PATIENCE:
                _reap(key[0])
                del self._strangers[key]

    def _spare(self) -> frozenset[int]:
        return frozenset({os.getpid(), self.sentinel_pid or 0})

    # Tasks.

    async def run_ticks(self) -> None:
        """Look for zombies often and cheaply, at everybody seldom, until cancelled.

        Why not SIGCHLD: signal handlers belong to the program, they exist in the main thread alone, and would wake us
        for every child. Peeking with WNOWAIT costs a microsecond and takes nothing from anybody.
        """
        while True:
            await trio.sleep(TICK)
            due = bool(self._wards) and trio.current_time() >= self._next_census
            if due or (self.adopts and _zombie_waits()):
                await self.scan()

    async def run_link(self) -> None:
        """Watch over the sentinel until cancelled; return at once when there is to be none."""
        await trio.lowlevel.checkpoint()
        if self._link is not None:
            await self._link.run()

    async def aclose(self) -> None:
        """End who escaped (all children are stopped by now), and send the sentinel home."""
        await trio.lowlevel.checkpoint()
        self._closed = True
        deadline = trio.current_time() + SWEEP_BOUND
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            await trio.lowlevel.checkpoint()
            if self._begun or self.sentinel_pid is not None:
                await self.scan()  # ends ghosts, and reaps
        if self._link is not None:
            await self._link.aclose(all_gone=not self._wards and not scope.cancelled_caught)

    def _announcements(self) -> list[dict[str, Any]]:
        """All that a new sentinel has to know."""
        said: list[dict[str, Any]] = [
            {"op": "instance", "instance": self.instance, "pid": os.getpid(), "start": self._since}
        ]
        for ward in self._wards.values():
            family = ward.family
            said.append(_announce(family))
            kin, sessions = list(family.kin.items()), list(family.sessions.items())
            said.append({"op": "kin", "cookie": family.cookie, "kin": kin, "sessions": sessions})
        return said

    def _announce(self, said: dict[str, Any]) -> None:
        if self._link is not None:
            self._link.announce(said)


def _announce(family: ProcessTree) -> dict[str, Any]:
    close_stdin, terminate, kill = family.ladder
    return {
        "op": "child",
        "cookie": family.cookie,
        "brand": family.brand,
        "pid": family.pid,
        "start": family.start,
        "close_stdin": close_stdin,
        "terminate": terminate,
        "kill": kill,
    }


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # reaped by somebody else, or reparented elsewhere
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)


def _zombie_waits() -> bool:
    with contextlib.suppress(ChildProcessError):  # no children at all
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False


@contextlib.contextmanager
def _adopting(wanted: bool) -> Generator[None]:
    """Be the one to whom orphaned descendants are reparented, instead of init; and be able to wait for children."""
    if not wanted or sys.platform != "linux":
        yield
        return
    import ctypes  # not at the top: it costs 10 ms that an embedded gateway need not pay

    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        # Some launchers leave it ignored; then the kernel reaps our children itself and no exit status is ever seen.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        logger.warning("cannot become a subreaper: %s", os.strerror(ctypes.get_errno()))
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


@asynccontextmanager
async def open_guard(*, subreaper: bool, sentinel: bool = True) -> AsyncGenerator[ChildGuard]:
    """Open the one guard of this gateway; every `open_child` must be entered and left inside.

    `subreaper=True` only for a program that is the gateway and nothing else: it makes every orphaned descendant of this
    process ours to reap. Embedded in another program, cookies and lineage have to do. The sentinel starts with the
    first child. Leaving ends what escaped the ladders, and takes at most 4 s.
    """
    guard = ChildGuard(subreaper=subreaper, sentinel=sentinel)
    with _adopting(subreaper):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guard.run_ticks)
                nursery.start_soon(guard.run_link)
                yield guard
                nursery.cancel_scope.cancel(reason="the guard closes")
        finally:  # its tasks have ended: nobody else waits for the sentinel now
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * SWEEP_BOUND):
                await guard.aclose()
