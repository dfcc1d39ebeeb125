"""Every endpoint with every kind of credentials; refused requests have no effect."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from msgspec import Struct

from gateway.access.keys import hash_key
from gateway.admin.operations import OPERATIONS
from gateway.embed.native import open_gateway
from tests.support.access import ADMIN_TOKEN, ALICE, BOB, HELLO, MODERN_META, Harness, keys, make_config, open_harness
from tests.support.fakes import FakeExchange, settle

if TYPE_CHECKING:
    from trio.testing import MockClock

ISSUER, RESOURCE = "https://login.example", "https://gw.example/mcp"
REVOKED = "mcpgw_key-that-was-revoked"
SIGNING_KEY = ec.generate_private_key(ec.SECP256R1())


def make_token(*, algorithm: str = "ES256", **claims: Any) -> str:
    now = int(time.time())
    given = {"iss": ISSUER, "aud": RESOURCE, "sub": "carol", "iat": now, "exp": now + 3600, **claims}
    key = None if algorithm == "none" else SIGNING_KEY
    return jwt.encode(given, key, algorithm=algorithm, headers={"kid": "k"})


def bearer(credential: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + credential.encode()


def api_key(credential: str) -> tuple[bytes, bytes]:
    return b"x-api-key", credential.encode()


class Kind(Struct, frozen=True):
    """Credentials of one kind, and the endpoints they open: MCP, management, or neither."""

    headers: tuple[tuple[bytes, bytes], ...] = ()
    query: str = ""
    lets_in: str = ""
    status: int = 401
    """The status of the endpoints they do not open."""


KINDS = {
    "none": Kind(),
    "key": Kind((bearer(ALICE),), lets_in="mcp"),
    "key as X-API-Key": Kind((api_key(ALICE),), lets_in="mcp"),
    "JWT": Kind((bearer(make_token()),), lets_in="mcp"),
    "admin token": Kind((bearer(ADMIN_TOKEN),), lets_in="admin"),
    "revoked key": Kind((bearer(REVOKED),)),
    "wrong key": Kind((bearer("mcpgw_key-of-mallory"),)),
    "part of a key": Kind((bearer(ALICE[:-1]),)),
    "hash of a key": Kind((bearer(hash_key(ALICE)),)),
    "key in another scheme": Kind(((b"authorization", b"Basic " + ALICE.encode()),)),
    "key without a scheme": Kind(((b"authorization", ALICE.encode()),)),
    "two headers": Kind((bearer(ALICE), bearer(ADMIN_TOKEN)), status=400),
    "two equal headers": Kind((bearer(ALICE), bearer(ALICE)), status=400),
    "two X-API-Key": Kind((api_key(ALICE), api_key(BOB)), status=400),
    "wrong key and X-API-Key": Kind((bearer("wrong"), api_key(ALICE))),
    "key and wrong X-API-Key": Kind((bearer(ALICE), api_key("wrong")), lets_in="mcp"),
    "admin token as X-API-Key": Kind((api_key(ADMIN_TOKEN),)),
    "admin token in the address": Kind(query=f"token={ADMIN_TOKEN}&access_token={ADMIN_TOKEN}"),
    "key in the address": Kind(query=f"key={ALICE}&access_token={ALICE}&api_key={ALICE}"),
    "expired JWT": Kind((bearer(make_token(exp=int(time.time()) - 3600)),)),
    "JWT for another audience": Kind((bearer(make_token(aud="https://other.example/mcp")),)),
    "unsigned JWT": Kind((bearer(make_token(algorithm="none")),)),
    "JWT as X-API-Key": Kind((api_key(make_token()),)),
    "empty": Kind((bearer(""),)),
    "empty X-API-Key": Kind((api_key(""),)),
    "huge": Kind((bearer("a" * 60_000),)),
}


class Endpoint(Struct, frozen=True):
    """One method of one path, and the status for accepted credentials."""

    method: str
    path: str
    status: int
    kind: str = "mcp"
    """`mcp`, `admin`, or `open` to everyone."""
    body: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()


def message(method: str, params: object) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()


MODERN = ((b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", b"tools/list"))
SESSION = ((b"mcp-session-id", b"x" * 32),)
MCP = [
    endpoint
    for view in ("", "/small")
    for endpoint in (
        Endpoint("POST", f"/mcp{view}", 200, body=message("initialize", HELLO)),
        Endpoint("POST", f"/mcp{view}", 200, body=message("tools/list", {"_meta": MODERN_META}), headers=MODERN),
        Endpoint("POST", f"/mcp{view}", 400, body=b"{"),
        Endpoint("POST", f"/mcp{view}", 404, body=message("ping", {}), headers=SESSION),
        Endpoint("GET", f"/mcp{view}", 405),
        Endpoint("GET", f"/mcp{view}", 404, headers=SESSION),
        Endpoint("DELETE", f"/mcp{view}", 404, headers=SESSION),
        Endpoint("PUT", f"/mcp{view}", 405),
        Endpoint("HEAD", f"/mcp{view}", 405),
        Endpoint("OPTIONS", f"/mcp{view}", 405),
        Endpoint("GET", f"/sse{view}", 200),
        Endpoint("POST", f"/messages{view}", 400, body=message("ping", {})),
        Endpoint("POST", f"/messages{view}/", 404, body=message("ping", {})),
    )
] + [Endpoint("POST", "/mcp/no-such-view", 404, body=message("initialize", HELLO))]
CHANGED = {"add_servers": 422, "reload": 200}
MANAGEMENT = [
    Endpoint(
        method,
        before if not name else f"{before}{'nothing' if one.access == 'change' else 'a'}{after}",
        CHANGED.get(one.name, 404) if one.access == "change" else 200,
        "open" if one.access == "open" else "admin",
        b"{}" if one.method == "POST" else b"",
    )
    for one in OPERATIONS
    for before, name, after in [one.path.partition("{name}")]
    for method in ((one.method, "HEAD") if one.method == "GET" else (one.method,))
]
OPEN = [
    Endpoint("GET", "/.well-known/oauth-protected-resource/mcp", 200, "open"),
    Endpoint("GET", "/no-such-path", 404, "open"),
]
ENDPOINTS = [*MCP, *MANAGEMENT, *OPEN]


async def send(method: str, url: str, **_: Any) -> tuple[int, bytes]:
    """The authorization server."""
    await trio.lowlevel.checkpoint()
    if url.endswith("/keys"):
        key = ECAlgorithm.to_jwk(SIGNING_KEY.public_key(), as_dict=True)
        return 200, json.dumps({"keys": [{**key, "kid": "k", "use": "sig"}]}).encode()
    return 404, b"{}"


def access(*revoked: dict[str, Any]) -> dict[str, Any]:
    oauth = {"issuer": ISSUER, "resource": RESOURCE, "jwks_url": f"{ISSUER}/keys"}
    return {**keys(*revoked), "oauth": oauth, "allow_hosts": ["gw.example"]}


async def ask(app: Any, endpoint: Endpoint, kind: Kind) -> FakeExchange:
    """One request, to its end or until its stream is open."""
    exchange = FakeExchange(endpoint.body, method=endpoint.method, headers={"host": "localhost"})
    accept = (b"accept", b"application/json, text/event-stream")
    exchange.scope["headers"] += [(b"content-type", b"application/json"), accept, *endpoint.headers, *kind.headers]
    query = "&".join(filter(None, [kind.query, "session_id=none" if endpoint.path.endswith("/") else ""]))
    exchange.scope |= {"path": endpoint.path, "query_string": query.encode()}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app, exchange.scope, exchange.receive, exchange.send)
        if endpoint.path.startswith(("/sse", "/events")) or endpoint.path.endswith("/stderr"):
            await settle()
            exchange.gone.set()
    return exchange


def expected(endpoint: Endpoint, kind: Kind) -> int:
    if kind.status == 400 and not endpoint.path.startswith("/.well-known"):
        return 400
    return endpoint.status if endpoint.kind in {"open", kind.lets_in} else kind.status


def secrets_of(kind: Kind) -> list[bytes]:
    found = [value.removeprefix(b"Bearer ").removeprefix(b"Basic ") for _, value in kind.headers]
    return [value for value in found if len(value) > 8]


@pytest.mark.parametrize("name", KINDS)
async def test_each_credential_opens_only_its_endpoints(name: str, autojump_clock: MockClock) -> None:
    kind = KINDS[name]
    async with open_harness(access({"name": "gone", "hash": hash_key(REVOKED)}), send=send) as harness:
        now = make_config(access()).access
        assert now is not None
        harness.access.apply(now)
        before = state_of(harness)
        for endpoint in ENDPOINTS:
            exchange = await ask(harness.frontend, endpoint, kind)
            assert exchange.status == expected(endpoint, kind), (endpoint.method, endpoint.path)
            assert not any(secret in exchange.body for secret in secrets_of(kind)), endpoint.path
            if exchange.status == 401:
                assert exchange.headers["www-authenticate"].startswith("Bearer"), endpoint.path
                assert endpoint.body == b"" or exchange._incoming, endpoint.path  # the body was not read
        if not kind.lets_in:
            assert state_of(harness) == before
        assert harness.sent == 0


def state_of(harness: Harness) -> object:
    return (
        list(harness.fleet.supervisors),
        harness.mcp.sessions,
        harness.reloader.counts.copy(),
        harness.reloader.last,
    )


@pytest.mark.parametrize("name", KINDS)
async def test_each_credential_opens_only_its_mounted_endpoints(name: str) -> None:
    kind = KINDS[name]
    if "JWT" in name:  # there is no authorization server here: all of them are wrong keys
        kind = Kind(kind.headers)
    config = {"mcpServers": {}, "views": {"small": {}}, "access": keys()}
    with trio.fail_after(20):
        async with open_gateway(config) as running:
            for endpoint in MCP:
                exchange = await ask(running.asgi_app, endpoint, kind)
                assert exchange.status == expected(endpoint, kind), (endpoint.method, endpoint.path)
            assert (await ask(running.asgi_app, Endpoint("GET", "/servers", 404, "admin"), KINDS["key"])).status == 404


def test_the_table_is_whole() -> None:
    assert len({(one.method, one.path) for one in ENDPOINTS}) >= 38
    assert {one.path for one in OPERATIONS if "{" not in one.path} <= {one.path for one in ENDPOINTS}
    assert len(KINDS) >= 14
