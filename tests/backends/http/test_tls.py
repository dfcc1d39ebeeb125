"""Servers behind TLS: a custom authority, a client certificate, and the errors for wrong ones."""

from __future__ import annotations

import ssl
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio

from gateway.config import ServerConfig
from gateway.errors import BackendError
from gateway.http_client.client import open_http_client
from tests.support.certificates import make_certificate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    for name, issuer in (("ca", None), ("server", "ca"), ("client", "ca"), ("stranger", None)):
        make_certificate(path, name, issuer)
    return path


@asynccontextmanager
async def serving(folder: Path, *, ask_client: bool) -> AsyncGenerator[str]:
    """A server that answers 204 to everything, once the handshake has gone well."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                part = await stream.receive_some()
                if not part:
                    return
                data += part
            await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        except trio.BrokenResourceError:
            return  # the handshake failed: that is what the test is about

    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_ssl_over_tcp, handle, 0, context, host="127.0.0.1", https_compatible=True)
        listeners = await nursery.start(serve)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        yield f"https://127.0.0.1:{port}/mcp"  # ruff: ignore[fallible-context-manager] - where the block raised, that matters
        nursery.cancel_scope.cancel()


async def status(url: str, **fields: str | None) -> int:
    config = ServerConfig(name="b", url=url, **fields)  # type: ignore[arg-type] - only fields that are strings
    with trio.fail_after(10):
        async with open_http_client(config, None) as http, http.exchange("GET", []) as response:
            return response.status_code


async def test_a_custom_authority_is_trusted(folder: Path) -> None:
    async with serving(folder, ask_client=False) as url:
        assert await status(url, ca_file=str(folder / "ca.pem")) == 204
        for wrong in (None, str(folder / "stranger.pem")):
            with pytest.raises(BackendError, match="certificate"):
                await status(url, ca_file=wrong)


async def test_a_client_certificate_is_sent(folder: Path) -> None:
    ca, pem, key = (str(folder / name) for name in ("ca.pem", "client.pem", "client.key"))
    async with serving(folder, ask_client=True) as url:
        assert await status(url, ca_file=ca, client_cert=pem, client_key=key) == 204
        with pytest.raises(BackendError):
            await status(url, ca_file=ca)


@pytest.mark.parametrize("fields", [{"ca_file": "/no/such.pem"}, {"client_cert": "/no/such.pem"}])
async def test_missing_tls_files_are_reported(fields: dict[str, str]) -> None:
    with pytest.raises(BackendError, match="TLS options"):
        await status("https://127.0.0.1:9/mcp", **fields)
