"""What the parts of a session share: a waiting request, its exchange in the transport, and the observer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from gateway.calls import Outcome
    from gateway.eras.methods import Kind
    from gateway.inflight.pending import PendingCall


class PendingRequest:
    """A request of the gateway's own that waits for its answer."""

    __slots__ = ("acknowledged", "event", "kind", "on_problem", "opens", "outcome")

    def __init__(
        self, kind: Kind | None, on_problem: Callable[[str], None] | None = None, *, opens: bool = False
    ) -> None:
        self.on_problem = on_problem
        """Called with what is left out of a list, and why."""
        self.opens = opens
        """Whether the request opens the session: then an error without an id can only be about it."""
        self.kind = kind
        """What is to be listed, if anything: then single items that are no JSON are left out, and the rest is taken."""
        self.event = trio.Event()
        self.acknowledged = trio.Event()
        """Set when a subscription has been acknowledged."""
        self.outcome: Outcome | None = None

    def finish(self, outcome: Outcome) -> None:
        """Set the answer."""
        self.outcome = outcome
        self.event.set()


class SessionObserver(Protocol):
    """Who hears what a backend says on its own. Methods are called in order and must return at once."""

    def list_changed(self, feature: str) -> None:
        """Hear that the backend's tools, prompts or resources have changed."""
        ...

    def resource_updated(self, uri: str, params: dict[str, msgspec.Raw]) -> None:
        """Hear that a resource was updated; `params` are those of the notification."""
        ...

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Hear something that is for one client alone, also when its call is over; `key` is its session's."""
        ...

    def freed(self) -> None:
        """Hear that a call has ended, so that another may be sent."""
        ...

    def wrote_stderr(self, line: bytes) -> None:
        """Receive a line that a child has written to stderr, cut to a length that can be shown."""
        ...


class Exchanges(Protocol):
    """A transport that gives each request an exchange of its own. Methods return at once."""

    def open(self, request_id: int, method: str, data: bytes, pending: PendingCall | None = None) -> None:
        """Send a request of the gateway's own; `pending` is the call that it is about, if it is about one."""
        ...

    def drop(self, request_id: int, cancelled: bytes | None) -> None:
        """Learn that nobody waits for this answer any more; `cancelled` is the notification that tells the backend."""
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
