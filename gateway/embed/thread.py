"""A trio loop in a thread of its own, for programs that run another loop, or none.

`LoopThread` runs one service from `start` until it returns. Calls come in from any thread; each is a task in the loop,
its result goes back to whoever waits, and when that one is cancelled, so is the task. The thread is a daemon; at the
end of the interpreter it is asked to stop and waited for within `EXIT_WAIT`.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

import anyio
import trio

from gateway.embed.errors import Closed
from gateway.embed.host import poster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

EXIT_WAIT: Final = 10.0
"""Seconds that the end of the interpreter waits for loops that were not closed: a shutdown sequence takes up to 5."""
START_WAIT: Final = 10.0
"""Seconds that starting the loop may take; it takes some milliseconds."""

log = logging.getLogger("gateway.embed")
T = TypeVar("T")


class Service(Protocol):
    """What runs in the thread."""

    async def run(self, started: Callable[[], object]) -> None:
        """Serve until `stop`, clean up and return; `started` is called when calls can come."""
        ...

    def stop(self) -> None:
        """Ask for the end. Called in the loop; safe to repeat."""
        ...


class _Reply(Generic[T]):
    """The result of one call on its way to whoever waits; `done` is called once, in the loop's thread."""

    def __init__(self, done: Callable[[], object]) -> None:
        self.scope = trio.CancelScope()
        self.value: T
        self._problem: Exception | None = None
        self._settled = False
        self._done = done

    def set_result(self, value: T) -> None:
        """Hand over the result."""
        if not self._settled:
            self._settled, self.value = True, value
            self._done()

    def fail(self, problem: Exception) -> None:
        """Hand over why there is none; ignored after a result."""
        if not self._settled:
            self._settled, self._problem = True, problem
            self._done()

    def result(self) -> T:
        """The result, or its problem raised."""
        if self._problem is not None:
            raise self._problem
        return self.value


class LoopThread:
    """One run of one service."""

    def __init__(self, service: Service, name: str) -> None:
        self._service = service
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._up = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery  # of the calls; opened and left by _main
        self._lock = threading.Lock()  # of the two below
        self._over = False
        self._at_end: list[Callable[[], object]] = []

    def start(self) -> None:
        """Start the thread; returns when calls can come, after some milliseconds. Raises Closed."""
        _running.add(self)
        self._thread.start()
        if not self._up.wait(START_WAIT) or not self.alive:
            text = "the gateway's loop did not start; the reason is in the log"
            raise Closed(text)

    @property
    def alive(self) -> bool:
        """Whether calls can be served."""
        return not self._over

    # Called in any thread.

    async def call(self, run: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run something in the loop and wait for its result; a cancelled wait cancels it, and does not wait for that.

        Raises:
            Closed: the loop has ended, or ends before there is a result.
            Exception: what `run` raises.
        """
        done, post = anyio.Event(), poster()
        reply: _Reply[T] = _Reply(lambda: post(done.set))
        self._send(reply, run, args)
        try:
            await done.wait()
        except BaseException:
            self.post(reply.scope.cancel)
            raise
        return reply.result()

    def call_blocking(self, timeout: float, run: Callable[..., Awaitable[T]], *args: Any) -> T:
        """The same for a caller that may be held up, for at most `timeout` seconds.

        Raises:
            TimeoutError: it takes longer, and was cancelled.
        """
        done = threading.Event()
        reply: _Reply[T] = _Reply(done.set)
        self._send(reply, run, args)
        if not done.wait(timeout):
            self.post(reply.scope.cancel)
            text = f"the gateway did not answer within {timeout:g} s"
            raise TimeoutError(text)
        return reply.result()

    def spawn(self, run: Callable[..., Awaitable[None]], *args: Any, ended: Callable[[], object] | None = None) -> None:
        """Run something in the loop without waiting for it; what it raises is logged. Raises Closed.

        `ended` is called, in the loop's thread, when it is over, also if it could not even begin.
        """

        def done() -> None:
            try:
                reply.result()
            except Closed:
                pass
            except Exception:
                log.exception("what was asked of the gateway could not be done")
            if ended is not None:
                ended()

        reply: _Reply[None] = _Reply(done)
        self._send(reply, run, args)

    def post(self, call: Callable[[], object]) -> bool:
        """Have something called in the loop; returns whether there is one."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True

    async def stop(self, within: float) -> bool:
        """Ask the service to stop and wait until its thread has ended; returns whether it did in time."""
        ended, post = anyio.Event(), poster()
        with self._lock:
            if self._over:
                ended.set()
            else:
                self._at_end.append(lambda: post(ended.set))
        self.post(self._service.stop)
        with anyio.move_on_after(within):
            await ended.wait()
            self._thread.join(1.0)  # it has nothing left to do but to return
        return not self._thread.is_alive()

    def stop_soon(self) -> None:
        """Ask the service to stop and do not wait: garbage is collected in any thread, also in the loop's own."""
        self.post(self._service.stop)

    def join(self, within: float) -> None:
        """Block until the thread has ended, but not longer than this."""
        self._thread.join(within)

    def abandon(self) -> None:
        """Know in a forked child that there is no thread here; its locks may have been held when it was left behind."""
        self._lock = threading.Lock()
        self._token, self._over, self._at_end = None, True, []

    # In the thread.

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException:  # noqa: ASYNC103 - the root of the thread: nobody else would ever hear of it
            log.critical("the gateway's loop has ended because of a bug", exc_info=True)
        with self._lock:
            self._over = True
            at_end, self._at_end = self._at_end, []
        self._up.set()
        for call in at_end:
            call()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            await self._service.run(self._up.set)
            self._nursery.cancel_scope.cancel(reason="the gateway was closed")

    def _send(self, reply: _Reply[T], run: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        def begin() -> None:
            try:
                self._nursery.start_soon(self._serve, reply, run, args)
            except RuntimeError:  # it has been left: the loop is about to end
                reply.fail(_closed())

        if not self.post(begin):
            raise _closed()

    async def _serve(self, reply: _Reply[T], run: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            with reply.scope:
                reply.set_result(await run(*args))
        except Exception as exc:  # noqa: BLE001 - the caller's, whatever it is
            reply.fail(exc)
        finally:
            reply.fail(_closed())


_running: Final[weakref.WeakSet[LoopThread]] = weakref.WeakSet()


def _abandon_all() -> None:
    for thread in list(_running):
        thread.abandon()
    _running.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)


@atexit.register
def _stop_all() -> None:
    """Let no interpreter end while a loop still has children to stop."""
    threads = [thread for thread in _running if thread.alive]
    for thread in threads:
        thread.stop_soon()
    deadline = time.monotonic() + EXIT_WAIT
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _closed() -> Closed:
    return Closed("the gateway was closed")
