"""Sessions with an HTTP backend: one call, its notifications, its end."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from gateway import jsonrpc
from gateway.backends.http.detect import HttpOpener
from gateway.backends.http.recovery import Timing
from gateway.calls import Call, Caller, Complete, Era, Notification, StreamClosed
from gateway.config import parse_server
from gateway.eras.requests import Hop
from gateway.inflight.pending import PendingCall
from tests.support.fakes import Ears

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.backends.session.interface import Session
    from gateway.config import ServerConfig

QUICK = Timing(
    resume_pause=0.02,
    least_resume_pause=0.01,
    stream_pause=0.02,
    probe_interval=0.02,
    relisten_delay=0.02,
    goodbye_timeout=0.1,
)
"""Short waits, where a test would only sleep."""
WITHIN = 15.0  # seconds that a test may take
HOP = Hop(era=Era.LEGACY, client_info=jsonrpc.raw({"name": "gateway", "version": "1"}))
CALLER = Caller(era=Era.LEGACY, version="2025-11-25", session="one")


class Received(Ears):
    """A listener that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._news = trio.Event()

    def list_changed(self, feature: str) -> None:
        super().list_changed(feature)
        self._news.set()

    async def change(self) -> None:
        await self._news.wait()
        self._news = trio.Event()


def make_config(url: str, **fields: Any) -> ServerConfig:
    return parse_server("b", {"url": url, **fields}, environ={})


@asynccontextmanager
async def open_session(
    url: str, *, listener: Any = None, opener: HttpOpener | None = None, clients: Era | None = None, **fields: Any
) -> AsyncGenerator[Session]:
    """A session opened as for `clients` of an era; its end is one error."""
    config = make_config(url, **fields)
    try:
        with trio.fail_after(WITHIN):
            opener = opener or HttpOpener(timing=QUICK)
            async with opener.open(config, listener or Received(), hop=HOP, era=clients) as session:
                yield session
    except BaseExceptionGroup as group:
        raise first(group) from group


def first(group: BaseExceptionGroup) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def start_call(
    session: Session, name: str = "echo", arguments: Any = None, *, method: str = "tools/call", progress: bool = False
) -> PendingCall:
    """Send a call and return its ticket without waiting."""
    member = "uri" if method == "resources/read" else "name"
    params = {member: name} if arguments is None else {member: name, "arguments": arguments}
    call = Call(
        method=method,
        name=name,
        params={key: jsonrpc.raw(value) for key, value in params.items()},
        meta={},
        caller=CALLER,
        progress_token="client-token" if progress else None,
    )
    pending = PendingCall(call, backend="b", own_name=name, timeout=60)
    session.send([pending])
    return pending


async def outcome(pending: PendingCall) -> Any:
    """Return the outcome of the call; skip notifications and stream events."""
    with trio.fail_after(WITHIN):
        while isinstance(found := await pending.next(), Notification | StreamClosed):
            pass
    return found


async def call(session: Session, name: str = "echo", arguments: Any = None, **kwargs: Any) -> Any:
    """A call from start to end."""
    return await outcome(start_call(session, name, arguments, **kwargs))


def result_of(found: Any) -> Any:
    """The result as a value."""
    assert isinstance(found, Complete), found
    return json.loads(found.whole())


def text_of(found: Any) -> str:
    return result_of(found)["content"][0]["text"]
