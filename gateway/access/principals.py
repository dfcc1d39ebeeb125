"""Principals: authenticated identities with their limits and open streams.

There is one object for each key and each token subject, kept across requests and reloads. It holds the principal's
counters (rate, active calls) and the scopes of its open streams. Calls and sessions are ended through their own tables:
a scope for each request would cost more than the rest of this package. Its name is in `Caller.principal`; sessions and
suspended calls are bound to it.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway.calls import ALL, Identity, Scope, at_endpoint
from gateway.errors import Busy
from gateway.rates import TokenBucket

if TYPE_CHECKING:
    from collections.abc import Generator

    from gateway.calls import NameChoice
    from gateway.config.access import Rules

CONCURRENCY_HINT: Final = 1.0
"""Retry hint in seconds after the concurrency limit; the actual wait is unknown."""


class Principal:
    """An authenticated identity with its active calls and streams."""

    __slots__ = ("_bucket", "_visits", "calls", "ended", "identity", "name", "rules")

    def __init__(self, name: str, rules: Rules) -> None:
        self.name = name
        self.rules: Rules = rules
        self.identity = Identity(name, scope_of(rules))
        """The principal's name and scope, for frontends and calls."""
        self.calls = 0
        """Active calls."""
        self.ended = False
        """True once its key has been revoked."""
        self._bucket = None if rules.rate_limit is None else TokenBucket(rules.rate_limit)
        self._visits: set[trio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"Principal({self.name!r})"

    @property
    def idle(self) -> bool:
        """True if it has no active calls or streams and may be forgotten."""
        return not self.calls and not self._visits

    def update_rules(self, rules: Rules) -> None:
        """Replace the rules; an unchanged rate limit keeps its state."""
        if rules.rate_limit != self.rules.rate_limit:
            self._bucket = None if rules.rate_limit is None else TokenBucket(rules.rate_limit)
        self.rules = rules
        self.identity = Identity(self.name, scope_of(rules))

    def may_use_view(self, view: str | None) -> bool:
        """Return whether it may use the endpoint of this view (None: the gateway's)."""
        return self.rules.views is None or view in self.rules.views

    def identity_at(self, view: str | None, names: NameChoice | None = None) -> Identity:
        """Return its identity at a view's endpoint; equal ones are almost always one object."""
        return self.identity if view is names is None else at_endpoint(self.identity, view, names)

    @contextmanager
    def track_stream(self, until: float) -> Generator[trio.CancelScope]:
        """Track a stream in this block; cancel it at the deadline or on revocation."""
        scope = trio.CancelScope(deadline=until)
        if self.ended:
            scope.cancel(reason="API key revoked")
        self._visits.add(scope)
        try:
            with scope:
                yield scope
        finally:
            self._visits.discard(scope)

    def end(self) -> None:
        """Mark the key revoked and end all open streams. Idempotent."""
        self.ended = True
        for scope in self._visits:
            scope.cancel(reason="API key revoked")

    def most_sessions(self, most: int) -> int:
        """Return how many of all sessions it may hold, so as not to starve others."""
        return self.rules.max_sessions or max(1, most // 2)

    def begin_call(self, *, again: bool = False) -> None:
        """Count a call; `again` marks the continuation of an admitted call, which is never refused.

        Raises:
            Busy: a limit is reached; `retry_after` says when to retry.
        """
        if again:
            self.calls += 1
            return
        most = self.rules.max_concurrency
        if most is not None and self.calls >= most:
            text = f"{self.name!r} has {most} active calls (max_concurrency); retry when one has ended"
            raise Busy(text, retry_after=CONCURRENCY_HINT)
        if self._bucket is not None and (wait := self._bucket.delay_until_available(trio.current_time())):
            text = f"rate limit for {self.name!r} exceeded (rate_limit); retry in {wait:.2f} s"
            raise Busy(text, retry_after=wait)
        self.calls += 1

    def takes_note(self) -> bool:
        """Return whether another notification may be forwarded; notifications count towards the rate limit."""
        return self._bucket is None or not self._bucket.delay_until_available(trio.current_time())

    def end_call(self) -> None:
        """Release one call."""
        self.calls -= 1


def scope_of(rules: Rules) -> Scope | None:
    """Return the scope that the rules allow; None is everything.

    Rules for single tools exclude all resources.
    """
    if rules.servers == rules.tools == ALL:
        return None
    return Scope(servers=rules.servers, tools=rules.tools, prompts=rules.tools, resources=rules.tools == ALL)
