"""The gateway's end of the sentinel: starts it, announces children, replaces it.

Invariant: each announcement reaches the living sentinel, or the next one gets it from `announcements`. `announce` never
waits; the single task, `run`, belongs to the guard's nursery. A sentinel that stops reading is replaced like a dead
one, since it cannot know the children that were announced meanwhile.
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
    from collections.abc import Callable, Iterable, Sequence

logger: Final = logging.getLogger("gateway.children")

COMMAND: Final = (sys.executable, "-I", "-S", "-E", str(Path(__file__).with_name("sentinel.py")))
PIPE_SIZE: Final = 1 << 20  # bytes: the announcements of some 4,000 children fit without waiting for the reader
MAX_BACKLOG: Final = 4 << 20  # bytes kept for a slow reader; with more it counts as stuck
STUCK_TIMEOUT: Final = 5.0  # s without reading while there is something to read
FIRST_DELAY: Final = 0.1  # s before the next one is started; doubled after each quick death
MAX_DELAY: Final = 60.0  # s: limits the log of a sentinel that cannot run to one line a minute
HEALTHY_AFTER: Final = 30.0  # s of life after which the delay is reset
BYE_GRACE: Final = 1.0  # s for the sentinel to exit after `bye`; it needs some 10 ms
POLL_INTERVAL: Final = 0.1  # s, where there is no pidfd


class SentinelClient:
    """At most one living sentinel. `announcements` returns all that a new one needs."""

    def __init__(
        self,
        announcements: Callable[[], Iterable[dict[str, Any]]],
        *,
        command: Sequence[str] = COMMAND,
        pipe_size: int = PIPE_SIZE,
        stuck_timeout: float = STUCK_TIMEOUT,
    ) -> None:
        self._announcements = announcements
        self._command = command
        self._pipe_size = pipe_size
        self._stuck_timeout = stuck_timeout
        self._popen: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._pipe = -1
        self._outbox = bytearray()
        self._backlog = trio.Event()
        self._starting = trio.Lock()
        self._started = trio.Event()
        self._limiter = trio.CapacityLimiter(1)  # trio's default one may be full of slow lookups

    @property
    def pid(self) -> int | None:
        """The pid of the living sentinel, which no scan may assign to a child."""
        return None if self._popen is None else self._popen.pid

    async def ensure(self) -> None:
        """Start the first sentinel; return once it exists, with its announcements in its pipe.

        `run` replaces a dead one. If none can be started, the gateway logs a warning and continues without one.
        """
        async with self._starting:
            if self._started.is_set():
                return
            try:
                await self._start()
            except OSError as exc:
                logger.warning("cannot start the sentinel, trying again later: %s", exc)
            self._started.set()

    def announce(self, announcement: dict[str, Any]) -> None:
        """Queue one announcement and write what the pipe accepts now."""
        if self._pipe >= 0:
            self._outbox += json.dumps(announcement, separators=(",", ":")).encode() + b"\n"
            self._flush()

    async def run(self) -> None:
        """Replace the sentinel whenever it is dead or stuck, at a bounded rate, until cancelled."""
        await self._started.wait()
        delay = FIRST_DELAY
        while True:
            started_at = trio.current_time()
            if self._popen is not None:
                problem = await self._watch()
                status = await self._kill_and_reap()
                extra = {"event": "sentinel_restart", "problem": problem, "status": status}
                logger.warning("the sentinel %s (%s); starting another", problem, status, extra=extra)
            delay = FIRST_DELAY if trio.current_time() - started_at > HEALTHY_AFTER else delay
            await trio.sleep(delay)
            delay = min(delay * 2, MAX_DELAY)
            try:
                await self._start()
            except OSError as exc:
                logger.warning("cannot start the sentinel, next try in %.1f s: %s", delay, exc)

    async def aclose(self, *, all_gone: bool) -> None:
        """Dismiss the sentinel; unless `all_gone`, without `bye`, so it ends the rest."""
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
            self._popen.returncode = 0  # it outlives us on purpose; Popen would warn of an unreaped child
            self._forget()

    async def _start(self) -> None:
        # Its announcements are in the pipe before it starts: the gateway may be killed meanwhile.
        read, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        if sys.platform == "linux":
            import fcntl

            with contextlib.suppress(OSError):  # an ordinary pipe also works, with a longer backlog
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, self._pipe_size)
        self._outbox.clear()
        for announcement in self._announcements():
            self._outbox += json.dumps(announcement, separators=(",", ":")).encode() + b"\n"
        self._flush()
        try:
            # Not abandoned on cancellation, which would leave it without an owner; as fast as Popen.
            popen, self._pidfd = await trio.to_thread.run_sync(
                _spawn_sentinel, self._command, read, limiter=self._limiter
            )
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
        except BrokenPipeError:  # dead; `run` will notice, and the next one gets all announcements
            self._outbox.clear()

    async def _watch(self) -> str:
        """Wait until the sentinel dies or stops reading, and return which."""
        assert self._popen is not None  # ruff: ignore[assert] - only `run` calls this, right after it looked
        problem = "died"
        async with trio.open_nursery() as nursery:

            async def write_backlog() -> None:
                nonlocal problem
                while True:
                    await self._backlog.wait()
                    if len(self._outbox) > MAX_BACKLOG:
                        break
                    with trio.move_on_after(self._stuck_timeout) as scope:
                        await trio.lowlevel.wait_writable(self._pipe)
                    if scope.cancelled_caught:
                        break
                    self._flush()
                    if not self._outbox:
                        self._backlog = trio.Event()
                problem = "does not read"
                nursery.cancel_scope.cancel(reason="the sentinel is stuck")

            nursery.start_soon(write_backlog)
            await self._wait_dead(self._popen)
            nursery.cancel_scope.cancel(reason="the sentinel died")
        return problem

    async def _wait_dead(self, popen: subprocess.Popen[bytes]) -> None:
        if self._pidfd >= 0:
            await trio.lowlevel.wait_readable(self._pidfd)
            return
        while True:
            await trio.sleep(POLL_INTERVAL)
            if popen.poll() is not None:
                return

    async def _kill_and_reap(self) -> int:
        """Kill it and return its exit status; after SIGKILL the wait is short."""
        assert self._popen is not None  # ruff: ignore[assert] - the callers hold one
        await trio.lowlevel.checkpoint()
        popen = self._popen
        self._close_pipe()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + BYE_GRACE):
            popen.kill()  # it checks first, so that an earlier exit status is preserved
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


def _spawn_sentinel(command: Sequence[str], stdin: int) -> tuple[subprocess.Popen[bytes], int]:
    """Start it in its own session, without open files of the gateway.

    The gateway's process group may be killed.

    It does not share the gateway's stderr, whose reader would otherwise get EOF only after the sentinel's end. Its
    environment is empty except for the loader's path, so that it has no tree id of a gateway above this one.
    """
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    popen = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=env,
        cwd="/",
        start_new_session=True,
        close_fds=True,
    )
    return popen, open_pidfd(popen.pid)
