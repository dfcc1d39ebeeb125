"""The legacy era over streamable HTTP: sessions, POST, GET stream, DELETE (2025-11-25 basic/transports).

A disconnect is not a cancellation here: the call continues (see `resumable`), and `notifications/cancelled` ends it
early. A session's own notifications (list changes) go to its GET stream; a newer GET stream replaces the older one. A
GET with `Last-Event-ID` resumes the stream that the id belongs to.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import Era
from gateway.eras import headers, requests, versions
from gateway.errors import GatewayError
from gateway.frontends.http.response import HttpDelivery
from gateway.frontends.legacy.batches import respond_to_batch
from gateway.frontends.legacy.event_store import RESUME_WITHIN, STANDALONE
from gateway.frontends.legacy.notifications import handle_notification
from gateway.frontends.legacy.resumable import FIRST_PRIMED, NOWHERE, ResumableDelivery, replay
from gateway.frontends.legacy.sessions import RETRY_AFTER, DuplicateId

if TYPE_CHECKING:
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.http.exchange import Exchange
    from gateway.frontends.legacy.sessions import LegacySession, SessionTable
    from gateway.frontends.request_handler import RequestHandler
    from gateway.jsonrpc import Id, Message

LAST_EVENT_ID: Final = b"last-event-id"


class StreamableFrontend:
    """Answers legacy requests on the MCP endpoint."""

    def __init__(self, answers: RequestHandler, sessions: SessionTable) -> None:
        self._answers = answers
        self._sessions = sessions

    async def post(self, exchange: Exchange, message: Message) -> None:
        """Answer one message. Raises ClientGone."""
        request_id = message.id
        if message.method != "initialize" or not isinstance(request_id, int | str):
            session = await self._session(exchange)
            if session is None:
                return
            if isinstance(request_id, int | str) and message.method is not msgspec.UNSET:
                await self._request(exchange, session, message, request_id)
            else:
                handle_notification(self._answers, session, message, session.in_flight)
                await exchange.empty(202)
            return
        try:
            introduction = self._answers.introduce(message, exchange.identity)
        except GatewayError as exc:
            body, _ = self._answers.encode_error(request_id, exc, Era.LEGACY)
            await exchange.json(400, body)
            return
        await self._answers.fleet.before_initialize(exchange.identity.scope)
        principal = exchange.principal
        if principal is not None and not self._sessions.has_share(principal):
            text = (
                f"{principal.name!r} has too many sessions open (max_sessions of its key); end one, or try again later"
            )
            await exchange.refuse(429, text, RETRY_AFTER, code=jsonrpc.INTERNAL_ERROR, request_id=request_id)
            return
        session = self._sessions.create(introduction)
        if session is None or session.id is None:
            text = f"{len(self._sessions)} sessions are open (max_sessions); try again later"
            await exchange.refuse(503, text, RETRY_AFTER, code=jsonrpc.INTERNAL_ERROR, request_id=request_id)
            return
        await exchange.message(
            jsonrpc.response(request_id, self._answers.greeting(introduction)),
            (headers.SESSION_HEADER, session.id.encode("ascii")),
        )

    async def post_batch(self, exchange: Exchange, body: bytes) -> None:
        """Answer a batch, its responses in order of arrival. Raises ClientGone."""
        session = await self._session(exchange)
        if session is None:
            return
        try:
            messages = self._answers.decode_batch(body, exchange.identity, session)
        except jsonrpc.Malformed as exc:
            await exchange.refuse(400, exc.reason, code=exc.code, request_id=exc.id)
            return
        respond = partial(self._respond, session)
        batch = await respond_to_batch(self._answers, session, messages, session.in_flight, respond)
        await (exchange.empty(202) if batch is None else exchange.message(batch))

    async def _respond(
        self, session: LegacySession, message: Message, request_id: Id, scope: trio.CancelScope
    ) -> bytes | None:
        """Return one response of a batch, None if cancelled; drop the call's notifications."""
        try:
            with scope:
                answer = await self._answers.legacy(message, session)
                if isinstance(answer, bytes):
                    return jsonrpc.response(request_id, answer)
                delivery = HttpDelivery(NOWHERE, self._answers, answer.call, request_id, session, can_stream=False)
                return await delivery.response(answer)
        except GatewayError as exc:
            return self._answers.encode_error(request_id, exc, Era.LEGACY)[0]
        finally:
            session.in_flight.remove(request_id)
        return None

    async def get(self, exchange: Exchange) -> None:
        """Resume a stream, or serve the session's own until it or the connection ends."""
        session = await self._session(exchange)
        if session is None:
            return
        if not exchange.accepts_stream:
            await exchange.refuse(406, "GET needs Accept: text/event-stream")
            return
        last_event_id = exchange.headers.get(LAST_EVENT_ID)
        if last_event_id is None:
            # Messages that could not be sent on the last stream of this kind are sent on this one.
            await self._serve_stream(exchange, session, session.events.standalone().sent)
            return
        position = session.events.find(last_event_id.decode("latin-1"), now=trio.current_time())
        if position is None:
            text = f"Last-Event-ID names no kept stream of this session; streams are kept for {RESUME_WITHIN:g} s"
            await exchange.refuse(400, text)
            return
        log, after = position
        if log.number == STANDALONE:
            await self._serve_stream(exchange, session, after)
        elif log.number in session.replies:
            await session.replies[log.number].resume(exchange, after)
        else:
            await replay(exchange, session.events, log, after)
            await exchange.end_stream()

    async def _serve_stream(self, exchange: Exchange, session: LegacySession, after: int) -> None:
        """Carry the session's own stream, after an event."""
        if session.stream is not None:
            session.stream.cancel(reason="a newer GET stream takes over")
        with trio.CancelScope() as scope:
            session.stream = scope
            try:
                await self._send_notifications(exchange, session, after)
            finally:
                if session.stream is scope:
                    session.stream = None
                session.touch()
        await exchange.end_stream()

    async def _send_notifications(self, exchange: Exchange, session: LegacySession, after: int) -> None:
        """Send notifications, and comments while there are none."""
        store, log = session.events, session.events.standalone()
        await replay(exchange, store, log, after)  # opens the stream, so that the client gets its headers immediately
        if session.caller.version >= FIRST_PRIMED:
            await exchange.mark(store.mark(log))
        log.sent = log.last
        async with trio.open_nursery() as nursery:

            async def watch_client() -> None:
                await exchange.hung_up()
                nursery.cancel_scope.cancel(reason="the client hung up")

            nursery.start_soon(watch_client)
            interval = self._answers.settings.keep_alive_interval
            while True:
                messages: list[bytes] = []
                with trio.move_on_after(interval) as silence:
                    messages = await session.changes.next_batch()
                if silence.cancelled_caught:
                    await exchange.keep_alive()
                for message, event_id in [(message, store.add(log, message)) for message in messages]:
                    await exchange.event(message, event_id)
                log.sent = log.last

    async def delete(self, exchange: Exchange) -> None:
        """End the session."""
        session = await self._session(exchange)
        if session is not None:
            self._sessions.close(session)
            await exchange.empty(200)

    async def _session(self, exchange: Exchange) -> LegacySession | None:
        """Return the session that the request names; otherwise respond with the refusal."""
        found = self._find_session(exchange)
        if not isinstance(found, tuple):
            return found
        await exchange.refuse(*found)
        return None

    def _find_session(self, exchange: Exchange) -> LegacySession | tuple[int, str]:
        """Return the session that a request names, or the status and text of its refusal."""
        session_id = exchange.headers.get(headers.SESSION_HEADER)
        if session_id is None:
            text = "the Mcp-Session-Id header is missing: send initialize first, then its session id with each request"
            return 400, text
        session = self._sessions.find(session_id.decode("latin-1"), exchange.identity)
        if session is None:
            return 404, "this session does not exist or has ended: initialize again without a session id"
        version = exchange.headers.get(headers.VERSION_HEADER)
        if version is not None and version.decode("latin-1") not in versions.LEGACY_VERSIONS:
            spoken = ", ".join(versions.LEGACY_VERSIONS)
            text = f"MCP-Protocol-Version {version.decode('latin-1')!r} is not supported in a session; use {spoken}"
            return 400, text
        return session

    def begin(self, exchange: Exchange, message: Message, request_id: Id) -> bool:
        """Submit a tool call without a task; return False, without effect, if it needs one."""
        session = self._find_session(exchange)
        if isinstance(session, tuple):
            return False
        try:
            session.in_flight.check(request_id)
            call = requests.legacy_call(message, session.caller)
        except GatewayError:
            return False
        keep = self._sessions.start_call_task
        return ResumableDelivery(exchange, self._answers, call, request_id, session, keep).begin()

    async def _request(self, exchange: Exchange, session: LegacySession, message: Message, request_id: Id) -> None:
        try:
            scope = session.in_flight.add(request_id)
        except GatewayError as exc:
            self._answers.turn_away(message, session.caller, exc)
            refusal, _ = self._answers.encode_error(request_id, exc, Era.LEGACY)
            await (exchange.json(400, refusal) if isinstance(exc, DuplicateId) else exchange.message(refusal))
            return
        answer: bytes | CallStream | None = None
        body = b""
        try:
            with scope:
                answer = await self._answers.legacy(message, session)
                if isinstance(answer, bytes):
                    body = jsonrpc.response(request_id, answer)
        except GatewayError as exc:
            body = self._answers.encode_error(request_id, exc, Era.LEGACY)[0]
        finally:
            session.in_flight.remove(request_id)
            session.touch()
        if body:
            await exchange.message(body)
        elif answer is None or isinstance(answer, bytes):
            # Cancelled: the exchange must end without a response (basic/utilities/cancellation).
            await exchange.end_stream()
        else:
            keep = self._sessions.start_call_task
            delivery = ResumableDelivery(exchange, self._answers, answer.call, request_id, session, keep)
            carrying = session.in_flight.open_scope(request_id)
            if scope.cancel_called:  # in the step in which the call was submitted
                carrying.cancel(reason="the client cancelled the request")
            await delivery.carry(answer, carrying)
