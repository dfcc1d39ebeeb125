"""The common base of both HTTP transports' sessions: a request per call, ordered posts.

The session owns, in one nursery: a task that recovers lost sessions, one for notifications (`OutgoingQueue`), one for
tasks, and those that the transport starts for its streams and requests. When one of them raises, the session is over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

import trio

from gateway import jsonrpc
from gateway.backends.http.outgoing_queue import OutgoingQueue
from gateway.backends.http.recovery import MAX_HINT, OTHER_CAUSES, Recovery, Verdict, judge
from gateway.backends.session import lists
from gateway.backends.session.conversation import Conversation
from gateway.backends.session.session_state import SessionReconciler
from gateway.calls import Era, Failure
from gateway.catalog.listing import Listing
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow, BackendUnavailable
from gateway.http_client.client import open_http_client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from gateway.backends.http.recovery import Timing
    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.handshake import Attempts, ServerIntroduction
    from gateway.budget import Budget
    from gateway.calls import Outcome
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop
    from gateway.errors import BackendError
    from gateway.http_client.client import HttpClient, Signer
    from gateway.inflight.pending import PendingCall

CHECK_WAIT: Final = 5.0
"""Seconds for the answer to a probe; a silent server counts as alive."""
_OK: Final = 200

_S = TypeVar("_S", bound="HttpSession")


class HttpSession(ABC):
    """Implements `gateway.backends.session.interface.Session` except for the transport's part."""

    def __init__(
        self,
        config: ServerConfig,
        http: HttpClient,
        listener: SessionObserver,
        hop: Hop,
        timing: Timing,
        buffers: Budget,
    ) -> None:
        self.greeting: ServerIntroduction
        self.listing = Listing()
        self.config = config
        self.http = http
        self.timing = timing
        self.buffers = buffers
        self._listener = listener
        self.conversation = Conversation(config.name, post=self._post, listener=listener, hop=hop, exchanges=self)
        self.upkeep = SessionReconciler(
            self.conversation, listener, timeout=config.connect_timeout, relisten_delay=timing.relisten_delay
        )
        self.recovery = Recovery(self, timing.probe_interval)
        self.is_initialized = False
        """Whether the server has answered the handshake."""
        self._posts = OutgoingQueue(config.name, self._deliver, max_concurrency=config.max_concurrency)
        self._problem: BackendError | None = None
        self._context = copy_context()

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return self.conversation.in_flight

    @property
    def pid(self) -> int | None:
        """None: the server is not a child process."""
        return None

    @property
    def stray_output(self) -> str:
        """Empty: there is no stdout."""
        return ""

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods of the backend's requests to clients so far."""
        return self.conversation.asked

    @property
    def can_send(self) -> bool:
        """Whether the session is open: `max_concurrency` bounds the calls in flight."""
        return self._problem is None

    def send(self, pending_calls: list[PendingCall]) -> None:
        """Send each call in a request of its own."""
        for pending in pending_calls:
            body = self.conversation.encode_call(pending)
            self.open(self.conversation.last_id, pending.call.method, body, pending)

    async def wait_writable(self) -> None:  # ruff: ignore[empty-method-without-abstract-decorator] - there always is some
        """Return immediately: `max_concurrency` bounds the calls in flight."""

    async def relist(self, feature: str) -> Listing:
        """Read the lists of one feature again."""
        return await lists.list_feature(
            self.conversation, feature, timeout=self.config.connect_timeout, known=self.listing.warnings
        )

    # `Renewable`

    @property
    def is_stateful(self) -> bool:
        """Whether the server may hold state of this conversation that it can lose."""
        return self.is_initialized and self.conversation.hop.era is Era.LEGACY

    @property
    @abstractmethod
    def has_id(self) -> bool:
        """Whether requests carry a session id."""

    @abstractmethod
    async def renew(self) -> None:
        """Replace the session by another."""

    async def probe(self) -> bool:
        """Send `ping`, and if that is refused `tools/list`; return whether the server refuses both.

        Silence is not a refusal, nor is a status with another cause. Raises BackendExited if the server is gone.
        """
        methods = ("ping", "tools/list") if self.is_stateful else ("server/discover",)
        has_tools = "tools" in self.greeting.capabilities or "tools" in self.listing.capabilities
        for method in methods[: None if has_tools else 1]:
            outcome = await self.conversation.request(method, timeout=CHECK_WAIT)
            match outcome:
                case BackendExited() | BackendUnavailable():
                    self.give_up(outcome.reason)
                case Failure() if has_tools or outcome.code != jsonrpc.METHOD_NOT_FOUND:
                    continue
                case BackendProtocol() if outcome.status and outcome.status not in OTHER_CAUSES:
                    continue
                case _:
                    return False
        return self.is_stateful

    def give_up(self, how: str) -> NoReturn:
        """End the session."""
        problem = BackendExited(self.config.name, how)
        self.close(problem)
        raise problem

    def call_failed(self, outcome: Outcome) -> None:
        """Probe the session if a call's end may mean its loss (`contracts.Exchanges`)."""
        match outcome:
            case BackendProtocol() if outcome.status:
                verdict = judge(outcome.status, None, "", answered=False)
            case Failure():
                text = outcome.message + (outcome.data or b"")[:MAX_HINT].decode(errors="replace")
                verdict = judge(_OK, outcome.code, text, answered=True)
            case _:
                return
        if verdict is not Verdict.UNRELATED:
            self.recovery.suspect()

    def _adopt(self, greeting: ServerIntroduction) -> None:
        self.greeting = greeting
        self.is_initialized = True

    def missed(self) -> None:
        """Have all lists read: they may have changed without a notification."""
        for feature in {*self.greeting.capabilities, *self.listing.capabilities}:
            self._listener.list_changed(feature)

    @abstractmethod
    def open(self, request_id: int, method: str, data: bytes, pending: PendingCall | None = None) -> None:
        """Send a request, a call or one of the gateway's own; returns immediately."""

    @abstractmethod
    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Cancel a request."""

    def _start_request(self, run: Callable[..., Awaitable[None]], *args: object) -> None:
        """Start a request's task in the session's context, not in a client's."""
        self._context.run(self._nursery.start_soon, run, *args)

    def _post(self, data: bytes) -> None:
        """Send a notification or a response, in order."""
        self._posts.post(data)

    @abstractmethod
    async def _deliver(self, data: bytes) -> None:
        """POST a message now. Raises BackendError."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the session's tasks; never returns, but raises BackendError when the session is over."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self.http.run)
            self._nursery.start_soon(self._posts.run)
            self._nursery.start_soon(self.recovery.run)
            self._nursery.start_soon(self.conversation.tasks.run)
            task_status.started()

    @abstractmethod
    async def start(self, attempts: Attempts) -> None:
        """Shake hands and list. Raises BackendError; the caller bounds the time."""

    async def aclose(self) -> None:  # ruff: ignore[empty-method-without-abstract-decorator] - not all say goodbye
        """End the session at the server; bounded, and errors are ignored."""

    def close(self, problem: BackendError) -> None:
        """Finish every pending request, and every later one, with this error."""
        self._problem = self._problem or problem
        self.conversation.close(problem)


@asynccontextmanager
async def open_http_session(
    kind: type[_S],
    config: ServerConfig,
    listener: SessionObserver,
    *,
    hop: Hop,
    signer: Signer | None,
    attempts: Attempts,
    buffers: Budget,
    timing: Timing,
) -> AsyncGenerator[_S]:
    """Shake hands and list; on leaving, end the session at the server.

    `signer` signs every request; `attempts` says how to begin; `buffers` counts the bytes of arriving messages.

    Raises:
        BackendError: the server cannot be reached, does not speak MCP, is not ready in time, or (in the body, grouped)
            went away.
    """
    async with open_http_client(config, signer) as http:
        session = kind(config, http, listener, hop, timing, buffers)
        deadline = attempts.deadline(config.connect_timeout)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(session.run)
                with trio.move_on_at(deadline) as scope:
                    await session.start(attempts)
                if scope.cancelled_caught:
                    text = f"was not ready within {config.connect_timeout:g} s (connect_timeout)"
                    raise BackendTooSlow(config.name, text)
                yield session
                nursery.cancel_scope.cancel(reason="the supervisor has closed the session")
        finally:
            session.close(BackendExited(config.name, "was stopped"))
            await session.aclose()
