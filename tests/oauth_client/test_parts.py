"""Parts of a login: redirect listener, stored tokens, and permitted addresses."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx2
import msgspec
import pytest
import trio

from gateway.calls import Caller, Era
from gateway.config import ServerConfig, parse_server
from gateway.errors import BackendUnavailable
from gateway.oauth_client import http, login_prompt
from gateway.oauth_client.http import OAuthHttp, open_oauth_http
from gateway.oauth_client.login_prompt import LoginPrompt, LoginRequired
from gateway.oauth_client.redirect_listener import MAX_REQUEST, PortTaken, RedirectListener, open_redirect_listener
from gateway.oauth_client.token_store import RefreshLock, Saved, TokenFiles
from gateway.store import Store
from tests.support.fakes import SOON, make_pending

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.leak_check
URL = "https://mcp.example/mcp"
LOGIN = Saved(issuer="https://a.example", access_token="t0ken", refresh_token="r3newal", scope="read", expires_at=1.5)


def config(**fields: Any) -> ServerConfig:
    return parse_server("s", {"url": URL, **fields}, environ={})


# -- where the browser comes back to ---------------------------------------------------------------------------------


async def ask(listener: RedirectListener, target: str, *, host: str | None = None, method: str = "GET") -> bytes:
    """One raw request, and all that is answered."""
    stream = await trio.open_tcp_stream("127.0.0.1", listener.port)
    async with stream:
        head = f"{method} {target} HTTP/1.1\r\nhost: {host or f'127.0.0.1:{listener.port}'}\r\n\r\n"
        await stream.send_all(head.encode())
        return b"".join([part async for part in stream])


async def test_only_the_answer_to_this_login_counts() -> None:
    with trio.fail_after(SOON):
        async with open_redirect_listener(None) as listener:
            assert listener.uri == f"http://127.0.0.1:{listener.port}/callback"
            assert b" 400 " in await ask(listener, "/callback?code=x&state=")  # before a login has begun
            listener.expect("right")
            for target, status in [
                ("/", 404),
                ("/favicon.ico", 404),
                ("/callback", 400),
                ("/callback?code=x", 400),
                ("/callback?code=x&state=wrong", 400),
            ]:
                assert f" {status} ".encode() in await ask(listener, target)
            assert b" 400 " in await ask(listener, "/callback?code=x&state=right", host="evil.example")
            assert b" 400 " in await ask(listener, "/callback?code=x&state=right", method="POST")
            assert listener.answer == {}
            listener.report(None)
            page = await ask(
                listener, "/callback?code=good&state=right&iss=https%3A%2F%2Fa", host=f"localhost:{listener.port}"
            )
            assert b" 200 " in page
            assert b"no-referrer" in page
            assert b"good" not in page
            assert b"Logged in" in page
            await listener.wait()
            assert listener.answer == {"code": "good", "state": "right", "iss": "https://a"}
            assert b"Too late" in await ask(listener, "/callback?code=other&state=right")
            assert listener.answer["code"] == "good"


GOOD = "/callback?code=x&state=right"
PAGES = {
    "success": (None, b"Logged in"),
    "failure": ("backend 's' needs a login, which failed: <b>&", b"Login failed"),
}


@pytest.mark.parametrize("reported", ["before", "while it waits", "after a page that reloads"])
@pytest.mark.parametrize("result", PAGES)
async def test_the_page_shows_the_result(result: str, reported: str) -> None:
    problem, title = PAGES[result]
    timeout = 0.05 if reported == "after a page that reloads" else SOON
    pages: list[bytes] = []

    async def browse() -> None:
        pages.append(await ask(listener, GOOD))

    with trio.fail_after(SOON):
        async with (
            open_redirect_listener(None, result_timeout=timeout) as listener,
            trio.open_nursery() as nursery,
        ):
            listener.expect("right")
            if reported == "after a page that reloads":
                await browse()
                page = pages.pop()
                assert b'http-equiv="refresh"' in page
                assert b"Logged in" not in page
            if reported != "while it waits":
                listener.report(problem)
            nursery.start_soon(browse)
            nursery.start_soon(browse)  # a browser may load a page twice
            await listener.wait()
            while reported == "while it waits" and listener._held < 2:  # noqa: ASYNC110 - no event tells
                await trio.sleep(0.01)
            listener.report(problem)
            listener.report("a later report changes nothing")
    assert len(pages) == 2
    for page in pages:
        assert page.startswith(b"HTTP/1.1 200 ")
        assert title in page
        assert b"refresh" not in page
        assert b"<b>" not in page
        assert (b"&lt;b&gt;&amp;" in page) is (result == "failure")


async def test_a_stopped_login_shows_on_the_page() -> None:
    pages: list[bytes] = []

    async def browse() -> None:
        pages.append(await ask(listener, GOOD))

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery, open_redirect_listener(None) as listener:
            listener.expect("right")
            nursery.start_soon(browse)
            await listener.wait()
    (page,) = pages
    assert b"Login failed" in page
    assert b"the login was stopped before" in page


async def test_a_failed_browser_start_blocks_no_login() -> None:
    with trio.fail_after(SOON):
        async with open_redirect_listener(None, result_timeout=0.01, delivery_timeout=0.05) as listener:
            listener.expect("right")
            assert b"refresh" in await ask(listener, GOOD)  # and never again
            listener.report(None)


async def test_a_refusal_is_shown_escaped_in_one_line() -> None:
    with trio.fail_after(SOON):
        async with open_redirect_listener(None) as listener:
            listener.expect("right")
            said = "%3Cscript%3E%0A" + "x" * 1000
            page = await ask(listener, f"/callback?error=access_denied&error_description={said}&state=right")
            await listener.wait()
            assert listener.refusal is not None
            assert listener.refusal.startswith("the authorization server reported access_denied: <script> xxx")
            assert len(listener.refusal) < 300
            assert b"<script>" not in page
            assert b"Login refused" in page
            assert b"access_denied: &lt;script&gt; xxx" in page


async def test_idle_and_endless_connections_delay_no_login() -> None:
    with trio.fail_after(SOON):
        async with open_redirect_listener(None) as listener:
            listener.expect("right")
            idle = [await trio.open_tcp_stream("127.0.0.1", listener.port) for _ in range(3)]
            listener.report(None)
            endless = await trio.open_tcp_stream("127.0.0.1", listener.port)
            await endless.send_all(b"GET /" + b"x" * (MAX_REQUEST + 1))
            assert await endless.receive_some() == b""
            assert b" 200 " in await ask(listener, "/callback?code=x&state=right")
            for stream in (*idle, endless):
                await stream.aclose()


async def test_ports() -> None:
    async with open_redirect_listener(None) as first:
        with pytest.raises(PortTaken, match=rf"port {first.port} on 127\.0\.0\.1 is in use \(oauth\.redirect_port\)"):
            async with open_redirect_listener(first.port):
                pass
        async with open_redirect_listener(None, first.port) as second:  # only wished for: another one will do
            assert second.port != first.port
    async with open_redirect_listener(None, first.port) as third:
        assert third.port == first.port


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_logins_are_kept_by_server_resource_and_issuer(tmp_path: Path) -> None:
    files = TokenFiles(Store(tmp_path), config())
    assert files.load() is None
    files.save(LOGIN)
    assert files.load() == LOGIN
    later = Saved(issuer="https://b.example", access_token="other")
    files.save(later)
    assert files.load() == later
    paths = sorted((tmp_path / "tokens").iterdir())
    assert len(paths) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    assert stat.S_IMODE((tmp_path / "tokens").stat().st_mode) == 0o700
    elsewhere = TokenFiles(Store(tmp_path), config(url="https://other.example/mcp"))
    assert elsewhere.load() is None
    namesake = TokenFiles(Store(tmp_path), parse_server("s-2", {"url": URL}, environ={}))
    namesake.save(LOGIN)
    assert files.load() == later
    assert files.remove() == 2
    assert (files.load(), namesake.load()) == (None, LOGIN)


def test_the_last_login_counts_after_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = TokenFiles(Store(tmp_path), config())
    now = time.time()
    for hours, issuer in ((20, "https://a.example"), (0, "https://b.example"), (10, "https://a.example")):
        monkeypatch.setattr(time, "time", lambda hours=hours: now + hours * 3600)
        login = Saved(issuer=issuer, access_token=f"at {hours}")
        files.save(login)
        assert files.load() == login


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 10_000, b" " * 2_000_000])
def test_a_file_that_is_broken_counts_as_absent(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    files = TokenFiles(Store(tmp_path), config())
    files.save(LOGIN)
    (path,) = (tmp_path / "tokens").iterdir()
    path.write_bytes(content or path.read_bytes()[:-10])
    assert files.load() is None
    assert "t0ken" not in caplog.text
    files.save(LOGIN)
    assert files.load() == LOGIN


@pytest.mark.parametrize("content", ['{"format":2,"server":"s","login":7}', None])
def test_a_login_of_a_later_version_is_kept(content: str | None, tmp_path: Path, caplog: Any) -> None:
    files = TokenFiles(Store(tmp_path), config())
    files.save(LOGIN)
    (path,) = (tmp_path / "tokens").glob("*.json")
    later = content or path.read_text().replace('"format":1', '"format":2')
    path.write_text(later)
    assert [files.load() for _ in range(3)] == [None] * 3
    assert caplog.text.count("ignoring an unreadable login") == 1
    files.save(LOGIN)
    assert files.load() == LOGIN
    assert path.with_name(f"{path.name}.unused").read_text() == later
    assert files.remove() == 1


def test_without_a_state_directory_logins_stay_in_memory() -> None:
    files = TokenFiles(None, config())
    files.save(LOGIN)
    assert files.load() == LOGIN
    assert (files.remove(), files.load()) == (1, None)


def test_no_secret_in_any_repr() -> None:
    assert "t0ken" not in repr(LOGIN)
    assert "r3newal" not in repr(LOGIN)


@pytest.mark.skipif(os.name == "nt", reason="no file locks")
async def test_refreshes_run_one_at_a_time(tmp_path: Path) -> None:
    store, order = Store(tmp_path), list[str]()
    held = trio.Event()

    async def first() -> None:
        async with RefreshLock(TokenFiles(store, config())):
            held.set()
            await trio.sleep(0.2)  # longer than a look of the other
            order.append("first")

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await held.wait()
            async with RefreshLock(TokenFiles(store, config())):
                order.append("second")
    assert order == ["first", "second"]


async def test_an_unavailable_lock_does_not_block(tmp_path: Path) -> None:
    with trio.fail_after(SOON):
        async with (
            RefreshLock(TokenFiles(Store(tmp_path), config())),
            RefreshLock(TokenFiles(Store(tmp_path), config()), timeout=0.1),
        ):
            pass
        (tmp_path / "file").write_text("")
        async with RefreshLock(TokenFiles(Store(tmp_path / "file"), config())), RefreshLock(TokenFiles(None, config())):
            pass


# -- which addresses may be asked --------------------------------------------------------------------------------------

HOSTS = {
    "mcp.example": "93.184.215.14",
    "auth.example": "93.184.215.15",
    "inside.example": "10.0.0.7",
    "metadata.example": "169.254.169.254",
    "intranet.example": "192.168.1.9",
    "localhost": "127.0.0.1",
}


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        address = HOSTS.get(host, host)
        if not address[0].isdigit() and ":" not in address:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(http.trio.socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    ("backend", "address", "text"),
    [
        (URL, "https://auth.example/token", None),
        (URL, "https://mcp.example/register", None),
        (URL, "https://nobody.example/token", None),  # a proxy may know it
        (URL, "http://auth.example/token", "which is not https"),
        (URL, "ftp://auth.example/token", "which is not https"),
        (URL, "https://u:p@auth.example/token", "which contains a user name or password"),
        (URL, "http://127.0.0.1:9/token", "which is on this machine"),
        (URL, "https://localhost/token", "which is on this machine"),
        (URL, "http://[::1]:9/token", "which is on this machine"),
        (URL, "http://x.localhost/token", "which is on this machine"),
        (URL, "https://10.0.0.7/token", "which is in a private network"),
        (URL, "https://inside.example/token", "which is in a private network"),
        (URL, "https://metadata.example/latest", "which is in a private network"),
        ("https://intranet.example/mcp", "https://inside.example/token", None),
        ("http://127.0.0.1:9/mcp", "http://localhost:8/token", None),
        ("http://127.0.0.1:9/mcp", "http://auth.example/token", "which is not https"),
        ("http://mcp.example/mcp", "http://mcp.example/token", "which is not https"),
    ],
)
async def test_addresses(resolver: None, backend: str, address: str, text: str | None) -> None:
    async with open_oauth_http(config(url=backend)) as http:
        if text is None:
            await http.check(httpx2.URL(address))
        else:
            with pytest.raises(BackendUnavailable, match=text):
                await http.check(httpx2.URL(address))


async def test_a_configured_issuer_may_be_private(resolver: None) -> None:
    async with open_oauth_http(config(oauth={"issuer": "https://inside.example"})) as http:
        await http.check(httpx2.URL("https://inside.example/token"))
        with pytest.raises(BackendUnavailable, match="private"):
            await http.check(httpx2.URL("https://intranet.example/token"))


class _Server(httpx2.AsyncBaseTransport):
    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self.asked: list[httpx2.Request] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        self.asked.append(request)
        return self.response


async def _send(response: httpx2.Response, method: str = "POST") -> httpx2.Response:
    server = _Server(response)
    async with httpx2.AsyncClient(transport=server) as client:
        answer = await OAuthHttp(client, config()).send(httpx2.Request(method, "https://mcp.example/token"))
    assert server.asked[0].headers["accept-encoding"] == "identity"
    return answer


async def test_answers_are_bounded_and_failures_inconclusive(resolver: None) -> None:
    with pytest.raises(BackendUnavailable, match="answered with more than 1048576 bytes"):
        await _send(httpx2.Response(200, stream=_stream(b"x" * 1_048_577)))
    with pytest.raises(BackendUnavailable, match="answered HTTP 503"):
        await _send(httpx2.Response(503, stream=_stream(b"")))
    assert (await _send(httpx2.Response(503, stream=_stream(b"")), "GET")).status_code == 503
    answer = await _send(httpx2.Response(302, headers={"location": "https://else.example/"}, stream=_stream(b"")))
    assert answer.next_request is not None  # reported, not followed


def _stream(data: bytes) -> httpx2.AsyncByteStream:
    return httpx2.ByteStream(data)


async def test_a_silent_server_times_out(resolver: None) -> None:
    class Silent(httpx2.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            await trio.sleep_forever()
            raise AssertionError

    async with httpx2.AsyncClient(transport=Silent()) as client:
        with pytest.raises(BackendUnavailable, match=r"https://mcp\.example did not answer within 0\.1 s"):
            await OAuthHttp(client, config(), timeout=0.1).send(httpx2.Request("POST", "https://mcp.example/token"))


# -- the ways to a person ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "display", "able", "ways"),
    [
        ("auto", True, True, ["ask"]),
        ("auto", True, False, ["open"]),
        ("auto", False, True, ["ask"]),
        ("auto", False, False, []),
        ("open", True, True, ["open"]),
        ("open", False, True, []),
        ("print", True, True, []),
        ("elicit", True, True, ["ask"]),
        ("elicit", True, False, []),
    ],
)
async def test_the_login_prompt_uses_the_available_way(mode: str, display: bool, able: bool, ways: list[str]) -> None:
    went: list[str] = []

    async def open_page(url: str) -> bool:
        await trio.lowlevel.checkpoint()
        went.append("open")
        return True

    declared = msgspec.Raw(b'{"elicitation":{"url":{}}}' if able else b'{"elicitation":{}}')
    pending = make_pending(caller=Caller(era=Era.LEGACY, version="2025-11-25", capabilities=declared))
    way = LoginPrompt(config(oauth={"browser": mode}), can_open=lambda: display, open_page=open_page)
    assert way.passable([pending]) is bool(ways)
    if ways:
        await way.show("https://a.example/authorize", RedirectListener(9), [pending])
    else:
        with pytest.raises(LoginRequired):
            await way.show("https://a.example/authorize", RedirectListener(9), [pending])
    with trio.move_on_after(0):
        await pending.next()
        went.append("ask")
    assert went == ways


def test_no_browser_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login_prompt.sys, "platform", "linux")
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert not login_prompt.can_open()
    monkeypatch.setenv("WAYLAND_DISPLAY", "w-0")
    assert login_prompt.can_open()


def test_the_sdk_comes_only_with_a_login() -> None:
    """It costs half a second and 64 MB, and most backends want no login."""
    script = (
        "import sys, gateway.oauth_client.logins; print(*sorted({'mcp', 'mcp_types', 'pydantic'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20)
    assert not found.stdout.strip()
