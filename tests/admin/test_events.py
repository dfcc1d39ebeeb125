"""The feed of events: what waits for a slow reader is bounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio

from gateway.admin.events import MAX_EVENTS, Feed
from tests.support.fakes import make_pending


async def test_long_names_of_clients_are_cut() -> None:
    observers: list[Any] = []
    fleet: Any = SimpleNamespace(supervisors={}, observe=observers.append, unobserve=observers.remove)
    supervisor: Any = SimpleNamespace(name="a")
    feed = Feed(fleet)
    with feed.read() as reader:
        for _ in range(MAX_EVENTS + 1):
            observers[0](supervisor, make_pending("memo://" + "x" * 100_000, method="resources/read"), 0.001)
        frames = [reader.receive.receive_nowait() for _ in range(MAX_EVENTS)]
    assert max(map(len, frames)) < 1_000
    assert b'"name":"memo://xxx' in frames[0]
    assert observers == []
    await trio.lowlevel.checkpoint()
