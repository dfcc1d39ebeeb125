"""Every endpoint refuses missing and wrong keys, foreign sessions, bad Origins and Hosts.

Refusals cost no work: the gateway's real routes and frontends run in memory before fake backends, which must see
nothing, and no body of a refused request is read. What a key opens elsewhere must not show either.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from gateway.access.keys import MAX_CREDENTIAL, credential_in, hash_key
from gateway.access.principals import Principal
from gateway.access.table import Access
from gateway.admin.operations import OPERATIONS
from gateway.config import parse_config
from tests.support.access import ADMIN_TOKEN, ALICE, BOB, HELLO, Harness, keys, modern_headers, open_harness, tool_call
from tests.support.fakes import FakeExchange, settle

if TYPE_CHECKING:
    from collections.abc import Callable

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
MCP: dict[str, Callable[[str, str], tuple[str, str, object, dict[str, str]]]] = {
    "legacy initialize": lambda _session, _sse: ("POST", "/mcp", INITIALIZE, {}),
    "legacy call": lambda session, _: ("POST", "/mcp", tool_call(modern=False), {"mcp_session_id": session}),
    "legacy batch": lambda session, _: ("POST", "/mcp", [PING, PING], {"mcp_session_id": session}),
    "legacy GET": lambda session, _: ("GET", "/mcp", None, {"mcp_session_id": session}),
    "legacy resumption": lambda session, _: (
        "GET", "/mcp", None, {"mcp_session_id": session, "last_event_id": "0-1"}
    ),
    "legacy DELETE": lambda session, _: ("DELETE", "/mcp", None, {"mcp_session_id": session}),
    "modern call": lambda _session, _sse: ("POST", "/mcp", tool_call(modern=True), modern_headers()),
    "modern GET": lambda _session, _sse: ("GET", "/mcp", None, {"mcp_protocol_version": "2026-07-28"}),
    "nonsense": lambda _session, _sse: ("POST", "/mcp", b"{", {}),
    "another method": lambda _session, _sse: ("PUT", "/mcp", b"", {}),
    "call in a view": lambda _session, _sse: ("POST", "/mcp/small", tool_call(modern=True), modern_headers()),
    "GET in a view": lambda session, _: ("GET", "/mcp/small", None, {"mcp_session_id": session}),
    "no view": lambda _session, _sse: ("POST", "/mcp/none", tool_call(modern=True), modern_headers()),
    "SSE stream of a view": lambda _session, _sse: ("GET", "/sse/small", None, {}),
    "SSE stream": lambda _session, _sse: ("GET", "/sse", None, {}),
    "SSE message": lambda _session, sse: ("POST", sse, tool_call(modern=False), {}),
    "SSE nonsense": lambda _session, _sse: ("POST", "/messages/?session_id=x", b"{", {}),
}  # fmt: skip
CREDENTIALS: dict[str, dict[str, str]] = {
    "none": {},
    "wrong": {"authorization": "Bearer mcpgw_wrong"},
    "the hash": {"authorization": f"Bearer {hash_key(ALICE)}"},
    "half": {"authorization": f"Bearer {ALICE[:-1]}"},
    "more": {"authorization": f"Bearer {ALICE} x"},
    "another scheme": {"authorization": f"Basic {ALICE}"},
    "no scheme": {"authorization": ALICE},
    "a wrong API key": {"x_api_key": "x"},
    "in a cookie": {"cookie": f"authorization=Bearer {ALICE}"},
    "of the management": {"authorization": f"Bearer {ADMIN_TOKEN}"},
}
FOREIGN: dict[str, tuple[dict[str, str], str]] = {
    "a page": ({"origin": "https://evil.example"}, "the Origin "),
    "a file": ({"origin": "null"}, "the Origin "),
    "another host": ({"host": "evil.example"}, "the Host "),
    "no host": ({"host": ""}, "the Host "),
}


LONG = {"read_events", "read_metrics", "read_stderr"}
"""Operations whose answer has no end, or is made in a thread: not for a clock that jumps."""


class Watched(Harness):
    """A gateway that alice already uses, in a session of each kind."""

    legacy = sse = ""

    async def settle_in(self) -> None:
        self.legacy = await self.initialize()
        stream = await self.start("GET", "/sse", key=ALICE)
        self.sse = stream.body.decode().partition("data: ")[2].partition("\r\n")[0]
        assert (await self.start("POST", self.sse, INITIALIZE, key=ALICE)).status == 202

    @property
    def state(self) -> tuple[object, ...]:
        """Return the state that a refused request must leave unchanged."""
        sessions = self.mcp.endpoint.sessions._sessions
        idle = [session.last_used for session in sessions.values()]
        return self.sent, len(sessions), idle, len(self.mcp.sse), self.router.under_way, len(self.parking)


async def refuse(harness: Harness, request: tuple[str, str, object, dict[str, str]], **headers: str) -> FakeExchange:
    method, path, body, own = request
    exchange = await harness.start(method, path, body, **{**own, **headers})
    assert exchange.ended, "it was accepted"
    return exchange


def body_was_read(exchange: FakeExchange) -> bool:
    return not exchange._incoming


async def walk_in(harness: Harness) -> Watched:
    harness.__class__ = Watched
    assert isinstance(harness, Watched)
    await harness.settle_in()
    return harness


async def test_without_a_key_nothing_is_done(autojump_clock: MockClock) -> None:
    async with open_harness(keys()) as plain:
        harness = await walk_in(plain)
        before = harness.state
        for name, make in MCP.items():
            for what, headers in CREDENTIALS.items():
                exchange = await refuse(harness, make(harness.legacy, harness.sse), **headers)
                assert exchange.status == 401, (name, what)
                challenge = exchange.headers["www-authenticate"]
                assert challenge == ("Bearer" if what in {"none", "in a cookie"} else 'Bearer error="invalid_token"')
                assert "Authorization: Bearer KEY" in json.loads(exchange.body)["error"]["message"]
                assert not body_was_read(exchange), (name, what)
        assert harness.state == before


async def test_foreign_hosts_and_origins_are_refused_before_keys(
    autojump_clock: MockClock,
) -> None:
    async with open_harness(keys()) as plain:
        harness = await walk_in(plain)
        before = harness.state
        for name, make in MCP.items():
            for what, (headers, text) in FOREIGN.items():
                for key in ({}, {"authorization": f"Bearer {ALICE}"}):
                    exchange = await refuse(harness, make(harness.legacy, harness.sse), **headers, **key)
                    assert exchange.status == 403, (name, what)
                    assert text in json.loads(exchange.body)["error"]["message"]
                    assert not body_was_read(exchange), (name, what)
        assert harness.state == before


async def test_another_principals_session_is_an_unknown_one(autojump_clock: MockClock) -> None:
    bob = {"authorization": f"Bearer {BOB}"}
    async with open_harness(keys()) as plain:
        harness = await walk_in(plain)
        before = harness.state
        unknown = "x" * len(harness.legacy)
        for name in (
            "legacy call",
            "legacy batch",
            "legacy GET",
            "legacy resumption",
            "legacy DELETE",
            "SSE message",
            "GET in a view",
        ):
            mine = await refuse(harness, MCP[name](harness.legacy, harness.sse), **bob)
            anonymous = await refuse(harness, MCP[name](unknown, f"/messages/?session_id={unknown}"), **bob)
            assert mine.status == anonymous.status == 404, name
            assert mine.sent == anonymous.sent, name
        assert harness.state == before
        # The same requests of its own principal are accepted, so the refusals have no other cause.
        alive = await harness.start("POST", "/mcp", PING, key=ALICE, mcp_session_id=harness.legacy)
        assert alive.status == 200
        assert (await harness.start("POST", harness.sse, PING, key=ALICE)).status == 202


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.7"])
async def test_a_clients_key_opens_nothing_of_the_management(host: str, autojump_clock: MockClock) -> None:
    async with open_harness(keys(), host=host) as harness:
        for operation in OPERATIONS:
            path = operation.path.replace("{name}", "a")
            needs = operation.access in {"change", "read"}  # keys are configured: reading needs the token too
            for headers in ({}, {"authorization": f"Bearer {ALICE}"}, {"x_api_key": ALICE}):
                exchange = await refuse(harness, (operation.method, path, {"mcpServers": {}}, {}), **headers)
                assert (exchange.status == 401) is needs, (operation.name, headers)
            for headers, _ in FOREIGN.values():
                exchange = await refuse(harness, (operation.method, path, {"mcpServers": {}}, {}), **headers)
                assert exchange.status == 403, (operation.name, headers)
        assert list(harness.fleet.supervisors) == ["a"]


async def test_no_secret_is_shown(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with open_harness(keys()) as harness:
        await harness.call()
        await harness.call(key="mcpgw_wrong-key")
        await harness.answer()
        shown = [caplog.text, repr(harness.access.settings), repr(harness.access.settings.keys)]
        for operation in OPERATIONS:
            if operation.method == "GET" and operation.name not in LONG:
                exchange = await harness.start("GET", operation.path.replace("{name}", "a"), key=ADMIN_TOKEN)
                shown.append(exchange.body.decode())
        for secret in (ALICE, "wrong-key", hash_key(ALICE), hash_key(ALICE).removeprefix("sha256:")):
            assert not any(secret in one for one in shown)


async def test_a_suspended_call_belongs_to_its_principal(autojump_clock: MockClock) -> None:
    """The attacks on `requestState` have their own file; here it comes with another client's key."""
    from tests.support.access import MODERN_META

    capable = {**MODERN_META, "io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}
    call = tool_call(modern=True)
    call["params"]["_meta"] = capable
    async with open_harness(keys()) as harness:
        first = await harness.start("POST", "/mcp", call, key=ALICE, **modern_headers())
        harness.fakes["a"].session.working[0].ask(elicitation())
        await settle()
        result = json.loads(first.body)["result"]
        retry = {**call, "id": 2}
        retry["params"] = {**call["params"], "requestState": result["requestState"], "inputResponses": {}}
        stolen = await harness.start("POST", "/mcp", retry, key=BOB, **modern_headers())
        assert json.loads(stolen.body)["error"]["code"] == -32602
        assert (harness.sent, len(harness.parking)) == (1, 1)
        harness.access.apply(
            parse_config({"mcpServers": {}, "access": {"keys": keys()["keys"][1:]}}, environ={}).access
        )
        await settle()
        assert (len(harness.parking), harness.router.under_way) == (
            0,
            0,
        )  # its key is gone, and so are its suspended calls


def elicitation() -> Any:
    from gateway import jsonrpc
    from gateway.calls import ServerRequest

    params = {"message": jsonrpc.raw("?"), "requestedSchema": jsonrpc.raw({"type": "object", "properties": {}})}
    return ServerRequest("elicitation/create", params, lambda _reply: None)


# -- The Authorization header, made up ---------------------------------------------------------------------------------

ACCESS = Access(parse_config({"mcpServers": {}, "access": keys()}, environ={}).access)
HEADER = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda scheme, blanks, key, tail: scheme + blanks + key + tail,
        st.sampled_from([b"Bearer", b"bearer", b"BEARER", b"Bearer:", b"Basic", b"", b"\xff", b"B\x00earer"]),
        st.sampled_from([b" ", b"  ", b"\t", b"", b"\x00", b"\xa0"]),
        st.sampled_from([ALICE.encode(), ALICE[:-1].encode(), ALICE.upper().encode(), b"", b"\xff", b"=" * 50]),
        st.sampled_from([b"", b" ", b"\t", b"\x00", b",", b" x", b"\r\n", b"="]),
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(header=HEADER)
@example(header=b"Bearer " + b"x" * (MAX_CREDENTIAL + 1))
@example(header=b"Bearer " + ALICE.encode())
@example(header=b"bearer \t " + ALICE.encode() + b" ")
def test_only_the_exact_key_is_accepted(header: bytes) -> None:
    headers = {b"authorization": header}
    found = ACCESS.find(headers)
    scheme, _, rest = header.strip().partition(b" ")
    right = scheme.lower() == b"bearer" and rest.strip() == ALICE.encode()
    assert isinstance(found, Principal) is right
    assert credential_in(headers) in {b"", rest.strip()}


def test_a_key_beside_wrong_authorization_is_ignored() -> None:
    """One credential decides: which one a proxy has checked must not be chance."""
    assert ACCESS.find({b"authorization": b"Bearer x", b"x-api-key": ALICE.encode()}) is None
    assert ACCESS.find({b"x-api-key": ALICE.encode()}) is not None
