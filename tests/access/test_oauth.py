"""OAuth access tokens: validation, principal, lifetime, and requests to the authorization server."""

from __future__ import annotations

import base64
import json
import math
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import Any, Self
from urllib.parse import parse_qs

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from trio.testing import MockClock

from gateway.access import jwks, subjects, tokens
from gateway.access.authority import AuthorityDown, fetch
from gateway.access.principals import Principal
from gateway.access.refusal import Refusal
from gateway.access.resource import metadata, metadata_url
from gateway.clock import elapsed_time
from gateway.config.access import Introspection, ResourceServer
from tests.support.access import ALICE, Harness, keys, make_config, open_harness
from tests.support.fakes import FakeExchange, settle
from tests.support.http_frontends import texts_of

ISSUER = "https://login.example/tenant"
RESOURCE = "https://gw.example/mcp"
METADATA = "https://gw.example/.well-known/oauth-protected-resource/mcp"
SECRET = "s3cr3t&=:"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, key_id: str, **kwargs: object) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "use": "sig", **kwargs}


class Server:
    """An authorization server as seen by a resource server: `send` replaces HTTP."""

    def __init__(self) -> None:
        self.keys = [jwk(EC_KEY, "e"), jwk(RSA_KEY, "r")]
        self.asked: list[str] = []
        self.active: dict[str, dict[str, Any]] = {}
        self.headers: list[dict[str, str]] = []
        self.down = False
        self.hold: trio.Event | None = None
        self.issuer: Any = ISSUER

    async def send(
        self, method: str, url: str, *, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        self.asked.append(url)
        self.headers.append(headers or {})
        if self.hold is not None:
            await self.hold.wait()
        await trio.lowlevel.checkpoint()
        if self.down:
            raise AuthorityDown("it is down")
        url = url.replace(":443/", "/")
        if url.startswith("https://login.example/.well-known/openid-configuration"):
            return 200, json.dumps({"issuer": self.issuer, "jwks_uri": "https://login.example/keys"}).encode()
        if url == "https://login.example/keys":
            return 200, json.dumps({"keys": self.keys}).encode()
        if url == "https://login.example/introspect":
            (token,) = parse_qs(body.decode())["token"]
            return 200, json.dumps({"active": token in self.active, **self.active.get(token, {})}).encode()
        return 404, b"{}"


def section(**kwargs: Any) -> dict[str, Any]:
    return {"oauth": {"issuer": ISSUER, "resource": RESOURCE, **kwargs}, "allow_hosts": ["gw.example"]}


def token(key: Any = EC_KEY, key_id: str | None = "e", algorithm: str = "ES256", **claims: Any) -> str:
    now = int(time.time())
    given = {"iss": ISSUER, "aud": RESOURCE, "sub": "carol", "iat": now, "exp": now + 3600, "scope": "mcp x", **claims}
    given = {name: value for name, value in given.items() if value is not None}
    return jwt.encode(given, key, algorithm=algorithm, headers={} if key_id is None else {"kid": key_id})


def signed(claims: dict[str, Any]) -> str:
    """A token that PyJWT would not make, since its claims are of the wrong types."""
    return jwt.PyJWS().encode(json.dumps(claims).encode(), EC_KEY, algorithm="ES256", headers={"kid": "e"})


SETTINGS = ResourceServer(resource=RESOURCE, issuer=ISSUER)
INTROSPECTED = ResourceServer(
    resource=RESOURCE, issuer=ISSUER, introspection=Introspection(url="https://login.example/introspect")
)


def open_server(server: Server, **kwargs: Any) -> Any:
    return open_harness(section(**kwargs), send=server.send)


async def finish(harness: Harness, exchange: FakeExchange) -> Any:
    await harness.answer()
    return json.loads(exchange.body)["result"]["content"][0]["text"]


async def test_a_valid_tokens_subject_becomes_the_principal(autojump_clock: MockClock) -> None:
    server = Server()
    async with open_server(server, algorithms=["ES256", "RS256"]) as harness:
        for one in (token(), token(RSA_KEY, "r", "RS256"), token(aud=["x", RESOURCE])):
            exchange = await harness.call(key=one)
            assert harness.fakes["a"].session.working[0].call.caller.principal == "oauth:carol"
            assert await finish(harness, exchange) == "done"
        assert server.asked.count("https://login.example/keys") == 1


def tampered(good: str, **head: Any) -> str:
    first, rest = good.split(".", 1)
    decoded = json.loads(base64.urlsafe_b64decode(first + "=="))
    encoded = base64.urlsafe_b64encode(json.dumps({**decoded, **head}).encode()).decode().rstrip("=")
    return f"{encoded}.{rest}"


NOW = int(time.time())
BAD = {
    "expired": token(exp=NOW - 60),
    "not yet": token(nbf=NOW + 600),
    "another resource": token(aud="https://other.example/mcp"),
    "part of the resource": token(aud="https://gw.example"),
    "no audience": token(aud=None),
    "no expiry": token(exp=None),
    "expiry of another type": token(exp="soon"),
    "another issuer": token(iss="https://evil.example"),
    "no issuer": token(iss=None),
    "no subject": token(sub=None),
    "a subject of many lines": token(sub="a\nb"),
    "an endless subject": token(sub="a" * 300),
    "another key": token(OTHER_KEY),
    "a key of another id": token(OTHER_KEY, "unknown"),
    "an algorithm not allowed": token(RSA_KEY, "r", "PS256"),
    "none": jwt.encode({"iss": ISSUER, "aud": RESOURCE, "sub": "c", "exp": NOW + 60}, None, algorithm="none"),
    "a changed head": tampered(token(), alg="RS256"),
    "a key of its own": tampered(token(OTHER_KEY), jwk=jwk(OTHER_KEY, "e")),
    "an extension that must be known": tampered(token(), crit=["x"], x=1),
    "no JWT": "abc",
    "empty parts": "..",
    "an unfinished one": token()[:-5],
    "not ASCII": "\xe9" * 20,
    "far too long": "a" * 20_000,
}


async def test_bad_tokens_are_refused_without_work(autojump_clock: MockClock) -> None:
    server = Server()
    async with open_server(server, algorithms=["ES256", "RS256"]) as harness:
        for what, bad in BAD.items():
            exchange = FakeExchange(b"{}", headers={"host": "localhost", "content-type": "application/json"})
            exchange.scope["headers"].append((b"authorization", b"Bearer " + bad.encode("latin-1")))
            harness.nursery.start_soon(harness.frontend, exchange.scope, exchange.receive, exchange.send)
            await settle()
            assert exchange.status == 401, what
            assert exchange.headers["www-authenticate"].startswith('Bearer error="invalid_token"'), what
            assert f'resource_metadata="{METADATA}"' in exchange.headers["www-authenticate"]
            assert bad not in exchange.body.decode("latin-1"), what
        assert harness.sent == 0
        assert server.asked.count("https://login.example/keys") == 1


async def test_a_shared_secret_is_not_a_signing_key(autojump_clock: MockClock) -> None:
    """Neither the public key nor one of kind `oct` may be an HMAC's secret."""
    server = Server()
    server.keys = [{"kty": "oct", "k": "c2VjcmV0", "kid": "o", "alg": "HS256"}, jwk(EC_KEY, "e")]
    async with open_server(server) as harness:
        forged = jwt.encode({"iss": ISSUER, "aud": RESOURCE, "sub": "c", "exp": NOW + 60}, "secret" * 9, "HS256")
        assert (await harness.call(key=tampered(forged, kid="o"))).status == 401
        assert (await harness.call(key=tampered(forged, kid="o", alg="ES256"))).status == 401


@pytest.mark.parametrize(
    ("configured", "given", "same"),
    [
        ("https://login.example", "https://login.example/", True),
        ("https://login.example/", "https://login.example", True),
        ("https://login.example:443", "HTTPS://Login.Example", True),
        (ISSUER, "https://LOGIN.example:443/tenant", True),
        (ISSUER, "https://login.example/tenant/", False),
        (ISSUER, "https://login.example/Tenant", False),
        (ISSUER, "https://login.example", False),
        (ISSUER, "http://login.example/tenant", False),
        (ISSUER, "https://login.example:8443/tenant", False),
        (ISSUER, "https://login.example/tenant?x", False),
        (ISSUER, "https://evil.example/tenant", False),
        (ISSUER, [ISSUER], False),
        (ISSUER, {}, False),
        (ISSUER, 5, False),
    ],
)
@pytest.mark.parametrize("where", ["token", "introspection", "metadata"])
async def test_which_issuers_are_the_same(
    where: str, configured: str, given: Any, same: bool, autojump_clock: MockClock
) -> None:
    server = Server()
    settings: dict[str, Any] = {"issuer": configured, "jwks_url": "https://login.example/keys"}
    bearer = (
        token(iss=given)
        if isinstance(given, str)
        else signed({"iss": given, "sub": "c", "aud": RESOURCE, "exp": NOW + 600})
    )
    if where == "introspection":
        settings["introspection"] = ASKED
        server.active[bearer] = {**GOOD, "iss": given}
    elif where == "metadata":
        del settings["jwks_url"]
        server.issuer = given
        bearer = token(iss=configured)
    async with open_server(server, **settings) as harness:
        exchange = await harness.call(key=bearer)
        if same:
            assert await finish(harness, exchange) == "done"
        else:
            assert exchange.status == (503 if where == "metadata" else 401)


async def test_a_missing_scope_is_named(autojump_clock: MockClock) -> None:
    async with open_server(Server(), scopes=["mcp", "y"]) as harness:
        exchange = await harness.call(key=token())
        assert exchange.status == 403
        assert exchange.headers["www-authenticate"] == (
            f'Bearer error="insufficient_scope", scope="mcp y", resource_metadata="{METADATA}"'
        )
        assert await finish(harness, await harness.call(key=token(scope=None, scp=["y", "mcp"]))) == "done"


async def test_a_missing_token_gets_the_metadata_url(autojump_clock: MockClock) -> None:
    shared = pytest.importorskip("mcp.shared.auth")
    routes = pytest.importorskip("mcp.server.auth.routes")
    async with open_server(Server(), scopes=["mcp"]) as harness:
        refused = await harness.call(key=None)
        assert refused.status == 401
        assert refused.headers["www-authenticate"] == f'Bearer scope="mcp", resource_metadata="{METADATA}"'
        found = await harness.start("GET", "/.well-known/oauth-protected-resource/mcp", host="gw.example")
        assert found.status == 200
        assert found.headers["access-control-allow-origin"] == "*"
        document = shared.ProtectedResourceMetadata.model_validate_json(found.body)
        assert str(document.resource) == RESOURCE
        assert [str(one) for one in document.authorization_servers] == [ISSUER]
        assert str(routes.build_resource_metadata_url(document.resource)) == METADATA
        assert json.loads(found.body)["scopes_supported"] == ["mcp"]
        elsewhere = await harness.start("GET", "/.well-known/oauth-protected-resource/other")
        assert elsewhere.status == 404
        bad_host = await harness.start("GET", "/.well-known/oauth-protected-resource/mcp", host="evil.example")
        assert bad_host.status == 403


@pytest.mark.parametrize("resource", ["https://gw.example", "https://gw.example/", "https://gw.example/a/b"])
def test_metadata_url_and_document_match_the_sdk(resource: str) -> None:
    routes = pytest.importorskip("mcp.server.auth.routes")
    pydantic = pytest.importorskip("pydantic")
    settings = ResourceServer(resource=resource, issuer=ISSUER)
    assert metadata_url(settings) == str(routes.build_resource_metadata_url(pydantic.AnyHttpUrl(resource)))
    assert json.loads(metadata(settings))["resource"] == resource  # verbatim


async def test_unknown_key_ids_trigger_rate_limited_fetches(autojump_clock: MockClock) -> None:
    server = Server()
    async with open_server(server) as harness:
        await finish(harness, await harness.call(key=token()))
        server.keys = [jwk(OTHER_KEY, "new")]
        await trio.sleep(jwks.REFETCH_AFTER + 1)
        for _ in range(50):
            assert (await harness.call(key=token(key_id="nobody-knows"))).status == 401
        assert await finish(harness, await harness.call(key=token(OTHER_KEY, "new"))) == "done"
        assert server.asked.count("https://login.example/keys") == 2
        await trio.sleep(tokens.BELIEVED_FOR + 1)
        assert (await harness.call(key=token())).status == 401  # its key was revoked


async def test_an_unreachable_authority_is_not_a_token_error(autojump_clock: MockClock) -> None:
    server = Server()
    server.down = True
    async with open_server(server) as harness:
        for _ in range(9):
            exchange = await harness.call(key=token())
            assert exchange.status == 503
            assert exchange.headers["retry-after"] == str(subjects.TRY_AGAIN)
        assert len(server.asked) == 1
        server.down = False
        await trio.sleep(jwks.REFETCH_AFTER)
        assert await finish(harness, await harness.call(key=token())) == "done"
        server.down = True
        await trio.sleep(jwks.FRESH)
        assert await finish(harness, await harness.call(key=token())) == "done"  # cached keys stay valid


async def test_metadata_of_another_issuer_is_rejected(autojump_clock: MockClock) -> None:
    server = Server()
    server.issuer = "https://evil.example"
    async with open_server(server) as harness:
        assert (await harness.call(key=token())).status == 503
        assert "https://login.example/keys" not in server.asked


async def test_a_token_that_expired_during_sleep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's clock does not run meanwhile."""
    async with open_server(Server()) as harness:
        short = token(exp=int(time.time()) + 20)
        await harness.initialize(short)
        monkeypatch.setattr(tokens, "elapsed_time", lambda: elapsed_time() + 3_600)
        monkeypatch.setattr("jwt.api_jwt.datetime", Later)
        assert (await harness.start("GET", "/mcp", key=short)).status == 401


class Later(datetime):
    """A clock that is an hour ahead."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(hours=1)


async def test_a_stream_ends_when_its_token_does(autojump_clock: MockClock) -> None:
    async with open_server(Server(), leeway=1) as harness:
        short = token(exp=int(time.time()) + 100)
        session = await harness.initialize(short)
        stream = await harness.start("GET", "/mcp", key=short, mcp_session_id=session)
        sse = await harness.start("GET", "/sse", key=short)
        listen = await harness.listen(key=short)
        call = await harness.call(session, key=short)
        await trio.sleep(80)
        assert not any(one.ended for one in (stream, sse, listen, call))
        await trio.sleep(40)
        assert all(one.ended for one in (stream, sse, listen))
        await harness.answer()
        assert texts_of(call)[-1] == "done"  # accepted calls continue
        again = await harness.start("GET", "/mcp", key=token(), mcp_session_id=session)
        assert again.status == 200


async def test_sessions_are_the_subjects(autojump_clock: MockClock) -> None:
    async with open_server(Server()) as harness:
        session = await harness.initialize(token())
        assert (await harness.call(session, key=token(sub="dave"))).status == 404
        assert await finish(harness, await harness.call(session, key=token(jti="another"))) == "done"


def by_jwt(server: Server, name: str, **claims: Any) -> str:
    del server
    return token(**{"sub": None, **claims}, jti=name)


def by_introspection(server: Server, name: str, **claims: Any) -> str:
    server.active[name] = {"aud": RESOURCE, **claims}
    return name


@pytest.mark.parametrize("issue", [by_jwt, by_introspection])
async def test_a_subject_never_equals_a_clients_name(issue: Any, autojump_clock: MockClock) -> None:
    server = Server()
    settings = {"introspection": ASKED} if issue is by_introspection else {}
    async with open_server(server, rate_limit={"per_second": 0.001, "burst": 2}, **settings) as harness:
        user = issue(server, "u", sub="same")
        client = issue(server, "c", client_id="same")
        both = issue(server, "b", sub="same", client_id="other")  # `sub` decides
        crafted = issue(server, "x", sub="-client:same")
        wanted = {user: "oauth:same", client: "oauth-client:same", both: "oauth:same", crafted: "oauth:-client:same"}
        sessions = {one: await harness.initialize(one) for one in (user, client, crafted)}
        assert {principal.name for principal in harness.access._all()} == set(wanted.values())
        for one, session in sessions.items():
            for other, name in wanted.items():
                exchange = await harness.start(
                    "POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "ping"}, key=other, mcp_session_id=session
                )
                assert exchange.status == (200 if wanted[one] == name else 404), (one, other)
        for _ in range(2):
            assert await finish(harness, await harness.call(key=user)) == "done"
        assert "rate_limit" in (await harness.call(key=user)).body.decode()
        assert await finish(harness, await harness.call(key=client)) == "done"


@pytest.mark.parametrize(
    "claims",
    [{}, {"client_id": 5}, {"client_id": ""}, {"sub": "", "client_id": "x"}, {"sub": 5, "client_id": "x"}],
)
@pytest.mark.parametrize("issue", [by_jwt, by_introspection])
async def test_a_token_without_a_valid_subject_is_refused(
    issue: Any, claims: dict[str, Any], autojump_clock: MockClock
) -> None:
    server = Server()
    settings = {"introspection": ASKED} if issue is by_introspection else {}
    async with open_server(server, **settings) as harness:
        assert (await harness.call(key=issue(server, "t", **claims))).status == 401


async def test_keys_and_tokens_side_by_side(autojump_clock: MockClock) -> None:
    access = {**keys(), **section(tools=["a.y"])}
    async with open_harness(access, send=Server().send) as harness:
        assert await finish(harness, await harness.call(key=ALICE)) == "done"
        denied = json.loads((await harness.call(key=token())).body)
        assert denied["error"]["message"] == "Unknown tool: a.x"
        assert await finish(harness, await harness.call(key=token(), name="a.y")) == "done"
        by_header = await harness.start("POST", "/mcp", {}, x_api_key=token())
        assert by_header.status == 401  # tokens come as tokens do


async def test_changed_settings_end_sessions_of_the_old_ones(autojump_clock: MockClock) -> None:
    async with open_server(Server()) as harness:
        exchange = await harness.call(key=token())
        harness.access.apply(make_config(section(max_concurrency=1)).access)
        assert "max_concurrency" in json.loads((await harness.call(key=token())).body)["error"]["message"]
        assert not exchange.ended
        harness.access.apply(make_config(section(leeway=5)).access)
        await settle()
        assert exchange.ended
        assert harness.access._subjects is not None
        assert harness.access._subjects.all() == []


async def test_subjects_with_open_streams_are_not_forgotten(autojump_clock: MockClock) -> None:
    known = subjects.Subjects(SETTINGS, Server().send, max_subjects=3)

    async def identify(name: str) -> Principal | Refusal:
        found = await known.identify(token(sub=name).encode())
        return found if isinstance(found, Refusal) else found[0]

    with ExitStack() as streams:
        for name in ("s0", "s1", "s2"):
            principal = await identify(name)
            assert isinstance(principal, Principal)
            streams.enter_context(principal.track_stream(math.inf))
        refused = await identify("one too many")
        assert isinstance(refused, Refusal)
        assert refused.status == 503
    assert isinstance(await identify("another"), Principal)
    assert [one.name for one in known.all()] == ["oauth:s1", "oauth:s2", "oauth:another"]


async def test_known_tokens_are_bounded(autojump_clock: MockClock) -> None:
    server = Server()
    server.active = dict.fromkeys("abc", GOOD)
    known = tokens.Tokens(INTROSPECTED, server.send, max_known=2)
    for name, asked in (("a", 1), ("b", 2), ("b", 2), ("c", 3), ("b", 3), ("a", 4)):
        await known.check(name.encode())
        assert len(server.asked) == asked


ASKED = {"url": "https://login.example/introspect", "client_id": "gw&", "client_secret": SECRET, "cache": 20}
GOOD = {"sub": "carol", "aud": RESOURCE, "scope": "mcp"}


async def test_introspection(autojump_clock: MockClock) -> None:
    server = Server()
    server.active = {"opaque": GOOD}
    async with open_server(server, introspection=ASKED, scopes=["mcp"]) as harness:
        for _ in range(3):
            assert await finish(harness, await harness.call(key="opaque")) == "done"
        assert len(server.asked) == 1
        scheme, _, pair = server.headers[0]["authorization"].partition(" ")
        assert (scheme, base64.b64decode(pair)) == ("Basic", b"gw%26:s3cr3t%26%3D%3A")
        assert (await harness.call(key="other")).status == 401
        del server.active["opaque"]  # revoked, which takes effect soon
        await trio.sleep(21)
        assert (await harness.call(key="opaque")).status == 401
        server.down = True
        assert (await harness.call(key="more")).status == 503
        assert SECRET not in repr(harness.access.settings)


@pytest.mark.parametrize("hours", [10, -10])
async def test_setting_the_clock_starts_no_storm_of_checks(
    hours: int, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server()
    server.active = {name: {**GOOD, "exp": NOW + 3600} for name in "abc"}
    async with open_server(server, introspection=ASKED) as harness:
        for name in "abc":
            assert await finish(harness, await harness.call(key=name)) == "done"
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
        for name in "abc":
            assert await finish(harness, await harness.call(key=name)) == "done"
        assert len(server.asked) == 3
        await trio.sleep(21)  # they are checked again when they would have been anyway
        for name in 2 * "abc":
            call = await harness.call(key=name)
            assert call.status == 401 if hours > 0 else await finish(harness, call) == "done"
        assert len(server.asked) == 6


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "https://other.example"},
        {"aud": None},
        {"aud": [1, {}]},
        {"iss": "https://evil.example"},
        {"exp": NOW - 100},
        {"exp": "x"},
        {"nbf": NOW + 500},
        {"sub": 5},
        {"active": "true"},
    ],
)
async def test_introspection_responses_are_validated(claims: dict[str, Any], autojump_clock: MockClock) -> None:
    server = Server()
    server.active = {"opaque": {**GOOD, **claims}}
    async with open_server(server, introspection=ASKED) as harness:
        assert (await harness.call(key="opaque")).status == 401


async def test_concurrent_introspections_are_bounded(autojump_clock: MockClock) -> None:
    server = Server()
    server.hold = trio.Event()
    async with open_server(server, introspection=ASKED) as harness:
        room = tokens.MAX_ASKED + tokens.MAX_WAITING
        waiting = [await harness.call(key=f"t{number}") for number in range(room)]
        assert len(server.asked) == tokens.MAX_ASKED
        assert (await harness.call(key="one more")).status == 503
        server.hold.set()
        await settle()
        assert {one.status for one in waiting} == {401}


async def test_junk_from_one_address_delays_no_other(autojump_clock: MockClock) -> None:
    server = Server()
    server.active = {"good": GOOD}
    async with open_server(server, introspection=ASKED) as harness:
        server.hold = trio.Event()  # the authorization server is slow
        share = tokens.ADDRESS_ASKED + tokens.ADDRESS_WAITING
        junk = [await harness.call(key=f"junk{number}", address="192.0.2.1") for number in range(3 * share)]
        assert len(server.asked) == tokens.ADDRESS_ASKED
        refused = [one for one in junk if one.ended]
        assert len(refused) == 2 * share
        assert {(one.status, one.headers["retry-after"]) for one in refused} == {(503, str(subjects.TRY_AGAIN))}
        good = await harness.call(key="good", address="192.0.2.2")
        assert len(server.asked) == tokens.ADDRESS_ASKED + 1
        server.hold.set()
        server.hold = None
        await settle()
        assert await finish(harness, good) == "done"
        assert harness.access._subjects is not None
        slots = harness.access._subjects._tokens._slots
        assert (slots._waiting, dict(slots._present), slots._by_address) == (0, {}, {})


FIRST = "192.0.2.1"
LOCAL = {"address": "127.0.0.1"}


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"address": FIRST}, {"address": FIRST}, True),
        ({"address": FIRST}, {"address": "192.0.2.2"}, False),
        ({"address": FIRST}, {"address": f"::ffff:{FIRST}"}, True),
        ({"address": "2001:db8:1:2::1"}, {"address": "2001:db8:1:2:ffff::9"}, True),
        ({"address": "2001:db8:1:2::1"}, {"address": "2001:db8:1:3::1"}, False),
        ({"address": "fe80::1%eth0"}, {"address": "fe80::2%eth0"}, True),
        ({"address": FIRST, "x_forwarded_for": "10.1.1.1"}, {"address": FIRST, "x_forwarded_for": "10.1.1.2"}, True),
        (LOCAL, LOCAL, True),
        ({**LOCAL, "x_forwarded_for": FIRST}, {"address": "::1", "x_forwarded_for": f"9.9.9.9, {FIRST}"}, True),
        ({**LOCAL, "x_forwarded_for": FIRST}, {**LOCAL, "x_forwarded_for": "192.0.2.2"}, False),
        ({"x_forwarded_for": FIRST}, {"x_forwarded_for": FIRST}, True),  # over a Unix socket
        ({}, {}, False),
    ],
)
async def test_requests_of_one_address_share_a_bound(
    first: dict[str, str], second: dict[str, str], same: bool, autojump_clock: MockClock
) -> None:
    server = Server()
    server.hold = trio.Event()
    async with open_server(server, introspection=ASKED) as harness:
        for number in range(tokens.ADDRESS_ASKED):
            await harness.call(key=f"t{number}", **first)
        await harness.call(key="one more", **second)
        assert len(server.asked) == tokens.ADDRESS_ASKED + (not same)
        server.hold.set()
        await settle()
        assert len(server.asked) == tokens.ADDRESS_ASKED + 1


@pytest.mark.parametrize(
    "claims", [None, {"aud": "https://other.example"}, {"iss": "https://evil.example"}, {"exp": NOW - 100}, {"sub": 5}]
)
async def test_refused_tokens_are_cached_briefly(claims: Any, autojump_clock: MockClock) -> None:
    server = Server()
    if claims is not None:
        server.active["t"] = {**GOOD, **claims}
    async with open_server(server, introspection=ASKED) as harness:
        bodies = {(one.status, one.body) for one in [await harness.call(key="t") for _ in range(5)]}
        assert [status for status, _ in bodies] == [401]
        assert len(server.asked) == 1
        server.active["t"] = GOOD
        await trio.sleep(tokens.REFUSED_FOR - 0.1)
        assert (await harness.call(key="t")).status == 401
        await trio.sleep(0.2)
        assert await finish(harness, await harness.call(key="t")) == "done"
        assert len(server.asked) == 2


async def test_refusals_are_cached_no_longer_than_configured(autojump_clock: MockClock) -> None:
    server = Server()
    async with open_server(server, introspection={**ASKED, "cache": 1}) as harness:
        assert (await harness.call(key="t")).status == 401
        server.active["t"] = GOOD
        await trio.sleep(1)
        assert await finish(harness, await harness.call(key="t")) == "done"


async def test_refused_tokens_are_bounded(autojump_clock: MockClock) -> None:
    server = Server()
    known = tokens.Tokens(INTROSPECTED, server.send, max_refused=2)
    for name, asked in (("a", 1), ("b", 2), ("b", 2), ("c", 3), ("b", 3), ("a", 4)):
        with pytest.raises(tokens.Invalid):
            await known.check(name.encode())
        assert len(server.asked) == asked


async def test_an_authority_outage_does_not_invalidate_tokens(autojump_clock: MockClock) -> None:
    server = Server()
    async with open_server(server, introspection=ASKED) as harness:
        server.down = True
        assert (await harness.call(key="new")).status == 503
        server.down = False
        server.active["new"] = GOOD
        assert await finish(harness, await harness.call(key="new")) == "done"


@pytest.mark.parametrize("fate", ["good", "bad", "down", "left"])
async def test_requests_with_the_same_token_share_one_introspection(fate: str, autojump_clock: MockClock) -> None:
    server = Server()
    server.hold = trio.Event()
    server.down = fate == "down"
    server.active = {} if fate == "bad" else {"t": GOOD}
    async with open_server(server, introspection=ASKED) as harness:
        async with trio.open_nursery() as nursery:
            everything = harness.nursery
            harness.nursery = nursery
            first = await harness.call(key="t", address=FIRST)
            harness.nursery = everything
            others = [await harness.call(key="t", address=FIRST) for _ in range(30)]
            assert len(server.asked) == 1
            if fate == "left":  # another request asks in its place
                nursery.cancel_scope.cancel()
            else:
                server.hold.set()
                await settle()
                for _ in range(31 if fate == "good" else 0):
                    await harness.answer()
        if fate == "left":
            await settle()
            server.hold.set()
            await settle()
            for _ in range(30):
                await harness.answer()
        assert len(server.asked) == (2 if fate == "left" else 1)
        found = {one.status for one in ([] if fate == "left" else [first]) + others}
        assert found == {{"good": 200, "left": 200, "bad": 401, "down": 503}[fate]}


async def test_the_server_is_asked_over_http_within_bounds() -> None:
    answers = {
        b"/good": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"/elsewhere": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"/large": b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n",
        b"/garbage": b"garbage\r\n\r\n",
    }

    async def serve(stream: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.receive_some()
        await stream.send_all(answers[head.split()[1]])
        await stream.aclose()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
            assert await fetch("GET", url + "/good") == (200, b"{}")
            assert (await fetch("GET", url + "/elsewhere"))[0] == 302  # not followed
            for wrong in (url + "/large", url + "/garbage", "http://127.0.0.1:1/x"):
                with pytest.raises(AuthorityDown):
                    await fetch("GET", wrong)
            nursery.cancel_scope.cancel()
