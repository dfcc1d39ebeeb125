"""Proxies from the environment: selection by URL, and their errors."""

from __future__ import annotations

import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trio

from gateway.access.authority import AuthorityDown, fetch
from gateway.errors import BackendUnavailable
from gateway.oauth_client.http import open_oauth_http
from gateway.proxies import BadProxy, find_proxy, proxy_variable
from tests.peers.http_peer import LegacyServer, Reply, Request, SseServer, open_peer
from tests.support.http_sessions import call, make_config, open_session, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

pytestmark = pytest.mark.leak_check
PROXY = "http://proxy:3128"


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{name}_proxy", raising=False)
        monkeypatch.delenv(f"{name}_PROXY".upper(), raising=False)


def set_environment(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "url", "variable", "proxy"),
    [
        ({}, "http://x.example/", "", None),
        ({"HTTP_PROXY": PROXY}, "http://x.example/", "HTTP_PROXY", PROXY),
        ({"http_proxy": PROXY}, "http://x.example/", "http_proxy", PROXY),
        ({"HTTP_PROXY": "http://other", "http_proxy": PROXY}, "http://x.example/", "http_proxy", PROXY),
        ({"HTTP_PROXY": PROXY}, "https://x.example/", "", None),
        ({"HTTPS_PROXY": PROXY}, "https://x.example/", "HTTPS_PROXY", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://x.example/", "", None),
        ({"ALL_PROXY": PROXY}, "http://x.example/", "ALL_PROXY", PROXY),
        ({"all_proxy": PROXY}, "https://x.example/", "all_proxy", PROXY),
        ({"ALL_PROXY": "http://other", "HTTPS_PROXY": PROXY}, "https://x.example/", "HTTPS_PROXY", PROXY),
        ({"HTTP_PROXY": PROXY, "http_proxy": ""}, "http://x.example/", "", None),
        ({"HTTP_PROXY": "proxy:3128"}, "http://x.example/", "HTTP_PROXY", PROXY),
        ({"HTTP_PROXY": " proxy:3128 "}, "http://x.example/", "HTTP_PROXY", PROXY),
        ({"HTTP_PROXY": "HTTP://proxy:3128"}, "http://x.example/", "HTTP_PROXY", PROXY),
        ({"HTTP_PROXY": "https://proxy"}, "http://x.example/", "HTTP_PROXY", "https://proxy"),
        ({"HTTP_PROXY": "http://u:p%40@proxy:3128"}, "http://x.example/", "HTTP_PROXY", PROXY),
        ({"ALL_PROXY": "socks5://proxy:1080"}, "http://x.example/", "ALL_PROXY", "socks5://proxy:1080"),
        ({"ALL_PROXY": "socks5h://proxy:1080"}, "http://x.example/", "ALL_PROXY", "socks5h://proxy:1080"),
        ({"ALL_PROXY": "socks://proxy:1080/"}, "http://x.example/", "ALL_PROXY", "socks5://proxy:1080/"),
        ({"ALL_PROXY": "SOCKS5://[::1]"}, "http://x.example/", "ALL_PROXY", "socks5://[::1]"),
    ],
)
def test_the_url_selects_the_proxy_variable(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], url: str, variable: str, proxy: str | None
) -> None:
    set_environment(monkeypatch, **environment)
    choice = find_proxy(httpx2.URL(url))
    assert (None if choice is None else str(choice.proxy.url)) == proxy
    assert proxy_variable(httpx2.URL(url)) == variable


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]",
     "0.0.0.0", "[::]"],
)  # fmt: skip
@pytest.mark.parametrize("proxy", [PROXY, "socks5://proxy", "socks4://proxy", "http://["])
def test_this_machine_is_reached_directly_whatever_the_proxy(
    monkeypatch: pytest.MonkeyPatch, host: str, proxy: str
) -> None:
    set_environment(monkeypatch, ALL_PROXY=proxy, HTTP_PROXY=proxy, HTTPS_PROXY=proxy)
    for scheme in ("http", "https"):
        assert find_proxy(httpx2.URL(f"{scheme}://{host}:8080/mcp")) is None


@pytest.mark.parametrize(
    ("entries", "url", "direct"),
    [
        ("*", "https://x.example/", True),
        ("a.example, *", "https://x.example/", True),
        ("x.example", "https://x.example/", True),
        ("X.Example", "https://x.EXAMPLE/", True),
        ("x.example.", "https://x.example./", True),
        ("x.example", "https://a.x.example/", True),
        ("x.example", "https://ax.example/", False),
        ("x.example", "https://example/", False),
        (".x.example", "https://a.b.x.example/", True),
        (".x.example", "https://x.example/", True),
        (".x.example", "https://ax.example/", False),
        ("*.x.example", "https://a.x.example/", True),
        ("*.x.example", "https://x.example/", False),
        ("a.example,x.example", "https://x.example/", True),
        ("a.example x.example", "https://x.example/", True),
        (" a.example ,, x.example ,", "https://x.example/", True),
        ("x.example:443", "https://x.example/", True),
        ("x.example:8443", "https://x.example/", False),
        ("x.example:8443", "https://x.example:8443/", True),
        ("x.example:80", "http://x.example/", True),
        (".x.example:8443", "https://a.x.example:8443/", True),
        ("*:8443", "https://x.example:8443/", True),
        ("*:8443", "https://x.example/", False),
        ("https://x.example", "https://x.example/", True),
        ("http://x.example", "https://x.example/", False),
        ("all://x.example/", "https://x.example/", True),
        ("10.1.2.3", "http://10.1.2.3/", True),
        ("10.1.2.3", "http://10.1.2.30/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.1/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("10.0.0.0/8", "http://10.example/", False),
        ("10.0.0.0/8:8080", "http://10.1.2.3:8080/", True),
        ("10.0.0.0/8:8080", "http://10.1.2.3/", False),
        ("10.1.2.3:80", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://[::ffff:10.1.2.3]/", True),
        ("fd00::1", "http://[fd00::1]/", True),
        ("FD00:0::1", "http://[fd00::1]/", True),
        ("[fd00::1]", "http://[fd00::1]/", True),
        ("[fd00::1]:8080", "http://[fd00::1]:8080/", True),
        ("[fd00::1]:8080", "http://[fd00::1]/", False),
        ("fd00::/8", "http://[fd12::1]/", True),
        ("[fd00::]/8", "http://[fd12::1]/", True),
        ("fd00::/8", "http://[fe80::1]/", False),
        ("bücher.example", "http://bücher.example/", True),
        ("xn--bcher-kva.example", "http://bücher.example/", True),
        ("10.0.0.0/99", "http://10.1.2.3/", False),
        ("", "http://x.example/", False),
        (",", "http://x.example/", False),
        (".", "http://x.example/", False),
        ("[", "http://x.example/", False),
        ("x.example:99999999999", "http://x.example/", False),
    ],
)
def test_hosts_matching_no_proxy_bypass_it(
    monkeypatch: pytest.MonkeyPatch, entries: str, url: str, direct: bool
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        with monkeypatch.context() as context:
            set_environment(context, ALL_PROXY=PROXY, **{name: entries})
            assert (find_proxy(httpx2.URL(url)) is None) is direct


BAD = [
    ("socks4://u:secret@proxy", "the scheme 'socks4' is not supported"),
    ("ftp://u:secret@proxy", "the scheme 'ftp' is not supported"),
    ("u:secret://proxy", "is not supported"),
    ("http://u:secret@[", "not a valid URL"),
    ("http://u:secret@proxy:port", "not a valid URL"),
    ("socks5:u:secret:1080", "not a valid URL"),
    ("http://", "names no host"),
    ("http://u:secret@", "names no host"),
    ("http://u:secret@proxy:99999", "not a valid URL"),
]


@pytest.mark.parametrize(("value", "says"), BAD)
async def test_a_bad_proxy_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, value: str, says: str) -> None:
    set_environment(monkeypatch, HTTPS_PROXY=value)
    with pytest.raises(BadProxy):
        find_proxy(httpx2.URL("https://x.example/"))
    problems: list[BaseException] = []
    for transport in ("streamable-http", "sse"):
        with pytest.raises(BackendUnavailable) as caught:
            async with open_session("https://x.example/mcp", transport=transport):
                pytest.fail("opened")
        problems.append(caught.value)
    async with open_oauth_http(make_config("https://x.example/mcp")) as http:
        with pytest.raises(BackendUnavailable) as caught:
            await http.send(httpx2.Request("GET", "https://x.example/metadata"))
        problems.append(caught.value)
    for problem in problems:
        assert "the proxy of HTTPS_PROXY" in str(problem)
        assert says in str(problem)
        assert "secret" not in str(problem)
    with pytest.raises(AuthorityDown, match="the proxy of HTTPS_PROXY"):
        await fetch("GET", "https://x.example/keys")


@pytest.mark.parametrize("value", ["socks5://proxy", "socks5h://u:secret@proxy:1", "socks://proxy:1080/"])
async def test_socks_without_its_extra_names_variable_and_extra(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    set_environment(monkeypatch, ALL_PROXY=value)
    with pytest.raises(BackendUnavailable, match=r"proxy of ALL_PROXY: .*trio-mcp-gateway\[socks\]") as caught:
        async with open_session("http://x.example/mcp"):
            pytest.fail("opened")
    assert "secret" not in str(caught.value)
    async with open_peer(LegacyServer()) as peer, open_session(peer.url) as session:
        assert text_of(await call(session, "echo", {"text": "direct"})) == "direct"


@pytest.mark.parametrize("url", ["http://x.example/mcp", "https://x.example/mcp"])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_an_unreachable_proxy_is_named(monkeypatch: pytest.MonkeyPatch, url: str, scheme: str) -> None:
    set_environment(monkeypatch, all_proxy=f"{scheme}://u:secret@127.0.0.1:1")
    with pytest.raises(BackendUnavailable, match="cannot be reached through the proxy of all_proxy: ") as caught:
        async with open_session(url):
            pytest.fail("opened")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://x.example/mcp", "https://x.example/mcp"])
async def test_a_proxy_that_requires_a_login_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    async def proxy(request: Request, reply: Reply) -> None:
        await reply.send(407, b"<html>", "text/html", proxy_authenticate="Basic")

    async with open_peer(proxy, path="") as middle:
        set_environment(monkeypatch, ALL_PROXY=middle.url)
        for transport in ("streamable-http", "sse"):
            with pytest.raises(BackendUnavailable, match=r"through the proxy of ALL_PROXY: .*407"):
                async with open_session(url, transport=transport):
                    pytest.fail("opened")


async def test_a_proxys_page_is_not_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def proxy(request: Request, reply: Reply) -> None:
        await reply.send(502, b"<html>", "text/html")

    async with open_peer(proxy, path="") as middle:
        set_environment(monkeypatch, HTTP_PROXY=middle.url)
        with pytest.raises(Exception, match=r"HTTP 502 .* through the proxy of HTTP_PROXY"):
            async with open_session("http://x.example/mcp", transport="streamable-http"):
                pytest.fail("opened")


# -- SOCKS -------------------------------------------------------------------------------------------------------------


async def read(stream: trio.SocketStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        if not more:
            raise trio.EndOfChannel
        data += more
    return data


class Socks:
    """A SOCKS5 server (RFC 1928, 1929) that connects everything to one local port."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.hosts: list[tuple[str, int]] = []
        self.logins: list[bytes] = []
        self.url = ""

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            methods = (await read(stream, 2))[1]
            if await read(stream, methods) == b"\x02":
                await stream.send_all(b"\x05\x02")
                name = await read(stream, (await read(stream, 2))[1])
                self.logins.append(name + b":" + await read(stream, (await read(stream, 1))[0]))
                await stream.send_all(b"\x01\x00")
            else:
                await stream.send_all(b"\x05\x00")
            head = await read(stream, 5)
            assert head[:4] == b"\x05\x01\x00\x03", "a name, which the proxy looks up"
            host = await read(stream, head[4])
            self.hosts.append((host.decode(), int.from_bytes(await read(stream, 2))))
            server = await trio.open_tcp_stream("127.0.0.1", self.port)
            await stream.send_all(b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50")
            async with server, trio.open_nursery() as nursery:
                nursery.start_soon(self.copy, stream, server, nursery)
                nursery.start_soon(self.copy, server, stream, nursery)

    async def copy(self, source: trio.SocketStream, target: trio.SocketStream, nursery: trio.Nursery) -> None:
        with suppress(trio.BrokenResourceError):
            async for data in source:
                await target.send_all(data)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_tcp(handler: Any) -> AsyncGenerator[str]:
    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        try:
            yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        finally:
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "socks"])
@pytest.mark.parametrize("server", [LegacyServer, SseServer])
@pytest.mark.parametrize("login", ["", "user:pass@"])
async def test_a_session_through_socks(monkeypatch: pytest.MonkeyPatch, scheme: str, server: Any, login: str) -> None:
    async with open_peer(server()) as peer:
        socks = Socks(httpx2.URL(peer.url).port or 0)
        async with open_tcp(socks.serve) as address:
            set_environment(monkeypatch, ALL_PROXY=f"{scheme}://{login}{address}")
            async with open_session("http://backend.invalid/mcp") as session:
                assert text_of(await call(session, "echo", {"text": "by socks"})) == "by socks"
    assert set(socks.hosts) == {("backend.invalid", 80)}
    assert set(socks.logins) == ({b"user:pass"} if login else set())


@pytest.mark.parametrize(
    "reply",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x05", b"\x05\xff", b"\x05\x07", b"\x04\x00", b"\x05\x00\x05\x01\x00"],
)
async def test_a_non_socks_peer_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, reply: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(reply)
            await stream.receive_some()
            await stream.send_all(b"\x05\x05\x00")

    async with open_tcp(serve) as address:
        set_environment(monkeypatch, ALL_PROXY=f"socks5://{address}")
        with pytest.raises(BackendUnavailable, match="through the proxy of ALL_PROXY"):
            async with open_session("http://backend.invalid/mcp"):
                pytest.fail("opened")


async def test_a_unix_socket_is_reached_past_all_proxies(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    set_environment(monkeypatch, ALL_PROXY="socks4://proxy", HTTP_PROXY="http://[")
    async with open_peer(LegacyServer()) as peer:
        port = httpx2.URL(peer.url).port or 0

        async def forward(stream: trio.SocketStream) -> None:
            server = await trio.open_tcp_stream("127.0.0.1", port)
            async with stream, server, trio.open_nursery() as nursery:
                nursery.start_soon(Socks.copy, Socks(port), stream, server, nursery)
                nursery.start_soon(Socks.copy, Socks(port), server, stream, nursery)

        sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
        await sock.bind(str(tmp_path / "s"))
        sock.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, forward, [trio.SocketListener(sock)])
            async with open_session("http://backend.invalid/mcp", unix_socket=str(tmp_path / "s")) as session:
                assert text_of(await call(session, "echo", {"text": "x"})) == "x"
            nursery.cancel_scope.cancel()
