"""An HTTP frontend in memory: a real request handler and fleet over a fake backend.

For tests on a clock that jumps; the test is the backend (`Harness.fake`) and the client (its `FakeExchange`s).
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import Complete, Era, Notification
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.frontends.http.exchange import ClientGone, Exchange
from gateway.frontends.legacy.sessions import LegacySession
from gateway.frontends.request_handler import ClientIntroduction, RequestHandler
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import FakeBackend, FakeExchange, backends, make_listing, settle
from tests.support.wire_http import Event, parse_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from gateway.budget import Budget
    from gateway.inflight.pending import PendingCall

ANSWER = {"content": [{"type": "text", "text": "done"}]}
STREAM = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


class Harness:
    """The test's roles: the backend, and clients of a frontend on `answers`."""

    def __init__(self, answers: RequestHandler, fake: FakeBackend, nursery: trio.Nursery) -> None:
        self.answers, self.fake, self.nursery = answers, fake, nursery

    async def start(self, method: Callable[..., Awaitable[None]], fake: FakeExchange, *arguments: Any) -> FakeExchange:
        """Have a frontend serve an exchange in a task, until all tasks wait."""
        self.nursery.start_soon(self._serve, method, fake, arguments)
        await settle()
        return fake

    async def _serve(self, method: Callable[..., Awaitable[None]], fake: FakeExchange, arguments: Any) -> None:
        try:
            await method(Exchange(fake.scope, fake.receive, fake.send), *arguments)
        except* ClientGone:
            pass

    @property
    def pending(self) -> PendingCall:
        """The latest call that has not ended."""
        return self.fake.session.working[-1]

    async def tell(self, text: str, pending: PendingCall | None = None) -> None:
        """Have the backend log a line in a call."""
        (pending or self.pending).notify(log_line(text))
        await settle()

    async def answer(self, result: object = ANSWER) -> None:
        """Have the backend answer its oldest call."""
        self.fake.session.answer(outcome=Complete(json.dumps(result).encode(), Era.LEGACY))
        await settle()


@asynccontextmanager
async def open_harness(
    fake: FakeBackend | None = None, *, unsent: Budget | None = None, **settings: Any
) -> AsyncGenerator[Harness]:
    """A fleet with one backend `a` with a tool `x`.

    No keep-alives on silent streams unless the settings say so.
    """
    fake = fake or FakeBackend(make_listing("x"))
    given = {"sse_after": 1e5, "keep_alive_interval": 1e5, **settings}
    config = Config(servers={"a": ServerConfig(name="a", call_timeout=1e4)}, gateway=GatewaySettings(**given))
    fleet = Fleet(config, backends({"a": fake}))
    parking: Any = None  # no call here is suspended
    with trio.fail_after(1e7):  # of the clock that jumps
        async with trio.open_nursery() as services:
            await services.start(fleet.run)
            await settle()
            answers = RequestHandler(Router(fleet, buffers=unsent), "9", parking)
            async with trio.open_nursery() as nursery:
                yield Harness(answers, fake, nursery)  # ruff: ignore[fallible-context-manager]
                nursery.cancel_scope.cancel()
            fleet.stop()


def log_line(text: str) -> Notification:
    return Notification("notifications/message", {"level": jsonrpc.raw("info"), "data": jsonrpc.raw(text)})


def message_of(method: str, params: object = None, request_id: object = None) -> dict[str, Any]:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
    return message if request_id is None else {**message, "id": request_id}


def events_of(exchange: FakeExchange) -> list[Event]:
    """The SSE events of a response so far, without comments."""
    return [event for event in parse_events(exchange.body) if not event.comment]


def texts_of(exchange: FakeExchange) -> list[str]:
    """The text of each message: a log line's, a result's, else the method."""
    found = []
    for event in events_of(exchange):
        if not event.data or event.event == "endpoint":
            continue
        message = event.json()
        if message.get("method") == "notifications/message":
            found.append(message["params"]["data"])
        elif "result" in message and message["result"].get("content"):
            found.append(message["result"]["content"][0]["text"])
        else:
            found.append(message.get("method") or json.dumps(message.get("error") or message["result"]))
    return found


def is_complete(exchange: FakeExchange) -> bool:
    """Whether the response has ended."""
    return bool(exchange.sent) and not exchange.sent[-1].get("more_body", exchange.sent[-1]["type"].endswith("start"))


HELLO = {"protocolVersion": "2024-11-05", "capabilities": {"roots": {}}, "clientInfo": {"name": "c", "version": "1"}}


def make_legacy_session() -> LegacySession:
    return LegacySession("s", ClientIntroduction("2025-11-25", msgspec.Raw(b"{}"), msgspec.Raw(b"")), max_requests=9)
