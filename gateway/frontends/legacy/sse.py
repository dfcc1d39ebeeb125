"""The HTTP+SSE transport (2024-11-05): one stream to the client, and POSTs from it.

A session lives as long as its stream: the stream's task owns the tasks of all its requests, and when the client
disconnects they are cancelled at the backends. All messages to the client go through one buffer, in order. While it is
full, the client's POSTs wait, and so do the events of its calls; a client that reads nothing for `PATIENCE` is then
dropped, since this transport cannot resend messages. Legacy only.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, quote

import msgspec
import trio

from gateway import jsonrpc
from gateway.budget import Share
from gateway.calls import Era
from gateway.eras import errors, requests
from gateway.errors import GatewayError
from gateway.frontends.delivery import StreamDelivery
from gateway.frontends.http.exchange import KEEP_ALIVE, ClientGone, Exchange, read_json
from gateway.frontends.legacy.notifications import handle_notification
from gateway.frontends.legacy.sessions import RETRY_AFTER, SESSION_ID_BYTES, DuplicateId, LegacySession

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from gateway.access.principals import Principal
    from gateway.calls import Identity
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.legacy.sessions import ClientIntroduction
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id, Message

MAX_WAITING_BYTES: Final = 1_048_576
"""Bytes at which a client's buffer is full. Responses to earlier requests are added on top, in the step in which they
arrive: at most `max_client_requests` of them, and within the bound for all clients."""
MAX_WAITING_MESSAGES: Final = 4_096
"""The same in messages."""
PATIENCE: Final = 10.0
"""Seconds within which a client must read something while its buffer is full; then it counts as not reading."""
WRITE_BYTES: Final = 65_536
"""Bytes sent in one write: smaller writes would cost more, larger ones would free the buffer later."""
MAX_KNOWN_QUERY: Final = 128
"""Bytes of a query whose parsed form is cached; the gateway's are shorter."""
NO_STREAM: Final = "this session does not exist or has ended with its stream; open another one"

log = logging.getLogger("gateway.http")


class SseStream:
    """One client: its stream, its unsent messages, and its session after `initialize`."""

    def __init__(self, answers: RequestHandler, session_id: str, identity: Identity) -> None:
        self.id = session_id
        self.identity = identity
        self.session: LegacySession | None = None
        self._answers = answers
        self._introduced = trio.Event()
        self._waiting: deque[bytes] = deque()
        self._unsent = Share(answers.buffers, self._drop)
        self._writing = trio.CancelScope()  # around each write; its deadline is set while the buffer is full
        self._news = trio.Event()
        self._room = trio.lowlevel.ParkingLot()
        self._ending = False
        self.over = False
        """Whether the stream has ended or is ending: nothing more is sent."""
        self._nursery: trio.Nursery  # of the requests and of the stream's own tasks; opened and closed by `run`

    async def run(self, exchange: Exchange, endpoint: bytes) -> None:
        """Serve until the client hangs up or stops reading, or the gateway stops.

        Raises:
            ClientGone: the client hung up, in an exception group.
        """
        async with trio.open_nursery() as self._nursery:
            try:
                self._enqueue(b"event: endpoint\r\ndata: " + endpoint + b"\r\n\r\n")
                self._nursery.start_soon(self._watch, exchange)
                self._nursery.start_soon(self._send_notifications)
                await self._write(exchange)
                await exchange.end_stream()  # only here: a client that does not read would not read the end
                self._nursery.cancel_scope.cancel(reason="the stream has ended")
            finally:  # before the nursery closes: a call that is still in flight then may start its task in it
                self.over = True
                self._unsent.release()
                self._room.unpark_all()
                if self.session is not None:
                    self.session.end()

    @property
    def is_unused(self) -> bool:
        """Whether an anonymous client has opened it and not sent `initialize`."""
        return self.session is None and self.identity.principal is None

    def belongs_to(self, identity: Identity) -> bool:
        """Return whether a POST of this identity belongs to this stream's client."""
        if self.session is not None:
            return self.session.belongs_to(identity)
        return self.identity.same_door(identity)

    def update_principal(self, principal: Principal) -> None:
        """Apply the present rules of its principal, if it is this one."""
        view = self.identity.view
        if self.identity.principal != principal.name:
            return
        if not principal.may_use_view(view):
            self.end()
            return
        self.identity = principal.identity_at(view, self.identity.names)
        if self.session is not None:
            self.session.belongs_to(self.identity)

    def end(self) -> None:
        """Close the stream as soon as requests in flight have been answered and sent."""
        self._ending = True
        self._news.set()

    async def _watch(self, exchange: Exchange) -> None:
        await exchange.hung_up()
        self._nursery.cancel_scope.cancel(reason="the client hung up")

    async def _send_notifications(self) -> None:
        """Send list changes; before `initialize` the client has listed nothing that could change."""
        await self._introduced.wait()
        while self.session is not None:
            for message in await self.session.changes.next_batch():
                await self.send(message)

    # The buffer.

    async def send(self, message: bytes) -> None:
        """Add a message; wait for room first."""
        await self.wait_writable()
        self._enqueue(b"event: message\r\ndata: " + message + b"\r\n\r\n")
        if not self._is_full():
            self._room.unpark()  # in order of arrival

    async def wait_writable(self) -> None:
        """Wait until the buffer has room, or the stream has ended."""
        while self._is_full() and not self.over:
            await self._room.park()

    def _is_full(self) -> bool:
        return self._unsent.size >= MAX_WAITING_BYTES or len(self._waiting) >= MAX_WAITING_MESSAGES

    def _enqueue(self, frame: bytes) -> None:
        if self.over:
            return
        self._waiting.append(frame)
        self._news.set()
        self._unsent.add(len(frame))
        if self._writing.deadline == inf and self._is_full():
            self._writing.deadline = trio.current_time() + PATIENCE

    def _drop(self) -> None:
        self.over = True
        self._nursery.cancel_scope.cancel(reason="too much waits for clients that do not read")

    async def _write(self, exchange: Exchange) -> None:
        """Send buffered messages, and comments while there are none. Raises ClientGone."""
        while True:
            frames = [self._waiting.popleft()] if self._waiting else []
            if frames:
                size = len(frames[0])
                while self._waiting and size + len(self._waiting[0]) <= WRITE_BYTES:
                    frames.append(self._waiting.popleft())
                    size += len(frames[-1])
                self._unsent.remove(size)
                self._room.unpark()
            else:
                if self._ending and not (self.session is not None and len(self.session.in_flight)):
                    return
                self._news = trio.Event()
                with trio.move_on_after(self._answers.settings.keep_alive_interval) as silence:
                    await self._news.wait()
                if not silence.cancelled_caught:
                    continue
                frames = [KEEP_ALIVE]
            deadline = trio.current_time() + PATIENCE if self._is_full() else inf
            with trio.CancelScope(deadline=deadline) as self._writing:
                await exchange.frames(b"".join(frames))
            if self._writing.cancelled_caught:
                text = "SSE client dropped: it does not read, and %d messages (%d bytes) are waiting"
                log.warning(text, len(self._waiting), self._unsent.size)
                raise ClientGone

    # Messages of the client.

    async def handle_message(self, message: Message) -> bytes | None:
        """Handle one message; return the error that refuses it outside the stream."""
        request_id, session = message.id, self.session
        if self.over:  # since another message of the same batch
            return None
        if message.method is msgspec.UNSET or not isinstance(request_id, int | str):
            if session is not None:
                handle_notification(self._answers, session, message, session.in_flight)
                self._news.set()  # the last request in flight may have been cancelled
            return None
        if session is None or message.method == "initialize":
            answer = self._handle_before_session(message, request_id)
            if answer is not None:
                await self.send(answer)
            return None
        try:
            session.in_flight.check(request_id)
        except GatewayError as exc:
            self._answers.turn_away(message, session.caller, exc)
            refusal, _ = self._answers.encode_error(request_id, exc, Era.LEGACY)
            if isinstance(exc, DuplicateId):
                return refusal  # on the stream it would look like the response to the other request
            await self.send(refusal)
            return None
        if message.method == "tools/call":
            try:
                call = requests.legacy_call(message, session.caller)
            except GatewayError as exc:
                self.respond(request_id, self._answers.encode_error(request_id, exc, Era.LEGACY)[0])
                return None
            if StreamDelivery(self, self._answers, call, request_id, session, session.in_flight).begin():
                return None
        self.start_request(request_id, Era.LEGACY, self._respond(session, message, request_id))
        return None

    def begin(self, message: Message, request_id: Id) -> bool:
        """Submit a tool call without a task; return False, without effect, if it needs one."""
        session = self.session
        if session is None or self.over or self._is_full():
            return False
        try:
            session.in_flight.check(request_id)
            call = requests.legacy_call(message, session.caller)
        except GatewayError:
            return False
        return StreamDelivery(self, self._answers, call, request_id, session, session.in_flight).begin()

    # Implements `gateway.frontends.delivery.MessageStream`.

    def respond(self, request_id: Id, body: bytes) -> None:
        """Write a response."""
        del request_id
        self._enqueue(b"event: message\r\ndata: " + body + b"\r\n\r\n")

    def start_request(self, request_id: Id, era: Era, response: Coroutine[Any, Any, bytes]) -> None:
        """Start the task of a request, in a scope of its own."""
        del era
        if self.session is not None:
            scope = self.session.in_flight.open_scope(request_id)
            self._nursery.start_soon(self._request, self.session, response, request_id, scope)

    def fail(self, problem: Exception) -> None:
        """End the stream because of a bug."""
        log.error("an SSE stream has failed because of a bug", exc_info=problem)
        self._nursery.cancel_scope.cancel(reason="a call has failed because of a bug")

    def _handle_before_session(self, message: Message, request_id: Id) -> bytes | None:
        """Return the response to a request before the session exists; None if a task responds."""
        if message.method == "ping":
            return jsonrpc.response(request_id, b"{}")
        if message.method != "initialize" or self.session is not None:
            again = self.session is not None
            text = "this session is initialized: open another stream" if again else "send initialize first"
            return errors.WireError(jsonrpc.INVALID_REQUEST, text).encode(request_id)
        try:
            introduction = self._answers.introduce(message, self.identity)
        except GatewayError as exc:
            return self._answers.encode_error(request_id, exc, Era.LEGACY)[0]
        most = self._answers.settings.max_client_requests
        self.session = LegacySession(self.id, introduction, max_requests=most)
        self._answers.welcome(self.session)
        scope = self.session.in_flight.add(request_id)
        self._nursery.start_soon(self._answer_initialize, self.session, introduction, request_id, scope)
        return None

    async def _answer_initialize(
        self, session: LegacySession, introduction: ClientIntroduction, request_id: Id, scope: trio.CancelScope
    ) -> None:
        """Answer `initialize` after `before_initialize`; it cannot be cancelled."""
        try:
            with scope:
                await self._answers.fleet.before_initialize(introduction.identity.scope)
            await self.send(jsonrpc.response(request_id, self._answers.greeting(introduction)))
            self._introduced.set()
        finally:
            session.in_flight.remove(request_id)
            self._news.set()

    async def _request(
        self,
        session: LegacySession,
        response: Coroutine[Any, Any, bytes],
        request_id: Id,
        scope: trio.CancelScope,
    ) -> None:
        body: bytes | None = None  # stays so when cancelled: no response must follow
        try:
            try:
                with scope:
                    body = await response
            except GatewayError as exc:
                body = self._answers.encode_error(request_id, exc, Era.LEGACY)[0]
            if body is not None:
                self.respond(request_id, body)
        finally:
            session.in_flight.remove(request_id)
            self._news.set()

    async def _respond(self, session: LegacySession, message: Message, request_id: Id) -> bytes:
        """Return the response to a request; events of its call are passed on."""
        answer = await self._answers.legacy(message, session)
        if isinstance(answer, bytes):
            return jsonrpc.response(request_id, answer)
        delivery = StreamDelivery(self, self._answers, answer.call, request_id, session, session.in_flight)
        return await delivery.response(answer)


@lru_cache(1_024)
def _known_session_ids(query: bytes) -> list[str]:
    return parse_qs(query.decode("latin-1")).get("session_id", [])


def _session_ids(query: bytes) -> list[str]:
    """Return the session ids of an address, cached, since a client uses only one."""
    return (_known_session_ids if len(query) <= MAX_KNOWN_QUERY else _known_session_ids.__wrapped__)(query)


class SseFrontend:
    """The two endpoints; clients get `message_path` as the address for their POSTs."""

    def __init__(self, answers: RequestHandler, message_path: str, closing: trio.Event) -> None:
        self._answers = answers
        self._message_path = message_path
        self._closing = closing
        self._streams: dict[str, SseStream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def notify_list_changed(self, news: ListNews) -> None:
        """Note for every session that lists changed."""
        for stream in self._streams.values():
            if stream.session is not None:
                stream.session.notify_list_changed(news)

    def update_principal(self, principal: Principal) -> None:
        """Have every stream of a principal apply its present rules."""
        for stream in self._streams.values():
            stream.update_principal(principal)

    def end_all(self) -> None:
        """End every stream after its last messages."""
        for stream in self._streams.values():
            stream.end()

    async def open(self, exchange: Exchange) -> None:
        """Serve a GET: a new client, as long as its stream lasts. Raises ClientGone."""
        most = self._answers.settings.max_sessions
        principal = exchange.principal
        if exchange.method != "GET":
            await exchange.empty(405, (b"allow", b"GET"))
        elif not exchange.accepts_stream:
            await exchange.refuse(406, "GET needs Accept: text/event-stream")
        elif self._closing.is_set() or (len(self._streams) >= most and not self._evict_unused()):
            text = "the gateway is shutting down"
            if len(self._streams) >= most:
                text = f"{most} streams are open (max_sessions); try again later"
            await exchange.refuse(503, text, RETRY_AFTER, code=jsonrpc.INTERNAL_ERROR)
        elif principal is not None and principal.most_sessions(most) <= sum(
            stream.identity.principal == principal.name for stream in self._streams.values()
        ):
            text = (
                f"{principal.name!r} has too many streams open (max_sessions of its key); end one, or try again later"
            )
            await exchange.refuse(429, text, RETRY_AFTER, code=jsonrpc.INTERNAL_ERROR)
        else:
            stream = SseStream(self._answers, secrets.token_urlsafe(SESSION_ID_BYTES), exchange.identity)
            path = self._message_path
            if exchange.view is not None:  # a view has a path of its own, which identifies its requests
                path = f"{path.rstrip('/')}/{exchange.view}"
            path = quote(exchange.scope.get("root_path", "").rstrip("/") + path)
            self._streams[stream.id] = stream
            try:
                query = "" if exchange.names is None else f"&{exchange.names.query}"
                await stream.run(exchange, f"{path}?session_id={stream.id}{query}".encode("ascii"))
            except* ClientGone:
                log.debug("an SSE client hung up")
            finally:
                self._streams.pop(stream.id, None)

    def _evict_unused(self) -> bool:
        """End the oldest anonymous stream whose client has not even sent `initialize`."""
        oldest = next((stream for stream in self._streams.values() if stream.is_unused), None)
        if oldest is None:
            return False
        del self._streams[oldest.id]
        oldest.end()
        return True

    def begin(self, exchange: Exchange, message: Message, request_id: Id) -> bool:
        """Submit a tool call without a task; return False, without effect, if it needs one."""
        given = _session_ids(exchange.scope["query_string"])
        stream = self._streams.get(given[0]) if len(given) == 1 else None
        if stream is None or not stream.belongs_to(exchange.identity) or not stream.begin(message, request_id):
            return False
        exchange.respond_nowait(202, b"", ())
        return True

    async def post(self, exchange: Exchange) -> None:
        """Handle the messages of a POST; responses go over the client's stream. Raises ClientGone."""
        if exchange.method != "POST":
            await exchange.empty(405, (b"allow", b"POST"))
            return
        if self._answers.tracing is not None:
            self._answers.tracing.arrived(exchange.scope, exchange.headers)
        given = _session_ids(exchange.scope["query_string"])
        if len(given) != 1:
            text = "session_id is missing: POST to the URI that the stream's endpoint event gave"
            await exchange.refuse(400, text)
            return
        stream = self._streams.get(given[0])
        if stream is None or not stream.belongs_to(exchange.identity):
            await exchange.refuse(404, NO_STREAM)
            return
        await stream.wait_writable()
        body = await read_json(exchange, self._answers.settings.max_body_bytes, self._answers.buffers)
        if body is None:
            return
        if stream.over:
            await exchange.refuse(404, NO_STREAM)
            return
        try:
            if jsonrpc.is_batch(body):
                messages = self._answers.decode_batch(body, exchange.identity, stream.session)
            else:
                messages = [self._answers.decode(body, exchange.identity)]
        except jsonrpc.Malformed as exc:
            await exchange.refuse(400, exc.reason, code=exc.code, request_id=exc.id)
            return
        refusals = [refusal for message in messages if (refusal := await stream.handle_message(message)) is not None]
        if refusals:
            await exchange.json(400, refusals[0])
        else:
            await exchange.empty(202)
