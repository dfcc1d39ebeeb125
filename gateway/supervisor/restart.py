"""The arithmetic of restarts: exponential backoff with jitter and a cap, forgiveness, giving up. It has no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import RestartPolicy


class Backoff:
    """Counts quick failures of one backend and says how long to wait."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self.failures = 0
        self._policy = policy
        self._random = random

    def failed(self, healthy_for: float) -> float | None:
        """Note a failure after `healthy_for` seconds of being ready; returns the delay, or None to give up.

        The delay is `initial_delay` doubled for each failure in a row, at most `max_delay`, and then shortened by a
        random share of up to `jitter`, so that backends which fell together do not rise together.
        """
        if healthy_for >= self._policy.healthy_after:
            self.failures = 0
        self.failures += 1
        if self.failures >= self._policy.max_quick_failures:
            return None
        doubled = self._policy.initial_delay * 2.0 ** min(self.failures - 1, 60)
        return min(doubled, self._policy.max_delay) * (1 - self._policy.jitter * self._random())

    def forgive(self) -> None:
        """Start counting anew: somebody asked for another try."""
        self.failures = 0
