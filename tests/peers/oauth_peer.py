"""An authorization server and an MCP server it protects, on loopback, in the test's loop.

`open_oauth_peer` serves both while its block runs. Its behaviour is set on `OAuthPeer` at any time: scopes, valid
tokens, parts of the metadata. Every request is in `log`, and clients are held to the rules: PKCE, redirect URIs,
`resource`, one use of codes and refresh tokens.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

import h11
import httpx2
import jwt
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

READ = 65_536
WITHIN = 20.0  # seconds that one connection may take
Reply = tuple[int, dict[str, str], bytes]


def page(status: int, value: Any = None, **headers: str) -> Reply:
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    body = b"" if value is None else json.dumps(value).encode()
    return status, {"content-type": "application/json", **named}, body


class OAuthPeer:
    """Both servers, and the person at the browser."""

    def __init__(self) -> None:
        self.issuer = self.mcp = ""
        self.elsewhere = ""
        """The URL of another MCP server that tokens are for."""
        self.log: list[tuple[str, str]] = []
        """Method and path of each request to the authorization server."""
        self.calls: list[tuple[str, str | None]] = []
        """Method of each message to the MCP server, and the token that it came with."""
        self.metadata: dict[str, Any] = {}
        """What replaces entries of the authorization server's metadata; None takes one out."""
        self.has_metadata = True
        self.is_open = False
        self.expires_in: int | None = 3600
        self.scope_wanted: dict[str, str] = {"tools/call admin": "admin"}
        self.deny = False
        self.named: str | None = None
        """What the MCP server names as its authorization server instead of the issuer."""
        self.iss: str | None = None
        """What is sent as `iss` instead of the issuer."""
        self.clients: dict[str, dict[str, Any]] = {}
        self.codes: dict[str, dict[str, str]] = {}
        self.tokens: dict[str, set[str]] = {}
        """The living access tokens and their scopes."""
        self.refresh_tokens: dict[str, tuple[str, str]] = {}
        self.granted: list[str] = []
        self.client_key: Any = None
        """The public key of a client that signs assertions, in place of a secret."""
        self.assertions: list[dict[str, Any]] = []
        """The headers of its assertions."""
        self.refuse_refresh = False
        self.gate = trio.Event()
        """Logins wait for it at the token endpoint."""
        self.gate.set()
        self.at_gate = trio.Event()
        self.redirect_metadata_to = ""
        self.token_answer: Reply | None = None
        """What the token endpoint answers, whatever it is asked."""
        self.registration_answer: Reply | None = None
        self.metadata_answer: Reply | None = None
        self.challenge: str | None = None
        """The `WWW-Authenticate` of a 401, instead of a good one; `{mcp}` is the MCP server's address."""

    @property
    def url(self) -> str:
        return self.elsewhere or f"{self.mcp}/mcp"

    def asked(self, path: str) -> int:
        return sum(one == path for _, one in self.log)

    def revoke(self) -> None:
        """Invalidate all access tokens."""
        self.tokens.clear()

    async def browse(self, url: str) -> httpx2.Response:
        """Do what a user's browser does with the login page: consent, then redirect."""
        async with httpx2.AsyncClient(trust_env=False) as browser:
            with trio.fail_after(WITHIN):
                answer = await browser.get(url)
                assert answer.status_code == 302, answer.text
                return await browser.get(answer.headers["location"])

    # The authorization server.

    async def authorization(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        parts = urlsplit(target)
        self.log.append((method, parts.path))
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        match parts.path:
            case path if self.has_metadata and path.startswith("/.well-known/oauth-authorization-server"):
                return self.metadata_answer or page(200, self._metadata())
            case "/register":
                return self._register(json.loads(body))
            case "/authorize":
                return self._authorize(query)
            case "/token":
                self.at_gate.set()
                await self.gate.wait()
                return self._token(form, headers)
            case _:
                return page(404)

    def _metadata(self) -> dict[str, Any]:
        metadata = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "registration_endpoint": f"{self.issuer}/register",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
            **self.metadata,
        }
        return {name: value for name, value in metadata.items() if value is not None}

    def _register(self, wanted: dict[str, Any]) -> Reply:
        if self.registration_answer is not None:
            return self.registration_answer
        client = {**wanted, "client_id": f"client-{len(self.clients)}"}
        self.clients[client["client_id"]] = client
        return page(201, client)

    def _authorize(self, query: dict[str, str]) -> Reply:
        client = self.clients[query["client_id"]]
        assert query["redirect_uri"] in client["redirect_uris"]
        assert query["code_challenge_method"] == "S256"
        assert query["resource"] == self.url
        answer = {"state": query["state"], "iss": self.iss or self.metadata.get("issuer") or self.issuer}
        if self.deny:
            answer |= {"error": "access_denied", "error_description": "not you"}
        else:
            answer["code"] = secrets.token_urlsafe(8)
            self.codes[answer["code"]] = query
        return page(302, None, location=f"{query['redirect_uri']}?{urlencode(answer)}")

    def _token(self, form: dict[str, str], headers: dict[str, str]) -> Reply:
        assert form["resource"] == self.url
        if self.token_answer is not None:
            return self.token_answer
        match form["grant_type"]:
            case "authorization_code":
                asked = self.codes.pop(form["code"])
                digest = hashlib.sha256(form["code_verifier"].encode()).digest()
                assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == asked["code_challenge"]
                assert form["redirect_uri"] == asked["redirect_uri"]
                return self._grant(form["client_id"], asked.get("scope", ""))
            case "refresh_token":
                found = None if self.refuse_refresh else self.refresh_tokens.pop(form["refresh_token"], None)
                if found is None:
                    return page(400, {"error": "invalid_grant"})
                assert found[0] == form["client_id"]
                return self._grant(*found)
            case _ if self.client_key is not None:
                assertion = form["client_assertion"]
                header = jwt.get_unverified_header(assertion)
                claims = jwt.decode(assertion, self.client_key, [header["alg"]], audience=self.issuer)
                assert claims["iss"] == claims["sub"] == "robot"
                self.assertions.append(header)
                return self._grant("robot", form.get("scope", ""), renewable=False)
            case _:
                wanted = base64.b64encode(b"robot:s3cr3t").decode()
                if headers.get("authorization") != f"Basic {wanted}":
                    return page(401, {"error": "invalid_client"})
                return self._grant("robot", form.get("scope", ""), renewable=False)

    def _grant(self, client: str, scope: str, *, renewable: bool = True) -> Reply:
        token, renewal = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        self.tokens[token] = set(scope.split())
        self.granted.append(scope)
        answer: dict[str, Any] = {"access_token": token, "token_type": "bearer", "scope": scope}
        if self.expires_in is not None:
            answer["expires_in"] = self.expires_in
        if renewable:
            self.refresh_tokens[renewal] = (client, scope)
            answer["refresh_token"] = renewal
        return page(200, answer)

    # The MCP server: legacy streamable HTTP without sessions.

    async def protected(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Reply:
        if target.startswith("/.well-known/oauth-protected-resource") and self.has_metadata:
            if self.redirect_metadata_to:
                return page(302, None, location=self.redirect_metadata_to)
            return page(200, {"resource": self.url, "authorization_servers": [self.named or self.issuer]})
        if not target.startswith("/mcp"):
            return page(404)
        message = json.loads(body) if body else {}
        token = headers.get("authorization", "").removeprefix("Bearer ") or None
        what = str(message.get("method", method))
        self.calls.append((what, token))
        if not self.is_open and token not in self.tokens:
            place = (
                f'resource_metadata="{self.mcp}/.well-known/oauth-protected-resource/mcp", '
                if self.has_metadata
                else ""
            )
            header = f'Bearer {place}scope="read"' if self.challenge is None else self.challenge
            return page(401, None, www_authenticate=header.replace("{mcp}", self.mcp))
        wanted = self.scope_wanted.get(f"{what} {message.get('params', {}).get('name')}")
        if wanted is not None and wanted not in self.tokens.get(token or "", ()):
            return page(403, None, www_authenticate=f'Bearer error="insufficient_scope", scope="{wanted}"')
        return self._answer(message) if method == "POST" else page(405)

    def _answer(self, message: dict[str, Any]) -> Reply:
        if "id" not in message:
            return page(202)
        results: dict[str, Any] = {
            "initialize": {
                "protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "protected", "version": "1"},
            },
            "ping": {},
            "tools/list": {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("echo", "admin")]},
            "tools/call": {"content": [{"type": "text", "text": "well done"}]},
        }
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if message["method"] in results:
            return page(200, {**answer, "result": results[message["method"]]})
        return page(200, {**answer, "error": {"code": -32601, "message": "Method not found"}})


async def _serve(stream: trio.SocketStream, handle: Any) -> None:
    """One request a connection."""
    http = h11.Connection(h11.SERVER)
    body, request = b"", None
    async with stream:
        with trio.move_on_after(WITHIN):
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(bytes(await stream.receive_some(READ)))
                elif isinstance(event, h11.Request):
                    request = event
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                else:
                    break
            if request is None:
                return
            headers = {name.decode(): value.decode("latin-1") for name, value in request.headers}
            status, answer, content = await handle(request.method.decode(), request.target.decode(), headers, body)
            answer = {**answer, "content-length": str(len(content)), "connection": "close"}
            data = http.send(h11.Response(status_code=status, headers=list(answer.items()))) or b""
            data += http.send(h11.Data(data=content)) or b""
            await stream.send_all(data)


@asynccontextmanager
async def open_oauth_peer() -> AsyncGenerator[OAuthPeer]:
    """Serve both while the block runs."""
    peer = OAuthPeer()
    async with trio.open_nursery() as nursery:
        for attribute, handle in (("issuer", peer.authorization), ("mcp", peer.protected)):

            async def serve(stream: trio.SocketStream, handle: Any = handle) -> None:
                with contextlib.suppress(
                    trio.BrokenResourceError, h11.RemoteProtocolError
                ):  # the client has disconnected
                    await _serve(stream, handle)

            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            setattr(peer, attribute, f"http://127.0.0.1:{port}")
            nursery.start_soon(trio.serve_listeners, serve, [listener])
        try:
            yield peer
        finally:
            nursery.cancel_scope.cancel()
