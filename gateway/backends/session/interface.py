"""The interface of every transport to its supervisor: one opened, listed session with a backend.

A session lives inside an `async with` of the supervisor's task and of no other. When the backend exits or disconnects,
the session's own tasks first finish every call with an error and then end the `async with` body with that BackendError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    import msgspec

    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.handshake import ServerIntroduction
    from gateway.backends.session.session_state import SessionReconciler
    from gateway.calls import Era
    from gateway.catalog.listing import Listing
    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall


class Session(Protocol):
    """One initialized conversation with a backend."""

    greeting: ServerIntroduction
    listing: Listing
    upkeep: SessionReconciler

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        ...

    @property
    def pid(self) -> int | None:
        """The child's process id, or None without a child."""
        ...

    @property
    def stray_output(self) -> str:
        """Output on stdout that is not MCP, as text for the status, or empty."""
        ...

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods of the backend's requests to clients so far."""
        ...

    @property
    def can_send(self) -> bool:
        """Whether the session is open, and its transport accepts more now."""
        ...

    def send(self, pending_calls: list[PendingCall]) -> None:
        """Send calls, in order, without waiting; only if `can_send`."""
        ...

    async def wait_writable(self) -> None:
        """Wait until the transport accepts more."""
        ...

    async def relist(self, feature: str) -> Listing:
        """Read the lists of one feature again; return a listing of only these. Raises BackendError."""
        ...


class Opener(Protocol):
    """Opens sessions: the interface that tests implement with fakes."""

    def __call__(
        self,
        config: ServerConfig,
        listener: SessionObserver,
        *,
        capabilities: msgspec.Raw | None = None,
        era: Era | None = None,
    ) -> AbstractAsyncContextManager[Session]:
        """Connect, shake hands and list; `capabilities` are the client's, if the session serves only one.

        `era` is the era of the session's clients, used if the server is known to offer both.

        Entering raises BackendError or OSError; either may end the body, as an exception group.
        """
        ...
