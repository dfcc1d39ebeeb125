"""What a backend's supervisor tells the ones above it: the fleet, or the owner of one client's session.

The other direction, what may be asked of a supervisor, is `Supervisor` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import msgspec

    from gateway.backends.session.session_state import DesiredState
    from gateway.supervisor.supervisor import Supervisor


class SupervisorEvents(Protocol):
    """Who hears of a backend's changes. Methods return at once."""

    def backend_changed(self, supervisor: Supervisor) -> None:
        """Hear that the state or the listing of a backend is another one."""
        ...

    def resource_updated(
        self, supervisor: Supervisor, uri: str, params: dict[str, msgspec.Raw], key: str | None = None
    ) -> None:
        """Hear that a resource of a backend was updated; with a key, in that client's own session."""
        ...

    def for_client(self, key: str, method: str, params: dict[str, msgspec.Raw]) -> None:
        """Hear something that is for one client alone."""
        ...

    def wishes_for(self, backend: str, key: str | None = None) -> DesiredState:
        """What clients want of this backend beyond single calls; with a key, what that client wants of its session."""
        ...
