"""What the sessions of both HTTP transports have in common: calls go out in requests of their own, posts in order.

The session owns, in one nursery: the task of its transport (`_carry`), one for notifications (`HttpPosts`), one for
tasks, and whatever the transport starts for each request. When the transport's task raises, the session is over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio

from gateway.backends import lists
from gateway.backends.conversation import Conversation
from gateway.backends.http_posts import HttpPosts
from gateway.backends.upkeep import Upkeep
from gateway.catalog.listing import Listing
from gateway.errors import BackendExited, BackendTooSlow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from gateway.backends.handshake import Greeting
    from gateway.backends.http_client import HttpClient
    from gateway.backends.session import Listener
    from gateway.backends.ticket import Ticket
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop
    from gateway.errors import BackendError

_S = TypeVar("_S", bound="HttpSession")


class HttpSession(ABC):
    """Implements `gateway.backends.session.Session`; a transport adds `conversation.Exchanges` and its own life."""

    def __init__(self, config: ServerConfig, http: HttpClient, listener: Listener, hop: Hop) -> None:
        self.greeting: Greeting
        self.listing = Listing()
        self.config = config
        self.http = http
        self.conversation = Conversation(config.name, post=self._post, listener=listener, hop=hop, exchanges=self)
        self.upkeep = Upkeep(self.conversation, listener, timeout=config.connect_timeout)
        self._posts = HttpPosts(config.name, self._deliver, max_concurrency=config.max_concurrency)
        self._problem: BackendError | None = None

    @property
    def in_flight(self) -> int:
        """Calls that were sent and have not ended."""
        return self.conversation.in_flight

    @property
    def pid(self) -> int | None:
        """None: the server is nobody's child here."""
        return None

    @property
    def stray_output(self) -> str:
        """Empty: there is no stdout."""
        return ""

    def send(self, tickets: list[Ticket]) -> None:
        """Send each call in a request of its own."""
        for ticket in tickets:
            if self._problem is not None:
                ticket.finish(self._problem)
                continue
            body = self.conversation.encode_call(ticket)
            self.open(self.conversation.last_id, ticket.call.method, body, ticket)

    async def room(self) -> None:  # ruff: ignore[empty-method-without-abstract-decorator] - there always is some
        """Return at once: `max_concurrency` bounds what is on its way."""

    async def relist(self, feature: str) -> Listing:
        """Read the lists of one feature again."""
        return await lists.list_feature(
            self.conversation, feature, timeout=self.config.connect_timeout, known=self.listing.warnings
        )

    @abstractmethod
    def open(self, request_id: int, method: str, data: bytes, ticket: Ticket | None = None) -> None:
        """Send a request, a call or one of the gateway's own; returns at once."""

    @abstractmethod
    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Cancel a request."""

    def _post(self, data: bytes) -> None:
        """Send a notification or an answer, after those before it."""
        self._posts.post(data)

    @abstractmethod
    async def _deliver(self, data: bytes) -> None:
        """POST one of them now. Raises BackendError."""

    @abstractmethod
    async def _carry(self) -> None:
        """Do the transport's part of the session; raises BackendError when the server is gone."""

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Carry the session; never returns, but raises BackendError when it is over."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._posts.run)
            self._nursery.start_soon(self._carry)
            self._nursery.start_soon(self.conversation.tasks.run)
            task_status.started()

    def close(self, problem: BackendError) -> None:
        """Finish everything that waits, and what is sent from now on."""
        self._problem = self._problem or problem
        self.conversation.close(problem)


@asynccontextmanager
async def carried(session: _S, start: Callable[[], Awaitable[None]], deadline: float | None) -> AsyncGenerator[_S]:
    """Run a session around the block, once `start` has shaken hands and listed; that must be done by `deadline`.

    Without one it is `connect_timeout` from now. On leaving, whatever the reason, nobody waits for an answer any more.
    """
    wait = session.config.connect_timeout
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(session.run)
            with trio.move_on_at(trio.current_time() + wait if deadline is None else deadline) as scope:
                await start()
            if scope.cancelled_caught:
                raise BackendTooSlow(session.config.name, f"was not ready within {wait:g} s (connect_timeout)")
            yield session
            nursery.cancel_scope.cancel(reason="the supervisor lets go of the session")
    finally:
        session.close(BackendExited(session.config.name, "was stopped"))
