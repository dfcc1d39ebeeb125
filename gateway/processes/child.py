"""One child program from start to end: `open_child` and its shutdown sequence.

Invariant: when `open_child` has been left, for whatever reason, neither the child nor any of its descendants is alive,
and all its descriptors are closed. The caller's task owns the child; the tasks of the shutdown sequence live in a
nursery inside one shield with a deadline. The child is not reaped before the end of the sequence: that pins its pid,
its group and its session, so that no signal to them can reach an unrelated process that reused the number.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway.errors import BackendUnavailable
from gateway.processes import process_tree
from gateway.processes.spawn import ChildCommand, Spawned, describe_spawn_error, open_pidfd, spawn

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncGenerator

    from gateway.config import ShutdownGrace
    from gateway.processes.guard import ChildGuard
    from gateway.processes.process_tree import ProcessTree, Row

__all__ = ["Child", "ChildCommand", "open_child"]

logger: Final = logging.getLogger("gateway.children")

STRAGGLER_GRACE: Final = 0.25  # s from the child's own end to SIGTERM for its descendants; most of them end as well
SCAN_TIMEOUT: Final = 0.25 if process_tree.HAS_PROC else 1.0
"""Seconds for a scan before a signal is sent, which a hanging `/proc` or `ps` must not delay."""
END_TIMEOUT: Final = 0.25  # s to wait for known descendants before scanning for new ones
FINAL_SCAN_TIMEOUT: Final = 1.0 if process_tree.HAS_PROC else process_tree.PS_TIMEOUT
"""Seconds for the scan after SIGKILL: slow on a busy machine, and nothing is known without it."""
SWEEP_TIMEOUT: Final = 2.0 if process_tree.HAS_PROC else 8.0
"""Seconds beyond the grace periods, for processes that left the group: some scans, each of which may start `ps`."""
FREEZE_ROUNDS: Final = 5  # scans after SIGSTOP until none finds a new process; a stopped process cannot fork
POLL_INTERVAL: Final = 0.02  # s, on systems without a descriptor that reports a process's end
DISCARD_BYTES: Final = 1 << 16  # read at once while the child flushes: the capacity of a pipe
STATUS_UNKNOWN: Final = 255  # the exit status if other code in this process has reaped our child


class Child:
    """A running child with its three streams.

    Its owner must read `stdout` and `stderr`, or the child may block.
    """

    def __init__(self, spawned: Spawned, tree: ProcessTree) -> None:
        self._tree = tree
        self._popen = spawned.popen
        self._pidfd = spawned.pidfd
        self._status: int | None = None
        self._wait_lock = trio.Lock()
        self.pid: Final = spawned.popen.pid
        self.stdin: Final = trio.lowlevel.FdStream(spawned.stdin)
        self.stdout: Final = trio.lowlevel.FdStream(spawned.stdout)
        self.stderr: Final = trio.lowlevel.FdStream(spawned.stderr)

    @property
    def returncode(self) -> int | None:
        """None while it runs; then its exit status, or minus its signal's number."""
        if self._status is None:
            if sys.platform != "linux":
                self._status = self._popen.poll()
                self._tree.pinned = self._status is None  # reaped: its pid may be reused
                return self._status
            try:  # WNOWAIT leaves the zombie in place
                info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                logger.warning("the exit status of process %d was collected by other code in this program", self.pid)
                self._status = STATUS_UNKNOWN
            else:
                if info is not None:
                    self._status = info.si_status if info.si_code == os.CLD_EXITED else -info.si_status
        return self._status

    async def wait(self) -> int:
        """Wait for the child's own end and return `returncode`.

        Any number of tasks may wait, even after its end.
        """
        async with self._wait_lock:
            while (status := self.returncode) is None:
                if self._pidfd < 0:
                    await trio.sleep(POLL_INTERVAL)
                    continue
                try:
                    await trio.lowlevel.wait_readable(self._pidfd)
                except trio.ClosedResourceError:  # its shutdown sequence ended meanwhile
                    self._pidfd = -1
        return status

    async def wait_stdin_closed(self) -> None:
        """Wait until no process can read the child's stdin; forever where that is unknown.

        A write reports it too, by EPIPE, but everything written before that is lost without notice.
        """
        if sys.platform != "linux":
            await trio.sleep_forever()
        with select.epoll() as poll:
            poll.register(self.stdin.fileno(), 0)  # no event but EPOLLERR, which is always reported
            try:
                await trio.lowlevel.wait_readable(poll.fileno())
            finally:
                trio.lowlevel.notify_closing(poll.fileno())

    def describe_exit(self) -> str:
        """Describe how it ended, as a predicate: "exited with status 3", "was killed by SIGKILL"."""
        status = self.returncode
        if status is None:
            return "is still running"
        if status >= 0:
            return f"exited with status {status}"
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:  # a real-time signal
            return f"was killed by signal {-status}"

    def signal_group(self, number: int) -> None:
        """Signal the whole group. Safe while the child is not reaped (see the module's docstring).

        Without `waitid` it is reaped early (`returncode`), and then the group's own members pin its number.
        """
        if self._status != STATUS_UNKNOWN and (self._popen.returncode is None or not process_tree.HAS_PROC):
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError) as exc:  # the group is empty, or has a setuid program
                logger.debug("signal %d to group %d: %s", number, self.pid, exc)

    def has_group(self) -> bool:
        """Return whether the group has a process, for systems without `/proc`. Reaps the child."""
        self._popen.poll()
        try:
            os.killpg(self.pid, 0)
        except OSError:  # macOS reports zombies as EPERM
            return False
        return True

    def close_and_reap(self) -> bool:
        """Close all descriptors and reap; return False when the kernel has not ended the child."""
        for stream in (self.stdin, self.stdout, self.stderr):
            stream.close()
        if self._pidfd >= 0:
            trio.lowlevel.notify_closing(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        ended = self.returncode is not None
        self._popen.poll()
        return ended

    @property
    def popen(self) -> subprocess.Popen[bytes]:
        """The `Popen` object, with which a child that survived SIGKILL is reaped later."""
        return self._popen


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_child(
    command: ChildCommand, *, grace: ShutdownGrace, guard: ChildGuard, backend: str
) -> AsyncGenerator[Child]:
    """Start a child; on leaving, end it and all its descendants by the shutdown sequence.

    Leaving takes at most the sum of the grace periods and `SWEEP_TIMEOUT`, is not interrupted by cancellation, and
    never raises. Output that has not been read by then is discarded. A cancellation while the child is being forked
    takes effect once there is a child to stop.

    Raises:
        BackendUnavailable: the child cannot be started; the text says what to do.
    """
    await guard.prepare()
    tree = guard.register(backend, grace)
    env = guard.environment(tree, command.env)
    try:
        # Not abandoned on cancellation: the thread returns the child, or there is none. From its return to the `try`
        # below there is no checkpoint, and no KeyboardInterrupt either.
        spawned = await trio.to_thread.run_sync(
            spawn, command, env, tree.limit_mark, guard.reaps_orphans, limiter=guard.limiter
        )
    except (OSError, ValueError, IndexError) as exc:
        guard.remove(tree, spawned=False)
        raise BackendUnavailable(backend, describe_spawn_error(command, env, exc)) from exc
    except BaseException:
        guard.remove(tree, spawned=False)
        raise
    guard.spawned(tree, spawned.popen.pid, spawned.start)
    child = Child(spawned, tree)
    try:
        yield child
    finally:
        sequence = _ShutdownSequence(child, tree, guard)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + sum(tree.grace) + SWEEP_TIMEOUT):
            await sequence.run()
        if child.close_and_reap() and sequence.all_ended:
            guard.remove(tree)
        else:
            guard.abandon(tree, child.popen)


class _ShutdownSequence:
    """Close stdin, SIGTERM, SIGKILL, each with a grace period; over when all processes have ended."""

    def __init__(self, child: Child, tree: ProcessTree, guard: ChildGuard) -> None:
        self._child = child
        self._tree = tree
        self._guard = guard
        self._grace_scope = trio.CancelScope()
        self.all_ended = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_discard, self._child.stdout)
            nursery.start_soon(_discard, self._child.stderr)
            nursery.start_soon(self._watch_force_stop)
            await self._stop()
            nursery.cancel_scope.cancel(reason="the shutdown sequence is over")

    async def _stop(self) -> None:
        close_stdin, terminate, kill = self._tree.grace
        self._child.stdin.close()
        with self._grace_scope:
            with trio.move_on_after(close_stdin) as scope:
                await self._child.wait()
                scope.deadline = min(scope.deadline, trio.current_time() + STRAGGLER_GRACE)
                await self._wait_empty()
            if self.all_ended:
                return
            await self._scan()  # before the grace period, or SIGTERM might never be sent on a busy machine
            self._child.signal_group(signal.SIGTERM)
            self._child.signal_group(signal.SIGCONT)  # a stopped process cannot obey
            with trio.move_on_after(terminate):
                await self._wait_empty(terminate=True)
            if self.all_ended:
                return
        with trio.move_on_after(kill + SWEEP_TIMEOUT):
            await self._kill()

    async def _watch_force_stop(self) -> None:
        await self._guard.force_stopped.wait()
        self._grace_scope.cancel(reason="a second signal ends all grace periods")

    async def _wait_empty(self, *, terminate: bool = False) -> None:
        """Return when all processes have ended; meanwhile `terminate` each one outside the group, once."""
        signalled: set[tuple[int, int]] = set()
        while True:
            others = self._others()
            if terminate:
                for row in others:
                    if (row.pid, row.start) not in signalled:
                        signalled.add((row.pid, row.start))
                        process_tree.send(row, signal.SIGTERM)
                        process_tree.send(row, signal.SIGCONT)
            await self._child.wait()
            with trio.move_on_after(END_TIMEOUT):
                await _wait_ended(others)
            await self._guard.scan()
            if self._empty():
                self.all_ended = True
                return
            if not process_tree.HAS_PROC:
                await trio.sleep(POLL_INTERVAL)

    async def _kill(self) -> None:
        """Kill until all processes have ended.

        The group is killed at once; processes that left it are stopped first, so that they cannot fork meanwhile.
        """
        while True:
            await self._scan()
            frozen: set[tuple[int, int]] = set()
            for _ in range(FREEZE_ROUNDS):
                others = [row for row in self._others() if row.pgrp != self._child.pid]
                fresh = {(row.pid, row.start): row for row in others if (row.pid, row.start) not in frozen}
                if not fresh:
                    break
                for row in fresh.values():
                    process_tree.send(row, signal.SIGSTOP)
                frozen |= fresh.keys()
                await self._scan()
            self._child.signal_group(signal.SIGKILL)
            others = self._others()
            for row in others:
                process_tree.send(row, signal.SIGKILL)
            with trio.move_on_after(END_TIMEOUT):
                await self._child.wait()
                await _wait_ended(others)
            with trio.move_on_after(FINAL_SCAN_TIMEOUT):
                await self._guard.scan()
                self.all_ended = self._empty()
            if self.all_ended:
                return
            if not process_tree.HAS_PROC:
                await trio.sleep(POLL_INTERVAL)

    async def _scan(self) -> None:  # noqa: ASYNC910 - a scan has one; after the timeout, continue at once
        with trio.move_on_after(SCAN_TIMEOUT):
            await self._guard.scan()

    def _others(self) -> list[Row]:
        return [row for row in self._guard.living(self._tree) if row.pid != self._child.pid]

    def _empty(self) -> bool:
        if self._child.returncode is None:
            return False
        return not self._others() and (process_tree.HAS_PROC or not self._child.has_group())


async def _wait_ended(rows: list[Row]) -> None:
    """Wait until all these processes have ended, one after the other; the caller bounds it."""
    await trio.lowlevel.checkpoint()
    for row in rows:
        fd = open_pidfd(row.pid)
        if fd < 0:
            await trio.sleep(POLL_INTERVAL)
            continue
        try:
            now = process_tree.read_row(row.pid)
            if now is not None and now.start == row.start:
                await trio.lowlevel.wait_readable(fd)
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


async def _discard(stream: trio.lowlevel.FdStream) -> None:  # noqa: ASYNC910 - a closed stream has none
    """Read to the end, so that a child that is still flushing can exit."""
    try:
        while await stream.receive_some(DISCARD_BYTES):
            pass
    except (trio.ClosedResourceError, trio.BusyResourceError, trio.BrokenResourceError) as exc:
        logger.debug("not drained: %r", exc)  # its owner closed it, or is still reading, which drains it as well
