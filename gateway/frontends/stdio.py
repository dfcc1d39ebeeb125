"""The stdio frontend: one client on this process's stdin and stdout, both eras (2026-07-28 basic/transports/stdio).

`initialize` opens a legacy session for the process; a request with modern `_meta` is served independently at any time.
Most calls have no task (`delivery`); all other requests run in tasks of the frontend's own nursery. The number of
requests in flight is bounded; at the bound, or while the client does not read, reading stops. The frontend ends when
stdin ends.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.budget import Intake, Share
from gateway.calls import ANYBODY, Era
from gateway.eras import errors, meta, requests, versions
from gateway.eras.methods import LISTEN
from gateway.errors import Busy, GatewayError
from gateway.frontends.delivery import StreamDelivery
from gateway.frontends.legacy.batches import respond_to_batch
from gateway.frontends.legacy.notifications import handle_notification
from gateway.frontends.legacy.sessions import STDIO, DuplicateId, InFlight, LegacySession
from gateway.frontends.modern.subscriptions import Subscription
from gateway.frontends.notification_queue import NotificationQueue
from gateway.lines import READ_BYTES, BufferedWriter, LineSplitter, OversizedLine, read_some

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    from gateway.calls import Identity
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.legacy.sessions import ClientIntroduction
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id, Message

MAX_LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest message that a client may send over a pipe; it is the operator's own program, so this only stops
accidents."""
MAX_BATCHES: Final = 16
"""Batches of the client in flight; each may hold `MAX_BATCH` messages."""
END_GRACE: Final = 1.0
"""Seconds that requests in flight get after the end of stdin: a shell pipeline still gets its responses, and a client
that stops the gateway by closing stdin sends SIGTERM 2 s later (2025-11-25 basic/lifecycle, "Shutdown")."""
MAX_UNREAD_BYTES: Final = 64 * 1024 * 1024
"""Bytes waiting for a client that does not read; above it, responses are replaced by short errors. While more than a
mebibyte waits, nothing is read, but the responses to requests read earlier may all be in memory."""
LAST_ANSWERS: Final = 0.25
"""Further seconds to report to the client which requests were not answered."""

log = logging.getLogger("gateway.stdio")


class StdioFrontend:
    """The frontend for one client on a pair of file descriptors.

    Several may serve at the same time, each with its own `session`. Server requests get ids above `last_asked`.
    """

    def __init__(
        self,
        answers: RequestHandler,
        stdin: int,
        stdout: int,
        closing: trio.Event,
        identity: Identity = ANYBODY,
        *,
        session: str = STDIO,
        last_asked: int = 0,
    ) -> None:
        self._answers = answers
        self._identity = identity
        self._session_key = session
        self._last_asked = last_asked
        self._stdin = stdin
        self._closing = closing
        self._reading = trio.CancelScope()
        self._ending = trio.Event()
        self._introduced = trio.Event()
        self._changes = NotificationQueue()  # of the process: a second `initialize` is the same client
        self._stdout = trio.lowlevel.FdStream(stdout)
        self._unsent = Share(answers.buffers, self._drop)
        self._outbox = BufferedWriter(self._stdout, share=self._unsent)
        self._session: LegacySession | None = None
        self._in_flight = InFlight(answers.settings.max_client_requests)
        self._batches = 0
        self._cut_off = False
        self._nursery: trio.Nursery  # of the requests; opened and closed by `run`
        self._serving: trio.CancelScope  # of all tasks; opened and closed by `run`

    async def run(self) -> bool:
        """Serve until stdin ends or the gateway closes.

        Requests in flight then get `END_GRACE` seconds. Returns whether all of them were answered.
        """
        fleet = self._answers.fleet
        fleet.subscribe(self._changed)
        try:
            async with self._stdout, trio.open_nursery() as services:
                self._serving = services.cancel_scope
                services.start_soon(self._write)
                services.start_soon(self._send_notifications)
                services.start_soon(self._close_with_gateway)
                async with trio.open_nursery() as self._nursery:
                    try:
                        with self._reading:
                            await self._read()
                    finally:  # also on cancellation: these calls end as tasks do, and none begins after the nursery
                        deadline = trio.current_time() + END_GRACE
                        self._in_flight.end_at(deadline)
                    self._ending.set()
                    self._nursery.cancel_scope.deadline = deadline + LAST_ANSWERS
                self._cut_off = self._cut_off or self._nursery.cancel_scope.cancelled_caught
                with trio.move_on_at(deadline + END_GRACE):
                    await self._outbox.drained()
                services.cancel_scope.cancel(reason="the client has closed stdin, or the gateway stops")
        finally:
            self._unsent.release()
            fleet.unsubscribe(self._changed)
            if self._session is not None:
                self._session.end()
            fleet.client_gone(self._session_key)
        return not self._cut_off

    def _drop(self) -> None:
        self._cut_off = True
        self._serving.cancel(reason="too much waits for clients that do not read")

    async def _close_with_gateway(self) -> None:
        await self._closing.wait()
        self._reading.cancel(reason="the gateway is shutting down")

    async def _write(self) -> None:
        await self._outbox.run()
        log.info("the client closed its read end")
        self._reading.cancel(reason="the client does not read responses")

    async def _read(self) -> None:
        splitter = LineSplitter(MAX_LINE_BYTES, intake=Intake(self._answers.buffers, evict=False))
        try:
            async with open_stdin(self._stdin) as receive_some:
                while data := await receive_some():
                    for line in splitter.feed(data):
                        self._handle_line(line)
                    await self._outbox.wait_writable()
        except (trio.BrokenResourceError, OSError) as exc:
            # A client that disconnects with unread responses resets its socket.
            log.warning("reading stdin failed (%s); treating it as the end", exc.__cause__ or exc)
        finally:
            whole = splitter.feed(b"\n")
            splitter.release()
        for line in whole:  # the last line may lack its newline
            self._handle_line(line)

    def _post(self, message: bytes) -> None:
        # One call gains from an immediate write, many from one write for all that end in one step of the loop.
        self._outbox.post(message + b"\n", direct=len(self._in_flight) < 2)

    def _handle_line(self, line: bytes | OversizedLine) -> None:
        """Handle one line: submit a tool call, start a task for other requests."""
        if isinstance(line, OversizedLine):
            known = jsonrpc.recover_id(line.head)
            known = jsonrpc.recover_id(line.tail) if known is None else known
            if line.unbuffered:
                busy = Busy("too many bytes are buffered (max_buffered_bytes); try again")
                self._post(self._answers.encode_error(known, busy, Era.LEGACY)[0])
                return
            text = f"the message has {line.size} bytes; the limit is {MAX_LINE_BYTES}"
            self._post(jsonrpc.error_response(known, jsonrpc.INVALID_REQUEST, text))
            return
        if not line.startswith(b"{") and jsonrpc.is_batch(line):
            if self._batches >= MAX_BATCHES:
                text = f"{MAX_BATCHES} batches are in progress; try again"
                self._post(jsonrpc.error_response(None, jsonrpc.INTERNAL_ERROR, text))
                return
            self._batches += 1
            self._nursery.start_soon(self._batch, line)
            return
        try:
            message = self._answers.decode(line, self._identity)
        except jsonrpc.Malformed as exc:
            self._post(jsonrpc.error_response(exc.id, exc.code, exc.reason))
            return
        request_id = message.id
        if message.method is msgspec.UNSET or not isinstance(request_id, int | str):
            handle_notification(self._answers, self._session, message, self._in_flight)
            return
        try:
            self._in_flight.check(request_id)
        except (DuplicateId, Busy) as exc:
            self._post(self._answers.encode_error(request_id, exc, Era.LEGACY)[0])
            return
        is_modern = requests.is_modern(message)
        if message.method == "initialize" and not is_modern:
            self._initialize(message, request_id)  # in this step: the messages after it need its session
            return
        session = None if is_modern else self._session
        if message.method == "tools/call" and (is_modern or session is not None):
            try:
                if session is None:
                    call = requests.modern_call(message, identity=self._identity, session=self._session_key)
                else:
                    call = requests.legacy_call(message, session.caller)
            except GatewayError as exc:
                era = Era.MODERN if is_modern else Era.LEGACY
                self.respond(request_id, self._answers.encode_error(request_id, exc, era)[0])
                return
            if StreamDelivery(self, self._answers, call, request_id, session, self._in_flight).begin():
                return
        self.start_request(request_id, *self._begin_response(message, request_id))

    # Implements `gateway.frontends.delivery.MessageStream`.

    def respond(self, request_id: Id, body: bytes) -> None:
        """Write a response."""
        self._post_response(body, request_id)

    def start_request(self, request_id: Id, era: Era, response: Coroutine[Any, Any, bytes]) -> None:
        """Start the task of a request, in a scope of its own."""
        self._nursery.start_soon(self._request, self._in_flight.open_scope(request_id), request_id, era, response)

    def fail(self, problem: Exception) -> None:
        """End this frontend because of a bug."""
        self._nursery.start_soon(_raise, problem)

    async def send(self, message: bytes) -> None:
        """Write a message; wait while the client does not read."""
        self._post(message)
        await self._outbox.wait_writable()

    # The tasks of requests.

    async def _request(
        self, scope: trio.CancelScope, request_id: Id, era: Era, response: Coroutine[Any, Any, bytes]
    ) -> None:
        # No variable of this task holds the response: while the client does not read, only the outbox does.
        self._post_response(await self._within(scope, request_id, era, response), request_id)
        await self._outbox.wait_writable()

    def _post_response(self, response: bytes | None, request_id: Id | msgspec.UnsetType | None) -> None:
        """Write a response, or a short error if too much is unread."""
        if response is None:
            return
        waiting = self._outbox.size
        if waiting and waiting + len(response) > MAX_UNREAD_BYTES:
            text = f"response dropped: the client is not reading ({waiting} bytes buffered, {len(response)} discarded)"
            known = request_id if isinstance(request_id, int | str) else None
            response = jsonrpc.error_response(known, jsonrpc.INTERNAL_ERROR, text)
        self._post(response)

    async def _batch(self, line: bytes) -> None:
        """Answer a batch with a batch, as its protocol version demands."""

        async def respond(message: Message, request_id: Id, scope: trio.CancelScope) -> bytes | None:
            return await self._within(scope, request_id, *self._begin_response(message, request_id))

        try:
            messages = self._answers.decode_batch(line, self._identity, self._session)
            batch = await respond_to_batch(self._answers, self._session, messages, self._in_flight, respond)
            self._post_response(batch, None)
        except jsonrpc.Malformed as exc:
            self._post(jsonrpc.error_response(exc.id, exc.code, exc.reason))
        finally:
            self._batches -= 1

    def _begin_response(self, message: Message, request_id: Id) -> tuple[Era, Coroutine[Any, Any, bytes]]:
        if requests.is_modern(message):
            return Era.MODERN, self._respond_modern(message, request_id)
        return Era.LEGACY, self._respond_legacy(message, request_id)

    async def _within(
        self, scope: trio.CancelScope, request_id: Id, era: Era, response: Awaitable[bytes]
    ) -> bytes | None:
        """Return a response, or the error instead; None if the client cancelled the request."""
        try:
            with scope:
                return await response
        except GatewayError as exc:
            return self._answers.encode_error(request_id, exc, era)[0]
        finally:
            self._in_flight.remove(request_id)
        if trio.current_time() >= scope.deadline:
            self._cut_off = True
            text = f"stdin has ended, and the request was not answered within {END_GRACE:g} s"
            return jsonrpc.error_response(request_id, jsonrpc.INTERNAL_ERROR, text)
        return None

    def _initialize(self, message: Message, request_id: Id) -> None:
        """Open the process' legacy conversation (2025-11-25 basic/lifecycle)."""
        try:
            introduction = self._answers.introduce(message, self._identity)
        except GatewayError as exc:
            self._post(self._answers.encode_error(request_id, exc, Era.LEGACY)[0])
            return
        if self._session is not None:
            self._session.end()  # a second conversation on the pipe ends the subscriptions of the first
        self._session = LegacySession(
            self._session_key,
            introduction,
            max_requests=self._answers.settings.max_client_requests,
            last_asked=self._last_asked,
        )
        self._session.changes = self._changes
        self._answers.welcome(self._session)
        if self._answers.fleet.awaited(self._identity.scope):
            scope = self._in_flight.open_scope(request_id)
            self._nursery.start_soon(self._answer_initialize, introduction, request_id, scope)
        else:
            self._post_initialize_result(introduction, request_id)

    async def _answer_initialize(
        self, introduction: ClientIntroduction, request_id: Id, scope: trio.CancelScope
    ) -> None:
        """Answer `initialize` after `before_initialize` or the end of stdin; it cannot be cancelled."""
        with scope:
            await self._answers.fleet.before_initialize(self._identity.scope)
        self._post_initialize_result(introduction, request_id)

    def _post_initialize_result(self, introduction: ClientIntroduction, request_id: Id) -> None:
        self._in_flight.remove(request_id)
        self._post(jsonrpc.response(request_id, self._answers.greeting(introduction)))
        self._introduced.set()

    async def _respond_legacy(self, message: Message, request_id: Id) -> bytes:
        if message.method == "server/discover":
            # Clients recognize modern servers by their answer to this without `_meta` (basic/index: -32602).
            text = f"params._meta[{meta.PROTOCOL_VERSION!r}] is required and must be a string"
            return jsonrpc.error_response(request_id, jsonrpc.INVALID_PARAMS, text)
        if self._session is None and message.method != "ping":
            text = (
                "send initialize first, or a request of protocol version "
                f"{versions.LATEST_MODERN} with its _meta (params._meta[{meta.PROTOCOL_VERSION!r}])"
            )
            return errors.WireError(jsonrpc.INVALID_REQUEST, text).encode(request_id)
        if self._session is None:
            return jsonrpc.response(request_id, b"{}")  # ping
        session = self._session
        answer = await self._answers.legacy(message, session)
        if isinstance(answer, bytes):
            return jsonrpc.response(request_id, answer)
        delivery = StreamDelivery(self, self._answers, answer.call, request_id, session, self._in_flight)
        return await delivery.response(answer)

    async def _respond_modern(self, message: Message, request_id: Id) -> bytes:
        call = requests.modern_call(message, identity=self._identity, session=self._session_key)
        if call.method == LISTEN:
            return await self._listen(Subscription(self._answers, request_id, call))
        answer = await self._answers.modern(call, request_id)
        if isinstance(answer, bytes):
            return jsonrpc.response(request_id, answer)
        delivery = StreamDelivery(self, self._answers, answer.call, request_id, None, self._in_flight)
        return await delivery.response(answer)

    async def _listen(self, subscription: Subscription) -> bytes:
        """Notify a modern client of changes until it cancels, or the gateway stops."""
        try:
            self._post(await subscription.open())
            async with trio.open_nursery() as nursery:

                async def end() -> None:
                    await self._ending.wait()
                    nursery.cancel_scope.cancel(reason="the gateway is shutting down")

                nursery.start_soon(end)
                while True:
                    for message in await subscription.next_notifications():
                        self._post(message)
                    await self._outbox.wait_writable()
            return subscription.result()
        finally:
            subscription.close()

    async def _send_notifications(self) -> None:
        """Notify the legacy client of changes; before `initialize` it has listed nothing that could change."""
        await self._introduced.wait()
        while True:
            for message in await self._changes.next_batch():
                self._post(message)
            await self._outbox.wait_writable()

    def _changed(self, news: ListNews) -> None:
        if self._session is not None:
            self._session.notify_list_changed(news)


async def _raise(problem: Exception) -> None:
    await trio.lowlevel.checkpoint()
    raise problem


@asynccontextmanager
async def open_stdin(fd: int) -> AsyncGenerator[Callable[[], Awaitable[bytes]]]:
    """Return a function that reads some bytes of stdin, b"" at its end.

    The loop reads pipes, sockets and terminals (their blocking mode is restored at the end); a thread reads files, and
    is abandoned if the gateway stops during a read.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(fd):
        async with trio.lowlevel.FdStream(os.dup(fd)) as stream:
            yield partial(read_some, stream)
    else:

        async def read() -> bytes:
            return await trio.to_thread.run_sync(os.read, fd, READ_BYTES, abandon_on_cancel=True)

        yield read
