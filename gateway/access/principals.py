"""A principal: somebody who has proved who it is, for as long as the gateway knows it.

One object for each key, and for each subject of a token, kept over requests and reloads: it holds what is counted
about somebody (rate, calls under way) and the scopes of its open streams. Calls and sessions end by their own tables: a
scope for each request would cost more than all the rest of this room. Its name is what `Caller.principal` carries, and
what sessions and suspended calls are bound to.
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
"""Seconds after which a client is told to try again when too many of its calls are under way: nobody knows better."""


class Principal:
    """Somebody, and what is under way for it."""

    __slots__ = ("_bucket", "_visits", "calls", "ended", "identity", "name", "rules")

    def __init__(self, name: str, rules: Rules) -> None:
        self.name = name
        self.rules: Rules = rules
        self.identity = Identity(name, scope_of(rules))
        """The principal as frontends and calls know it: its name, and what it may see."""
        self.calls = 0
        """Calls under way."""
        self.ended = False
        """Whether its key was taken away."""
        self._bucket = None if rules.rate_limit is None else TokenBucket(rules.rate_limit)
        self._visits: set[trio.CancelScope] = set()

    def __repr__(self) -> str:
        return f"Principal({self.name!r})"

    @property
    def idle(self) -> bool:
        """Whether nothing is under way for it, so that it may be forgotten."""
        return not self.calls and not self._visits

    def update_rules(self, rules: Rules) -> None:
        """Go by other rules from now on; a rate that stays the same goes on where it is."""
        if rules.rate_limit != self.rules.rate_limit:
            self._bucket = None if rules.rate_limit is None else TokenBucket(rules.rate_limit)
        self.rules = rules
        self.identity = Identity(self.name, scope_of(rules))

    def may_use_view(self, view: str | None) -> bool:
        """Whether it may use the endpoint of this view, None: the gateway's own."""
        return self.rules.views is None or view in self.rules.views

    def identity_at(self, view: str | None, names: NameChoice | None = None) -> Identity:
        """The principal as it is known at the endpoint of a view; equal ones are the same object, nearly always."""
        return self.identity if view is names is None else at_endpoint(self.identity, view, names)

    @contextmanager
    def track_stream(self, until: float) -> Generator[trio.CancelScope]:
        """Serve a stream of it in this block, until then at most, and no longer than its key is good."""
        scope = trio.CancelScope(deadline=until)
        if self.ended:
            scope.cancel(reason="the key was taken away")
        self._visits.add(scope)
        try:
            with scope:
                yield scope
        finally:
            self._visits.discard(scope)

    def end(self) -> None:
        """Its key was taken away: every open stream of it ends. Safe to repeat."""
        self.ended = True
        for scope in self._visits:
            scope.cancel(reason="the key was taken away")

    def most_sessions(self, most: int) -> int:
        """How many of its sessions may be open, of so many in all: no single key may shut all others out."""
        return self.rules.max_sessions or max(1, most // 2)

    def begin_call(self, *, again: bool = False) -> None:
        """Count one more call; `again` for one that goes on with another, which cannot be refused any more.

        Raises:
            Busy: it has used up what it may have; `retry_after` says when to try again.
        """
        if again:
            self.calls += 1
            return
        most = self.rules.max_concurrency
        if most is not None and self.calls >= most:
            text = f"{most} calls of {self.name!r} are under way (max_concurrency); try again when one has ended"
            raise Busy(text, retry_after=CONCURRENCY_HINT)
        if self._bucket is not None and (wait := self._bucket.delay_until_available(trio.current_time())):
            text = f"{self.name!r} gets no more calls now (rate_limit); try again in {wait:.2f} s"
            raise Busy(text, retry_after=wait)
        self.calls += 1

    def takes_note(self) -> bool:
        """Whether one more of its notifications may go to a server: they count to its rate as calls do."""
        return self._bucket is None or not self._bucket.delay_until_available(trio.current_time())

    def end_call(self) -> None:
        """Count one call less."""
        self.calls -= 1


def scope_of(rules: Rules) -> Scope | None:
    """What somebody may see by these rules; None is everything. Who may use some tools only sees no resources."""
    if rules.servers == rules.tools == ALL:
        return None
    return Scope(servers=rules.servers, tools=rules.tools, prompts=rules.tools, resources=rules.tools == ALL)
