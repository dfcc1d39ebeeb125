"""List wait per client: at most 60 % of its measured timeout, otherwise `start_grace`."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.frontends.client_patience import DEFAULT_GRACE, PATIENCE, list_patience
from gateway.frontends.legacy.sessions import LegacySession
from tests.support.fakes import MODERN_CALLER, FakeBackend, make_call
from tests.support.http_frontends import HELLO, message_of, open_harness


@pytest.mark.parametrize("name", PATIENCE)
def test_known_clients_wait_part_of_their_timeout(name: str) -> None:
    waits = list_patience(jsonrpc.raw({"name": name, "version": "1"}), DEFAULT_GRACE)
    assert DEFAULT_GRACE < waits <= 0.6 * PATIENCE[name]


@pytest.mark.parametrize(
    ("client_info", "start_grace"),
    [({"name": "mcp"}, DEFAULT_GRACE), ({"name": 7}, DEFAULT_GRACE), ([], DEFAULT_GRACE), ({}, DEFAULT_GRACE)]
    + [({"name": name}, 0.5) for name in PATIENCE],
)
def test_unknown_clients_wait_as_configured(client_info: object, start_grace: float) -> None:
    assert list_patience(jsonrpc.raw(client_info), start_grace) == start_grace
    assert list_patience(jsonrpc.ABSENT, start_grace) == start_grace


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize(("name", "expected"), [("anything", 4.0), ("mcp-use", 9.0)])
async def test_a_list_waits_for_its_own_client(era: str, name: str, expected: float, autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.stall()
    info = {"name": name, "version": "1"}
    async with open_harness(fake) as harness:
        answers = harness.answers
        began = trio.current_time()
        if era == "legacy":
            hello = jsonrpc.decode(jsonrpc.encode(message_of("initialize", {**HELLO, "clientInfo": info}, 1)))
            session = LegacySession(None, answers.introduce(hello), max_requests=5)
            await answers.legacy(jsonrpc.decode(jsonrpc.encode(message_of("tools/list", {}, 2))), session)
        else:
            caller = msgspec.structs.replace(MODERN_CALLER, client_info=jsonrpc.raw(info))
            await answers.modern(make_call(method="tools/list", caller=caller))
        assert trio.current_time() - began == expected
