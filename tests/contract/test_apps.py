"""MCP Apps (SEP-1865) through the gateway: schemes stay, and apps use own tool names."""

from __future__ import annotations

import pytest

from tests.contract.support import every_cell, open_client, open_gateways, structured_of, text_of
from tests.support.gateway_process import modern_params, peer

UI, HTML = "io.modelcontextprotocol/ui", "text/html;profile=mcp-app"
HOST = {"extensions": {UI: {"mimeTypes": [HTML]}, "x.example/mine": {"a": None}}}
CONFIG = {
    "mcpServers": {
        "old": peer("apps_server.py", "--name", "old"),
        "new": peer("apps_server.py", "--name", "new", "--era", "modern"),
        "mine": peer("apps_server.py", "--name", "mine") | {"session": "client"},
    },
    "gateway": {"start_grace": 15},
}
PAGES = {"old": "ui://apps/page", "new": "ui://mcp+new/apps/page"}


@pytest.fixture(scope="module")
def gateways():
    with open_gateways(CONFIG) as found:
        yield found


def by(client, capabilities, params):
    return modern_params(params, capabilities=capabilities) if client.modern else params


async def ask(client, method, params=None, capabilities=HOST):
    return await client.request(method, by(client, capabilities, params or {}))


async def call(client, name, capabilities=HOST):
    return await ask(client, "tools/call", {"name": name, "arguments": {}}, capabilities)


async def introduce(client, capabilities=HOST):
    """Return the capabilities that the gateway declares to the client."""
    if client.modern:
        return (await ask(client, "server/discover", {}, capabilities))["result"]["capabilities"]
    return (await client.initialize(capabilities=capabilities))["capabilities"]


async def read_pages(client):
    for owner, uri in PAGES.items():
        answer = await ask(client, "resources/read", {"uri": uri})
        assert "result" in answer, answer
        (page,) = answer["result"]["contents"]
        assert page == {
            "uri": uri,
            "mimeType": HTML,
            "text": f"<p>{owner}</p>",
            "_meta": {"ui": {"csp": {}, "domain": "a.example"}},
        }


@every_cell
async def test_extensions_are_declared_that_are_relayed(gateways, cell):
    async with open_client(gateways, cell, initialize=False) as client:
        assert (await introduce(client))["extensions"] == {UI: {"by": "old"}}


@every_cell
async def test_servers_learn_that_clients_show_pages(gateways, cell):
    shared = {UI: HOST["extensions"][UI]}
    async with open_client(gateways, cell, initialize=False) as client:
        await introduce(client)
        notified = {name: structured_of(await call(client, f"{name}.told")) for name in CONFIG["mcpServers"]}
        assert notified["mine"] == notified["new"] == HOST  # in the client's own session, or with its own request
        assert notified["old"]["extensions"] == shared  # a session for all clients, which has to list the pages


@every_cell
async def test_tools_and_resources_name_the_same_pages(gateways, cell):
    async with open_client(gateways, cell, initialize=False) as client:
        await introduce(client)
        tools = {tool["name"]: tool for tool in (await ask(client, "tools/list"))["result"]["tools"]}
        listed = [resource["uri"] for resource in (await ask(client, "resources/list"))["result"]["resources"]]
        assert listed == [*PAGES.values(), "ui://mcp+mine/apps/page"]
        for owner, uri in PAGES.items():
            meta = {"ui": {"resourceUri": uri, "prefers": None}, "ui/resourceUri": uri}
            assert tools[f"{owner}.show"]["_meta"] == meta
            # Who sees it is for the host to decide, so it is in the list.
            assert tools[f"{owner}.refresh"]["_meta"] == {"ui": {"visibility": ["app"], "resourceUri": uri}}
            assert text_of(await call(client, f"{owner}.refresh")) == f"{owner} refresh"
        await read_pages(client)


@every_cell
async def test_an_app_calls_tools_by_own_names(gateways, cell):
    async with open_client(gateways, cell, initialize=False) as client:
        await introduce(client)
        await read_pages(client)
        for owner in PAGES:
            assert text_of(await call(client, f"only_{owner}")) == f"{owner} only_{owner}"
        refused = (await call(client, "refresh"))["error"]  # which of them, only the host knows
        assert refused["code"] == -32602
        assert "new.refresh or old.refresh" in refused["message"]
        assert (await call(client, "think"))["error"]["message"] == "Unknown tool: think"


@pytest.mark.parametrize("frontend", ["stdio", "http"])
async def test_a_call_by_own_name_may_be_suspended(gateways, frontend):
    capabilities = HOST | {"roots": {}}
    arguments = {"requests": {"a": {"method": "roots/list", "params": {}}}}
    async with open_client(gateways, ("modern", frontend)) as client:
        await read_pages(client)
        params = {"name": "ask_old", "arguments": arguments}
        asked = (await ask(client, "tools/call", params, capabilities))["result"]
        assert asked["resultType"] == "input_required"
        answers = {key: {"roots": []} for key in asked["inputRequests"]}
        retry = params | {"requestState": asked["requestState"], "inputResponses": answers}
        answer = await ask(client, "tools/call", retry, capabilities)
        assert structured_of(answer) == {"answers": {"a": {"roots": []}}}


@every_cell
async def test_own_names_require_a_client_that_shows_pages(gateways, cell):
    none = {"extensions": {UI: None, "x.example/mine": {}}}
    async with open_client(gateways, cell, initialize=False) as client:
        await introduce(client, none)
        for uri in PAGES.values():
            assert "result" in await ask(client, "resources/read", {"uri": uri}, none)
        for owner in PAGES:
            error = (await call(client, f"only_{owner}", none))["error"]
            assert error["message"] == f"Unknown tool: only_{owner}"


async def test_a_shared_name_belongs_to_the_app_read(gateways):
    async with open_client(gateways, ("legacy", "http")) as client:
        await introduce(client)
        await ask(client, "resources/read", {"uri": PAGES["new"]})
        assert text_of(await call(client, "refresh")) == "new refresh"
        await ask(client, "resources/read", {"uri": PAGES["old"]})  # now its host may mean either page
        for owner in PAGES:
            assert f"{owner}.refresh" in (await call(client, "refresh"))["error"]["message"]
            assert text_of(await call(client, f"{owner}.refresh")) == f"{owner} refresh"
