"""Legacy sessions: their clients, their requests in flight, their pending notifications.

Bounded in number and in idle time. Invariant: a session's pending notifications are a set of features, so it cannot
grow, and each client is notified of a change once however often it happened.
"""

from __future__ import annotations

import math
import secrets
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import msgspec
import trio

from gateway import jsonrpc
from gateway.budget import Budget
from gateway.calls import ANYBODY, Caller, Era
from gateway.eras import meta
from gateway.eras.methods import FEATURES
from gateway.errors import Busy, RequestError
from gateway.frontends.legacy.event_store import MAX_BYTES, EventStore
from gateway.frontends.notification_queue import NotificationQueue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from gateway.access.principals import Principal
    from gateway.calls import Identity, ServerRequest, Trace
    from gateway.catalog.snapshot import ListNews
    from gateway.frontends.http.exchange import Exchange
    from gateway.jsonrpc import Id, Message

STDIO: Final = "stdio"
"""The session key of everything on the process's own stdin: it is one client."""
SESSION_ID_BYTES: Final = 24
"""192 random bits: unguessable, and URL-safe Base64 keeps to the visible ASCII that the header allows."""
MAX_ASKED: Final = 1_024
"""Unanswered server requests of one client."""
EVICTABLE_AFTER: Final = 60.0
"""Seconds without a request after which an abandoned session may be evicted for a new client."""
RETRY_AFTER: Final = (b"retry-after", b"30")
"""Header for clients refused for lack of sessions: idle ones can be evicted after a minute."""
SWEEP_INTERVAL: Final = 30.0
"""Seconds between two checks for idle sessions."""


class ClientIntroduction(msgspec.Struct, frozen=True):
    """The content of a legacy client's `initialize`, and the version negotiated with it."""

    version: str
    capabilities: msgspec.Raw
    client_info: msgspec.Raw
    identity: Identity = ANYBODY
    gateways: tuple[str, ...] = ()
    trace: Trace | None = None
    """The span of `initialize`; None unless tracing is configured."""


class ResumableStream(Protocol):
    """The stream of a call; its client can continue it on another connection."""

    async def resume(self, exchange: Exchange, after: int) -> None:
        """Send the events after number `after`, and all later ones, on this exchange."""
        ...


class DuplicateId(RequestError):
    """The client reuses the id of a request that is still in flight."""

    code: ClassVar[str] = "duplicate_id"


class TasklessRequest(Protocol):
    """A request in flight that has no task."""

    def cancel(self, *, reason: str) -> None:
        """Cancel the request, and remove it from the table."""
        ...

    def give_task(self) -> None:
        """Start a task for the request; the task's scope replaces it in the table."""
        ...


class InFlight:
    """The unanswered requests of one client, each with a cancel scope or no task."""

    def __init__(self, most: int) -> None:
        self._requests: dict[Id, trio.CancelScope | TasklessRequest] = {}
        self._most = most
        self._deadline = math.inf
        self.served = False
        """Whether there has been any request."""

    def __len__(self) -> int:
        return len(self._requests)

    def add(self, request_id: Id) -> trio.CancelScope:
        """Make the scope in which a request runs.

        Raises:
            DuplicateId: the id is in use.
            Busy: too many requests of this client are in flight.
        """
        self.check(request_id)
        return self.open_scope(request_id)

    def check(self, request_id: Id) -> None:
        """Raise what `add` raises."""
        if request_id in self._requests:
            text = f"request id {request_id!r} is still in use"
            raise DuplicateId(text)
        if len(self._requests) >= self._most:
            text = f"{self._most} requests of this client are in flight (max_client_requests); try again"
            raise Busy(text)
        self.served = True

    def open_scope(self, request_id: Id) -> trio.CancelScope:
        """Make a scope for a request that is in the table, or has been checked."""
        scope = self._requests[request_id] = trio.CancelScope(deadline=self._deadline)
        return scope

    def replace(self, request_id: Id, request: trio.CancelScope | TasklessRequest) -> None:
        """Have a request continue in another scope, or without a task."""
        self._requests[request_id] = request

    def remove(self, request_id: Id) -> None:
        """Forget a request that has ended."""
        self._requests.pop(request_id, None)

    def cancel(self, request_id: Id) -> None:
        """Cancel exactly this request; ignore an unknown one, since a response may cross the cancellation."""
        request = self._requests.get(request_id)
        if request is not None:
            request.cancel(reason="the client cancelled the request")

    def end_at(self, deadline: float) -> None:
        """Set a deadline for all requests, later ones included; give each a task."""
        self._deadline = deadline
        for request in list(self._requests.values()):
            if isinstance(request, trio.CancelScope):
                request.deadline = deadline
            else:
                request.give_task()

    def cancel_all(self) -> None:
        """Cancel everything: the session has ended."""
        for request in list(self._requests.values()):
            request.cancel(reason="the session has ended")


class ServerRequestTable:
    """The unanswered server requests to one legacy client.

    Bounded: above the bound the oldest are refused.
    """

    def __init__(self, last_id: int = 0) -> None:
        self._open: dict[Id, ServerRequest] = {}
        self._last_id = last_id

    def request(self, ask: ServerRequest) -> bytes:
        """Assign the request an id on this hop and encode it; see `handle_response`."""
        if len(self._open) >= MAX_ASKED:
            self._evict()
        request_id = self._last_id = self._last_id + 1
        self._open[request_id] = ask
        params: dict[str, object] = dict(ask.params)
        if ask.on_progress is not None:  # the id is also the progress token on this hop
            params["_meta"] = {**jsonrpc.decode_object(ask.params["_meta"]), meta.PROGRESS_TOKEN: request_id}
        if ask.trace is not None:
            own = jsonrpc.decode_object(jsonrpc.raw(params.get("_meta", {})))
            params["_meta"] = {**own, **ask.trace.sent(request_id)}
        return jsonrpc.request(request_id, ask.method, params)

    def withdraw(self, ask: ServerRequest) -> bytes | None:
        """Withdraw a request; return the notification for the client, or None if it is unknown."""
        for request_id, open_ask in list(self._open.items()):
            if open_ask is ask:
                del self._open[request_id]
                params = jsonrpc.encode({"requestId": request_id, "reason": "the server no longer needs an answer"})
                return jsonrpc.notification("notifications/cancelled", params)
        return None

    def handle_response(self, message: Message) -> None:
        """Match a client's response to its request; ignore unknown and second ones."""
        ask = self._open.pop(message.id, None) if isinstance(message.id, int | str) else None
        if ask is None:
            return
        if message.error is not jsonrpc.ABSENT:
            body = jsonrpc.decode_error(message.error)
            ask.refuse(body.code, body.message, None if body.data is jsonrpc.ABSENT else bytes(body.data))
        elif message.result is jsonrpc.ABSENT:
            ask.refuse(jsonrpc.INTERNAL_ERROR, "the client answered with neither result nor error")
        else:
            ask.answer(bytes(message.result))

    def progress(self, message: Message) -> None:
        """Handle a progress notification of the client about one of these requests."""
        try:
            members = jsonrpc.decode_object(message.params)
            token = jsonrpc.decode_id(members[meta.PROGRESS_TOKEN])
            meta.drop_nulls("notifications/progress", members)
        except (KeyError, ValueError):
            return
        ask = self._open.get(token)
        if ask is not None and ask.on_progress is not None:
            members[meta.PROGRESS_TOKEN] = jsonrpc.decode_object(ask.params["_meta"])[meta.PROGRESS_TOKEN]
            ask.on_progress(members)

    def _evict(self) -> None:
        """Drop the requests of ended calls, and the oldest of the others."""
        self._open = {request_id: ask for request_id, ask in self._open.items() if not ask.settled}
        while len(self._open) >= MAX_ASKED:
            oldest = self._open.pop(next(iter(self._open)))
            oldest.refuse(jsonrpc.INTERNAL_ERROR, "the client has too many other requests to answer")


class LegacySession:
    """One initialized conversation with a legacy client."""

    def __init__(
        self,
        session_id: str | None,
        introduction: ClientIntroduction,
        *,
        max_requests: int,
        budget: Budget | None = None,
        buffers: Budget | None = None,
        last_asked: int = 0,
    ) -> None:
        self.id = session_id
        self.key = session_id or STDIO
        """The key of this client's own sessions with backends."""
        self.caller = Caller(
            era=Era.LEGACY,
            version=introduction.version,
            capabilities=introduction.capabilities,
            client_info=introduction.client_info,
            session=self.key,
            principal=introduction.identity.principal,
            scope=introduction.identity.scope,
            gateways=introduction.gateways,
        )
        self.identity = introduction.identity
        """The session's principal and endpoint; requests with others do not find it."""
        self.in_flight = InFlight(max_requests)
        self.changes = NotificationQueue()
        self.server_requests = ServerRequestTable(last_asked)
        self.log_level: str | None = None
        """The least severe log level that the client wants; None until it sets one."""
        self.on_end: list[Callable[[], None]] = []
        """Cleanup when the session ends: subscriptions and log levels. Run once."""
        self.ended = trio.Event()
        self.stream: trio.CancelScope | None = None
        """The scope of the open GET stream, if there is one."""
        self.events = EventStore(budget or Budget(MAX_BYTES), buffers or Budget(MAX_BYTES))
        """Events sent on streams that can be resumed."""
        self.replies: dict[int, ResumableStream] = {}
        """The calls whose streams can be resumed, by the number of the stream."""
        self.last_used = trio.current_time()

    def touch(self) -> None:
        """Record activity of the client."""
        self.last_used = trio.current_time()

    def belongs_to(self, identity: Identity) -> bool:
        """Return whether a request belongs to the session; if so, adopt its scope."""
        if not self.identity.same_door(identity):
            return False
        if identity.scope != self.identity.scope:
            self.caller = msgspec.structs.replace(self.caller, scope=identity.scope)
            self.changes.add(FEATURES)
        self.identity = identity
        return True

    def notify_list_changed(self, news: ListNews) -> None:
        """Note that lists changed, for the part that this client sees."""
        self.changes.add(news.features(self.caller.scope, self.caller.era))

    @property
    def is_unused(self) -> bool:
        """Whether an anonymous client has opened it and sent no request since."""
        return self.identity.principal is None and not self.in_flight.served and self.stream is None

    @property
    def idle(self) -> float:
        """Seconds without activity; 0 while a request or a stream is open."""
        if len(self.in_flight) or self.stream is not None:
            return 0.0
        return trio.current_time() - self.last_used

    def end(self) -> None:
        """End the session: its requests are cancelled, its stream closes. Safe to repeat."""
        self.ended.set()
        while self.on_end:
            self.on_end.pop()()
        self.in_flight.cancel_all()
        if self.stream is not None:
            self.stream.cancel(reason="the session has ended")
        self.events.clear()


def _ignore_session(_session: LegacySession) -> None:
    pass


class SessionTable:
    """All legacy sessions of one HTTP endpoint.

    `welcome` is called with each new session, to register its cleanup elsewhere.
    """

    def __init__(
        self,
        *,
        most: int,
        idle_timeout: float,
        max_requests: int,
        buffers: Budget | None = None,
        welcome: Callable[[LegacySession], None] = _ignore_session,
    ) -> None:
        self._sessions: dict[str, LegacySession] = {}
        self._most = most
        self._idle_timeout = idle_timeout
        self._max_requests = max_requests
        self._welcome = welcome
        self._buffers = Budget(MAX_BYTES) if buffers is None else buffers
        self._budget = Budget(min(MAX_BYTES, self._buffers.most // 4))
        self._nursery: trio.Nursery  # for calls without an exchange; opened and closed by `run`

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def streams(self) -> int:
        """Sessions whose own stream is open."""
        return sum(session.stream is not None for session in self._sessions.values())

    def create(self, introduction: ClientIntroduction) -> LegacySession | None:
        """Make a session; return None if the table is full and none can be evicted."""
        if len(self._sessions) >= self._most:
            # A client opens sessions at no cost. One that does not use its sessions must not keep out others,
            # so the oldest unused anonymous session is evicted first, however recent.
            unused = next((session for session in self._sessions.values() if session.is_unused), None)
            if unused is not None:
                self.close(unused)
            elif not self._evict(self._sessions.values()):
                return None
        session_id = secrets.token_urlsafe(SESSION_ID_BYTES)
        session = LegacySession(
            session_id, introduction, max_requests=self._max_requests, budget=self._budget, buffers=self._buffers
        )
        self._sessions[session_id] = session
        self._welcome(session)
        return session

    def find(self, session_id: str, identity: Identity = ANYBODY) -> LegacySession | None:
        """Return the client's session with this id; None if ended, unknown or another's."""
        session = self._sessions.get(session_id)
        if session is None or not (identity is session.identity or session.belongs_to(identity)):
            return None
        session.last_used = trio.current_time()
        return session

    def close(self, session: LegacySession) -> None:
        """End a session."""
        if session.id is not None:
            self._sessions.pop(session.id, None)
        session.end()

    def notify_list_changed(self, news: ListNews) -> None:
        """Note for every session that lists changed."""
        for session in self._sessions.values():
            session.notify_list_changed(news)

    def has_share(self, principal: Principal) -> bool:
        """Return whether a principal may open a session, perhaps in place of an idle one."""
        mine = [session for session in self._sessions.values() if session.caller.principal == principal.name]
        return len(mine) < principal.most_sessions(self._most) or self._evict(mine)

    def _evict(self, among: Iterable[LegacySession]) -> bool:
        """End the session idle for longest; return False if none is idle long enough."""
        oldest = max(among, key=lambda session: session.idle)
        if oldest.idle < EVICTABLE_AFTER:
            return False
        self.close(oldest)
        return True

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Own the calls of the sessions and end idle sessions, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(min(SWEEP_INTERVAL, self._idle_timeout))
                now = trio.current_time()
                for session in list(self._sessions.values()):
                    session.events.expire(now)
                    if session.idle >= self._idle_timeout:
                        self.close(session)

    def start_call_task(self, run: Callable[[trio.CancelScope], Awaitable[None]], scope: trio.CancelScope) -> None:
        """Run a call's task in the nursery of the sessions; its session cancels its scope."""
        self._nursery.start_soon(run, scope)

    def update_principal(self, principal: Principal) -> None:
        """Apply a principal's present rules to its sessions; end those at forbidden views."""
        for session in list(self._sessions.values()):
            view = session.identity.view
            if session.caller.principal != principal.name:
                continue
            if principal.may_use_view(view):
                session.belongs_to(principal.identity_at(view, session.identity.names))
            else:
                self.close(session)

    def close_of(self, principal: str) -> None:
        """End every session of a principal."""
        for session in list(self._sessions.values()):
            if session.caller.principal == principal:
                self.close(session)

    def close_all(self) -> None:
        """End every session."""
        for session in list(self._sessions.values()):
            self.close(session)
