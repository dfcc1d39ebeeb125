"""The arithmetic of restarts: exponential backoff with jitter and a cap, forgiveness, giving up. It has no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config import NEVER_RESTART

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.config import RestartPolicy


class Backoff:
    """Counts quick failures of one backend and says how long to wait."""

    def __init__(self, policy: RestartPolicy, random: Callable[[], float]) -> None:
        self.failures = 0
        self._policy = policy
        self._random = random

    def failed(self, healthy_for: float, *, has_served: bool = False) -> float | None:
        """Note a failure after `healthy_for` seconds of being ready; returns the delay, or None to give up.

        A session that has served calls was healthy, however short: its end is no quick failure. It ends the restarts
        only where the policy allows none at all.

        The delay is `initial_delay` doubled for each failure in a row, at most `max_delay`, and then shortened by a
        random share of up to `jitter`, so that backends which fell together do not rise together.
        """
        policy = self._policy
        if has_served and policy != NEVER_RESTART:
            self.failures = 0
        else:
            if healthy_for >= policy.healthy_after:
                self.failures = 0
            self.failures += 1
            if self.failures >= policy.max_quick_failures:
                return None
        doubled = policy.initial_delay * 2.0 ** min(max(self.failures - 1, 0), 60)
        return min(doubled, policy.max_delay) * (1 - policy.jitter * self._random())

    def reset(self) -> None:
        """Start counting anew: somebody asked for another try."""
        self.failures = 0
