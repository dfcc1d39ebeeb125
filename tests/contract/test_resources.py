"""Resources keep their URIs; only URIs listed by two backends are disambiguated."""

from __future__ import annotations

import json

import pytest
import trio

from tests.contract.support import CELLS, every_cell, open_client, open_gateways, structured_of
from tests.support.gateway_process import ANSWER_WITHIN, META, modern_params, peer

CONFIG = {
    "mcpServers": {
        "a": peer("rich_server.py", "--name", "a", "--shared"),
        "b": peer("rich_server.py", "--name", "b", "--shared", "--era", "modern"),
    },
    "gateway": {"start_grace": 15, "list_change_delay": 0.05},
}
SHARED, OTHER = "memo://shared/doc", "mcp+b:memo://shared/doc"
OWN = {  # every public URI, its owner and what the owner calls it
    "memo://a/one": ("a", "memo://a/one"),
    "memo://a/two": ("a", "memo://a/two"),
    SHARED: ("a", SHARED),
    "memo://b/one": ("b", "memo://b/one"),
    "memo://b/two": ("b", "memo://b/two"),
    OTHER: ("b", SHARED),
}
TEMPLATES = [
    "memo://a/item/{id}",
    "memo://shared/item/{id}",
    "memo://b/item/{id}",
    "mcp+b:memo://shared/item/{id}",
]


@pytest.fixture(scope="module")
def gateways():
    with open_gateways(CONFIG) as found:
        yield found


async def read(client, uri):
    return await client.request("resources/read", {"uri": uri})


async def assert_readable(client, uri, owner, own):
    answer = await read(client, uri)
    assert "result" in answer, answer
    contents = [{"uri": uri, "mimeType": "text/plain", "text": f"{owner} read {own}"}]
    assert answer["result"]["contents"] == contents


@every_cell
async def test_listed_resources_are_readable_under_their_uri(gateways, cell):
    async with open_client(gateways, cell) as client:
        listed = (await client.request("resources/list"))["result"]["resources"]
        assert [resource["uri"] for resource in listed] == list(OWN)
        assert all(resource["x-extra"] is None for resource in listed)
        for uri, (owner, own) in OWN.items():
            await assert_readable(client, uri, owner, own)


@every_cell
async def test_templates_that_two_have_lead_to_both(gateways, cell):
    async with open_client(gateways, cell) as client:
        listed = (await client.request("resources/templates/list"))["result"]["resourceTemplates"]
        assert [template["uriTemplate"] for template in listed] == TEMPLATES
        for template in TEMPLATES:
            owner = "b" if "b:" in template or "//b/" in template else "a"
            uri = template.replace("{id}", "7")
            await assert_readable(client, uri, owner, uri.removeprefix("mcp+b:"))
            params = {"ref": {"type": "ref/resource", "uri": template}, "argument": {"name": "id", "value": "7"}}
            found = (await client.request("completion/complete", params))["result"]["completion"]["values"]
            assert found == [owner, template.removeprefix("mcp+b:"), "7", "{}"]


@every_cell
@pytest.mark.parametrize("embedded", [False, True])
async def test_result_links_lead_back_to_their_backend(gateways, cell, embedded):
    async with open_client(gateways, cell) as client:
        for owner, shared in [("a", SHARED), ("b", OTHER)]:
            hidden = f"memo://{owner}/hidden"  # not listed: only the link says whose it is
            arguments = {"uris": [hidden, SHARED], "embedded": embedded}
            content = (await client.call(f"{owner}.links", arguments))["result"]["content"]
            found = [(block.get("resource") or block)["uri"] for block in content]
            assert found == [hidden, shared]
            for uri in found:
                await assert_readable(client, uri, owner, uri.removeprefix("mcp+b:"))
            params = {"name": f"{owner}.linked", "arguments": {"uri": SHARED}}
            messages = (await client.request("prompts/get", params))["result"]["messages"]
            link, inner = messages[0]["content"], messages[1]["content"]["resource"]
            assert (link["uri"], inner["uri"]) == (shared, shared)


@every_cell
async def test_the_pages_of_tools_follow(gateways, cell):
    async with open_client(gateways, cell) as client:
        tools = (await client.request("tools/list"))["result"]["tools"]
        pages = {tool["name"]: tool["_meta"]["ui"] for tool in tools if "_meta" in tool}
        assert pages == {
            "a.page": {"resourceUri": "ui://shared/page", "x": None},
            "b.page": {"resourceUri": "ui://mcp+b/shared/page", "x": None},
        }
        for owner, page in [("a", "a.page"), ("b", "b.page")]:
            await assert_readable(client, pages[page]["resourceUri"], owner, "ui://shared/page")


@every_cell
async def test_a_missing_resource_uses_the_clients_era(gateways, cell):
    code = -32602 if cell[0] == "modern" else -32002
    async with open_client(gateways, cell) as client:
        # Without an owner; then of one backend each, which answers in its own era.
        for uri in ("none:x", "mcp+a:memo://a/nope", "mcp+b:memo://b/nope"):
            error = (await read(client, uri))["error"]
            assert (error["code"], error["data"]) == (code, {"uri": uri}), error


@pytest.mark.parametrize("cell", [("legacy", "stdio")], ids="-".join)
async def test_updates_carry_the_subscribed_uri(gateways, cell):
    async with open_client(gateways, cell) as client:
        for uri in (SHARED, OTHER):
            assert (await client.request("resources/subscribe", {"uri": uri}))["result"] == {}
        for owner, uri in [("b", OTHER), ("a", SHARED)]:
            await wait_subscribed(client, owner, SHARED)
            await client.call(f"{owner}.touch", {"uri": SHARED})
            updated = await client.stdio.notification("notifications/resources/updated")
            assert updated["params"]["uri"] == uri
        for uri in (SHARED, OTHER):
            assert (await client.request("resources/unsubscribe", {"uri": uri}))["result"] == {}


@pytest.mark.parametrize("cell", [("modern", "stdio")], ids="-".join)
async def test_modern_updates_carry_the_requested_uri(gateways, cell):
    async with open_client(gateways, cell) as client:
        wanted = {"notifications": {"resourceSubscriptions": [OTHER, SHARED, "none:x"]}}
        request_id = await client.stdio.start("subscriptions/listen", modern_params(wanted))
        acknowledged = await client.stdio.notification("notifications/subscriptions/acknowledged")
        assert sorted(acknowledged["params"]["notifications"]["resourceSubscriptions"]) == sorted([OTHER, SHARED])
        for owner, uri in [("b", OTHER), ("a", SHARED)]:
            await wait_subscribed(client, owner, SHARED)
            await client.call(f"{owner}.touch", {"uri": SHARED})
            updated = await client.stdio.notification("notifications/resources/updated")
            assert updated["params"]["uri"] == uri
            assert updated["params"]["_meta"] == {META + "subscriptionId": request_id}
        await client.stdio.notify("notifications/cancelled", {"requestId": request_id})


MODERN_ONLY = {"mcpServers": {"b": CONFIG["mcpServers"]["b"]}, "gateway": CONFIG["gateway"]}


@pytest.fixture(scope="module")
def modern_only():
    with open_gateways(MODERN_ONLY, ("stdio",)) as found:
        yield found


async def test_how_long_lists_and_contents_may_be_kept(gateways, modern_only):
    for harness, merged in [(modern_only, (5000, "public")), (gateways, (0, "private"))]:  # legacy servers do not say
        async with open_client(harness, ("modern", "stdio")) as client:
            for method in ("prompts/list", "resources/list", "resources/templates/list"):
                found = (await client.request(method))["result"]
                assert (found["ttlMs"], found["cacheScope"]) == merged, method
            found = (await read(client, "memo://b/one"))["result"]
            assert (found["ttlMs"], found["cacheScope"]) == (5000, "public")
    async with open_client(gateways, ("modern", "stdio")) as client:
        found = (await read(client, "memo://a/one"))["result"]
        assert (found["ttlMs"], found["cacheScope"]) == (0, "private")


async def wait_subscribed(client, owner, uri):
    """A subscription reaches the backend after a moment; each check is a round trip."""
    with trio.fail_after(ANSWER_WITHIN):
        while uri not in structured_of(await client.call(f"{owner}.subscribed"))["uris"]:
            pass


@pytest.mark.parametrize("cell", CELLS[:2], ids="-".join)  # a modern result carries the gateway's stamp
async def test_results_without_shared_uris_keep_their_bytes(gateways, cell):
    result = (
        '{"content":[{"type":"resource_link","uri":"memo://a/one","name":"n"},'
        '{"type":"text","text":"memo://shared/doc"}],"structuredContent":{"uri":"memo://shared/doc","x":null}}'
    )
    async with open_client(gateways, cell) as client:
        params = {"name": "a.content", "arguments": {"result": json.loads(result)}}
        got = await client.exact("tools/call", params)
        assert result.encode() in got
