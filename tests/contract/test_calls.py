"""One call in every combination of eras and frontends: the same params and results."""

from __future__ import annotations

import json
import sys

import msgspec
import pytest
import trio

from gateway.jsonrpc import LARGE_BYTES
from tests.contract.support import CELLS, every_cell, every_cell_and_sse, open_client, structured_of, text_of
from tests.support.gateway_process import LATEST_LEGACY, META, MODERN, PEERS

every_backend = pytest.mark.parametrize("backend", ["legacy", "modern"])

ARGUMENTS = {
    "null": None,
    "big": 123456789012345678901234567890,
    "float": 1.5,
    "text": 'caf\u00e9 \U0001f600 "quoted" \\ \u2028 \x00',
    "z_before_a": {"z": [], "a": {}, "list": [1, [2, [3, [None]]]]},
    "": "an empty key",
}
UNIQUE = {
    "vendor.example/x": [None, {"y": None}],
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


def odd_result(variant):
    sys.path.insert(0, str(PEERS))
    try:
        import faulty_server
    finally:
        sys.path.remove(str(PEERS))
    return faulty_server.ODD_RESULTS[variant]


def raw_members(span):
    return msgspec.json.decode(span, type=dict[str, msgspec.Raw])


@every_cell_and_sse
async def test_the_gateway_introduces_itself(gateways, cell):
    async with open_client(gateways, cell, initialize=False) as client:
        if client.modern:
            found = (await client.request("server/discover"))["result"]
            assert found["supportedVersions"][0] == MODERN
            assert (found["resultType"], found["ttlMs"], found["cacheScope"]) == ("complete", 0, "private")
            info = found["_meta"][META + "serverInfo"]
        else:
            found = await client.initialize()
            info = found["serverInfo"]
        assert info["name"] == "office"
        assert found["capabilities"]["tools"] == {"listChanged": True}


@pytest.mark.parametrize("cell", CELLS[:2], ids="-".join)
@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2099-01-01", MODERN, ""])
async def test_legacy_versions_are_negotiated(gateways, cell, version):
    async with open_client(gateways, cell, initialize=False) as client:
        wanted = version if version in {"2024-11-05", "2025-03-26", "2025-06-18"} else LATEST_LEGACY
        assert (await client.initialize(version=version))["protocolVersion"] == wanted
        assert (await client.request("ping"))["result"] == {}
        assert "error" not in await client.request("tools/list")


@every_cell
async def test_an_unsupported_version_error_lists_supported_ones(gateways, cell):
    async with open_client(gateways, cell) as client:
        params = {"_meta": {META + "protocolVersion": "2099-01-01", META + "clientCapabilities": {}}}
        if client.frontend == "stdio":
            answer = await client.stdio.request("tools/list", params)
        else:
            headers = {"MCP-Protocol-Version": "2099-01-01", "Mcp-Method": "tools/list"}
            response = await client.http.post(
                {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": params}, headers=headers
            )
            assert response.status == 400
            answer = response.json()
        assert answer["error"]["code"] == -32022
        assert answer["error"]["data"]["requested"] == "2099-01-01"
        assert MODERN in answer["error"]["data"]["supported"]


async def test_guarantee_g1_every_cell_lists_identical_tools(gateways):
    spans = []
    for cell in CELLS:
        async with open_client(gateways, cell) as client:
            result = raw_members(raw_members(await client.exact("tools/list"))["result"])
            spans.append(bytes(result.pop("tools")))
            expected = {"resultType", "ttlMs", "cacheScope", "_meta"} if client.modern else set()
            assert result.keys() == expected
    assert len(set(spans)) == 1
    names = [tool["name"] for tool in json.loads(spans[0])]
    assert names[:2] == ["legacy.echo", "legacy.sleep"]
    assert len(names) == len(set(names))
    assert {"modern.tool_1", "odd.go", "changing.grow"} <= set(names)


@every_cell_and_sse
async def test_prompts_and_resources_are_empty_lists(gateways, cell):
    async with open_client(gateways, cell) as client:
        for method, member in [
            ("prompts/list", "prompts"),
            ("resources/list", "resources"),
            ("resources/templates/list", "resourceTemplates"),
        ]:
            assert (await client.request(method))["result"][member] == []


@every_cell_and_sse
@every_backend
async def test_guarantee_g6_arguments_and_meta_arrive_unchanged(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        params = {"name": f"{backend}.params", "arguments": ARGUMENTS, "vendor": [None], "_meta": UNIQUE}
        got = structured_of(await client.request("tools/call", params))
        assert got["name"] == "params"
        assert json.dumps(got["arguments"]) == json.dumps(ARGUMENTS)  # the order of members too
        assert got["vendor"] == [None]
        assert {key: got["_meta"].pop(key) for key in UNIQUE} == UNIQUE
        if backend == "legacy":
            assert got["_meta"] == {}
        else:
            assert got["_meta"].pop(META + "clientInfo")["name"] == "office"
            assert got["_meta"] == {META + "protocolVersion": MODERN, META + "clientCapabilities": {}}


@every_cell_and_sse
@every_backend
async def test_results_arrive_in_the_era_of_the_client(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        arguments = {"value": {"a": [1, None]}, "extra": {"isError": False, "unknown": None, "_meta": {"v/x": None}}}
        result = (await client.call(f"{backend}.structured", arguments))["result"]
        assert result["structuredContent"] == {"a": [1, None]}
        assert result["unknown"] is None
        if client.modern:
            assert result["resultType"] == "complete"
            assert result["_meta"].pop(META + "serverInfo")["name"] == "office"
        else:
            assert "resultType" not in result
        assert result["_meta"] == {"v/x": None}
        assert text_of(await client.call(f"{backend}.tool_1", {"text": "hi"})) == "echo.tool_1 hi"


@every_cell_and_sse
@pytest.mark.parametrize(
    ("backend", "variant"),
    [("odd", "plain"), ("odd_modern", "plain"), ("doubled", "duplicate"), ("bare", "missing_content")],
)
async def test_guarantee_g6_unknown_results_arrive_byte_for_byte(gateways, cell, backend, variant):
    async with open_client(gateways, cell) as client:
        got = await client.exact("tools/call", {"name": f"{backend}.go", "arguments": {}})
    sent = odd_result(variant)
    result = bytes(raw_members(got)["result"])
    if cell[0] == "legacy" and backend != "odd_modern":
        assert result == sent
        return
    # Only `resultType` and two keys of `_meta` may be there besides; each other member is the same span.
    want, found = raw_members(sent), raw_members(result)
    own, theirs = raw_members(found.pop("_meta", b"{}")), raw_members(want.pop("_meta", b"{}"))
    if cell[0] == "modern":
        assert bytes(found.pop("resultType")) == b'"complete"'
        own.pop(META + "serverInfo")
    else:  # where structured content is an object or nothing: the null goes, and is said in a text block
        assert bytes(want.pop("structuredContent")) == b"null"
        want["content"] = bytes(want["content"])[:-1] + b',{"type":"text","text":"null"}]'
    assert {key: bytes(span) for key, span in found.items()} == {key: bytes(span) for key, span in want.items()}
    assert {key: bytes(span) for key, span in own.items()} == {key: bytes(span) for key, span in theirs.items()}


@every_cell
@pytest.mark.parametrize(
    "arguments",
    [{}, {"code": -32602, "message": "no \u00e9", "data": None}, {"code": 7, "message": "", "data": [1, {"x": None}]}],
)
async def test_a_backends_error_keeps_code_message_and_data(gateways, cell, arguments):
    async with open_client(gateways, cell) as client:
        error = (await client.call("error.go", arguments))["error"]
        data = arguments.get("data", {"nested": [None, {"why": "because"}]})
        assert error["code"] == arguments.get("code", -31999)
        assert error["message"] == arguments.get("message", "as asked")
        assert error.get("data") == data


@every_cell_and_sse
async def test_unknown_names_and_methods(gateways, cell):
    async with open_client(gateways, cell) as client:
        for name in ("legacy.nobody", "nobody.echo", "echo", "", "legacy.echo ", "LEGACY.echo"):
            answer = await client.call(name)
            assert answer["error"]["code"] == -32602, answer
            assert name in answer["error"]["message"]
        assert (await client.request("vendor/unknown", {}))["error"]["code"] == -32601
        assert (await client.request("tools/list", {"cursor": "never given"}))["error"]["code"] == -32602
        assert text_of(await client.call("legacy.echo", {"text": "well"})) == "well"


@every_cell_and_sse
async def test_params_of_the_wrong_form_are_refused(gateways, cell):
    async with open_client(gateways, cell) as client:
        for params in (
            {"name": 5},
            {"arguments": {}},
            {"name": None},
            {"name": "legacy.echo", "_meta": {"progressToken": 1.5}},
        ):
            answer = await client.request("tools/call", params)
            assert answer["error"]["code"] == -32602, (params, answer)


@every_cell_and_sse
@every_backend
@pytest.mark.parametrize("token", [7, "a token", "", 0, 2**53 - 1])
async def test_progress_is_ordered_under_the_clients_token(gateways, cell, backend, token):
    async with (
        open_client(gateways, cell) as client,
        client.open_tool(f"{backend}.progress", {"n": 5}, token=token) as call,
    ):
        found = []
        while "method" in (message := await call.next()):
            assert message["method"] == "notifications/progress"
            found.append(message["params"])
        assert [type(one["progressToken"]) for one in found] == [type(token)] * 5
        assert [(one["progressToken"], one["progress"], one["total"]) for one in found] == [
            (token, i + 1, 5) for i in range(5)
        ]
        assert found[0]["message"] == "step 1"
        assert text_of(message) == "5 steps"


@every_cell_and_sse
async def test_progress_requires_a_token(gateways, cell):
    async with (
        open_client(gateways, cell) as client,
        client.open_tool("legacy.progress", {"n": 3}) as call,
    ):
        assert text_of(await call.next()) == "3 steps"


@every_cell
async def test_no_progress_follows_the_result(gateways, cell):
    async with open_client(gateways, cell) as client:
        async with client.open_tool("late.go", token="mine") as call:
            assert text_of(await call.next()) == "done"
            if client.frontend == "http":
                assert await call.next() is None
        assert text_of(await client.call("late.echo", {"text": "fence"})) == "fence"  # read after the late progress
        if client.frontend == "stdio":
            assert [one for one in client.stdio.arrived if one.get("method") == "notifications/progress"] == []


@every_cell
async def test_two_calls_may_share_a_progress_token(gateways, cell):
    """Two clients; on pipes, the two eras are two clients of one process."""
    async with open_client(gateways, cell) as one, open_client(gateways, cell) as other:
        backends = ("legacy", "modern")
        clients = (one, one if one.frontend == "stdio" else other)
        found = {}

        async def run(client, backend, n, token):
            async with client.open_tool(f"{backend}.progress", {"n": n, "delay": 0.02}, token=token) as call:
                seen = []
                while "method" in (message := await call.next()):
                    seen.append(message["params"]["progress"])
                found[n] = (seen, text_of(message))

        tokens = (1, 1) if one.frontend == "http" else (1, "1")
        async with trio.open_nursery() as nursery:
            for client, backend, n, token in zip(clients, backends, (4, 6), tokens, strict=True):
                nursery.start_soon(run, client, backend, n, token)
        assert found == {n: (list(range(1, n + 1)), f"{n} steps") for n in (4, 6)}


LARGE = [
    ("x", "legacy", False),
    ("caf\u00e9 \U0001f600", "legacy", True),
    ('a "quoted" \\ backslash\n\u2028 \x01 "uri" \\', "modern", True),
]


@pytest.mark.parametrize(("text", "backend", "after_event"), LARGE, ids=["one run", "characters", "escapes"])
@every_cell_and_sse
async def test_large_results_arrive_whole(gateways, cell, text, backend, after_event):
    times = LARGE_BYTES // len(json.dumps(text)) + LARGE_BYTES // 100
    async with open_client(gateways, cell) as client:
        if after_event:
            arguments = {"n": 1, "delay": 0.01, "then": text, "times": times}
            answer = await client.call(f"{backend}.progress", arguments, token="large")
        else:
            answer = await client.call(f"{backend}.big", {"of": text, "n": times})
        assert text_of(answer) == text * times
        if client.modern:
            assert answer["result"]["resultType"] == "complete"
