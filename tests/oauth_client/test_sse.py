"""OAuth to a backend over the SSE transport: the stream and the POSTs carry the token, and either may be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gateway.calls import Complete
from gateway.oauth_client.login_prompt import LoginRequired
from gateway.oauth_client.token_store import Saved
from tests.peers.http_peer import Reply, Request, SseServer, dump, open_peer
from tests.support.logins import House, call, open_house

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.leak_check
METADATA = "/.well-known/oauth-protected-resource"


class ProtectedSse:
    """An SSE server that wants a token of the house's authorization server."""

    def __init__(self, house: House) -> None:
        self.heard: list[tuple[str, str]] = []
        """Each request for the server, and the token that it came with."""
        self._house = house
        self._server = SseServer()

    async def __call__(self, request: Request, reply: Reply) -> None:
        peer = self._house.peer
        if request.target.startswith(METADATA):
            await reply.send(200, dump({"resource": peer.url, "authorization_servers": [peer.issuer]}))
            return
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        self.heard.append((request.rpc, token))
        if peer.is_open or token in peer.tokens:
            await self._server(request, reply)
            return
        place = peer.url.replace("/sse", f"{METADATA}/sse")
        await reply.send(401, www_authenticate=f'Bearer resource_metadata="{place}", scope="read"')


@pytest.mark.parametrize("transport", ["sse", None])
async def test_a_login_is_found_out_from_the_refused_stream(tmp_path: Path, transport: str | None) -> None:
    async with open_house(tmp_path) as house:
        server = ProtectedSse(house)
        async with open_peer(server, path="/sse") as there:
            house.peer.elsewhere = there.url
            further: dict[str, Any] = {"era": "auto", "connect_timeout": 10}
            async with house.open(**further, **({"transport": transport} if transport else {})) as session:
                assert isinstance(await call(session), Complete)
            assert len(house.pages) == 1
            (token,) = house.peer.tokens
            assert ("GET", token) in server.heard
            assert ("tools/call", token) in server.heard

            house.restart()  # and the next gateway asks nobody
            await house.nursery.start(house.logins.run)
            server.heard.clear()
            async with house.open(**further, **({"transport": transport} if transport else {})) as session:
                assert isinstance(await call(session), Complete)
            assert len(house.pages) == 1
            assert {used for _, used in server.heard} == {token}


async def test_a_token_that_ends_while_the_stream_is_open_is_got_anew_for_the_post(tmp_path: Path) -> None:
    async with open_house(tmp_path) as house:
        server = ProtectedSse(house)
        async with open_peer(server, path="/sse") as there:
            house.peer.elsewhere = there.url
            async with house.open(transport="sse", connect_timeout=10) as session:
                house.peer.revoke()
                assert isinstance(await call(session), Complete)
                (token,) = house.peer.tokens
                assert server.heard[-1] == ("tools/call", token)
            assert len(house.pages) == 1  # a refresh needs no person


async def test_where_nobody_can_be_asked_a_refused_post_ends_its_call_and_the_stream_serves_on(tmp_path: Path) -> None:
    """The stream is open still, and others may have calls on it; after the login it is as good as before."""
    async with open_house(tmp_path) as house:
        house.peer.is_open = True
        server = ProtectedSse(house)
        async with open_peer(server, path="/sse") as there:
            house.peer.elsewhere = there.url
            async with house.open(transport="sse", oauth={"browser": "print"}) as session:
                house.peer.is_open = False
                problem = await call(session)
                assert isinstance(problem, LoginRequired)
                assert str(problem) == "backend 's' needs a login: run `mcp-gateway login s`"
                house.peer.tokens["theirs"] = {"read"}
                house.files().save(Saved(issuer=house.peer.issuer, access_token="theirs"))
                assert isinstance(await call(session), Complete)
                assert server.heard[-1] == ("tools/call", "theirs")
                assert session.in_flight == 0
