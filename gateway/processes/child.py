"""One child program, from start to gone: `open_child` and the ladder by which it is stopped.

Invariant: when `open_child` has been left, for whatever reason, neither the child nor anything that descends from it
lives, and all its descriptors are closed. The caller's task owns the child; the ladder's helpers live in a nursery
inside the one shield that bounds it. The child stays unreaped until the end of its ladder: that pins its pid, its group
and its session, so that no signal to them can hit somebody who got the number anew.
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

STRAGGLER_GRACE: Final = 0.25  # s from the child's own end to SIGTERM for whom it left behind; most just end as well
LOOK_BOUND: Final = 0.25  # s for learning who is there before a signal is sent; a hanging /proc must not hold it up
END_BOUND: Final = 0.25  # s to wait for known stragglers before looking whether there are new ones
SWEEP_BOUND: Final = 2.0  # s beyond the ladder's own, for those who left the group
FREEZE_ROUNDS: Final = 5  # looks after SIGSTOP until nobody new turns up; a stopped process cannot fork
POLL: Final = 0.02  # s, where the system has no descriptor that tells of a process's end
DRAIN_SIZE: Final = 1 << 16  # bytes thrown away at once while the child flushes: what a pipe holds
STATUS_TAKEN: Final = 255  # the exit status when other code in this process reaped our child


class Child:
    """A running child: `stdin` to write to, `stdout` and `stderr` to read; its owner reads both, or it may block."""

    def __init__(self, spawned: Spawned) -> None:
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
        """None while it runs; then its exit status, or minus the number of the signal that killed it."""
        if self._status is None:
            self._status = self._peek()
        return self._status

    async def wait(self) -> int:
        """Wait for the child's own end and return `returncode`; any number of tasks may, also after it was stopped."""
        async with self._wait_lock:
            while (status := self.returncode) is None:
                if self._pidfd < 0:
                    await trio.sleep(POLL)
                    continue
                try:
                    await trio.lowlevel.wait_readable(self._pidfd)
                except trio.ClosedResourceError:  # its ladder ended meanwhile
                    self._pidfd = -1
        return status

    async def wait_stdin_closed(self) -> None:
        """Wait until no process can read the child's stdin any more; for ever where the system does not say so.

        Writing would say so too, by EPIPE, but what was written before that is lost in silence.
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
        """For a sentence that begins with its name: "exited with status 3", "was killed by SIGKILL"."""
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
        """Signal the whole group; safe as long as the child is not reaped (see the module's docstring).

        Without `/proc` it is reaped early (`group_lives`), and then the group's own members pin its number.
        """
        if self._status != STATUS_TAKEN and (self._popen.returncode is None or not process_tree.CAN_SCAN):
            try:
                os.killpg(self.pid, number)
            except (ProcessLookupError, PermissionError) as exc:  # nobody left, or a setuid program among them
                logger.debug("signal %d to group %d: %s", number, self.pid, exc)

    def group_lives(self) -> bool:
        """Whether somebody is left in the group; for systems where nobody can be named. Reaps the child."""
        self._popen.poll()
        try:
            os.killpg(self.pid, 0)
        except OSError:  # EPERM is what macOS says of zombies
            return False
        return True

    def close_and_reap(self) -> bool:
        """Close everything and reap; False when it still runs, which only the kernel can be blamed for."""
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
        """For whoever has to reap a child that could not be buried."""
        return self._popen

    def _peek(self) -> int | None:
        """Look at the exit status and leave the zombie in place."""
        if sys.platform != "linux":
            return self._popen.poll()
        try:
            info = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            logger.warning("the exit status of process %d was taken by other code in this program", self.pid)
            return STATUS_TAKEN
        if info is None:
            return None
        return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


@asynccontextmanager
@trio.lowlevel.enable_ki_protection
async def open_child(
    command: ChildCommand, *, ladder: ShutdownGrace, guard: ChildGuard, backend: str
) -> AsyncGenerator[Child]:
    """Start a child, and on leaving stop it with all that descends from it, by the ladder.

    Raises `BackendUnavailable` when it cannot be started, saying what to do. Leaving takes at most the sum of the
    ladder and 2 s, is not interrupted by cancellation, and never raises. Output that nobody has read by then is thrown
    away. A cancellation while the child is being forked takes effect once there is a child to be stopped.
    """
    await guard.prepare()
    family = guard.register(backend, ladder)
    env = guard.environment(family, command.env)
    try:
        # Not abandoned on cancellation: the thread returns the child, or there is none. From its return to the `try`
        # below there is no checkpoint, and no KeyboardInterrupt either.
        spawned = await trio.to_thread.run_sync(spawn, command, env, family.brand, guard.adopts, limiter=guard.limiter)
    except (OSError, ValueError, IndexError) as exc:
        guard.dismiss(family, spawned=False)
        raise BackendUnavailable(backend, describe_spawn_error(command, env, exc)) from exc
    except BaseException:
        guard.dismiss(family, spawned=False)
        raise
    guard.spawned(family, spawned.popen.pid, spawned.start)
    child = Child(spawned)
    try:
        yield child
    finally:
        run = _ShutdownSequence(child, family, guard)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + sum(family.ladder) + SWEEP_BOUND):
            await run.run()
        if child.close_and_reap() and run.gone:
            guard.dismiss(family)
        else:
            guard.abandon(family, child.popen)


class _ShutdownSequence:
    """One descent: end of stdin, SIGTERM, SIGKILL; over as soon as nobody is left."""

    def __init__(self, child: Child, family: ProcessTree, guard: ChildGuard) -> None:
        self._child = child
        self._family = family
        self._guard = guard
        self._polite = trio.CancelScope()
        self.gone = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_discard, self._child.stdout)
            nursery.start_soon(_discard, self._child.stderr)
            nursery.start_soon(self._watch_hurry)
            await self._descend()
            nursery.cancel_scope.cancel(reason="the ladder is done")

    async def _descend(self) -> None:
        close_stdin, terminate, kill = self._family.ladder
        self._child.stdin.close()
        with self._polite:
            with trio.move_on_after(close_stdin) as rung:
                await self._child.wait()
                rung.deadline = min(rung.deadline, trio.current_time() + STRAGGLER_GRACE)
                await self._wait_empty()
            if self.gone:
                return
            with trio.move_on_after(terminate):
                await self._look()
                self._child.signal_group(signal.SIGTERM)
                self._child.signal_group(signal.SIGCONT)  # a stopped process cannot obey
                await self._wait_empty(terminate=True)
            if self.gone:
                return
        with trio.move_on_after(kill + SWEEP_BOUND):
            await self._kill()

    async def _watch_hurry(self) -> None:
        await self._guard.force_stopped.wait()
        self._polite.cancel(reason="a second signal: no more grace")

    async def _wait_empty(self, *, terminate: bool = False) -> None:
        """Return when nobody is left; meanwhile `terminate` everybody outside the group, once, as they are found."""
        told: set[tuple[int, int]] = set()
        while True:
            others = self._others()
            if terminate:
                for row in others:
                    if (row.pid, row.start) not in told:
                        told.add((row.pid, row.start))
                        process_tree.send(row.pid, row.start, signal.SIGTERM)
                        process_tree.send(row.pid, row.start, signal.SIGCONT)
            await self._child.wait()
            with trio.move_on_after(END_BOUND):
                await _wait_ended(others)
            await self._guard.scan()
            if self._empty():
                self.gone = True
                return
            if not process_tree.CAN_SCAN:
                await trio.sleep(POLL)

    async def _kill(self) -> None:
        """Kill until nobody is left.

        The group dies in one stroke; who left it is stopped first, so that it cannot fork away from under the axe.
        """
        while True:
            await self._look()
            frozen: set[tuple[int, int]] = set()
            for _ in range(FREEZE_ROUNDS):
                fresh = {(row.pid, row.start) for row in self._others() if row.pgrp != self._child.pid} - frozen
                if not fresh:
                    break
                for pid, start in fresh:
                    process_tree.send(pid, start, signal.SIGSTOP)
                frozen |= fresh
                await self._look()
            self._child.signal_group(signal.SIGKILL)
            others = self._others()
            for row in others:
                process_tree.send(row.pid, row.start, signal.SIGKILL)
            with trio.move_on_after(END_BOUND):
                await self._child.wait()
                await _wait_ended(others)
                await self._guard.scan()
                self.gone = self._empty()
            if self.gone:
                return
            if not process_tree.CAN_SCAN:
                await trio.sleep(POLL)

    async def _look(self) -> None:  # noqa: ASYNC910 - a census has one; when it takes too long, go on at once
        with trio.move_on_after(LOOK_BOUND):
            await self._guard.scan()

    def _others(self) -> list[Row]:
        return [row for row in self._guard.living(self._family) if row.pid != self._child.pid]

    def _empty(self) -> bool:
        if self._child.returncode is None:
            return False
        return not (self._others() if process_tree.CAN_SCAN else self._child.group_lives())


async def _wait_ended(rows: list[Row]) -> None:
    """Wait until all these processes have ended, one after the other; the caller bounds it."""
    await trio.lowlevel.checkpoint()
    for row in rows:
        fd = open_pidfd(row.pid)
        if fd < 0:
            await trio.sleep(POLL)
            continue
        try:
            now = process_tree.read_row(row.pid)
            if now is not None and now.start == row.start:
                await trio.lowlevel.wait_readable(fd)
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


async def _discard(stream: trio.lowlevel.FdStream) -> None:  # noqa: ASYNC910 - a closed stream has none
    """Read to the end, so that a child that is still flushing can come to its own end."""
    try:
        while await stream.receive_some(DRAIN_SIZE):
            pass
    except (trio.ClosedResourceError, trio.BusyResourceError, trio.BrokenResourceError) as exc:
        logger.debug("not drained: %r", exc)  # its owner closed it, or is still reading, which drains it as well
