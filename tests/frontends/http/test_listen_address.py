"""Listen addresses of the HTTP frontend: Unix sockets, TLS, and addresses that require keys."""

from __future__ import annotations

import socket
import ssl
import stat
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.config.access import NO_ACCESS, AccessKey, AccessSettings
from gateway.frontends.http.listen_address import BACKLOG, InsecureListen, ListenAddress, ListenError
from gateway.frontends.http.mcp_app import Paths
from tests.support.access import Harness, make_config
from tests.support.certificates import make_certificate
from tests.support.fakes import SOON

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.frontends.http.listen_address import ListeningSocket

GUARDED = AccessSettings(keys=(AccessKey("a", "sha256:" + "0" * 64),))


@pytest.fixture
def folder() -> Any:
    """A path short enough for a socket, which those of pytest need not be."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="gw") as path:
        yield Path(path)


@asynccontextmanager
async def serving(binding: ListenAddress, bound: ListeningSocket | None = None) -> AsyncGenerator[list[str]]:
    """A gateway of fakes that listens; yields its URLs."""
    harness = Harness(make_config(None), binding.policy_host, Paths(sse=None))
    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            await nursery.start(harness.fleet.run)
            urls: list[str] = await nursery.start(harness.frontend.run, bound or binding.open())
            yield urls  # ruff: ignore[fallible-context-manager]
            harness.closing.set()
            harness.fleet.stop()
            await harness.fleet.ended.wait()


def files(folder: Path) -> dict[str, int]:
    """What is in a folder, with the modes."""
    return {path.name: stat.S_IMODE(path.lstat().st_mode) for path in folder.iterdir()}


def remove(path: Path) -> None:
    path.unlink()


async def ask(stream: trio.abc.Stream, host: str = "localhost") -> bytes:
    await stream.send_all(f"GET /livez HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    found = b""
    while data := await stream.receive_some():
        found += data
    return found


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_a_unix_socket(folder: Path, mode: int) -> None:
    path = folder / "s"
    with socket.socket(socket.AF_UNIX) as dead:  # left behind by a gateway that was killed
        dead.bind(str(path))
    async with serving(ListenAddress(uds=path, uds_mode=mode)) as urls:
        assert urls == [f"http://unix:{path}:/mcp"]
        assert files(folder) == {"s": mode}
        for host in ("localhost", "any.example"):  # no web page gets here, so a name says nothing
            async with await trio.open_unix_socket(path) as stream:
                assert b'"ok"' in await ask(stream, host)
        with pytest.raises(ListenError, match="another program listens on it"):
            ListenAddress(uds=path).open()
    assert files(folder) == {}


async def test_another_gateways_socket_is_left_alone(folder: Path) -> None:
    path = folder / "s"
    async with serving(ListenAddress(uds=path)):
        remove(path)
        ListenAddress(uds=path).open().socket.close()  # killed before it could remove the file
    assert files(folder) == {"s": 0o600}


def test_only_sockets_are_replaced(folder: Path) -> None:
    path = folder / "f"
    path.write_text("mine")
    with pytest.raises(ListenError, match="not a socket"):
        ListenAddress(uds=path).open()
    assert path.read_text() == "mine"
    for wrong in (folder / ("x" * 200), folder / "none" / "s"):
        with pytest.raises(ListenError, match="--uds"):
            ListenAddress(uds=wrong).open()
    assert [one.name for one in folder.iterdir()] == ["f"]


async def test_tls(folder: Path) -> None:
    make_certificate(folder, "server", None)
    context = ssl.create_default_context(cafile=folder / "server.pem")
    binding = ListenAddress(port=0, tls_cert=folder / "server.pem", tls_key=folder / "server.key")
    async with serving(binding) as (url,):
        assert url.startswith("https://127.0.0.1:")
        port = int(url.rpartition(":")[2].partition("/")[0])
        stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=True)
        assert b'"ok"' in await ask(stream)
        await trio.aclose_forcefully(stream)


async def test_a_renewed_certificate_serves_new_connections(folder: Path) -> None:
    make_certificate(folder, "server", None)
    old = ssl.create_default_context(cafile=folder / "server.pem")
    bound = ListenAddress(port=0, tls_cert=folder / "server.pem", tls_key=folder / "server.key").open()
    async with serving(bound.binding, bound):
        port = bound.socket.getsockname()[1]

        async def connect(context: ssl.SSLContext) -> trio.SSLStream[trio.SocketStream]:
            stream = await trio.open_ssl_over_tcp_stream("127.0.0.1", port, ssl_context=context, https_compatible=True)
            try:
                await stream.do_handshake()
            except trio.BrokenResourceError:
                await trio.aclose_forcefully(stream)
                raise
            return stream

        first = await connect(old)
        kept = (folder / "server.pem").read_bytes(), (folder / "server.key").read_bytes()
        make_certificate(folder, "server", None)
        renewed = (folder / "server.key").read_bytes()
        (folder / "server.key").write_bytes(kept[1])  # half of the files are written
        with pytest.raises(ListenError, match="--tls-cert"):
            bound.renew_certificate()
        await trio.aclose_forcefully(await connect(old))
        (folder / "server.key").write_bytes(renewed)
        bound.renew_certificate()
        await trio.aclose_forcefully(await connect(ssl.create_default_context(cafile=folder / "server.pem")))
        with pytest.raises(trio.BrokenResourceError):
            await connect(old)
        assert b'"ok"' in await ask(first)
        await trio.aclose_forcefully(first)


async def test_the_backlog_stays_while_it_is_served() -> None:
    with ListenAddress(port=0).open() as bound:
        async with serving(ListenAddress(inherited=bound.socket)):
            info = bound.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert struct.unpack_from("I", info, 28)[0] == BACKLOG  # tcpi_sacked, of a socket that listens


def test_wrong_certificates_are_named(folder: Path) -> None:
    make_certificate(folder, "one", None)
    make_certificate(folder, "other", None)
    (folder / "text").write_text("text")
    for cert, key in (("one.pem", "other.key"), ("text", None), ("nothing", None)):
        binding = ListenAddress(tls_cert=folder / cert, tls_key=None if key is None else folder / key)
        with pytest.raises(ListenError, match=f"--tls-cert .*{cert}"):
            binding.open()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_keys(host: str) -> None:
    ListenAddress(host=host).check(None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.7", "localhost.example", "gateway"])
def test_other_addresses_need_keys(host: str) -> None:
    for access in (None, NO_ACCESS, AccessSettings(allow_origins=("*",))):
        with pytest.raises(InsecureListen) as caught:
            ListenAddress(host=host).check(access)
        assert "--host" in str(caught.value)
        assert "--insecure" in caught.value.hint
    ListenAddress(host=host).check(GUARDED)
    ListenAddress(host=host, uds=Path("/x")).check(None)
