"""A client of the HTTP+SSE frontend, called in process."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from gateway import jsonrpc
from gateway.frontends.http.exchange import Exchange
from gateway.frontends.legacy.sse import SseFrontend
from tests.support.fakes import FakeExchange, FakeRequest
from tests.support.http_frontends import (
    HELLO,
    STREAM,
    Harness,
    events_of,
    message_of,
    open_harness,
)
from tests.support.wire_http import parse_events

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class SlowExchange(FakeExchange):
    """A client that reads nothing while `reading` is not set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.reading = trio.Event()
        self.reading.set()

    async def send(self, message: Any) -> None:
        await self.reading.wait()
        await super().send(message)


class SseClient:
    """One client of the frontend: its stream, and its POSTs."""

    def __init__(self, harness: Harness, frontend: SseFrontend) -> None:
        self.harness, self.frontend = harness, frontend
        self.stream = SlowExchange(method="GET", headers=STREAM)
        self.endpoint = ""

    async def open(self) -> None:
        await self.harness.start(self.frontend.open, self.stream)
        self.endpoint = parse_events(self.stream.body)[0].data

    async def post(self, message: object, *, endpoint: str | None = None, **headers: str) -> FakeExchange:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        exchange = FakeExchange(body, headers={**STREAM, **headers})
        target = self.endpoint if endpoint is None else endpoint
        exchange.scope["path"], _, query = target.partition("?")
        exchange.scope["query_string"] = query.encode()
        return await self.harness.start(self.frontend.post, exchange)

    def begin(self, request_id: int, *, query: bytes | None = None) -> FakeRequest | None:
        """POST a tool call that needs no task; None if it needs one."""
        message = message_of("tools/call", {"name": "a.x"}, request_id)
        request = FakeRequest(self.harness.nursery, json.dumps(message).encode(), headers=STREAM)
        request.scope["query_string"] = self.endpoint.partition("?")[2].encode() if query is None else query
        exchange = Exchange(request.scope, request.receive, request.send, None, request)
        return request if self.frontend.begin(exchange, jsonrpc.decode(request.body), request_id) else None

    async def ask(self, method: str, params: object = None, request_id: object = 1) -> FakeExchange:
        return await self.post(message_of(method, params, request_id))

    async def initialize(self, version: str = "2024-11-05") -> None:
        assert (await self.ask("initialize", {**HELLO, "protocolVersion": version}, 0)).status == 202

    async def call(self, request_id: object = 1) -> FakeExchange:
        return await self.ask("tools/call", {"name": "a.x"}, request_id)

    @property
    def messages(self) -> list[Any]:
        return [event.json() for event in events_of(self.stream)[1:]]

    @property
    def withdrawn(self) -> list[str]:
        return [name for name, _ in self.harness.fake.session.withdrawn]


@asynccontextmanager
async def open_client(*, version: str | None = "2024-11-05", **settings: Any) -> AsyncGenerator[SseClient]:
    async with open_harness(**settings) as harness:
        client = SseClient(harness, SseFrontend(harness.answers, "/messages/", trio.Event()))
        await client.open()
        if version is not None:
            await client.initialize(version)
        yield client
