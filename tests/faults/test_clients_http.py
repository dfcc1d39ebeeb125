"""HTTP clients that send invalid requests: a clear refusal each, and the gateway continues."""

from __future__ import annotations

import base64
import json
from contextlib import aclosing

import pytest
import trio

from tests.contract.support import SHUTDOWN_GRACE, open_gateways, text_of
from tests.support.gateway_process import (
    ANSWER_WITHIN,
    LATEST_LEGACY,
    META,
    MODERN,
    Exchange,
    HttpClient,
    Response,
    echo_backend,
    make_notification,
    make_request,
    modern_params,
)

CONFIG = {
    "mcpServers": {"echo": echo_backend() | {"shutdown_grace": SHUTDOWN_GRACE}},
    "gateway": {"start_grace": 10, "sse_after": 0.2, "keep_alive_interval": 0.1, "max_body_bytes": 50_000},
}


@pytest.fixture(scope="module")
def gateway():
    with open_gateways(CONFIG, ("streamable-http",)) as found:
        yield found["http"]


@pytest.fixture
def client(gateway):
    return HttpClient(gateway.url)


@pytest.fixture
async def session(client):
    await client.initialize()
    return client


async def assert_alive(client):
    answer = await client.call_modern("tools/call", {"name": "echo.echo", "arguments": {"text": "alive"}})
    assert text_of(answer) == "alive"


def code_of(response):
    return response.json()["error"]["code"]


# -- bodies ----------------------------------------------------------------------------------------------------------

NO_MESSAGES = [
    (b"", -32700),
    (b"{", -32700),
    (b"nonsense", -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping"} trailing', -32700),
    (b'\xff\xfe{"jsonrpc":"2.0"}', -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"p\xffng"}', -32700),
    (b'{"id":NaN,"method":"ping"}', -32700),
    (b"[" * 40_000, -32700),
    (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 20_000 + b"]" * 20_000 + b"}", -32700),
    (b"7", -32600),
    (b"null", -32600),
    (b'"text"', -32600),
    (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
    (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
]


@pytest.mark.parametrize(("body", "code"), NO_MESSAGES, ids=[repr(body[:40]) for body, _ in NO_MESSAGES])
@pytest.mark.parametrize(
    "headers", [{}, {"MCP-Protocol-Version": MODERN, "Mcp-Method": "ping"}], ids=["legacy", "modern"]
)
async def test_bad_json_is_a_400_with_its_code(client, body, code, headers):
    response = await client.send("POST", body, headers=headers)
    assert response.status == 400
    assert code_of(response) in {code, -32600} if body.startswith(b"[") else code_of(response) == code
    await assert_alive(client)


@pytest.mark.parametrize("chunked", [False, True])
async def test_an_oversized_body_is_a_413(client, session, chunked):
    body = json.dumps(
        make_request(1, "tools/call", {"name": "echo.echo", "arguments": {"text": "x" * 60_000}})
    ).encode()
    headers = client.session_headers()
    if chunked:
        given = {"content-type": "application/json", "transfer-encoding": "chunked", **headers}
        response = await send_exactly(client, given.items(), body)
    else:
        response = await client.send("POST", body, headers=headers)
    assert response.status == 413
    assert "max_body_bytes" in response.json()["error"]["message"]
    assert text_of(await client.call_tool("echo.echo", {"text": "x" * 40_000})) == "x" * 40_000


async def send_exactly(client, headers, body):
    """A POST with these headers, in this order, and no others but Host."""
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(client.host, client.port) as stream:
            exchange = Exchange(stream)
            await exchange.send("POST", client.path, [("host", f"{client.host}:{client.port}"), *headers], body)
            await exchange.read_head()
            return Response(exchange.status, exchange.headers, await exchange.read_body())


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "", "multipart/form-data", None])
async def test_a_wrong_content_type_is_refused(session, content_type):
    body = json.dumps(make_request(1, "ping")).encode()
    given = session.session_headers() | {"content-length": str(len(body))}
    given |= {} if content_type is None else {"content-type": content_type}
    response = await send_exactly(session, given.items(), body)
    assert response.status == 415
    assert "application/json" in response.json()["error"]["message"]


async def test_a_content_type_with_a_charset_is_fine(session):
    response = await session.post(make_request(1, "ping"), headers={"Content-Type": "application/json; charset=utf-8"})
    assert response.json()["result"] == {}


@pytest.mark.parametrize("accept", ["text/html", "image/png, text/plain"])
async def test_an_unsatisfiable_accept_is_a_406(session, accept):
    assert (await session.post(make_request(1, "ping"), headers={"Accept": accept})).status == 406


# -- who may talk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://127.0.0.1.evil.example"},
        {"Origin": "file://"},
        {"Host": "evil.example"},
        {"Host": "evil.example:8080"},
        {"Host": "127.0.0.1@evil.example"},
        {"Host": "127.0.0.1:port"},
    ],
    ids=str,
)
async def test_a_foreign_origin_or_host_is_a_403(client, headers):
    await client.initialize()
    for method, path in [("POST", None), ("GET", None), ("DELETE", None), ("GET", "/health")]:
        body = json.dumps(make_request(1, "ping")).encode() if method == "POST" else b""
        response = await client.send(method, body, path=path, headers=client.session_headers() | headers)
        assert response.status == 403, (method, path)
    assert (await client.request("ping"))["result"] == {}  # the session is still there


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://localhost:3000"}, {"Host": "localhost"}, {"Host": "[::1]:8080"}], ids=str
)
async def test_our_own_origins_and_hosts_are_fine(session, headers):
    assert (await session.post(make_request(1, "ping"), headers=headers)).status == 200


# -- sessions --------------------------------------------------------------------------------------------------------


async def test_missing_sessions_are_400_and_stale_ones_404(client):
    message = make_request(1, "tools/list")
    missing = await client.post(message)
    assert (missing.status, code_of(missing)) == (400, -32600)
    for method in ("POST", "GET", "DELETE"):
        body = json.dumps(message).encode() if method == "POST" else b""
        stale = await client.send(method, body, headers={"Mcp-Session-Id": "never-was", "Accept": "*/*"})
        assert stale.status == 404, method
    await client.initialize()
    assert (await client.delete_session()).status == 200
    for method in ("POST", "GET", "DELETE"):
        body = json.dumps(message).encode() if method == "POST" else b""
        assert (await client.send(method, body, headers=client.session_headers())).status == 404, method


async def test_sessionless_get_and_delete_are_405(client):
    for method in ("GET", "DELETE", "PUT", "PATCH", "OPTIONS"):
        response = await client.send(method, headers={"MCP-Protocol-Version": MODERN})
        assert response.status == 405, method
        assert "POST" in response.headers["allow"]


async def test_session_ids_are_long_and_never_the_same(gateway):
    found = set()
    for _ in range(5):
        client = HttpClient(gateway.url)
        await client.initialize()
        found.add(client.session_id)
    assert len(found) == 5
    assert all(len(one) >= 32 and one.isascii() and one.isprintable() for one in found)


async def test_an_unknown_session_version_header_is_a_400(session):
    for version in ("1999-01-01", "nonsense", "2025-11-25x"):
        response = await session.post(make_request(1, "ping"), headers={"MCP-Protocol-Version": version})
        assert response.status == 400, version
    session.version = None  # and none at all is fine: 2025-03-26 has no such header
    assert (await session.request("ping"))["result"] == {}


async def test_initialize_with_bad_params_is_refused(client):
    for params in ({}, {"protocolVersion": 7}, {"protocolVersion": None}, []):
        response = await client.post(make_request(1, "initialize", params))
        assert response.status == 400, params
        assert code_of(response) == -32602
        assert "mcp-session-id" not in response.headers


async def test_a_duplicate_request_id_is_refused_alone(session):
    params = {"name": "echo.sleep", "arguments": {"seconds": 0.6, "text": "the first"}}
    async with session.stream(make_request("same", "tools/call", params)) as first:
        again = await session.post(make_request("same", "ping"))
        assert (again.status, code_of(again)) == (400, -32600)
        assert text_of((await first.next_sse()).json()) == "the first"
    assert (await session.post(make_request("same", "ping"))).json()["result"] == {}


async def test_equal_ids_across_sessions_are_accepted(gateway):
    async def call(client, answers, modern):
        params = {"name": "echo.sleep", "arguments": {"seconds": 0.3}}
        if modern:
            headers = client.modern_headers("tools/call", params)
            response = await client.send(
                "POST", json.dumps(make_request(1, "tools/call", modern_params(params))).encode(), headers=headers
            )
        else:
            response = await client.post(make_request(1, "tools/call", params))
        answers.append(text_of(response.messages()[-1]))

    answers = []
    async with trio.open_nursery() as nursery:
        for modern in (False, False, True, True):
            client = HttpClient(gateway.url)
            if not modern:
                await client.initialize()
            nursery.start_soon(call, client, answers, modern)
    assert answers == ["slept"] * 4


async def test_notifications_and_responses_are_accepted(session):
    for message in (
        make_notification("notifications/initialized"),
        make_notification("notifications/unknown", {"x": 1}),
        {"jsonrpc": "2.0", "id": 7, "result": {}},
        {"jsonrpc": "2.0", "id": 7, "error": {"code": 1, "message": "x"}},
    ):
        response = await session.post(message)
        assert (response.status, response.body) == (202, b"")


# -- batches ---------------------------------------------------------------------------------------------------------


async def test_batches_are_answered_where_the_version_has_them(client):
    await client.initialize("2025-03-26")
    batch = [
        make_request(1, "ping"),
        make_request("two", "tools/call", {"name": "echo.echo", "arguments": {"text": "hi"}}),
        make_notification("notifications/cancelled", {"requestId": 99}),
        make_request(3, "vendor/unknown"),
        make_request(4, "tools/call", {"name": "nobody"}),
    ]
    response = await client.post(batch)
    assert response.status == 200
    found = {answer["id"]: answer for answer in response.json()}
    assert found.keys() == {1, "two", 3, 4}
    assert found[1]["result"] == {}
    assert text_of(found["two"]) == "hi"
    assert found[3]["error"]["code"] == -32601
    assert found[4]["error"]["code"] == -32602


async def test_a_batch_of_notifications_has_no_response_body(client):
    await client.initialize("2025-03-26")
    response = await client.post([make_notification("notifications/initialized")] * 3)
    assert (response.status, response.body) == (202, b"")


@pytest.mark.parametrize("batch", [[], [1, 2], ["x"], [make_request(1, "ping")] * 65, [[make_request(1, "ping")]]])
async def test_an_invalid_batch_is_refused(client, batch):
    await client.initialize("2025-03-26")
    response = await client.post(batch)
    assert (response.status, code_of(response)) == (400, -32600)
    assert (await client.request("ping"))["result"] == {}


@pytest.mark.parametrize("version", ["2024-11-05", "2025-06-18", LATEST_LEGACY])
async def test_batches_are_refused_where_the_version_lacks_them(client, version):
    await client.initialize(version)
    response = await client.post([make_request(1, "ping")])
    assert (response.status, code_of(response)) == (400, -32600)


async def test_batches_are_refused_without_a_legacy_session(client):
    message, headers = client.modern_request("tools/list")
    for given in (headers, {}):
        response = await client.send("POST", json.dumps([message]).encode(), headers=given)
        assert (response.status, code_of(response)) == (400, -32600)


# -- the modern era's headers ----------------------------------------------------------------------------------------

CALL = {"name": "echo.echo", "arguments": {"text": "hi"}}


def sentinel(text):
    return f"=?base64?{base64.b64encode(text.encode()).decode()}?="


async def post_with(client, headers, params=CALL, method="tools/call"):
    """A modern request with exactly these `Mcp-*` headers; None takes one away."""
    message, right = client.modern_request(method, params)
    given = {name: value for name, value in {**right, **headers}.items() if value is not None}
    return await client.send("POST", json.dumps(message).encode(), headers=given)


@pytest.mark.parametrize(
    "headers",
    [
        {"Mcp-Method": None},
        {"Mcp-Method": "tools/list"},
        {"Mcp-Method": "TOOLS/CALL"},
        {"Mcp-Method": ""},
        {"Mcp-Name": None},
        {"Mcp-Name": "echo.sleep"},
        {"Mcp-Name": "echo.ECHO"},
        {"Mcp-Name": ""},
        {"Mcp-Name": sentinel("echo.sleep")},
        {"Mcp-Name": "=?base64?***?="},
        {"Mcp-Name": "=?base64?/////w==?="},
        {"MCP-Protocol-Version": None},
        {"MCP-Protocol-Version": LATEST_LEGACY},
        {"MCP-Protocol-Version": "2099-01-01"},
    ],
    ids=str,
)
async def test_headers_contradicting_the_body_are_refused(client, headers):
    response = await post_with(client, headers)
    assert (response.status, code_of(response)) == (400, -32020)
    assert response.json()["id"] == client.last_id
    await assert_alive(client)


async def test_a_header_that_comes_twice_is_refused(client):
    message, right = client.modern_request("tools/call", CALL)
    body = json.dumps(message).encode()
    base = {"content-type": "application/json", "content-length": str(len(body)), **right}
    for name, value in right.items():
        response = await send_exactly(client, [*base.items(), (name, value)], body)
        assert (response.status, code_of(response)) == (400, -32020), name


@pytest.mark.parametrize(
    "headers",
    [
        {"Mcp-Name": sentinel("echo.echo")},
        {"mcp-method": "tools/call", "Mcp-Method": None},
        {"Mcp-Session-Id": "some old session", "Last-Event-ID": "7"},
        {"Mcp-Param-Unknown": "x"},
    ],
    ids=str,
)
async def test_equivalent_headers_are_accepted(client, headers):
    assert text_of((await post_with(client, headers)).json()) == "hi"


async def test_names_unfit_for_headers_use_the_sentinel(client):
    for name in ("wörter", "a\nb", " padded ", "=?base64?eA==?="):
        response = await post_with(client, {"Mcp-Name": sentinel(name)}, {"name": name})
        assert (response.status, code_of(response)) == (200, -32602)
        assert name in response.json()["error"]["message"]


@pytest.mark.parametrize("missing", ["protocolVersion", "clientCapabilities"])
async def test_a_modern_header_without_body_meta_is_refused(client, missing):
    message, headers = client.modern_request("tools/list")
    del message["params"]["_meta"][META + missing]
    response = await client.send("POST", json.dumps(message).encode(), headers=headers)
    assert response.status == 400
    assert code_of(response) in {-32602, -32020}


async def test_an_unknown_version_error_lists_supported_ones(client):
    message, headers = client.modern_request("tools/list")
    message["params"]["_meta"][META + "protocolVersion"] = headers["MCP-Protocol-Version"] = "2031-01-01"
    response = await client.send("POST", json.dumps(message).encode(), headers=headers)
    error = response.json()["error"]
    assert (response.status, error["code"]) == (400, -32022)
    assert error["data"]["requested"] == "2031-01-01"
    assert {MODERN, LATEST_LEGACY} <= set(error["data"]["supported"])
    # A header alone, as a client of some later era might send.
    response = await client.send(
        "POST", json.dumps(make_request(1, "x")).encode(), headers={"MCP-Protocol-Version": "2031-01-01"}
    )
    assert (response.status, code_of(response)) == (400, -32022)


@pytest.mark.parametrize(
    "method",
    [
        "initialize",
        "ping",
        "logging/setLevel",
        "resources/subscribe",
        "resources/unsubscribe",
        "tasks/list",
        "tasks/result",
        "vendor/unknown",
    ],
)
async def test_methods_absent_from_the_modern_era_are_404(client, method):
    response = await client.post_modern(method, {})
    assert (response.status, code_of(response)) == (404, -32601)


async def test_modern_clients_may_notify_but_not_respond(client):
    headers = {"MCP-Protocol-Version": MODERN}
    response = await client.send("POST", b'{"jsonrpc":"2.0","id":1,"result":{}}', headers=headers)
    assert (response.status, code_of(response)) == (400, -32600)
    notification = json.dumps(make_notification("notifications/cancelled", {"requestId": 1})).encode()
    response = await client.send("POST", notification, headers=headers)
    assert (response.status, response.body) == (202, b"")


# -- how answers are sent --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_quick_answers_are_json_and_slow_ones_stream(session, era):
    def stream(arguments):
        params = {"name": "echo.sleep", "arguments": arguments}
        return (
            session.stream_modern("tools/call", params)
            if era == "modern"
            else session.stream(make_request(f"{era}-{arguments}", "tools/call", params))
        )

    async with stream({"seconds": 0.0}) as exchange:
        assert exchange.headers["content-type"] == "application/json"
        assert text_of(json.loads(await exchange.read_body())) == "slept"
    async with stream({"seconds": 0.7}) as exchange:
        assert exchange.headers["content-type"].startswith("text/event-stream")
        assert exchange.headers["x-accel-buffering"] == "no"
        events = [event async for event in exchange.events()]
    *comments, last = events
    if era == "legacy":  # first what primes the client for coming back
        first = comments.pop(0)
        assert first.id
        assert not first.data
        assert last.id
    assert len(comments) >= 2
    assert all(event.comment and not event.data for event in comments)
    assert text_of(last.json()) == "slept"


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_client_that_takes_only_json_gets_json(session, era):
    params = {"name": "echo.sleep", "arguments": {"seconds": 0.4}, "_meta": {"progressToken": 1}}
    headers = {"Accept": "application/json"}
    if era == "modern":
        response = await session.post_modern("tools/call", params, headers=headers)
    else:
        response = await session.post(make_request(50, "tools/call", params), headers=headers)
    assert response.headers["content-type"] == "application/json"
    assert text_of(response.json()) == "slept"


async def test_a_newer_get_stream_takes_over(session):
    async with session.open_get_stream() as first, session.open_get_stream() as second:
        with trio.fail_after(ANSWER_WITHIN):
            assert [event.data async for event in first.events() if event.data] == []  # it ended
            async with aclosing(second.events()) as events:
                assert (await anext(events)).comment


async def test_a_get_refusing_streams_is_a_406(session):
    response = await session.send("GET", headers=session.session_headers() | {"Accept": "application/json"})
    assert response.status == 406


async def test_a_legacy_disconnect_does_not_cancel(session):
    """2025-11-25: the session and its calls continue, and the id stays in use."""
    before = (await session.call_tool("echo.cancelled_log"))["result"]["structuredContent"]["cancelled"]
    params = {"name": "echo.progress", "arguments": {"n": 8, "delay": 0.05}, "_meta": {"progressToken": 1}}
    async with session.stream(make_request("gone", "tools/call", params)) as exchange:
        await exchange.next_sse()
    assert (await session.call_tool("echo.sleep", {"seconds": 0.6}))["result"]
    assert (await session.call_tool("echo.cancelled_log"))["result"]["structuredContent"]["cancelled"] == before
    assert (await session.post(make_request("gone", "ping"))).json()["result"] == {}


async def test_unknown_paths_are_a_404(client):
    for path in ("/", "/mcp2", "/mcp2/", "/health/x"):
        assert (await client.get(path)).status == 404, path
