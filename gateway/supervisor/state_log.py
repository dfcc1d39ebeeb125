"""The states that backends have entered, for the management API: a few for each backend."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from gateway.supervisor.history import MAX_TEXT, StateChange
from gateway.supervisor.lifecycle import State

if TYPE_CHECKING:
    from collections.abc import Container

    from gateway.supervisor.supervisor import Supervisor

MAX_STATES: Final = 20
"""States kept for each backend: six restarts."""


class StateLog:
    """The latest states of each backend, continued by a backend that replaces it."""

    def __init__(self) -> None:
        self._found: dict[str, deque[StateChange]] = {}

    def note(self, supervisor: Supervisor) -> None:
        """Record the state of a backend, if it has changed."""
        found = self._found.setdefault(supervisor.name, deque(maxlen=MAX_STATES))
        state = supervisor.state
        if not found or (found[-1].at, found[-1].state) != (supervisor.since, state):
            reason = supervisor.last_error if state in {State.BACKOFF, State.FAILED} else None
            found.append(StateChange(supervisor.since, state, reason and reason[:MAX_TEXT]))

    def of(self, name: str) -> list[StateChange]:
        """Return the states of a backend, oldest first."""
        return list(self._found.get(name, ()))

    def retain(self, names: Container[str]) -> None:
        """Forget all other backends."""
        self._found = {name: found for name, found in self._found.items() if name in names}
