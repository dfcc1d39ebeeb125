"""A trio loop in a separate thread, for programs with another loop or none.

`LoopThread` runs one service from `start` until it returns. Calls may come from any thread; each is a task in the loop,
its result goes to the waiting caller, and cancelling the caller cancels the task. The thread is a daemon; at
interpreter exit it is asked to stop and joined for at most `EXIT_WAIT`.
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

from gateway.clock import AwakeClock
from gateway.embed.errors import Closed
from gateway.embed.host import poster

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

EXIT_WAIT: Final = 10.0
"""Seconds that interpreter exit waits for loops that were not closed: a shutdown sequence takes up to 5."""
START_WAIT: Final = 10.0
"""Seconds for starting the loop, which takes some milliseconds."""

log = logging.getLogger("gateway.embed")
T = TypeVar("T")


class Service(Protocol):
    """The service in the thread."""

    async def run(self, started: Callable[[], object]) -> None:
        """Serve until `stop`, clean up and return; call `started` when ready for calls."""
        ...

    def stop(self) -> None:
        """Request the end. Called in the loop. Idempotent."""
        ...


class _Reply(Generic[T]):
    """The pending result of one call; `done` is called once, in the loop's thread."""

    def __init__(self, done: Callable[[], object]) -> None:
        self.scope = trio.CancelScope()
        self.value: T
        self._problem: Exception | None = None
        self._settled = False
        self._done = done

    def set_result(self, value: T) -> None:
        """Set the result."""
        if not self._settled:
            self._settled, self.value = True, value
            self._done()

    def fail(self, problem: Exception) -> None:
        """Set the error; ignored after a result."""
        if not self._settled:
            self._settled, self._problem = True, problem
            self._done()

    def result(self) -> T:
        """Return the result, or raise the error."""
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
        """Start the thread; return when it is ready, after some milliseconds. Raises Closed."""
        _running.add(self)
        self._thread.start()
        if not self._up.wait(START_WAIT) or not self.alive:
            text = "the gateway's loop did not start; the reason is in the log"
            raise Closed(text)

    @property
    def alive(self) -> bool:
        """True while it serves calls."""
        return not self._over

    # Called in any thread.

    async def call(self, run: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run a coroutine function in the loop and return its result.

        Cancellation cancels it without waiting.

        Raises:
            Closed: the loop has ended, or ends before there is a result.
            Exception: the error of `run`.
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
        """Run it and block the calling thread, for at most `timeout` seconds.

        Raises:
            TimeoutError: it took longer and was cancelled.
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
        """Run it in the loop without waiting; its errors are logged. Raises Closed.

        `ended` is called in the loop's thread when it has ended, even if it could not start.
        """

        def done() -> None:
            try:
                reply.result()
            except Closed:
                pass
            except Exception:
                log.exception("a background operation of the gateway failed")
            if ended is not None:
                ended()

        reply: _Reply[None] = _Reply(done)
        self._send(reply, run, args)

    def post(self, call: Callable[[], object]) -> bool:
        """Schedule a call in the loop; return whether there is a loop."""
        if self._token is None:
            return False
        try:
            self._token.run_sync_soon(call)
        except trio.RunFinishedError:
            return False
        return True

    async def stop(self, within: float) -> bool:
        """Stop the service; return whether its thread ended in time."""
        ended, post = anyio.Event(), poster()
        with self._lock:
            if self._over:
                ended.set()
            else:
                self._at_end.append(lambda: post(ended.set))
        self.post(self._service.stop)
        with anyio.move_on_after(within):
            await ended.wait()
            self._thread.join(1.0)  # the thread has only to return
        return not self._thread.is_alive()

    def stop_soon(self) -> None:
        """Stop the service without waiting: garbage collection may run in the loop's own thread."""
        self.post(self._service.stop)

    def join(self, within: float) -> None:
        """Block until the thread has ended or the timeout has passed."""
        self._thread.join(within)

    def abandon(self) -> None:
        """Forget the thread in a forked child, where its locks may be held."""
        self._lock = threading.Lock()
        self._token, self._over, self._at_end = None, True, []

    # In the thread.

    def _run(self) -> None:
        try:
            trio.run(self._main, clock=AwakeClock())
        except BaseException:  # noqa: ASYNC103 - the thread's top level, so it would be lost otherwise
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
            except RuntimeError:  # the nursery has been left: the loop is about to end
                reply.fail(_closed())

        if not self.post(begin):
            raise _closed()

    async def _serve(self, reply: _Reply[T], run: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> None:
        try:
            with reply.scope:
                reply.set_result(await run(*args))
        except Exception as exc:  # noqa: BLE001 - any error belongs to the caller
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
    """Stop all loops before interpreter exit, so that their children are stopped."""
    threads = [thread for thread in _running if thread.alive]
    for thread in threads:
        thread.stop_soon()
    deadline = time.monotonic() + EXIT_WAIT
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _closed() -> Closed:
    return Closed("the gateway was closed")
