"""OAuth to backends: discovery from the 401, one shared login, every prompt, and failures."""

# ruff: file-ignore[line-too-long]  (one row of a table, one line)

from __future__ import annotations

import html
import json
import logging
import stat
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httpx2
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from trio.testing import wait_all_tasks_blocked

from gateway import jsonrpc
from gateway.backends.http.detect import HttpOpener
from gateway.backends.opener import SessionOpener
from gateway.calls import Caller, Complete, Era, ServerRequest, Withdrawn
from gateway.config import parse_server
from gateway.errors import BackendError, BackendUnavailable
from gateway.http_client.errors import HttpRefused
from gateway.inflight.pending import PendingCall
from gateway.oauth_client.answers import Challenge
from gateway.oauth_client.login_prompt import LoginRequired
from gateway.oauth_client.token_manager import REFUSED
from gateway.oauth_client.token_store import Saved, TokenFiles
from gateway.store import Store
from tests.peers import oauth_peer
from tests.peers.oauth_peer import page
from tests.support.gateway_process import bare_nursery
from tests.support.logins import HOP, Deaf, Harness, call, open_harness, outcome, pending_for

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.calls import Outcome
    from gateway.config import ServerConfig

pytestmark = pytest.mark.leak_check


async def test_a_401_starts_a_login_that_is_kept(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        (query,) = [httpx2.URL(page).params for page in harness.pages]
        assert (query["code_challenge_method"], query["resource"], query["scope"]) == ("S256", harness.peer.url, "read")
        assert harness.peer.calls[0] == ("initialize", None)
        assert {token for _, token in harness.peer.calls[1:]} == set(harness.peer.tokens)
        (path,) = (harness.state / "tokens").glob("*.json")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        kept = json.loads(path.read_bytes())["login"]
        assert kept["issuer"].rstrip("/") == harness.peer.issuer
        assert kept["access_token"] in harness.peer.tokens

        harness.restart()  # and the next gateway needs no login
        await harness.nursery.start(harness.logins.run)
        harness.peer.calls.clear()
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        assert len(harness.pages) == 1
        assert None not in {token for _, token in harness.peer.calls}


async def test_a_bom_before_login_documents_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = oauth_peer.page

    def page(status: int, value: Any = None, **headers: str) -> oauth_peer.Reply:
        status, named, body = plain(status, value, **headers)
        return status, named, b"\xef\xbb\xbf" + body if body else body

    monkeypatch.setattr(oauth_peer, "page", page)
    async with open_harness(tmp_path) as harness, harness.open() as session:
        assert isinstance(await call(session), Complete)


async def test_the_era_probe_may_be_the_refused_request(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open(era="auto") as session:
        assert isinstance(await call(session), Complete)
        assert harness.peer.calls[0] == ("server/discover", None)
        assert len(harness.pages) == 1


@pytest.mark.parametrize("name", ["Authorization", "AUTHORIZATION", "authorization"])
async def test_a_given_header_is_unchanged_and_starts_nothing(tmp_path: Path, name: str) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.tokens["given"] = {"read"}
        nothing: Any = None
        listener: Any = Deaf()
        open_session = SessionOpener(nothing, name="g", store=Store(harness.state))
        async with open_session(harness.config(headers={name: "Bearer given"}), listener) as session:
            assert isinstance(await call(session), Complete)
        for refused in ({"headers": {name: "Bearer wrong"}}, {"oauth": False}):
            with pytest.RaisesGroup(HttpRefused, flatten_subgroups=True):
                async with open_session(harness.config(**refused), listener):
                    raise AssertionError
        assert {token for _, token in harness.peer.calls} == {"given", "wrong", None}
        assert harness.peer.log == []
        assert not (harness.state / "tokens").exists()


async def test_an_unanswerable_lost_login_ends_the_session(tmp_path: Path) -> None:
    """The supervisor then opens another one, which waits for the login."""

    async def lose(harness: Harness) -> None:
        async with harness.open(oauth={"browser": "print"}) as session:
            harness.peer.is_open = False
            problem = await call(session)
            assert isinstance(problem, LoginRequired)
            await trio.sleep_forever()

    async with open_harness(tmp_path) as harness:
        harness.peer.is_open = True
        with pytest.raises(BackendError, match="needs a login"):
            await lose(harness)


async def test_concurrent_calls_share_one_login(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open() as session:
        harness.peer.revoke()
        harness.peer.refresh_tokens.clear()
        harness.peer.gate, harness.peer.at_gate = trio.Event(), trio.Event()
        before = harness.peer.asked("/token")
        pending_calls = [pending_for("echo") for _ in range(3)]
        session.send(pending_calls)
        await harness.peer.at_gate.wait()
        harness.peer.gate.set()
        asks: list[ServerRequest] = []

        async def be_client(pending: PendingCall) -> None:
            while not isinstance(item := await pending.next(), Complete):
                if isinstance(item, ServerRequest):
                    asks.append(item)
                    await harness.peer.browse(jsonrpc.decode_string(item.params["url"]))

        async with bare_nursery() as nursery:
            for pending in pending_calls:
                nursery.start_soon(be_client, pending)
        assert len(asks) == 1
        # The first of them was the refresh, which the server did not take; then one login for all three.
        assert harness.peer.asked("/token") == before + 2
        assert len(harness.peer.granted) == 2


async def test_an_expired_token_is_refreshed_without_a_person(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open() as session:
        harness.peer.revoke()
        results: list[Outcome] = []

        async def run() -> None:
            results.append(await call(session))

        async with bare_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(run)
        assert [type(one) for one in results] == [Complete] * 3
        assert (len(harness.pages), harness.peer.asked("/authorize"), harness.peer.asked("/token")) == (1, 1, 2)
        assert len(harness.peer.refresh_tokens) == 1  # the new one is kept
        saved = harness.files().load()
        assert saved is not None
        assert saved.refresh_token in harness.peer.refresh_tokens


async def test_a_refresh_after_restart_uses_its_issuer(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        async with harness.open():
            pass
        harness.restart()
        await harness.nursery.start(harness.logins.run)
        harness.peer.revoke()
        harness.peer.log.clear()
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        assert harness.peer.log == [("POST", "/token")]
        assert not any(what == "POST" for what, _ in harness.peer.calls)


async def test_twenty_tokens_expire_in_one_night(tmp_path: Path) -> None:
    """The one that cannot be refreshed disturbs no other."""
    async with open_harness(tmp_path) as harness:
        async with harness.open():
            pass
        saved = harness.files().load()
        assert saved is not None
        client = harness.peer.refresh_tokens[saved.refresh_token or ""]
        harness.has_display = False
        harness.peer.revoke()
        results: dict[str, Outcome] = {}
        all_but_one = trio.Event()

        async def use(config: ServerConfig) -> None:
            opener = partial(HttpOpener().open, config, cast("Any", Deaf()), hop=HOP)
            async with harness.logins.open(config, opener) as session:
                results[config.name] = await call(session)
                if len(results) == 19:
                    all_but_one.set()
                await trio.sleep_forever()

        async with bare_nursery() as nursery:
            for number in range(20):
                config = parse_server(f"s{number}", {"url": harness.peer.url, "era": "legacy"}, environ={})
                mine = msgspec.structs.replace(saved, access_token=f"t{number}", refresh_token=f"r{number}")
                TokenFiles(Store(harness.state), config).save(mine)
                if number != 7:
                    harness.peer.refresh_tokens[f"r{number}"] = client
                nursery.start_soon(use, config)
            await all_but_one.wait()
            await harness.was_required.wait()
            nursery.cancel_scope.cancel()
        assert {type(one) for one in results.values()} == {Complete}
        assert "s7" not in results
        (required,) = harness.required
        assert required.startswith("needs a login: run `mcp-gateway login s7`")


async def test_another_processs_token_is_tried_first(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open() as session:
        old = harness.files().load()
        assert old is not None
        harness.peer.revoke()
        harness.peer.tokens["theirs"] = {"read"}
        harness.files().save(msgspec.structs.replace(old, access_token="theirs", refresh_token="r2"))
        harness.peer.log.clear()
        assert isinstance(await call(session), Complete)
        assert harness.peer.log == []


async def test_a_missing_scope_is_requested_beside_the_others(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open() as session:
        # The page of this login is sent to the client whose call needs it: opening another is useless.
        pending = pending_for("admin")
        session.send([pending])
        ask = await pending.next()
        assert isinstance(ask, ServerRequest)
        url = jsonrpc.decode_string(ask.params["url"])
        assert set(httpx2.URL(url).params["scope"].split()) == {"read", "admin"}
        ask.answer(b'{"action":"accept"}')
        await harness.peer.browse(url)
        assert isinstance(await outcome(pending), Complete)
        assert isinstance(await call(session), Complete)


async def test_a_scope_never_granted_is_requested_once(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open(oauth={"browser": "open"}) as session:
        harness.peer.scope_wanted = {"tools/call admin": "no such scope"}
        harness.logins.authorizer(harness.config(oauth={"browser": "open"})).prompt._opened_at = None
        problem = await call(session, "admin")
        assert isinstance(problem, BackendError)
        assert "HTTP 403" in problem.reason
        assert len(harness.pages) == 2


async def test_a_call_that_waits_has_its_client_asked(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.has_display = False
        ended, able, unable = (
            pending_for("a"),
            pending_for("b"),
            pending_for("c", Caller(era=Era.LEGACY, version="2025-11-25")),
        )
        ended.close()
        harness.waiting = [ended, unable, able]

        async def be_client() -> None:
            ask = await able.next()
            assert isinstance(ask, ServerRequest)
            assert (ask.method, bytes(ask.params["mode"])) == ("elicitation/create", b'"url"')
            ask.answer(b'{"action":"accept"}')
            await harness.peer.browse(jsonrpc.decode_string(ask.params["url"]))

        harness.nursery.start_soon(be_client)
        async with harness.open(oauth={"browser": "elicit"}) as session:
            session.send([able])
            assert isinstance(await outcome(able), Complete)
        assert not unable.over
        assert harness.required == []


async def test_declining_ends_the_login_until_a_later_call(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.has_display = False
        first, second = pending_for("a"), pending_for("b")
        harness.waiting = [first]

        async def be_client() -> None:
            ask = await first.next()
            assert isinstance(ask, ServerRequest)
            ask.answer(b'{"action":"decline"}')
            problem = await outcome(first)
            assert isinstance(problem, LoginRequired)
            assert "mcp-gateway login s" in problem.reason
            assert "declined" in problem.reason
            harness.waiting = [second]
            ask = await second.next()
            assert isinstance(ask, ServerRequest)
            await harness.peer.browse(jsonrpc.decode_string(ask.params["url"]))  # logs in first, answers never
            assert isinstance(await second.next(), Withdrawn)

        harness.nursery.start_soon(be_client)
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        assert harness.required[0].startswith("needs a login: run `mcp-gateway login s`")


async def test_the_next_call_asks_after_the_first_ends(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        first, second = pending_for("a"), pending_for("b")
        harness.waiting = [first, second]

        async def be_clients() -> None:
            assert isinstance(await first.next(), ServerRequest)
            first.close()
            ask = await second.next()
            assert isinstance(ask, ServerRequest)
            await harness.peer.browse(jsonrpc.decode_string(ask.params["url"]))

        harness.nursery.start_soon(be_clients)
        async with harness.open():
            pass
        assert harness.pages == []


async def test_without_a_client_the_login_command_is_named(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        waiting = pending_for("a")
        harness.waiting = [waiting]

        async def log_in_elsewhere() -> None:
            problem = await outcome(waiting)
            assert isinstance(problem, LoginRequired)
            assert str(problem) == "backend 's' needs a login: run `mcp-gateway login s`"
            harness.peer.tokens["theirs"] = {"read"}
            harness.files().save(Saved(issuer=harness.peer.issuer, access_token="theirs"))

        harness.nursery.start_soon(log_in_elsewhere)
        async with harness.open(oauth={"browser": "print"}) as session:
            assert isinstance(await call(session), Complete)
        assert harness.pages == []
        assert harness.peer.asked("/authorize") == 0


async def test_a_browser_is_opened_unprompted_only_once(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.deny = True
        waiting = pending_for("a", Caller(era=Era.LEGACY, version="2025-11-25"))

        async def look() -> None:
            await harness.was_required.wait()
            harness.waiting = [waiting]  # too soon after the last page
            problem = await outcome(waiting)
            assert isinstance(problem, LoginRequired)
            assert "access_denied: not you" in problem.reason
            harness.peer.tokens["theirs"] = {"read"}
            harness.files().save(Saved(issuer=harness.peer.issuer, access_token="theirs"))

        harness.nursery.start_soon(look)
        async with harness.open():
            pass
        assert len(harness.pages) == 1


async def test_an_unfinished_login_times_out(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.obedient = False
        harness.nursery.start_soon(partial(_forget, harness))
        async with harness.open(oauth={"login_timeout": 0.3}):
            pass
        assert "it was not completed within 0.3 s" in harness.required[0]


async def _forget(harness: Harness) -> None:
    await harness.was_required.wait()
    harness.peer.is_open = True
    harness.files(oauth={"login_timeout": 0.3}).save(Saved(access_token="any"))


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ({"has_metadata": False}, "requires authorization and offers no OAuth (Registration failed: 404)"),
        ({"metadata": {"code_challenge_methods_supported": None}}, "does not say that it supports PKCE with S256"),
        ({"metadata": {"issuer": "https://evil.example"}}, "if that issuer is right, set oauth.issuer to it"),
        ({"metadata": {"token_endpoint": "http://mcp.example/token"}}, "needs a login at http://mcp.example, which is not https"),
        ({"metadata": {"authorization_endpoint": "http://a.example/x"}}, "needs a login at http://a.example, which is not https"),
        ({"metadata": {"registration_endpoint": "https://u:p@a.example/x"}}, "which contains a user name or password"),
        ({"redirect_metadata_to": "http://10.0.0.1/steal"}, "requires authorization and offers no OAuth"),
        ({"iss": "https://evil.example"}, "the login page answered for the issuer https://evil.example, and the login was begun with"),
    ],
)  # fmt: skip
async def test_an_impossible_login_is_reported(tmp_path: Path, fault: dict[str, Any], text: str) -> None:
    async with open_harness(tmp_path) as harness:
        for name, value in fault.items():
            setattr(harness.peer, name, value)
        with pytest.raises(BackendUnavailable) as caught:
            async with harness.open():
                pass
        assert text in caught.value.reason
        assert not isinstance(caught.value, LoginRequired)
        assert harness.peer.granted == []


@pytest.mark.parametrize(
    ("fault", "title", "text"),
    [
        ({}, "Logged in", "was successful"),
        ({"deny": True}, "Login refused", "access_denied: not you"),
        ({"iss": "https://evil.example"}, "Login failed", "answered for the issuer https://evil.example"),
        ({"token_answer": page(400, {"error": "invalid_grant"})}, "Login failed", "invalid_grant"),
        ({"token_answer": page(500)}, "Login failed", "HTTP 500"),
        ({"token_answer": page(200, {"access_token": None})}, "Login failed", "access_token"),
    ],
)
async def test_the_browser_shows_the_logins_result(
    tmp_path: Path, fault: dict[str, Any], title: str, text: str
) -> None:
    async with open_harness(tmp_path) as harness:
        for name, value in fault.items():
            setattr(harness.peer, name, value)
        problem: BackendError | None = None
        authorizer = harness.logins.authorizer(harness.config())
        try:
            await authorizer.log_in(Challenge(401, ""), None, ())
        except BackendError as exc:
            problem = exc
        await wait_all_tasks_blocked(0.01)
        (shown,) = harness.seen
        assert f"<h1>{title}</h1>" in shown
        assert text in shown
        assert (problem is None) is (title == "Logged in")
        assert problem is None or text in problem.reason


TOKEN = {"access_token": "t0ken", "token_type": "Bearer"}


@pytest.mark.parametrize(
    "answer",
    [
        {**TOKEN, "expires_in": 3599.5},
        {**TOKEN, "expires_in": "3600"},
        {**TOKEN, "expires_in": -1},
        {**TOKEN, "expires_in": None},
        {**TOKEN, "expires_in": 10**30},
        {**TOKEN, "scope": ["read", "x"]},
        {**TOKEN, "scope": None},
        {**TOKEN, "refresh_token": None},
        {**TOKEN, "token_type": "bearer", "extra": {}},
        {"access_token": "t0ken", "token_type": None},
        {"access_token": "t0ken"},
    ],
    ids=str,
)
async def test_odd_token_answers_that_are_harmless(tmp_path: Path, answer: dict[str, Any]) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.tokens["t0ken"] = {"read"}
        harness.peer.token_answer = page(200, answer)
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        harness.restart()  # and it is kept
        await harness.nursery.start(harness.logins.run)
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        assert len(harness.pages) == 1


async def test_odd_answers_to_a_refresh(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness, harness.open() as session:
        for number, answer in enumerate([
            {"expires_in": 0.5},
            {"scope": ["read"], "refresh_token": None},
            {"token_type": ""},
        ]):
            name = f"t{number}"
            harness.peer.revoke()
            harness.peer.tokens[name] = {"read"}
            harness.peer.token_answer = page(200, {**TOKEN, "access_token": name, **answer})
            assert isinstance(await call(session), Complete)
        assert len(harness.pages) == 1
        harness.peer.revoke()
        harness.peer.token_answer = page(200, {"access_token": None})  # as good as refused: then a person is asked
        pending = pending_for("echo")
        session.send([pending])
        ask = await pending.next()
        assert isinstance(ask, ServerRequest)
        harness.peer.token_answer = None
        await harness.peer.browse(jsonrpc.decode_string(ask.params["url"]))
        assert isinstance(await outcome(pending), Complete)


class Everything:
    """The redirect URIs of a client that was registered in the test's name."""

    def __contains__(self, _: object) -> bool:
        return True


@pytest.mark.parametrize(
    "odd",
    [
        {"client_secret": None},
        {"client_secret": None, "token_endpoint_auth_method": "client_secret_basic"},
        {"client_secret": "", "client_secret_expires_at": None},
        {"redirect_uris": None},
        {"redirect_uris": []},
        {"redirect_uris": ["no address"]},
        {"client_id_issued_at": 1700000000.5},
        {"client_id_issued_at": "now", "client_secret_expires_at": 0.0},
        {"grant_types": None, "response_types": "code", "contacts": {}, "scope": ["read"], "client_uri": ""},
    ],
    ids=str,
)
async def test_odd_registrations_that_are_harmless(tmp_path: Path, odd: dict[str, Any]) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.clients["odd"] = {"redirect_uris": Everything()}
        harness.peer.registration_answer = page(201, {"client_id": "odd", **odd})
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        harness.peer.revoke()
        harness.peer.refresh_tokens.clear()
        harness.restart()
        await harness.nursery.start(harness.logins.run)
        async with harness.open():
            pass
        assert (len(harness.pages), harness.peer.asked("/register")) == (2, 1)  # the client is used again


HTML = (500, {"content-type": "text/html"}, b"<html>oops</html>")


@pytest.mark.parametrize(
    ("fault", "texts"),
    [
        ({"token_answer": page(400, {"error": "invalid_grant", "error_description": "too\nold"})}, ["/token answered HTTP 400: invalid_grant: too old"]),
        ({"token_answer": page(403)}, ["/token answered HTTP 403"]),
        ({"token_answer": HTML}, ["/token answered HTTP 500 and an HTML page"]),
        ({"token_answer": (403, *HTML[1:])}, ["/token answered HTTP 403 and an HTML page"]),
        ({"token_answer": (200, *HTML[1:])}, ["/token answered with an HTML page"]),
        ({"token_answer": page(200, {"error": "bad_code"})}, ["/token answered with the error bad_code"]),
        ({"token_answer": page(200, {})}, ["/token answered without 'access_token'"]),
        ({"token_answer": page(200, {"access_token": 5})}, ["/token", "an unusable 'access_token' (a number)"]),
        ({"token_answer": page(200, {**TOKEN, "token_type": "DPoP"})}, ["/token", "an unusable 'token_type' ('DPoP')"]),
        ({"token_answer": page(302, None, location="https://evil.example/token")}, ["302"]),
        ({"registration_answer": page(400, {"error": "invalid_redirect_uri", "error_description": "no"})}, ["/register", "invalid_redirect_uri: no"]),
        ({"registration_answer": page(201, {"client_name": "x"})}, ["/register answered without 'client_id'"]),
        ({"registration_answer": page(201, {"client_id": None})}, ["/register", "an unusable 'client_id' (null)"]),
        ({"registration_answer": (201, *HTML[1:])}, ["/register answered with an HTML page"]),
        ({"registration_answer": HTML}, ["HTTP 500 and an HTML page"]),
        ({"registration_answer": page(201, {"client_id": "c", "token_endpoint_auth_method": "private_key_jwt"})}, ["token_endpoint_auth_method", "private_key_jwt"]),
        ({"registration_answer": page(403)}, ["Registration failed: 403", "/register"]),
        ({"metadata": {"token_endpoint": None}}, ["the metadata at", "answered without 'token_endpoint'"]),
        ({"metadata": {"authorization_endpoint": "/authorize"}}, ["an unusable 'authorization_endpoint' ('/authorize')"]),
        ({"metadata_answer": (200, *HTML[1:])}, ["/.well-known/oauth-authorization-server answered with an HTML page"]),
    ],
)  # fmt: skip
async def test_answers_that_are_unusable_are_named(tmp_path: Path, fault: dict[str, Any], texts: list[str]) -> None:
    async with open_harness(tmp_path) as harness:
        for name, value in fault.items():
            setattr(harness.peer, name, value)
        with pytest.raises(BackendUnavailable) as caught:
            await harness.logins.authorizer(harness.config()).log_in(Challenge(401, ""), None, ())
        await wait_all_tasks_blocked(0.01)
        for text in texts:
            assert text in caught.value.reason
            assert all(text in html.unescape(shown) for shown in harness.seen)
        for word in ("pydantic", "validation error", "For further information"):
            assert word not in caught.value.reason
        assert len(harness.seen) == len(harness.pages) == ("token_answer" in fault)


@pytest.mark.parametrize(
    "challenge",
    [
        "",
        "Bearer",
        'Bearer resource_metadata="/.well-known/oauth-protected-resource/mcp"',
        'Bearer resource_metadata="../.well-known/oauth-protected-resource"',
        'Bearer resource_metadata=".well-known/nothing"',
        'Bearer resource_metadata="//"',
        'Bearer resource_metadata="://"',
        'Bearer resource_metadata="http://[::1"',
        'Bearer resource_metadata="{mcp}/.well-known/oauth-protected-resource/mcp',
        "resource_metadata={mcp}/.well-known/oauth-protected-resource/mcp",
        'Bearer resource_metadata="http://mcp.example/behind-a-proxy"',
        'Bearer resource_metadata="ftp://mcp.example/x"',
        'Bearer resource_metadata="javascript:x"',
        'Bearer resource_metadata="{mcp}/nowhere"',
        'Bearer realm="a, b" resource_metadata = "{mcp}/.well-known/oauth-protected-resource/mcp" scope="read',
        'Basic realm="x", Bearer scope="read\\"',
        'Negotiate, Bearer ,,= "" error',
    ],
)
async def test_every_challenge_leads_to_a_login(tmp_path: Path, challenge: str) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.challenge = challenge
        async with harness.open() as session:
            assert isinstance(await call(session), Complete)
        assert len(harness.pages) == 1


async def test_an_error_that_repeats_secrets_shows_none(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:

        def repeat(form: dict[str, str], headers: dict[str, str]) -> Any:
            del headers
            text = f"{form['code']} of {form['client_id']} is wrong"
            return page(400, {"error": "invalid_grant", "error_description": text})

        harness.peer._token = repeat  # type: ignore[method-assign] - a peer with a fault
        with pytest.raises(BackendUnavailable, match=r"invalid_grant: \*\*\* of client-0 is wrong"):
            await harness.logins.authorizer(harness.config()).log_in(Challenge(401, ""), None, ())
        await wait_all_tasks_blocked(0.01)
        assert "*** of client-0 is wrong" in harness.seen[0]
        assert not any(code in harness.seen[0] for code in harness.peer.codes)


async def test_a_login_page_keeps_its_own_query(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.metadata["authorization_endpoint"] = f"{harness.peer.issuer}/authorize?tenant=7"
        async with harness.open():
            pass
        assert httpx2.URL(harness.pages[0]).params["tenant"] == "7"


async def test_the_configured_issuer_is_the_only_one(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        with pytest.raises(BackendUnavailable, match=r"names the authorization server .*, and oauth\.issuer is"):
            async with harness.open(oauth={"issuer": "https://auth.example"}):
                pass
        async with harness.open(oauth={"issuer": harness.peer.issuer}) as session:
            assert isinstance(await call(session), Complete)


ROOT = "http://localhost:{port}"


@pytest.mark.parametrize(
    ("named", "issuer", "iss", "configured", "problem"),
    [
        (ROOT, ROOT, ROOT, None, None),
        (ROOT + "/", ROOT, ROOT, None, None),
        (ROOT, ROOT + "/", ROOT + "/", None, None),
        ("HTTP://LOCALHOST:{port}", ROOT, ROOT, None, None),
        (ROOT, "HTTP://LOCALHOST:{port}/", "HTTP://LOCALHOST:{port}/", None, None),
        (ROOT + "/t", ROOT + "/t", ROOT + "/t", None, None),
        # The config names it, in whatever spelling.
        (ROOT + "/", ROOT, ROOT, ROOT, None),
        (ROOT + "/", ROOT, ROOT, ROOT + "/", None),
        (ROOT, ROOT + "/", ROOT, "HTTP://LOCALHOST:{port}", None),
        (ROOT, ROOT, ROOT + "/", "http://LocalHost:{port}/", None),
        # Another issuer.
        (ROOT, ROOT + "/t", ROOT + "/t", None, "set oauth.issuer to it"),
        (ROOT + "/t", ROOT, ROOT, None, "set oauth.issuer to it"),
        (ROOT + "/t", ROOT + "/t/", ROOT, None, "set oauth.issuer to it"),
        (ROOT + "/t", ROOT + "/T", ROOT, None, "set oauth.issuer to it"),
        (ROOT, "https://evil.example", ROOT, None, "set oauth.issuer to it"),
        (ROOT, ROOT, ROOT + "/t", None, "the login page answered for the issuer"),
        (ROOT, ROOT, "https://evil.example", None, "the login page answered for the issuer"),
        (ROOT, ROOT, ROOT + "//", None, "the login page answered for the issuer"),
        # What the login page says is compared letter by letter with the metadata (RFC 9207, 2.4).
        (ROOT, ROOT, ROOT + "/", None, "set oauth.issuer to what the login page answered"),
        (ROOT, ROOT + "/", ROOT, None, "the login page answered for the issuer"),
        (ROOT + "/", ROOT, ROOT + "/", None, "the login page answered for the issuer"),
        (ROOT, ROOT, "http://LocalHost:{port}", None, "the login page answered for the issuer"),
        # Another issuer, which the config accepts.
        (ROOT, ROOT + "/t", ROOT + "/t", ROOT + "/t", None),
        (ROOT + "/t", ROOT, ROOT + "/", ROOT + "/", None),
        (ROOT, "https://auth.example/", "https://auth.example", "https://AUTH.example:443", None),
        (ROOT, "https://auth.example", ROOT, "https://auth.example", "the login page answered for the issuer"),
        # Another one than the config accepts.
        (ROOT, ROOT, ROOT, ROOT + "/t", "which alone is accepted"),
        (ROOT, ROOT + "/t", ROOT, ROOT, "which alone is accepted"),
        (ROOT, "https://evil.example", ROOT, "https://auth.example", "which alone is accepted"),
    ],
)
async def test_which_issuers_are_the_same(
    tmp_path: Path, named: str, issuer: str, iss: str, configured: str | None, problem: str | None
) -> None:
    async with open_harness(tmp_path) as harness:
        port = str(httpx2.URL(harness.peer.issuer).port)

        def spelled(text: str) -> str:
            return text.replace("{port}", port)

        harness.peer.named, harness.peer.iss = spelled(named), spelled(iss)
        harness.peer.metadata["issuer"] = spelled(issuer)
        oauth = {} if configured is None else {"oauth": {"issuer": spelled(configured)}}
        if problem is None:
            async with harness.open(**oauth) as session:
                assert isinstance(await call(session), Complete)
            harness.peer.revoke()  # and what is stored belongs to it
            harness.restart()
            await harness.nursery.start(harness.logins.run)
            async with harness.open(**oauth) as session:
                assert isinstance(await call(session), Complete)
            assert (len(harness.pages), len(harness.peer.clients)) == (1, 1)
            assert len(list((harness.state / "tokens").glob("*.json"))) == 1
            return
        with pytest.raises(BackendUnavailable) as caught:
            async with harness.open(**oauth):
                pass
        assert problem in caught.value.reason
        assert "oauth.issuer" in caught.value.reason
        for one in (named, issuer) if not harness.pages else (issuer, iss):
            assert spelled(one) in caught.value.reason
        assert harness.peer.granted == []


async def test_a_login_survives_another_spelling_of_its_issuer(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        async with harness.open():
            pass
        for named, issuer in (("/", ""), ("", "/"), ("/", "/")):
            harness.peer.named = harness.peer.issuer + named
            harness.peer.metadata["issuer"] = harness.peer.issuer + issuer
            harness.peer.revoke()
            harness.peer.refresh_tokens.clear()
            harness.restart()
            await harness.nursery.start(harness.logins.run)
            async with harness.open():
                pass
            assert len(list((harness.state / "tokens").glob("*.json"))) == 1
        assert len(harness.peer.clients) == 1  # the client registered at first is used again


@pytest.mark.parametrize("grant", ["authorization_code", "client_credentials"])
async def test_an_impostor_issuer_gets_no_secret(tmp_path: Path, grant: str) -> None:
    async with open_harness(tmp_path) as harness:
        oauth = {"grant": grant, "client_id": "robot", "client_secret": "s3cr3t", "issuer": "https://auth.example"}
        harness.peer.metadata["issuer"] = "https://auth.example"
        with pytest.raises(BackendUnavailable, match=r"oauth\.client_secret is not used there"):
            async with harness.open(oauth=oauth):
                pass
        harness.peer.has_metadata = False  # then the SDK would guess addresses
        with pytest.raises(BackendUnavailable, match=r"and oauth\.issuer is https://auth\.example"):
            async with harness.open(oauth=oauth):
                pass
        assert harness.peer.asked("/token") == 0
        assert harness.pages == []


async def test_an_immediately_refused_token_ends_the_login(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        grant = harness.peer._grant

        def forget(*args: Any, **kwargs: Any) -> Any:
            answer = grant(*args, **kwargs)
            harness.peer.tokens.clear()
            return answer

        harness.peer._grant = forget  # type: ignore[method-assign] - a peer with a fault
        with pytest.raises(BackendUnavailable, match=REFUSED):
            async with harness.open():
                pass
        assert len(harness.pages) == 1


async def test_client_credentials_need_no_user(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        oauth = {"grant": "client_credentials", "client_id": "robot", "client_secret": "s3cr3t", "scopes": "read"}
        async with harness.open(oauth={**oauth, "issuer": harness.peer.issuer}) as session:
            assert isinstance(await call(session, "admin"), Complete)  # steps up
            harness.peer.revoke()
            assert isinstance(await call(session), Complete)
        assert harness.pages == []
        assert [set(scope.split()) for scope in harness.peer.granted][:2] == [{"read"}, {"read", "admin"}]


PEM = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
KEYS: dict[str, Any] = {
    "RS256": lambda: rsa.generate_private_key(65537, 2048),
    "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "ES384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ES512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_key_signs_in_place_of_a_secret(tmp_path: Path, algorithm: str) -> None:
    key = KEYS[algorithm]()
    async with open_harness(tmp_path) as harness:
        harness.peer.client_key = key.public_key()
        oauth = {"grant": "client_credentials", "client_id": "robot", "private_key": key.private_bytes(*PEM).decode()}
        async with harness.open(oauth={**oauth, "scopes": "read", "issuer": harness.peer.issuer}) as session:
            assert isinstance(await call(session), Complete)
            harness.peer.revoke()
            assert isinstance(await call(session), Complete)
        assert harness.pages == []
        assert [header["alg"] for header in harness.peer.assertions] == [algorithm] * 2


@pytest.mark.parametrize("kind", ["none", "encrypted"])
async def test_an_unusable_key_is_reported_and_not_shown(tmp_path: Path, kind: str) -> None:
    *form, _ = PEM
    encrypted = KEYS["EdDSA"]().private_bytes(*form, serialization.BestAvailableEncryption(b"x")).decode()
    key = encrypted if kind == "encrypted" else "s3cr3t"
    async with open_harness(tmp_path) as harness:
        oauth = {"grant": "client_credentials", "client_id": "robot", "private_key": key}
        with pytest.raises(
            BackendUnavailable, match=r"oauth\.private_key that is not an unencrypted PEM key"
        ) as caught:
            async with harness.open(oauth={**oauth, "issuer": harness.peer.issuer}):
                pass
        assert key not in caught.value.reason
        assert harness.peer.asked("/token") == 0


async def test_an_impostor_issuer_gets_no_assertion(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        harness.peer.metadata["issuer"] = "https://auth.example"
        key = KEYS["EdDSA"]().private_bytes(*PEM).decode()
        oauth = {"grant": "client_credentials", "client_id": "robot", "private_key": key}
        with pytest.raises(BackendUnavailable, match=r"oauth\.private_key is not used there"):
            async with harness.open(oauth={**oauth, "issuer": "https://auth.example"}):
                pass
        assert harness.peer.asked("/token") == 0


async def test_a_wrong_secret_is_reported_and_not_shown(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        oauth = {
            "grant": "client_credentials",
            "client_id": "robot",
            "client_secret": "wr0ng",
            "issuer": harness.peer.issuer,
        }
        with pytest.raises(BackendUnavailable, match=r"which failed: Token exchange failed \(401\)") as caught:
            async with harness.open(oauth=oauth):
                pass
        assert "wr0ng" not in caught.value.reason


async def test_a_given_client_is_used_and_none_registered(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        port = await _free_port()
        redirect = f"http://127.0.0.1:{port}/callback"
        harness.peer.clients["mine"] = {"redirect_uris": [redirect]}
        async with harness.open(oauth={"client_id": "mine", "redirect_port": port}) as session:
            assert isinstance(await call(session), Complete)
        assert harness.peer.asked("/register") == 0


async def test_a_client_metadata_document_replaces_registration(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        document = "https://gateway.example/client.json"
        port = await _free_port()
        harness.peer.metadata = {"client_id_metadata_document_supported": True}
        harness.peer.clients[document] = {"redirect_uris": [f"http://127.0.0.1:{port}/callback"]}
        async with harness.open(oauth={"client_metadata_url": document, "redirect_port": port}) as session:
            assert isinstance(await call(session), Complete)
        assert harness.peer.asked("/register") == 0


async def test_a_registered_client_is_used_again(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        async with harness.open():
            pass
        harness.restart()
        await harness.nursery.start(harness.logins.run)
        harness.peer.revoke()
        harness.peer.refuse_refresh = True
        async with harness.open():
            pass
        assert (harness.peer.asked("/register"), len(harness.pages)) == (1, 2)


async def test_a_redirect_port_in_use_is_reported(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        port = int(harness.peer.mcp.rpartition(":")[2])
        with pytest.raises(BackendUnavailable, match=f"port {port} on 127.0.0.1 is in use"):
            async with harness.open(oauth={"redirect_port": port}):
                pass


async def test_no_token_in_any_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        async with open_harness(tmp_path) as harness:
            async with harness.open() as session:
                harness.peer.revoke()
                await call(session)
            saved = harness.files().load()
            assert saved is not None
            assert saved.access_token
            assert saved.refresh_token
            assert saved.access_token not in repr(saved)
            text = caplog.text
    assert saved.access_token not in text
    assert saved.refresh_token not in text


async def _free_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    return port
