"""The guard of a gateway's child processes: tracks, scans for escaped descendants, reaps.

Opened once. It owns its tasks in a nursery of its own: a slow tick (reaping, a scan of the process trees) and the
supervision of the sentinel. Invariant: a tree is registered, and the sentinel knows its id, before the child is forked,
and it is removed only after its shutdown sequence. All but `scan` and `prepare` is synchronous, so no lock is needed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from gateway.clock import elapsed_time
from gateway.processes import process_tree
from gateway.processes.process_tree import TREE_ID_VARIABLE, ProcessTree, Row
from gateway.processes.sentinel_client import SentinelClient

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator, Generator, Mapping

    from gateway.config import ShutdownGrace

logger: Final = logging.getLogger("gateway.children")

TICK: Final = 0.5  # s between two checks for zombies, each one system call; bounds the life of a reparented zombie
SCAN_INTERVAL: Final = 5.0  # s between two scans (some ms each, 20 with `ps`) while children live; see `run_ticks`
SCAN_SHARE: Final = 0.15  # of one core for scans while many children are being stopped
SCAN_PAUSE_LIMIT: Final = 0.1  # s at most between two scans while a caller waits
SCAN_TIMEOUT: Final = 5.0  # s: reading an environment hangs while its process hangs in the kernel
UNKNOWN_ZOMBIE_GRACE: Final = 5.0  # s in which other code of this process may reap a zombie of unknown origin
SWEEP_TIMEOUT: Final = 2.0  # s for ending, when the guard closes, processes that escaped every shutdown sequence
MAX_TREE_IDS: Final = 16  # of gateways above this one, which a child inherits
MARK_BITS: Final = 60  # random bits, below a leading 1: no real limit is so large
SPAWN_THREADS: Final = 4  # forks at once; they take turns at the interpreter lock anyway (measured: 8 are slower)
PR_SET_CHILD_SUBREAPER: Final = 36
PR_GET_CHILD_SUBREAPER: Final = 37


class ChildReport(msgspec.Struct, frozen=True):
    """One living child: `started_at` by `clock.elapsed_time`, `descendants` as of the last scan."""

    backend: str
    pid: int
    started_at: float
    descendants: tuple[int, ...]


class TrackedProcess:
    """A process tree with what only the gateway knows about it."""

    __slots__ = ("backend", "started_at", "tree")

    def __init__(self, backend: str, tree: ProcessTree) -> None:
        self.backend = backend
        self.tree = tree
        self.started_at = elapsed_time()


class ChildGuard:
    """Tracks all children. Made by `open_guard` and passed to `open_child`."""

    def __init__(self, *, subreaper: bool, sentinel: bool, unknown_zombie_grace: float = UNKNOWN_ZOMBIE_GRACE) -> None:
        self.instance: Final = secrets.token_hex(8)
        self.force_stopped: Final = trio.Event()
        self.limiter: Final = trio.CapacityLimiter(SPAWN_THREADS)
        self.reaps_orphans: Final = sys.platform == "linux" and (subreaper or os.getpid() == 1)
        self._tracked: dict[str, TrackedProcess] = {}
        self._rows: dict[int, Row] = {}
        self._since = row.start if (row := process_tree.read_row(os.getpid())) else 0
        self._inherited = os.environ.get(TREE_ID_VARIABLE, "").split(":")[-MAX_TREE_IDS:]
        self._spawning = 0
        self._unknown_zombie_grace = unknown_zombie_grace
        self._unknown_zombies: dict[tuple[int, int], float] = {}
        self._scan_lock = trio.Lock()
        self._scan_limiter = trio.CapacityLimiter(2)  # one that hangs must not block the others
        self._scans_started = self._scans_finished = 0
        self._scan_failed = False
        self._pause_until = self._next_scan = -float("inf")
        self._sentinel = SentinelClient(self._announcements) if sentinel else None
        self._lost: list[tuple[ProcessTree, subprocess.Popen[bytes]]] = []
        self._closed = False

    # For the rest of the gateway.

    def snapshot(self) -> tuple[ChildReport, ...]:
        """Return all living children, with their descendants as of the last scan."""
        return tuple(
            ChildReport(
                backend=tracked.backend,
                pid=tracked.tree.pid,
                started_at=tracked.started_at,
                descendants=tuple(row.pid for row in self.living(tracked.tree) if row.pid != tracked.tree.pid),
            )
            for tracked in self._tracked.values()
            if tracked.tree.pid
        )

    def force_stop(self) -> None:
        """Make every present and future shutdown sequence skip to SIGKILL."""
        self.force_stopped.set()

    @property
    def sentinel_pid(self) -> int | None:
        """The pid of the living sentinel; none before the first child."""
        return None if self._sentinel is None else self._sentinel.pid

    # For `open_child`, in this order.

    async def prepare(self) -> None:
        """Start the sentinel before the first child."""
        await trio.lowlevel.checkpoint()
        if self._sentinel is not None:
            await self._sentinel.ensure()

    def register(self, backend: str, grace: ShutdownGrace) -> ProcessTree:
        """Register a tree, with the sentinel too, for a child about to be forked."""
        if self._closed:
            raise RuntimeError("the guard is closed")
        tree = ProcessTree(
            f"{self.instance}.{secrets.token_hex(4)}",
            (float(grace.close_stdin), float(grace.terminate), float(grace.kill)),
            limit_mark=secrets.randbits(MARK_BITS) | 1 << MARK_BITS,
        )
        self._tracked[tree.id] = TrackedProcess(backend, tree)
        self._spawning += 1
        self._announce(_describe_child(tree))
        return tree

    def environment(self, tree: ProcessTree, env: Mapping[str, str]) -> dict[str, str]:
        """Return `env` with the tree's id, after those of the gateways above."""
        return {**env, TREE_ID_VARIABLE: ":".join([*filter(None, self._inherited), tree.id])}

    def spawned(self, tree: ProcessTree, pid: int, start: int) -> None:
        """Record that the child has been spawned."""
        self._spawning -= 1
        tree.set_child(pid, start)
        tree.pinned = True
        self._announce(_describe_child(tree))
        self._next_scan = min(self._next_scan, trio.current_time() + TICK)  # wrappers fork right after they start

    def remove(self, tree: ProcessTree, *, spawned: bool = True) -> None:
        """Forget a tree whose shutdown sequence is over, or (`spawned=False`) whose child was never forked."""
        if not spawned:
            self._spawning -= 1
        del self._tracked[tree.id]
        self._announce({"op": "gone", "tree": tree.id})

    def abandon(self, tree: ProcessTree, popen: subprocess.Popen[bytes]) -> None:
        """Keep a tree that survived SIGKILL, to reap it when it ends."""
        pids = sorted({row.pid for row in self.living(tree)} | {tree.pid})
        backend = self._tracked[tree.id].backend
        extra = {"event": "processes_left", "backend": backend, "pids": pids}
        logger.error("backend %r: processes %s did not end after SIGKILL", backend, pids, extra=extra)
        self._lost.append((tree, popen))

    # Scans.

    def living(self, tree: ProcessTree) -> list[Row]:
        """Return the processes of a tree as of the last scan, the child included."""
        return tree.living(self._rows)

    async def scan(self) -> None:
        """Scan all processes once, after this call; callers during a scan share the next.

        Updates every tree, reaps its zombies that were reparented to us, and tells the sentinel about new processes.
        """
        wanted = self._scans_started + 1
        async with self._scan_lock:
            if self._scans_finished >= wanted or not process_tree.CAN_SCAN:
                return
            await trio.sleep_until(self._pause_until)
            self._scans_started += 1
            began, number = trio.current_time(), self._scans_started
            known = frozenset(item for tracked in self._tracked.values() for item in tracked.tree.processes.items())
            problem = None
            with trio.move_on_after(SCAN_TIMEOUT) as scope:
                try:
                    processes = await trio.to_thread.run_sync(
                        process_tree.scan_processes,
                        self._since,
                        known,
                        abandon_on_cancel=True,
                        limiter=self._scan_limiter,
                    )
                except OSError as exc:
                    problem = f"failed: {exc}"
                    self._rows = {pid: row for pid, row in self._rows.items() if process_tree.send(row, 0)}
                else:
                    self._apply_scan(processes)
            if scope.cancelled_caught:
                problem = f"took more than {SCAN_TIMEOUT:.0f} s"
            if problem is not None and not self._scan_failed:
                logger.warning("scan of processes %s; descendants may be missing", problem)
            self._scan_failed = problem is not None
            now = trio.current_time()
            self._scans_finished = number
            self._pause_until = now + min((now - began) / SCAN_SHARE, SCAN_PAUSE_LIMIT)
            self._next_scan = now + SCAN_INTERVAL

    def _apply_scan(self, scanned: process_tree.ProcessScan) -> None:
        rows = self._rows = scanned.rows
        trees = {tree_id: tracked.tree for tree_id, tracked in self._tracked.items()}
        before = {tree_id: dict(tree.processes) for tree_id, tree in trees.items()}
        orphans = process_tree.assign_processes(
            scanned, trees, since=self._since, instance=self.instance, excluded=self._excluded()
        )
        for tree_id, tree in trees.items():
            if tree.processes.keys() - before[tree_id].keys():
                self._announce(_describe_processes(tree))
            if not tree.pid:  # being spawned: any zombie may be the child itself
                continue
            # Descendants that were reparented to us. By pid, never `waitpid(-1)`: that takes the exit status of trio's
            # children, and of a child that dies while a worker thread is still starting it, and turns it into 0. In a
            # tree whose child is known, the others can be neither, so that spawns under way need not be waited for.
            for row in tree.members(rows):
                if row.state in process_tree.ENDED and row.ppid == os.getpid() and row.pid != tree.pid:
                    _reap(row.pid)
                    tree.processes.pop(row.pid, None)
        for row, _ in orphans:
            if process_tree.send(row, signal.SIGKILL):
                logger.warning(
                    "ended process %d, which had escaped when its backend was stopped",
                    row.pid,
                    extra={"event": "escaped_process_ended", "pid": row.pid},
                )
        self._reap_unknown_zombies(rows)
        for tree, popen in self._lost.copy():
            if popen.poll() is not None and not tree.living(rows):
                self._lost.remove((tree, popen))
                self.remove(tree)

    def _reap_unknown_zombies(self, rows: dict[int, Row]) -> None:
        """Reap zombies of unknown origin: unmarked descendants or, as PID 1, any process.

        Another owner in this process may wait for an unknown zombie and gets time to do so; and during a spawn, every
        unknown zombie may be the new child.
        """
        if not self.reaps_orphans:
            return
        now = trio.current_time()
        known = {pid for tracked in self._tracked.values() for pid in tracked.tree.processes} | self._excluded()
        zombies = {
            (row.pid, row.start)
            for row in rows.values()
            if row.state in process_tree.ENDED and row.ppid == os.getpid() and row.pid not in known
        }
        self._unknown_zombies = {key: since for key, since in self._unknown_zombies.items() if key in zombies}
        if self._spawning:
            return
        for key in zombies:
            if now - self._unknown_zombies.setdefault(key, now) >= self._unknown_zombie_grace:
                _reap(key[0])
                del self._unknown_zombies[key]

    def _excluded(self) -> frozenset[int]:
        return frozenset({os.getpid(), self.sentinel_pid or 0})

    # Tasks.

    async def run_ticks(self) -> None:
        """Check for zombies often and cheaply, scan all processes seldom, until cancelled.

        Not by SIGCHLD: signal handlers belong to the program, exist in the main thread only, and would wake us for
        every child. A check with WNOWAIT costs a microsecond and leaves exit statuses to other code.
        """
        while True:
            await trio.sleep(TICK)
            is_due = bool(self._tracked) and trio.current_time() >= self._next_scan
            if is_due or (self.reaps_orphans and _has_zombie()):
                await self.scan()

    async def run_sentinel(self) -> None:
        """Keep a sentinel alive until cancelled; return immediately if there should be none."""
        await trio.lowlevel.checkpoint()
        if self._sentinel is not None:
            await self._sentinel.run()

    async def aclose(self) -> None:
        """End escaped processes (all children have been stopped), and dismiss the sentinel."""
        await trio.lowlevel.checkpoint()
        self._closed = True
        deadline = trio.current_time() + SWEEP_TIMEOUT
        with trio.CancelScope(shield=True, deadline=deadline) as scope:
            await trio.lowlevel.checkpoint()
            if self._scans_started or self.sentinel_pid is not None:
                await self.scan()  # ends orphans, and reaps
        if self._sentinel is not None:
            await self._sentinel.aclose(all_gone=not self._tracked and not scope.cancelled_caught)

    def _announcements(self) -> list[dict[str, Any]]:
        """Return all announcements for a new sentinel."""
        trees = [tracked.tree for tracked in self._tracked.values()]
        return [
            {"op": "instance", "instance": self.instance, "pid": os.getpid(), "start": self._since},
            *(message for tree in trees for message in (_describe_child(tree), _describe_processes(tree))),
        ]

    def _announce(self, announcement: dict[str, Any]) -> None:
        if self._sentinel is not None:
            self._sentinel.announce(announcement)


def _describe_child(tree: ProcessTree) -> dict[str, Any]:
    close_stdin, terminate, kill = tree.grace
    return {
        "op": "child",
        "tree": tree.id,
        "limit_mark": tree.limit_mark,
        "pid": tree.pid,
        "start": tree.start,
        "close_stdin": close_stdin,
        "terminate": terminate,
        "kill": kill,
    }


def _describe_processes(tree: ProcessTree) -> dict[str, Any]:
    processes, sessions = list(tree.processes.items()), list(tree.sessions.items())
    return {"op": "processes", "tree": tree.id, "processes": processes, "sessions": sessions}


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):  # reaped by other code, or reparented elsewhere
        os.waitpid(pid, os.WNOHANG)


def _has_zombie() -> bool:
    if sys.platform != "linux":
        return False
    with contextlib.suppress(ChildProcessError):  # no children at all
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return False


@contextlib.contextmanager
def _as_subreaper(wanted: bool) -> Generator[None]:
    """Become the subreaper of orphaned descendants, and able to wait for children."""
    in_main = threading.current_thread() is threading.main_thread()
    if wanted and in_main and signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        # Some launchers leave it ignored; then the kernel reaps our children itself and no exit status is ever seen.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if not wanted or sys.platform != "linux":
        yield
        return
    import ctypes  # imported late: it costs 10 ms that an embedded gateway avoids

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
async def open_guard(
    *, subreaper: bool, sentinel: bool = True, unknown_zombie_grace: float = UNKNOWN_ZOMBIE_GRACE
) -> AsyncGenerator[ChildGuard]:
    """Open the one guard of this gateway; every `open_child` must be inside.

    Use `subreaper=True` only for a dedicated gateway process: it reparents every orphaned descendant to this process,
    which must reap it. When embedded in another program, tree ids and parents must suffice. The sentinel starts with
    the first child. Leaving ends processes that escaped the shutdown sequences, and takes at most 4 s.
    """
    guard = ChildGuard(subreaper=subreaper, sentinel=sentinel, unknown_zombie_grace=unknown_zombie_grace)
    with _as_subreaper(subreaper):
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guard.run_ticks)
                nursery.start_soon(guard.run_sentinel)
                yield guard
                nursery.cancel_scope.cancel(reason="the guard closes")
        finally:  # its tasks have ended: no other task waits for the sentinel
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * SWEEP_TIMEOUT):
                await guard.aclose()
