"""The gateway's end of the sentinel: starts it, tells it of every child, and starts another when it dies.

Invariant: what `tell` was given reaches the sentinel that lives now, or the next one learns it from `roster`. Telling
is a plain call that never waits; the one task, `run`, belongs to the guard's nursery. A sentinel that stops reading is
replaced like a dead one, since an unread pipe protects nobody.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from gateway.processes.spawn import open_pidfd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger: Final = logging.getLogger("gateway.children")

PROGRAM: Final = Path(__file__).with_name("sentinel.py")
PIPE_SIZE: Final = 1 << 20  # bytes: the announcements of some 4,000 children fit without waiting for the reader
MAX_BACKLOG: Final = 4 << 20  # bytes kept for a slow reader; beyond, it counts as stuck
STUCK_AFTER: Final = 5.0  # s without reading while there is something to read
FIRST_DELAY: Final = 0.1  # s before the next one is started; doubles with each quick death
MAX_DELAY: Final = 60.0  # s: one log line a minute is what a sentinel that cannot live may cost
HEALTHY_AFTER: Final = 30.0  # s of life that forgive earlier deaths
BYE_GRACE: Final = 1.0  # s for the sentinel to exit after `bye`; it needs some 10 ms
POLL: Final = 0.1  # s between two looks where there is no pidfd


class SentinelClient:
    """One living sentinel at most. `roster` gives everything that a newborn has to know."""

    def __init__(self, roster: Callable[[], Iterable[dict[str, Any]]]) -> None:
        self._roster = roster
        self._popen: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._pipe = -1
        self._outbox = bytearray()
        self._backlog = trio.Event()
        self._starting = trio.Lock()
        self._born = trio.Event()
        self._limiter = trio.CapacityLimiter(1)  # trio's default one may be full of other rooms' slow lookups

    @property
    def pid(self) -> int | None:
        """The living sentinel, to be left out of every sweep."""
        return None if self._popen is None else self._popen.pid

    async def ensure(self) -> None:
        """Start the first sentinel and return when it exists; what it is to know waits for it in its pipe.

        Replacing a dead one is the task's work. When none can be started the gateway works on without, and says so.
        """
        async with self._starting:
            if self._born.is_set():
                return
            try:
                await self._start()
            except OSError as exc:
                logger.warning("cannot start the sentinel, will try again: %s", exc)
            self._born.set()

    def announce(self, said: dict[str, Any]) -> None:
        """Queue one announcement and write what the pipe takes at once."""
        if self._pipe >= 0:
            self._outbox += json.dumps(said, separators=(",", ":")).encode() + b"\n"
            self._flush()

    async def run(self) -> None:
        """Watch over the sentinel until cancelled: replace it whenever it is dead or stuck, at a bounded rate."""
        await self._born.wait()
        delay = FIRST_DELAY
        while True:
            born_at = trio.current_time()
            if self._popen is not None:
                plight = await self._watch()
                status = await self._kill_and_reap()
                logger.warning("the sentinel %s (%s); starting another", plight, status)
            delay = FIRST_DELAY if trio.current_time() - born_at > HEALTHY_AFTER else delay
            await trio.sleep(delay)
            delay = min(delay * 2, MAX_DELAY)
            try:
                await self._start()
            except OSError as exc:
                logger.warning("cannot start the sentinel, next try in %.1f s: %s", delay, exc)

    async def aclose(self, *, all_gone: bool) -> None:
        """Send the sentinel home; unless `all_gone`, it does not hear `bye` and still ends whom we could not."""
        await trio.lowlevel.checkpoint()
        if self._popen is None:
            return
        if all_gone:
            self.announce({"op": "bye"})
        self._close_pipe()
        if all_gone:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + BYE_GRACE):
                await self._wait_dead(self._popen)
            await self._kill_and_reap()
        else:
            self._popen.returncode = 0  # it outlives us on purpose; Popen would warn of a child left behind
            self._forget()

    async def _start(self) -> None:
        # All it has to know is in its pipe before it is there: were we killed while it starts, it would know nobody.
        read, self._pipe = _open_pipe()
        self._outbox.clear()
        for said in self._roster():
            self._outbox += json.dumps(said, separators=(",", ":")).encode() + b"\n"
        self._flush()
        try:
            # Not to be abandoned on cancellation, or nobody would own it; it takes as long as Popen does.
            popen, self._pidfd = await trio.to_thread.run_sync(_spawn_sentinel, read, limiter=self._limiter)
        except BaseException:
            self._close_pipe()
            raise
        finally:
            os.close(read)
        self._popen = popen
        logger.debug("sentinel %d started", popen.pid)

    def _flush(self) -> None:
        try:
            while self._outbox:
                del self._outbox[: os.write(self._pipe, self._outbox)]
        except BlockingIOError:
            self._backlog.set()
        except BrokenPipeError:  # dead; `run` is about to notice, and the next one is told by the roster
            self._outbox.clear()

    async def _watch(self) -> str:
        """Return what is wrong with the sentinel, once something is."""
        assert self._popen is not None  # ruff: ignore[assert] - only `run` calls this, right after it looked
        plight = "died"
        async with trio.open_nursery() as nursery:

            async def feed() -> None:
                nonlocal plight
                await self._feed()
                plight = "does not read"
                nursery.cancel_scope.cancel(reason="the sentinel is stuck")

            nursery.start_soon(feed)
            await self._wait_dead(self._popen)
            nursery.cancel_scope.cancel(reason="the sentinel died")
        return plight

    async def _feed(self) -> None:
        """Write the backlog whenever there is one; return when the sentinel does not take it."""
        while True:
            await self._backlog.wait()
            if len(self._outbox) > MAX_BACKLOG:
                return
            with trio.move_on_after(STUCK_AFTER) as scope:
                await trio.lowlevel.wait_writable(self._pipe)
            if scope.cancelled_caught:
                return
            self._flush()
            if not self._outbox:
                self._backlog = trio.Event()

    async def _wait_dead(self, popen: subprocess.Popen[bytes]) -> None:
        if self._pidfd >= 0:
            await trio.lowlevel.wait_readable(self._pidfd)
            return
        while True:
            await trio.sleep(POLL)
            if popen.poll() is not None:
                return

    async def _kill_and_reap(self) -> int:
        """End what is left of it; SIGKILL takes effect at once, so the blocking wait is over in a moment."""
        assert self._popen is not None  # ruff: ignore[assert] - the callers hold one
        await trio.lowlevel.checkpoint()
        popen = self._popen
        self._close_pipe()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + BYE_GRACE):
            popen.kill()  # it looks first: one that has ended by itself keeps its status
            await self._wait_dead(popen)
        status = popen.poll()
        self._forget()
        return -9 if status is None else status

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            trio.lowlevel.notify_closing(self._pipe)
            os.close(self._pipe)
            self._pipe = -1

    def _forget(self) -> None:
        if self._pidfd >= 0:
            trio.lowlevel.notify_closing(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._popen = None
        self._outbox.clear()
        self._backlog = trio.Event()


def _open_pipe() -> tuple[int, int]:
    """The sentinel's end and ours, which never makes us wait."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    if sys.platform == "linux":
        import fcntl

        with contextlib.suppress(OSError):  # an ordinary pipe does as well, the backlog then lives on our side
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return read, write


def _spawn_sentinel(stdin: int) -> tuple[subprocess.Popen[bytes], int]:
    """Run it in a session of its own (the gateway's group may be killed), with no open file of the gateway's.

    Its stderr is not ours: who reads the gateway's stderr to its end should not have to wait for the sentinel. Its
    environment is empty but for the loader's path, so that it carries no cookie of a gateway above this one.
    """
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    popen = subprocess.Popen(
        [sys.executable, "-I", "-S", "-E", str(PROGRAM)],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd="/",
        start_new_session=True,
        close_fds=True,
    )
    return popen, open_pidfd(popen.pid)
