"""The client under test in the suite's client scenarios: `python -m tests.conformance.drive URL`.

CONFORMANCE_THROUGH selects how it reaches the suite's server: `direct` (the official SDK alone), or `legacy` or
`modern`: through a gateway of its own, of which it is a client of that era. It does what each scenario demands of a
client: lists, calls, answers forms with their defaults, follows the pages of a login. The suite passes the scenario's
name and its data in the environment.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import mcp_types as types
import trio
from mcp.client.auth import OAuthClientProvider
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.client import Client
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientInformationFull, OAuthClientMetadata, OAuthToken
from mcp.shared.exceptions import MCPError
from pydantic import AnyUrl

from tests.support.gateway_process import open_gateway_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

DRIVE_WITHIN = 25.0  # seconds; the suite's limit is 30
READY_WITHIN = 6.0  # seconds for the gateway to have the suite's server ready
LOGIN_WITHIN = 15.0  # seconds for the same where it has to log in: it imports the SDK first
POLL = 0.05  # seconds between two checks for it
AUTH = "auth/"  # prefix of the names of scenarios with a login
CLIENT_METADATA_URL = "https://conformance-test.local/client-metadata.json"  # the suite's name for its client
REDIRECT_URI = "http://localhost:3000/callback"  # of the SDK alone; nothing listens there
PAGE_WAIT = 15.0  # seconds for a page of a login; the last one is held until the gateway has its token
BROWSER = [sys.executable, "-c", "import sys, urllib.request as r; r.urlopen(sys.argv[1])"]


# -- logins ----------------------------------------------------------------------------------------------------------


class Login:
    """The SDK's token storage, and a user who follows the authorization page."""

    def __init__(self, client: OAuthClientInformationFull | None) -> None:
        self.client = client
        self.tokens: OAuthToken | None = None
        self.answer = httpx2.QueryParams()

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return self.client

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        self.client = client_info

    async def show(self, url: str) -> None:
        async with httpx2.AsyncClient() as http:
            response = await http.get(url)
        self.answer = httpx2.URL(response.headers["location"]).params

    async def come_back(self) -> AuthorizationCodeResult:
        query = self.answer
        return AuthorizationCodeResult(code=query["code"], state=query.get("state"), iss=query.get("iss"))


def make_auth(url: str, scenario: str, context: dict[str, Any]) -> OAuthClientProvider:
    """The SDK's own way to log in, as far as the scenario's data go."""
    if scenario == "auth/client-credentials-basic":
        return ClientCredentialsOAuthProvider(url, Login(None), context["client_id"], context["client_secret"])
    if scenario == "auth/client-credentials-jwt":
        signed = SignedJWTParameters(
            issuer=context["client_id"],
            subject=context["client_id"],
            signing_key=context["private_key_pem"],
            signing_algorithm=context["signing_algorithm"],
        )
        return PrivateKeyJWTOAuthProvider(url, Login(None), context["client_id"], signed.create_assertion_provider())
    uris: list[Any] = [AnyUrl(REDIRECT_URI)]
    given = {key: context[key] for key in ("client_id", "client_secret", "issuer") if key in context}
    if given:
        given["token_endpoint_auth_method"] = "client_secret_basic"
    login = Login(OAuthClientInformationFull(redirect_uris=uris, **given) if given else None)
    metadata = OAuthClientMetadata(redirect_uris=uris, client_name="conformance")
    return OAuthClientProvider(url, metadata, login, login.show, login.come_back, CLIENT_METADATA_URL)


def make_oauth(scenario: str, context: dict[str, Any]) -> dict[str, Any]:
    """The gateway's settings for the same."""
    given = {key: context[key] for key in ("client_id", "client_secret", "issuer") if key in context}
    if scenario == "auth/client-credentials-basic":
        return {"grant": "client_credentials", **given}
    if scenario == "auth/client-credentials-jwt":
        return {"grant": "client_credentials", "private_key": context["private_key_pem"], **given}
    return {"client_metadata_url": CLIENT_METADATA_URL, **given}


# -- the client ------------------------------------------------------------------------------------------------------


async def fill_in(_context: Any, params: types.ElicitRequestParams) -> types.ElicitResult:
    """Accept a form with the defaults of its fields, or visit a page."""
    if isinstance(params, types.ElicitRequestURLParams):
        async with httpx2.AsyncClient(follow_redirects=True, timeout=PAGE_WAIT) as http:
            await http.get(params.url)
        return types.ElicitResult(action="accept")
    properties = getattr(params, "requested_schema", {}).get("properties", {})
    defaults = {name: field["default"] for name, field in properties.items() if "default" in field}
    await trio.lowlevel.checkpoint()
    return types.ElicitResult(action="accept", content=defaults or {"confirmed": True})


async def sample(_context: Any, _params: types.CreateMessageRequestParams) -> types.CreateMessageResult:
    await trio.lowlevel.checkpoint()
    return types.CreateMessageResult(role="assistant", content=types.TextContent(text="Paris"), model="none")


async def list_roots(_context: Any) -> types.ListRootsResult:
    await trio.lowlevel.checkpoint()
    return types.ListRootsResult(roots=[])


def make_client(target: Any, mode: Any) -> Client:
    return Client(
        target,
        mode=mode,
        elicitation_callback=fill_in,
        sampling_callback=sample,
        list_roots_callback=list_roots,
        cache=None,
    )


@asynccontextmanager
async def open_target(through: str, url: str, scenario: str, context: dict[str, Any]) -> AsyncGenerator[Any]:
    """Return the target to connect to, and the mode of the client."""
    era = "modern" if os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"] >= "2026" else "legacy"
    logs_in = scenario.startswith(AUTH)
    if through == "direct":
        mode = "auto" if era == "modern" else "legacy"
        if not logs_in:
            yield url, mode
            return
        async with create_mcp_http_client(auth=make_auth(url, scenario, context)) as http:
            yield streamable_http_client(url, http_client=http), mode
        return
    # The URLs of some scenarios do not end in /mcp, so that the transport cannot be read from them.
    server = {"url": url, "transport": "streamable-http", "namespace": "", "era": era}
    if logs_in:
        server |= {"oauth": make_oauth(scenario, context)}
    # In the background, as a browser that is open already: the gateway's page comes when it has the token.
    browser = {"BROWSER": f"{shlex.join(BROWSER)} %s &"}
    async with open_gateway_process({"mcpServers": {"suite": server}}, env=browser, status=None) as gateway:
        assert gateway.url is not None
        try:
            yield gateway.url, "legacy" if through == "legacy" else "2026-07-28"
        finally:
            print(gateway.stderr_text, file=sys.stderr)


async def play(client: Client, scenario: str, context: dict[str, Any]) -> None:
    """Do what the scenario's server waits for."""
    tools = {tool.name: tool for tool in await wait_for_tools(client, scenario)}
    match scenario:
        case "tools_call":
            await call(client, "add_numbers", {"a": 2, "b": 3})
        case "json-schema-2020-12-preservation":
            schema = tools["json_schema_2020_12_tool"].input_schema
            await call(client, "json_schema_echo", {"schema": schema})
        case "json-schema-ref-no-deref":
            pass  # it offers nothing but the list
        case _ if "toolCalls" in context:
            for wanted in context["toolCalls"]:
                await call(client, wanted["name"], wanted["arguments"])
        case _:
            for name in tools:
                await call(client, name, {})
    if scenario == "http-standard-headers":
        for resource in (await client.list_resources()).resources:
            await tolerate(client.read_resource(resource.uri))
        for prompt in (await client.list_prompts()).prompts:
            await tolerate(client.get_prompt(prompt.name))


async def wait_for_tools(client: Client, scenario: str) -> list[types.Tool]:
    """The tools; those behind a gateway may be some moments away."""
    empty_ones = {"initialize", "request-metadata"}
    with trio.move_on_after(LOGIN_WITHIN if scenario.startswith(AUTH) else READY_WITHIN):
        while True:
            tools = (await client.list_tools()).tools
            if tools or scenario in empty_ones:
                return tools
            await trio.sleep(POLL)
    return []


async def call(client: Client, name: str, arguments: dict[str, Any]) -> None:
    await tolerate(client.call_tool(name, arguments))


async def tolerate(awaitable: Any) -> None:
    """Report an error and continue: the checks are the suite's."""
    try:
        print(await awaitable)
    except (MCPError, RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


async def main(url: str) -> None:
    scenario = os.environ["MCP_CONFORMANCE_SCENARIO"]
    context = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    through = os.environ.get("CONFORMANCE_THROUGH", "direct")
    with trio.fail_after(DRIVE_WITHIN):
        async with (
            open_target(through, url, scenario, context) as (target, mode),
            make_client(target, mode) as client,
        ):
            await play(client, scenario, context)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
