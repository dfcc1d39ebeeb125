"""Null for an optional member means absent: every method, both eras, every frontend.

Many serializers write every member that they know. A request with nulls must be answered as one without, and forwarded
messages must not have them, since other peers refuse them; a vendor's own members stay.
"""

from __future__ import annotations

import json

import pytest
import trio

from tests.contract.support import (
    CELLS,
    FAST,
    SHUTDOWN_GRACE,
    SSE,
    check_leaks,
    open_client,
    open_gateways,
    structured_of,
)
from tests.support.gateway_process import ANSWER_WITHIN, META, initialize_params, make_request, modern_params, peer

NAME = "rich"
URI = f"memo://{NAME}/one"
COMPLETE = {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "name", "value": "A"}}
ALONE = ["tools/list", "prompts/list", "resources/list", "resources/templates/list"]
"""Methods whose params may be left out as a whole."""
OPTIONAL = [
    *((method, {}, {"cursor": None}) for method in ALONE),
    ("tools/call", {"name": "params"}, {"arguments": None, "task": None}),
    ("tools/call", {"name": "params", "arguments": {"x": None}}, {"inputResponses": None, "requestState": None}),
    ("prompts/get", {"name": "greet"}, {"arguments": None}),
    ("resources/read", {"uri": URI}, {"inputResponses": None, "requestState": None}),
    ("completion/complete", COMPLETE, {"context": None}),
]
LEGACY_ONLY = [
    ("ping", {}, {}),
    ("logging/setLevel", {"level": "info"}, {}),
    ("resources/subscribe", {"uri": URI}, {}),
    ("resources/unsubscribe", {"uri": URI}, {}),
]
REQUIRED = [
    ("tools/call", {"name": None}),
    ("resources/read", {"uri": None}),
    ("completion/complete", {**COMPLETE, "ref": None}),
]
EVERYWHERE = [*CELLS, SSE]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory):
    server = peer("bridge_server.py", "--name", NAME) | {
        "namespace": "",
        "restart": FAST,
        "shutdown_grace": SHUTDOWN_GRACE,
    }
    config = {"mcpServers": {NAME: server}, "gateway": {"start_grace": 15}}
    state = str(tmp_path_factory.mktemp("state"))
    with open_gateways(config, ("stdio", "streamable-http,sse"), "--state-dir", state) as found:
        yield found


leak_check = pytest.fixture(autouse=True)(check_leaks)


async def ask(client, method, params, *, absent=False):
    """The response to a request whose params are just these; `absent` leaves the member out."""
    raw = client.stdio or client.http
    raw.last_id += 1
    message = make_request(raw.last_id, method) if absent else {**make_request(raw.last_id, method), "params": params}
    with trio.fail_after(ANSWER_WITHIN):
        if client.stdio is not None:
            await client.stdio.send(message)
            return await client.stdio.response(message["id"])
        headers = client.http.modern_headers(method, params) if client.modern else {}
        return (await client.http.post(message, headers=headers)).messages()[-1]


def same(one, other):
    """Return whether two responses are equal except for their ids."""
    return {**one, "id": 0} == {**other, "id": 0}


every_cell = pytest.mark.parametrize("cell", EVERYWHERE, ids="-".join)


@every_cell
@pytest.mark.parametrize(("method", "params", "nulls"), OPTIONAL, ids=lambda value: str(value)[:40])
async def test_an_optional_member_that_is_null_is_absent(gateways, cell, method, params, nulls):
    async with open_client(gateways, cell) as client:
        await check(client, method, params, nulls)


@pytest.mark.parametrize("cell", [one for one in EVERYWHERE if one[0] == "legacy"], ids="-".join)
@pytest.mark.parametrize(("method", "params", "nulls"), LEGACY_ONLY, ids=lambda value: str(value)[:40])
async def test_nulls_mean_absent_for_legacy_only_methods(gateways, cell, method, params, nulls):
    async with open_client(gateways, cell) as client:
        await check(client, method, params, nulls)


async def check(client, method, params, nulls):
    own = {"x-vendor": None} if method in {"tools/call", "prompts/get"} else {}
    if client.modern:
        plain = modern_params({**params, **own})
        meta = {META + "logLevel": None, "progressToken": None, "x/y": None}
        odd = {**params, **own, **nulls, "_meta": {**plain["_meta"], **meta}}
        plain = {**plain, "_meta": {**plain["_meta"], "x/y": None}}
    else:
        plain, odd = {**params, **own}, {**params, **own, **nulls, "_meta": None}
    expected, found = await ask(client, method, plain), await ask(client, method, odd)
    assert "result" in expected, expected
    assert same(found, expected)
    if params.get("name") == "params":
        assert "x-vendor" in structured_of(found)  # its meaning is unknown, so it is forwarded
        assert not nulls.keys() & structured_of(found).keys()


@pytest.mark.parametrize("cell", [one for one in EVERYWHERE if one[0] == "legacy"], ids="-".join)
@pytest.mark.parametrize("method", ["ping", *ALONE])
async def test_params_that_are_null_are_absent(gateways, cell, method):
    async with open_client(gateways, cell) as client:
        expected = await ask(client, method, None, absent=True)
        assert "result" in expected
        assert same(await ask(client, method, None), expected)


@pytest.mark.parametrize("cell", [one for one in CELLS if one[0] == "modern"], ids="-".join)
async def test_an_unknown_modern_client_may_send_null(gateways, cell):
    async with open_client(gateways, cell) as client:
        params = modern_params({})
        params["_meta"][META + "clientInfo"] = None
        assert "result" in await ask(client, "tools/list", params)
        params["_meta"][META + "clientCapabilities"] = None  # which is required
        assert (await ask(client, "tools/list", params))["error"]["code"] == -32602


@every_cell
@pytest.mark.parametrize(("method", "params"), REQUIRED, ids=lambda value: str(value)[:40])
async def test_a_required_member_that_is_null_is_missing(gateways, cell, method, params):
    async with open_client(gateways, cell) as client:
        answer = await ask(client, method, modern_params(params) if client.modern else params)
        assert answer["error"]["code"] == -32602


@pytest.mark.parametrize("cell", [one for one in EVERYWHERE if one[0] == "legacy"], ids="-".join)
async def test_initialize_and_notifications_with_nulls(gateways, cell):
    async with open_client(gateways, cell, initialize=False) as client:
        params = {**initialize_params(), "capabilities": None, "clientInfo": None, "_meta": None}
        raw = client.stdio or client.http
        if client.stdio is None:
            message = {**make_request(0, "initialize", params), "result": None, "error": None}
            response = await client.http.post(message)
            raw.session_id = response.headers["mcp-session-id"]
            assert "result" in response.json()
        else:
            assert "result" in await ask(client, "initialize", params)
        for method in ("notifications/initialized", "notifications/roots/list_changed", "vendor/nothing"):
            note = {"jsonrpc": "2.0", "method": method, "params": None}
            if client.stdio is not None:
                await client.stdio.send(note)
            else:
                assert (await client.http.post(note)).status == 202
        caught = await until_caught(client, "vendor/nothing")
        assert caught == {"jsonrpc": "2.0", "method": "vendor/nothing"}


async def until_caught(client, method):
    """Return the backend's last notification of this kind; each check is a round trip."""
    with trio.fail_after(ANSWER_WITHIN):
        while True:
            answer = await ask(client, "tools/call", {"name": "caught", "arguments": {}})
            found = [one for one in structured_of(answer)["messages"] if one.get("method") == method]
            if found:
                return found[-1]


@pytest.mark.parametrize("cell", [one for one in EVERYWHERE if one[0] == "legacy"], ids="-".join)
async def test_a_client_may_send_all_message_members(gateways, cell):
    """As serializers with one type for all messages do: the non-null members show the kind."""
    async with open_client(gateways, cell) as client:
        message = {"jsonrpc": "2.0", "id": 77, "method": "tools/list", "params": None, "result": None, "error": None}
        if client.stdio is not None:
            await client.stdio.send_raw(json.dumps(message).encode() + b"\n")
            answer = await client.stdio.response(77)
        else:
            answer = (await client.http.post(message)).json()
        assert answer["result"]["tools"]
