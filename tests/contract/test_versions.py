"""Clients get what their version can read, and every tool works for every client."""

from __future__ import annotations

import pytest
import trio

from tests.contract.support import CELLS, every_cell, open_client, open_gateways, structured_of, text_of
from tests.support.gateway_process import ANSWER_WITHIN, modern_params, peer

CONFIG = {
    "mcpServers": {
        "old": peer("rich_server.py", "--name", "old", "--odd-schemas"),
        "new": peer("rich_server.py", "--name", "new", "--odd-schemas", "--era", "modern"),
        "first": peer("rich_server.py", "--name", "first", "--version", "2024-11-05"),
    },
    "gateway": {"start_grace": 15},
}
LEGACY = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"]
LEGACY_CELLS = CELLS[:2]
every_legacy_cell = pytest.mark.parametrize("cell", LEGACY_CELLS, ids="-".join)
every_backend = pytest.mark.parametrize("backend", ["old", "new"])
AUDIO = {"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}
LINK = {"type": "resource_link", "uri": "memo://old/one", "name": "one"}
TEXT = {"type": "text", "text": "a text", "x-extra": None}


@pytest.fixture(scope="module")
def gateways():
    with open_gateways(CONFIG) as found:
        yield found


@every_legacy_cell
@every_backend
@pytest.mark.parametrize("version", LEGACY)
async def test_content_unknown_to_a_version_becomes_text(gateways, cell, backend, version):
    async with open_client(gateways, cell, initialize=False) as client:
        await client.initialize(version=version)
        result = {"content": [TEXT, AUDIO, LINK], "x-extra": None}
        found = (await client.call(f"{backend}.content", {"result": result}))["result"]
        kinds = ["text", "text" if version < "2025-03-26" else "audio"]
        kinds.append("text" if version < "2025-06-18" else "resource_link")
        assert [block["type"] for block in found["content"]] == kinds
        assert found["content"][0] == TEXT
        assert found["x-extra"] is None
        if kinds[2] == "text":
            assert found["content"][2]["text"] == "[one](memo://old/one)"
        prompt = (await client.request("prompts/get", {"name": f"{backend}.linked"}))["result"]["messages"]
        assert [message["content"]["type"] for message in prompt] == [kinds[2], "resource"]


@every_cell
async def test_modern_clients_and_the_latest_see_everything(gateways, cell):
    async with open_client(gateways, cell) as client:
        for backend in ("old", "new", "first"):
            result = {"content": [TEXT, AUDIO, LINK, {"type": "hologram"}]}
            found = (await client.call(f"{backend}.content", {"result": result}))["result"]
            assert found["content"] == result["content"]


@every_cell
async def test_every_version_can_read_the_tool_list(gateways, cell):
    async with open_client(gateways, cell) as client:
        tools = {tool["name"]: tool for tool in (await client.request("tools/list"))["result"]["tools"]}
        for backend in ("old", "new"):
            schemas = [tools[f"{backend}.{name}"].get("outputSchema") for name in ("list_out", "any_out")]
            expected = [{"type": "array", "items": {}}, {"anyOf": [{"type": "object"}, {"type": "null"}]}]
            assert schemas == (expected if client.modern else [None, None])
            assert f"{backend}.job" in tools
        assert not [name for name, tool in tools.items() if "execution" in tool]


@every_cell
async def test_non_object_structure_is_converted(gateways, cell):
    async with open_client(gateways, cell) as client:
        found = (await client.call("new.list_out"))["result"]
        if client.modern:
            assert (found["content"], found["structuredContent"]) == ([], [1, {"two": None}])
        else:
            assert found == {"content": [{"type": "text", "text": '[1,{"two":null}]'}]}
        assert structured_of(await client.call("new.any_out", {"value": {"a": None}})) == {"a": None}


FORM = {
    "method": "elicitation/create",
    "params": {
        "message": "Which?",
        "requestedSchema": {
            "type": "object",
            "properties": {"one": {"type": "string", "oneOf": [{"const": "a", "title": "A"}]}},
        },
    },
}
URL = {"method": "elicitation/create", "params": {"mode": "url", "message": "m", "url": "https://example.com/"}}
URL_LEGACY = {**URL, "params": {**URL["params"], "elicitationId": "e"}}


@pytest.mark.parametrize("cell", [("legacy", "stdio")], ids="-".join)
@every_backend
@pytest.mark.parametrize("version", LEGACY[2:])
async def test_requests_fit_the_clients_version(gateways, cell, backend, version):
    async with open_client(gateways, cell, initialize=False) as client:
        await client.initialize(version=version, capabilities={"elicitation": {"form": {}, "url": {}}})
        params = {"name": f"{backend}.ask", "arguments": {"requests": {"f": FORM}}}
        request_id = await client.stdio.start("tools/call", params)
        asked = await client.stdio.notification("elicitation/create")
        field = asked["params"]["requestedSchema"]["properties"]["one"]
        older = {"type": "string", "enum": ["a"], "enumNames": ["A"]}
        expected = FORM["params"]["requestedSchema"]["properties"]["one"]
        assert field == (older if version == "2025-06-18" else expected)
        answer = {"action": "accept", "content": {"one": "a"}}
        await client.stdio.send({"jsonrpc": "2.0", "id": asked["id"], "result": answer})
        assert structured_of(await client.stdio.response(request_id)) == {"answers": {"f": answer}}
        if version == "2025-06-18":
            arguments = {"requests": {"u": URL_LEGACY if backend == "old" else URL}}
            answers = structured_of(await client.call(f"{backend}.ask", arguments))["answers"]
            assert answers["u"] == {"action": "cancel"} if backend == "new" else "error" in answers["u"]


# -- tasks -------------------------------------------------------------------------------------------------------------


@every_cell
@every_backend
async def test_a_mandatory_task_works_like_any_tool(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        answer = (await client.call(f"{backend}.job", {"text": "hello", "interval": 20}))["result"]
        kept = {key: value for key, value in answer.items() if key not in {"resultType", "_meta"}}
        assert kept == {"content": [{"type": "text", "text": "hello"}]}
        assert "related-task" not in str(answer)
        assert text_of(await client.call(f"{backend}.maybe_job", {"text": "plain"})) == "plain"
        assert (await client.call(f"{backend}.job", {"isError": True}))["result"]["isError"] is True
        error = (await client.call(f"{backend}.job", {"error": {"code": 77, "message": "no", "data": [1]}}))["error"]
        assert error == {"code": 77, "message": "no", "data": [1]}


async def tasks_of(client, backend):
    """The task requests a backend received, and the tool calls cancelled there."""
    messages = structured_of(await client.call(f"{backend}.seen"))["messages"]
    asked = [message for message in messages if message.get("method", "").startswith("tasks/")]
    cancelled = [m["params"]["requestId"] for m in messages if m.get("method") == "notifications/cancelled"]
    calls = [m for m in messages if m.get("method") == "tools/call" and m["id"] in cancelled]
    return asked, calls  # a `tasks/get` under way may well be cancelled so


@every_cell
@every_backend
async def test_a_cancelled_call_cancels_its_task(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        before, cancelled = await tasks_of(client, backend)
        with trio.fail_after(ANSWER_WITHIN):
            async with client.open_tool(f"{backend}.job", {"polls": 10_000, "interval": 20}) as call:
                while len(asked := (await tasks_of(client, backend))[0]) < len(before) + 3:
                    pass  # each look is a round trip
                task = asked[-1]["params"]["taskId"]
                await call.cancel()
                while (asked := (await tasks_of(client, backend))[0])[-1]["method"] != "tasks/cancel":
                    pass
                assert asked[-1]["params"]["taskId"] == task
                await call.assert_unanswered()
        assert (await tasks_of(client, backend))[1] == cancelled  # `notifications/cancelled` must not say it


ROOTS = {"method": "roots/list", "params": {}}
ANSWER = {"roots": [{"uri": "file:///r", "name": "r"}]}


@pytest.mark.parametrize("cell", [("legacy", "stdio")], ids="-".join)
@every_backend
async def test_task_requests_reach_a_legacy_client(gateways, cell, backend):
    async with open_client(gateways, cell, initialize=False) as client:
        await client.initialize(capabilities={"roots": {}})
        request_id = await client.stdio.start(
            "tools/call", {"name": f"{backend}.job", "arguments": {"ask": {"r": ROOTS}}}
        )
        asked = await client.stdio.notification("roots/list")
        assert "related-task" not in str(asked)
        await client.stdio.send({"jsonrpc": "2.0", "id": asked["id"], "result": ANSWER})
        answers = structured_of(await client.stdio.response(request_id))["answers"]
        assert answers["r"]["roots"] == ANSWER["roots"]
        marked = answers["r"].get("_meta", {})
        assert bool(marked) == (backend == "old")  # all messages of a legacy task must say which one they belong to


@pytest.mark.parametrize("cell", [("modern", "stdio")], ids="-".join)
@every_backend
async def test_task_requests_reach_a_modern_client(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        params = {"name": f"{backend}.job", "arguments": {"ask": {"r": ROOTS}}}
        able = {"capabilities": {"roots": {}}}
        first = (await client.stdio.request("tools/call", modern_params(params, **able)))["result"]
        assert first["resultType"] == "input_required"
        ((key, wanted),) = first["inputRequests"].items()
        assert wanted["method"] == "roots/list"
        retry = {**params, "inputResponses": {key: ANSWER}, "requestState": first["requestState"]}
        found = await client.stdio.request("tools/call", modern_params(retry, **able))
        assert structured_of(found)["answers"]["r"]["roots"] == ANSWER["roots"]
