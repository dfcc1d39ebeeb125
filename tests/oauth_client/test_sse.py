"""OAuth over the SSE transport: stream and POSTs carry the token, either may be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.calls import Complete
from gateway.oauth_client.login_prompt import LoginRequired
from gateway.oauth_client.token_store import Saved
from tests.peers.http_peer import Reply, Request, SseServer, dump, open_peer
from tests.support.logins import Harness, call, open_harness

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.leak_check
METADATA = "/.well-known/oauth-protected-resource"


class ProtectedSse:
    """An SSE server that wants a token of the test's authorization server."""

    def __init__(self, harness: Harness) -> None:
        self.received: list[tuple[str, str]] = []
        """Each request for the server, and the token that it came with."""
        self._harness = harness
        self._server = SseServer()

    async def __call__(self, request: Request, reply: Reply) -> None:
        peer = self._harness.peer
        if request.target.startswith(METADATA):
            await reply.send(200, dump({"resource": peer.url, "authorization_servers": [peer.issuer]}))
            return
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.received.append((request.rpc, token))
        if peer.is_open or token in peer.tokens:
            await self._server(request, reply)
            return
        place = peer.url.replace("/sse", f"{METADATA}/sse")
        await reply.send(401, www_authenticate=f'Bearer resource_metadata="{place}", scope="read"')


@pytest.mark.parametrize("transport", ["sse", None])
async def test_a_refused_stream_starts_a_login(tmp_path: Path, transport: str | None) -> None:
    async with open_harness(tmp_path) as harness:
        server = ProtectedSse(harness)
        async with open_peer(server, path="/sse") as there:
            harness.peer.elsewhere = there.url
            kwargs: dict[str, Any] = {"era": "auto", "connect_timeout": 10}
            async with harness.open(**kwargs, **({"transport": transport} if transport else {})) as session:
                assert isinstance(await call(session), Complete)
            assert len(harness.pages) == 1
            (token,) = harness.peer.tokens
            assert ("GET", token) in server.received
            assert ("tools/call", token) in server.received

            harness.restart()  # and the next gateway needs no login
            await harness.nursery.start(harness.logins.run)
            server.received.clear()
            async with harness.open(**kwargs, **({"transport": transport} if transport else {})) as session:
                assert isinstance(await call(session), Complete)
            assert len(harness.pages) == 1
            assert {used for _, used in server.received} == {token}


async def test_a_token_expiring_mid_stream_is_refreshed(tmp_path: Path) -> None:
    async with open_harness(tmp_path) as harness:
        server = ProtectedSse(harness)
        async with open_peer(server, path="/sse") as there:
            harness.peer.elsewhere = there.url
            async with harness.open(transport="sse", connect_timeout=10) as session:
                harness.peer.revoke()
                assert isinstance(await call(session), Complete)
                (token,) = harness.peer.tokens
                assert server.received[-1] == ("tools/call", token)
            assert len(harness.pages) == 1  # a refresh needs no person


async def test_a_refused_post_without_login_spares_the_stream(tmp_path: Path) -> None:
    """The stream stays open for others' calls, and works after the login."""
    async with open_harness(tmp_path) as harness:
        harness.peer.is_open = True
        server = ProtectedSse(harness)
        async with open_peer(server, path="/sse") as there:
            harness.peer.elsewhere = there.url
            async with harness.open(transport="sse", oauth={"browser": "print"}) as session:
                harness.peer.is_open = False
                problem = await call(session)
                assert isinstance(problem, LoginRequired)
                assert str(problem) == "backend 's' needs a login: run `mcp-gateway login s`"
                harness.peer.tokens["theirs"] = {"read"}
                harness.files().save(Saved(issuer=harness.peer.issuer, access_token="theirs"))
                assert isinstance(await call(session), Complete)
                assert server.received[-1] == ("tools/call", "theirs")
                assert session.in_flight == 0
