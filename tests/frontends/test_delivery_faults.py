"""What meets an outcome in one instant, in both orders: one ending, nothing left, at most one cancel to the backend."""

from __future__ import annotations

import itertools
import json
from contextlib import asynccontextmanager
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
from tests.support.fakes import FakeRequest, settle
from tests.support.http_frontends import STREAM, Harness, is_complete, log_line, message_of, open_harness

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from trio.testing import MockClock

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "c", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
MODERN = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "a.x"}


class Client:
    """An HTTP client of one era whose call is in flight without a task."""

    def __init__(self, harness: Harness, era: str, sessions: SessionTable) -> None:
        self.harness, self.sessions = harness, sessions
        session = sessions.create(ClientIntroduction("2025-11-25", msgspec.Raw(b"{}"), msgspec.Raw(b"")))
        assert session is not None
        self.session = session
        meta = {"_meta": META} if era == "modern" else {}
        headers = MODERN if era == "modern" else {"mcp-session-id": str(session.id)}
        body = json.dumps(message_of("tools/call", {"name": "a.x", **meta}, 1)).encode()
        self.request = request = FakeRequest(harness.nursery, body, headers={**STREAM, **headers})
        frontend = (
            ModernFrontend(harness.answers, trio.Event())
            if era == "modern"
            else StreamableFrontend(harness.answers, sessions)
        )
        exchange = Exchange(request.scope, request.receive, request.send, None, request)
        assert frontend.begin(exchange, jsonrpc.decode(body), 1)
        self.pending = harness.pending

    @property
    def endings(self) -> int:
        """Responses that the client got."""
        return len(self.request.responses) + is_complete(self.request.exchange)

    def assert_at_rest(self) -> None:
        router = self.harness.answers.router
        assert (router.under_way, len(router.fleet.deadlines), len(self.session.in_flight)) == (0, 0, 0)
        assert self.harness.fake.session.working == []
        assert len(self.harness.fake.session.withdrawn) <= 1


@asynccontextmanager
async def open_client(era: str) -> AsyncGenerator[Client]:
    async with open_harness() as harness:
        sessions = SessionTable(most=3, idle_timeout=1e6, max_requests=5)
        await harness.nursery.start(sessions.run)
        yield Client(harness, era, sessions)


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
    client.sessions.close(client.session)


FAULTS: dict[str, Callable[[Client], None]] = {
    "disconnect": lambda client: client.request.hang_up(),
    "deadline": pass_deadline,
    "reload": reload,
    "revoke": revoke,
    "drain": drain,
    "end of the session": end_session,
}
ORDERS = [pair for fault in FAULTS for pair in ((fault, "outcome"), ("outcome", fault))]
ENDS = {"outcome": answer, **FAULTS}


@pytest.mark.parametrize("has_task", [False, True])
@pytest.mark.parametrize(("first", "second"), [*ORDERS, *itertools.combinations(FAULTS, 2)])
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_two_ends_in_one_instant_are_one(
    era: str, first: str, second: str, has_task: bool, mock_clock: MockClock
) -> None:
    async with open_client(era) as client:
        if has_task:
            client.pending.notify(log_line("so that it has a task"))
            await settle()
            assert client.request.has_task is has_task
        ENDS[first](client)
        ENDS[second](client)
        await settle()
        if client.harness.fake.session.working:  # a legacy call outlives its connection, and modern ones the session
            answer(client)
            await settle()
        hung_up = client.request.exchange.gone.is_set()
        assert client.endings <= 1
        assert client.endings == 1 or hung_up
        client.assert_at_rest()


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_bug_in_a_sink_ends_only_its_exchange(era: str, mock_clock: MockClock, monkeypatch: Any) -> None:
    problems: list[Exception] = []
    async with open_client(era) as client:

        async def report(app: Any, *scope: Any) -> None:
            try:
                await app(*scope)
            except* ZeroDivisionError as group:
                problems.extend(group.exceptions)

        start = client.request.start
        monkeypatch.setattr(client.request, "start", lambda app: start(partial(report, app)))
        monkeypatch.setattr(client.harness.answers, "encode_outcome", lambda *_: 1 / 0)
        answer(client)  # the backend's reader, which must not see it
        await settle()
        assert len(problems) == 1
        client.assert_at_rest()
