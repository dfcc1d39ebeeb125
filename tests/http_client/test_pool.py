"""Connections to one server: their reuse and their end, and requests sent again."""

from __future__ import annotations

import socket
import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from gateway.clock import elapsed_time
from gateway.config import ServerConfig
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendUnavailable
from gateway.http_client import pool
from gateway.http_client.body import read_body
from gateway.http_client.client import SPARE_CONNECTIONS, open_http_client
from tests.support.certificates import make_certificate
from tests.support.raw_server import OK, PATIENCE, RawConnection, RawServer, answer_ok, open_raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from trio.testing import MockClock

    from gateway.http_client.client import HttpClient

pytestmark = pytest.mark.leak_check
LARGE = 8 * 2**20
"""Bytes of a body that no socket buffer takes at once."""


@asynccontextmanager
async def client_of(url: str, *, patience: float = PATIENCE, **fields: Any) -> AsyncGenerator[HttpClient]:
    """A client whose idle connections are closed by its own task."""
    async with open_http_client(ServerConfig(name="b", url=url, **fields)) as http, trio.open_nursery() as nursery:
        nursery.start_soon(http.run)
        with trio.fail_after(patience):
            yield http
        nursery.cancel_scope.cancel()


def tls_of(folder: Path) -> tuple[ssl.SSLContext, dict[str, str]]:
    """The TLS context of a server, and what its client's config needs."""
    for name, issuer in (("ca", None), ("server", "ca")):
        make_certificate(folder, name, issuer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context, {"ca_file": str(folder / "ca.pem")}


async def post(http: HttpClient, body: bytes = b"{}") -> tuple[int, bytes]:
    async with http.exchange("POST", http.base_headers, body) as response:
        return response.status_code, await read_body(response, 1_000)


async def outcome_of(http: HttpClient, body: bytes = b"{}") -> str:
    try:
        return (await post(http, body))[1].decode()
    except BackendError as problem:
        return problem.code


async def test_a_request_has_what_http_demands() -> None:
    async with open_raw_server() as server:
        fields = {"headers": {"X-Key": "k"}}
        async with client_of(server.url.replace("//", "//me:w%40rd@") + "?a=%20b", **fields) as http:
            assert await post(http) == (200, b"ok")
            async with http.exchange("GET", []) as response:
                assert response.status_code == 200
        first, second = server.requests
        host = server.url.split("/")[2].encode()
        assert first == (
            b"POST /mcp?a=%20b HTTP/1.1\r\nhost: " + host + b"\r\nX-Key: k\r\nauthorization: Basic bWU6d0ByZA==\r\n"
            b"user-agent: trio-mcp-gateway\r\naccept-encoding: identity\r\ncontent-length: 2\r\n\r\n{}"
        )
        assert second == b"GET /mcp?a=%20b HTTP/1.1\r\nhost: " + host + b"\r\n\r\n"


async def test_a_configured_host_is_the_only_one() -> None:
    async with open_raw_server() as server, client_of(server.url, headers={"Host": "other"}) as http:
        await post(http)
        assert server.requests[0].lower().count(b"host: ") == 1
        assert b"\r\nHost: other\r\n" in server.requests[0]


@pytest.mark.parametrize("value", [b"a\r\nX: y", b"a\nX: y", b"a\rb", b"a\0"])
async def test_control_characters_in_a_field_are_not_sent(value: bytes) -> None:
    async with open_raw_server() as server, client_of(server.url) as http:
        with pytest.raises(BackendProtocol, match="control characters"):
            async with http.exchange("POST", [(b"mcp-method", value)], b"{}"):
                pytest.fail("sent")
        assert not server.connections


async def test_cookies_return_unless_they_break_the_rules() -> None:
    async def script(connection: RawConnection) -> None:
        while await connection.request():
            await connection.send(
                OK.replace(
                    b"\r\n",
                    "\r\nSet-Cookie: a=é; Path=/\r\nSet-Cookie: b=2; Path=/\r\nSet-Cookie: =; x\r\n".encode(),
                    1,
                )
            )

    async with open_raw_server(script) as server, client_of(server.url) as http:
        for _ in range(2):
            await post(http)
        assert b"\r\ncookie: b=2\r\n" in server.requests[1]


# -- reuse -------------------------------------------------------------------------------------------------------------


async def keep_for(connection: RawConnection, field: str) -> None:
    """Answer every request with a `Keep-Alive` field."""
    while await connection.request():
        await connection.send(OK.replace(b"\r\n", b"\r\nKeep-Alive: %b\r\n" % field.encode(), 1))


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        ("x=1", 4),
        ("timeout=10", 9),
        ("timeout=3, max=100", 2),
        ("max=5, Timeout=7", 6),
        ("timeout=9999", 60),
        ("timeout=5s", 4),
    ],
)
async def test_a_connection_is_reused_until_it_has_been_idle(field: str, seconds: int, mock_clock: MockClock) -> None:
    async with open_raw_server(partial(keep_for, field=field)) as server, client_of(server.url, patience=1e6) as http:
        for _ in range(3):
            await post(http)
            mock_clock.jump(seconds - 0.1)
        await trio.testing.wait_all_tasks_blocked()
        assert (server.connections, server.open) == (1, 1)
        mock_clock.jump(0.2)
        await server.wait(lambda: not server.open)
        await post(http)
        assert server.connections == 2


async def test_a_connection_from_before_a_sleep_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop's clock does not run while the machine sleeps, the other one does."""
    async with open_raw_server() as server, client_of(server.url) as http:
        await post(http)
        monkeypatch.setattr(pool, "elapsed_time", lambda: elapsed_time() + 3_600)
        await post(http)
        assert server.connections == 2


class Resolver(trio.abc.HostnameResolver):
    """A name server whose answer for every name is `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *_: Any, **__: Any) -> list[Any]:
        host, _, port = self.url.split("/")[2].partition(":")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_each_connection_looks_its_host_up() -> None:
    keeps_none = partial(keep_for, field="timeout=0")
    async with open_raw_server(keeps_none) as old, open_raw_server(keeps_none) as new:
        resolver = Resolver(old.url)
        trio.socket.set_custom_hostname_resolver(resolver)
        async with client_of("http://backend.example/mcp") as http:
            await post(http)
            resolver.url = new.url
            await post(http)
        assert (old.connections, new.connections) == (1, 1)


@pytest.mark.parametrize("field", ["timeout=1", "timeout=0"])
async def test_a_server_that_keeps_nothing_is_not_raced(field: str) -> None:
    async with open_raw_server(partial(keep_for, field=field)) as server, client_of(server.url) as http:
        for _ in range(3):
            await post(http)
        assert server.connections == 3


@pytest.mark.parametrize("late", [b"", b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n", b"garbage"])
async def test_a_connection_with_input_is_not_reused(late: bytes) -> None:
    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        if connection.number == 1:
            await connection.send(late)
            return
        await answer_ok(connection)

    async with open_raw_server(script) as server, client_of(server.url) as http:
        assert await post(http) == (200, b"ok")
        await server.wait(lambda: not server.open)
        assert await post(http) == (200, b"ok")
        assert (server.connections, len(server.requests)) == (2, 2)


@pytest.mark.parametrize(
    "response",
    [
        OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
    ],
)
async def test_some_responses_end_their_connection(response: bytes) -> None:
    async def script(connection: RawConnection) -> None:
        while await connection.request():
            await connection.send(response)

    async with open_raw_server(script) as server, client_of(server.url) as http:
        for _ in range(2):
            assert await post(http) == (200, b"ok")
        assert server.connections == 2
        await server.wait(lambda: not server.open)


async def test_connections_are_bounded_and_waiters_served_in_turn() -> None:
    release = trio.Event()

    async def script(connection: RawConnection) -> None:
        while await connection.request():
            await release.wait()
            await connection.send(OK)

    answered: list[int] = []

    async def call(http: HttpClient, number: int, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await post(http)
        answered.append(number)

    async with open_raw_server(script) as server, client_of(server.url, max_concurrency=1) as http:
        most = 1 + SPARE_CONNECTIONS
        async with trio.open_nursery() as nursery:
            for number in range(4 * most):
                await nursery.start(call, http, number)
            await server.wait(lambda: server.connections == most)
            release.set()
        assert server.connections == most
        assert sorted(answered[:most]) == list(range(most))
        assert len(answered) == 4 * most


# -- sent again, or not ------------------------------------------------------------------------------------------------


async def test_a_request_that_may_have_run_is_not_sent_again() -> None:
    async def script(connection: RawConnection) -> None:
        if connection.number > 1 or not await connection.request():
            return
        await connection.send(OK)
        await connection.request()  # complete, and then lost

    async with open_raw_server(script) as server, client_of(server.url) as http:
        assert [await outcome_of(http), await outcome_of(http)] == ["ok", "backend_exited"]
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_a_request_cut_by_the_server_is_sent_again_once() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(OK)
        if connection.number == 1:
            await connection.stream.receive_some(1)  # of the next request, and then the connection is reset
        else:
            await answer_ok(connection)

    async with open_raw_server(script) as server, client_of(server.url) as http:
        assert [await outcome_of(http), await outcome_of(http, b" " * LARGE)] == ["ok", "ok"]
        assert (server.connections, [len(request) > LARGE for request in server.requests]) == (2, [False, True])


async def test_a_new_connection_that_is_cut_is_not_tried_again() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.stream.receive_some(1)

    async with open_raw_server(script) as server, client_of(server.url) as http:
        with pytest.raises(BackendExited, match="broke the connection"):
            await post(http, b" " * LARGE)
        assert server.connections == 1


@pytest.mark.parametrize("reads_on", [True, False])
@pytest.mark.parametrize("secure", [True, False])
async def test_a_refusal_before_the_request_was_complete_counts(reads_on: bool, secure: bool, tmp_path: Path) -> None:
    async def script(connection: RawConnection) -> None:
        await connection.stream.receive_some(1)
        await connection.send(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        if not reads_on:
            await trio.sleep_forever()
        with trio.move_on_after(0.2):  # a server that drains a little, as most do
            while await connection.stream.receive_some():
                pass

    context, fields = tls_of(tmp_path) if secure else (None, {})
    async with (
        open_raw_server(script, tls=context) as server,
        client_of(server.url, connect_timeout=60, **fields) as http,
    ):
        for body in (b" " * LARGE, b"{}"):
            async with http.exchange("POST", [], body) as response:
                assert response.status_code == 413
        assert server.connections == 2  # the first one lacks the rest of its request


async def test_a_head_before_the_request_was_complete_is_no_refusal() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        assert len(await connection.request()) > LARGE
        await connection.send(b"ok")
        await answer_ok(connection)

    async with open_raw_server(script) as server, client_of(server.url) as http:
        assert [await outcome_of(http, b" " * LARGE), await outcome_of(http)] == ["ok", "ok"]
        assert server.connections == 1


async def test_a_server_that_reads_nothing_is_left() -> None:
    async def script(connection: RawConnection) -> None:
        await trio.sleep_forever()

    async with open_raw_server(script) as server, client_of(server.url, connect_timeout=0.2) as http:
        with pytest.raises(BackendExited, match="accepted no data"):
            await post(http, b" " * LARGE)
        await server.wait(lambda: bool(server.connections))


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhal"])
async def test_cancelling_closes_exactly_that_connection(begin: bytes) -> None:
    held, release = trio.Event(), trio.Event()

    async def script(connection: RawConnection) -> None:
        request = await connection.request()
        if request.endswith(b"kept"):
            await release.wait()
            await connection.send(OK)
            return
        await connection.send(begin)
        held.set()
        assert not await connection.request()

    async with open_raw_server(script) as server, client_of(server.url) as http, trio.open_nursery() as nursery:
        nursery.start_soon(post, http, b"kept")
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(post, http, b"dropped")
                await held.wait()
                await server.wait(lambda: server.connections == 2)
                scope.cancel()
        await server.wait(lambda: server.open == 1)
        release.set()


async def test_closing_the_client_closes_idle_connections() -> None:
    async with open_raw_server() as server:
        async with client_of(server.url) as http:
            await post(http)
        await server.wait(lambda: not server.open)


@pytest.mark.parametrize(
    ("sent", "kind", "says"),
    [
        (b"", BackendExited, "broke the connection"),
        (b"HTTP/1.1 200 OK\r\nContent-", BackendExited, "without a complete response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", BackendExited, "within the response"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", BackendExited, "within the response"),
        (b"SSH-2.0-OpenSSH\r\n", BackendProtocol, "violated HTTP"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nhello\r\n", BackendProtocol, "violated HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", BackendProtocol, "violated HTTP"),
    ],
)
async def test_a_broken_response_is_an_error(sent: bytes, kind: type[BackendError], says: str) -> None:
    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(sent)

    async with open_raw_server(script) as server, client_of(server.url) as http:
        with pytest.raises(kind, match=says):
            await post(http)
        await server.wait(lambda: not server.open)


async def test_a_body_may_end_with_its_connection() -> None:
    async def script(connection: RawConnection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async with open_raw_server(script) as server, client_of(server.url) as http:
        assert await post(http) == (200, b"all of it")


# -- ways to connect ---------------------------------------------------------------------------------------------------


async def test_every_address_of_a_name_is_tried() -> None:
    # Nothing listens on ::1, which is tried first where it exists.
    async with open_raw_server() as server, client_of(server.url.replace("127.0.0.1", "localhost")) as http:
        assert await post(http) == (200, b"ok")


async def test_a_connection_that_is_not_accepted_is_bounded() -> None:
    # The queue of this listener is full, so that connecting hangs.
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with trio.socket.socket() as first, trio.socket.socket() as second:
            await first.connect(address)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.connect, address)
                async with client_of(f"http://127.0.0.1:{address[1]}/", connect_timeout=0.3) as http:
                    with pytest.raises(BackendUnavailable, match="connect_timeout"):
                        await post(http)
                nursery.cancel_scope.cancel()


async def test_a_tls_connection_is_reused(tmp_path: Path) -> None:
    context, fields = tls_of(tmp_path)
    async with open_raw_server(tls=context) as server, client_of(server.url, **fields) as http:
        for body in (b"{}", b" " * LARGE, b"{}"):
            assert await post(http, body) == (200, b"ok")
        assert server.connections == 1


async def test_a_unix_socket_is_reused(tmp_path: Path) -> None:
    server, path = RawServer(), str(tmp_path / "s")

    async def handle(stream: trio.SocketStream) -> None:
        server.connections += 1
        async with stream:
            await answer_ok(RawConnection(server, stream, server.connections))

    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(path)
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(trio.serve_listeners, handle, [trio.SocketListener(listening)]))
        async with client_of("http://peer/mcp", unix_socket=path) as http:
            for _ in range(2):
                assert await post(http) == (200, b"ok")
        nursery.cancel_scope.cancel()
    assert server.connections == 1
    assert b"\r\nhost: peer\r\n" in server.requests[0]
