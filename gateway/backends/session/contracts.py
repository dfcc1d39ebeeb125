"""The contracts between the parts of a session: pending requests, exchanges, the observer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from gateway.calls import Outcome, RequestTrace
    from gateway.eras.methods import Kind
    from gateway.inflight.pending import PendingCall


class PendingRequest:
    """A request of the gateway's own that waits for its response."""

    __slots__ = ("acknowledged", "event", "kind", "on_problem", "opens", "outcome", "trace")

    def __init__(
        self, kind: Kind | None, on_problem: Callable[[str], None] | None = None, *, opens: bool = False
    ) -> None:
        self.on_problem = on_problem
        """Called with the entries left out of a list, and the reason."""
        self.opens = opens
        """Whether the request opens the session, so that an error without an id can only be about it."""
        self.kind = kind
        """The list requested, if any: invalid items are left out, and the rest is used."""
        self.event = trio.Event()
        self.acknowledged = trio.Event()
        """Set when a subscription has been acknowledged."""
        self.outcome: Outcome | None = None
        self.trace: RequestTrace | None = None
        """Its span; None unless tracing is configured."""

    def finish(self, outcome: Outcome) -> None:
        """Set the outcome."""
        self.outcome = outcome
        self.event.set()
        if self.trace is not None:
            self.trace.ended(outcome)


class SessionObserver(Protocol):
    """The receiver of a backend's notifications. Methods are called in order and must not wait."""

    def list_changed(self, feature: str) -> None:
        """Handle a change of the backend's tools, prompts or resources."""
        ...

    def resource_updated(self, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Handle the update of a resource; `params` are those of the notification."""
        ...

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Handle a notification for one client only, even after its call; `key` identifies its session."""
        ...

    def freed(self) -> None:
        """Handle the end of a call, so that another may be sent."""
        ...

    def wrote_stderr(self, line: bytes) -> None:
        """Keep a line of a child's stderr, cut to a length that can be shown."""
        ...


class Exchanges(Protocol):
    """A transport that gives each request an exchange of its own. Methods return immediately."""

    def open(self, request_id: int, method: str, data: bytes, pending: PendingCall | None = None) -> None:
        """Send one of the gateway's own requests; `pending` is the call it is about."""
        ...

    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Cancel a request whose response is not needed; `cancelled` is the notification for the backend."""
        ...

    def call_failed(self, outcome: Outcome) -> None:
        """Note that a client's call ends without a result."""
        ...


async def wait_any(*events: trio.Event) -> None:
    """Wait until one of several events is set."""
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel(reason="one of several events is set")

        for event in events:
            nursery.start_soon(wait, event)
