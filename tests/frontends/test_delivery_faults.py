"""Events concurrent with an outcome, in both orders: one ending, at most one cancel."""

from __future__ import annotations

import itertools
import json
import os
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from gateway import jsonrpc
from gateway.errors import Revoked
from gateway.frontends.http.exchange import Exchange
from gateway.frontends.legacy.sessions import ClientIntroduction, SessionTable
from gateway.frontends.legacy.streamable import StreamableFrontend
from gateway.frontends.modern.endpoint import ModernFrontend
from gateway.frontends.stdio import StdioFrontend
from tests.support.fakes import FakeExchange, FakeRequest, settle
from tests.support.http_frontends import HELLO, STREAM, Harness, is_complete, log_line, message_of, open_harness
from tests.support.sse_client import SseClient
from tests.support.sse_client import open_client as open_sse_client

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager

    from trio.testing import MockClock

    from gateway.frontends.legacy.sessions import InFlight, LegacySession

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
MODERN = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "a.x"}


class Client:
    """A client of one kind, whose call is in flight."""

    def __init__(self, harness: Harness, session: LegacySession, in_flight: InFlight | None = None) -> None:
        self.harness, self.session = harness, session
        self.in_flight = in_flight or session.in_flight
        self.pending = harness.pending

    @property
    def endings(self) -> int:
        """Responses that the client got."""
        raise NotImplementedError

    @property
    def may_be_unanswered(self) -> bool:
        """Whether the client has gone without waiting for a response."""
        return False

    def hang_up(self) -> None:
        """End the connection."""
        raise NotImplementedError

    def end_session(self) -> None:
        """End the session, as a client or the gateway does it in good order."""
        raise NotImplementedError

    def assert_at_rest(self) -> None:
        router = self.harness.answers.router
        assert (router.under_way, len(router.fleet.deadlines), len(self.in_flight), router.buffers.used) == (0, 0, 0, 0)
        assert self.harness.fake.session.working == []
        assert len(self.harness.fake.session.withdrawn) <= 1


class HttpClient(Client):
    """Over HTTP; `exchange` serves the call in a task, `request` initially without."""

    def __init__(
        self,
        harness: Harness,
        session: LegacySession,
        sessions: SessionTable,
        exchange: FakeExchange,
        request: FakeRequest | None = None,
    ) -> None:
        super().__init__(harness, session)
        self.sessions, self.exchange, self.request = sessions, exchange, request
        self.has_returned = False
        """Whether the task is over: its server ends a response that is not complete, and the connection with it."""

    @property
    def endings(self) -> int:
        responses = 0 if self.request is None else len(self.request.responses)
        return responses + (is_complete(self.exchange) or self.has_returned)

    @property
    def may_be_unanswered(self) -> bool:
        return self.exchange.gone.is_set()

    def hang_up(self) -> None:
        if self.request is None:
            self.exchange.gone.set()
        else:
            self.request.hang_up()

    def end_session(self) -> None:
        self.sessions.close(self.session)


class StreamClient(Client):
    """On the stream of the older SSE transport."""

    def __init__(self, client: SseClient, session: LegacySession) -> None:
        super().__init__(client.harness, session)
        self.client = client

    @property
    def endings(self) -> int:
        return sum(message.get("id") == 1 for message in self.client.messages)

    @property
    def may_be_unanswered(self) -> bool:
        return self.client.stream.gone.is_set()

    def hang_up(self) -> None:
        self.client.stream.gone.set()

    def end_session(self) -> None:
        self.client.frontend.end_all()


class StdioClient(Client):
    """On a pair of pipes; the end of stdin still waits for responses."""

    def __init__(self, harness: Harness, frontend: StdioFrontend, stdin: int, stdout: int, closing: trio.Event) -> None:
        assert frontend._session is not None
        super().__init__(harness, frontend._session, frontend._in_flight)
        self.stdin, self.stdout, self.closing = stdin, stdout, closing
        self.received = b""

    @property
    def endings(self) -> int:
        with suppress(BlockingIOError):
            self.received += os.read(self.stdout, 1 << 16)
        return sum(json.loads(line).get("id") == 1 for line in self.received.splitlines())

    def hang_up(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
        self.stdin = -1

    def end_session(self) -> None:
        self.closing.set()


@asynccontextmanager
async def open_http(era: str, *, in_task: bool) -> AsyncGenerator[Client]:
    async with open_harness() as harness:
        sessions = SessionTable(most=3, idle_timeout=1e6, max_requests=5)
        await harness.nursery.start(sessions.run)
        session = sessions.create(ClientIntroduction("2025-11-25", msgspec.Raw(b"{}"), msgspec.Raw(b"")))
        assert session is not None
        meta = {"_meta": META} if era == "modern" else {}
        headers = {**STREAM, **(MODERN if era == "modern" else {"mcp-session-id": str(session.id)})}
        body = json.dumps(message_of("tools/call", {"name": "a.x", **meta}, 1)).encode()
        message = jsonrpc.decode(body)
        frontend = (
            ModernFrontend(harness.answers, trio.Event())
            if era == "modern"
            else StreamableFrontend(harness.answers, sessions)
        )
        if in_task:
            exchange = FakeExchange(headers=headers)
            await exchange.receive()  # the body, which has been read
            clients: list[HttpClient] = []

            async def serve(exchange: Exchange) -> None:
                try:
                    await frontend.post(exchange, message)
                finally:
                    clients[0].has_returned = True

            await harness.start(serve, exchange)
            clients.append(HttpClient(harness, session, sessions, exchange))
            yield clients[0]
            return
        request = FakeRequest(harness.nursery, body, headers=headers)
        assert frontend.begin(Exchange(request.scope, request.receive, request.send, None, request), message, 1)
        yield HttpClient(harness, session, sessions, request.exchange, request)


@asynccontextmanager
async def open_sse() -> AsyncGenerator[Client]:
    async with open_sse_client() as client:
        await client.call(1)
        session = client.frontend._streams[client.endpoint.partition("=")[2]].session
        assert session is not None
        yield StreamClient(client, session)


@asynccontextmanager
async def open_stdio() -> AsyncGenerator[Client]:
    (theirs_in, stdin), (stdout, theirs_out) = os.pipe(), os.pipe()
    os.set_blocking(stdout, False)
    async with open_harness() as harness:
        closing = trio.Event()
        frontend = StdioFrontend(harness.answers, theirs_in, theirs_out, closing)
        harness.nursery.start_soon(frontend.run)
        for message in (message_of("initialize", HELLO, 0), message_of("tools/call", {"name": "a.x"}, 1)):
            os.write(stdin, json.dumps(message).encode() + b"\n")
            await settle()
        client = StdioClient(harness, frontend, stdin, stdout, closing)
        try:
            yield client
        finally:
            client.hang_up()
            os.close(stdout)
            os.close(theirs_in)


CLIENTS: dict[str, Callable[[], AbstractAsyncContextManager[Client]]] = {
    "legacy": partial(open_http, "legacy", in_task=False),
    "modern": partial(open_http, "modern", in_task=False),
    "legacy in a task": partial(open_http, "legacy", in_task=True),
    "modern in a task": partial(open_http, "modern", in_task=True),
    "sse": open_sse,
    "stdio": open_stdio,
}


def answer(client: Client) -> None:
    if client.harness.fake.session.working:
        client.harness.fake.session.answer()


def pass_deadline(client: Client) -> None:
    client.pending.extend(0)
    client.pending.deadline = trio.current_time()
    client.pending.wake_expired()


def reload(client: Client) -> None:
    client.harness.answers.fleet.supervisors["a"].stop()


def revoke(client: Client) -> None:
    client.pending.abandon(Revoked(), "the client's access was revoked")


def drain(client: Client) -> None:
    client.harness.nursery.start_soon(client.harness.answers.router.drain, 0)


def end_session(client: Client) -> None:
    client.end_session()


FAULTS: dict[str, Callable[[Client], None]] = {
    "disconnect": lambda client: client.hang_up(),
    "deadline": pass_deadline,
    "reload": reload,
    "revoke": revoke,
    "drain": drain,
    "end of the session": end_session,
}
ORDERS = [pair for fault in FAULTS for pair in ((fault, "outcome"), ("outcome", fault))]
ENDS = {"outcome": answer, **FAULTS}


@pytest.mark.parametrize("has_event", [False, True])
@pytest.mark.parametrize(("first", "second"), [*ORDERS, *itertools.combinations(FAULTS, 2)])
@pytest.mark.parametrize("kind", CLIENTS)
async def test_two_ends_in_one_instant_are_one(
    kind: str, first: str, second: str, has_event: bool, mock_clock: MockClock
) -> None:
    async with CLIENTS[kind]() as client:
        if has_event:
            client.pending.notify(log_line("so that it has a task"))
            await settle()
        ENDS[first](client)
        ENDS[second](client)
        await settle()
        if client.harness.fake.session.working:  # a legacy call outlives its connection, and modern ones the session
            answer(client)
            await settle()
        assert client.endings <= 1
        assert client.endings == 1 or client.may_be_unanswered
        client.assert_at_rest()


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_sink_bug_ends_only_its_exchange(era: str, mock_clock: MockClock, monkeypatch: Any) -> None:
    problems: list[Exception] = []
    async with open_http(era, in_task=False) as client:

        async def report(app: Any, *scope: Any) -> None:
            try:
                await app(*scope)
            except* ZeroDivisionError as group:
                problems.extend(group.exceptions)

        assert isinstance(client, HttpClient)
        assert client.request is not None
        start = client.request.start
        monkeypatch.setattr(client.request, "start", lambda app: start(partial(report, app)))
        monkeypatch.setattr(client.harness.answers, "encode_outcome", lambda *_: 1 / 0)
        answer(client)  # the backend's reader, which must not see it
        await settle()
        assert len(problems) == 1
        client.assert_at_rest()
