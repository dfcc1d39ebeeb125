"""Every HTTP endpoint with a trailing slash and in absolute form (RFC 9112, 3.2.2).

Only the spelling differs: answers, refusals and permissions are those of the plain path, and nothing is redirected.
Further tests are about the head of any request: compressed bodies, foreign hosts, `Accept`.
"""

from __future__ import annotations

import gzip
import json
from contextlib import asynccontextmanager

import pytest
import trio

from gateway.admin.operations import OPERATIONS
from tests.contract.support import FAST, SHUTDOWN_GRACE, check_leaks
from tests.support.access import ALICE, keys
from tests.support.gateway_process import (
    ANSWER_WITHIN,
    HttpClient,
    echo_backend,
    initialize_params,
    make_request,
    open_gateway_process,
)

TOKEN = "correct-horse-battery-staple"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
KEY = {"Authorization": f"Bearer {ALICE}"}
INITIALIZE = json.dumps(make_request(1, "initialize", initialize_params())).encode()
CONFIG = {
    "mcpServers": {"echo": echo_backend() | {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}},
    "gateway": {"start_grace": 15},
    "views": {"v": {}},
}
PATHS = {
    "default": {"mcp": "/mcp", "sse": "/sse", "messages": "/messages"},
    "custom": {"mcp": "/a/b", "sse": "/events-of/x", "messages": "/m"},
    "with slashes": {"mcp": "/a/b/", "sse": "/c/", "messages": "/m/"},
    "root": {"mcp": "/", "sse": "/sse", "messages": "/messages/"},
}
METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD")

leak_check = pytest.fixture(autouse=True)(check_leaks)


@asynccontextmanager
async def open_harness(config=CONFIG, paths=PATHS["default"]):
    args = ["--admin-token", TOKEN]
    for flag, name in (("--streamable-http-path", "mcp"), ("--sse-path", "sse"), ("--message-path", "messages")):
        args += [flag, paths[name]]
    async with open_gateway_process(config, transport="streamable-http,sse", extra_args=args) as gateway:
        yield HttpClient(gateway.url)


async def send(client, method, target, body=b"", **headers):
    """Send one request with exactly this target; return status, headers and body.

    For a stream, the body is its first event.
    """
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    with trio.fail_after(ANSWER_WITHIN):
        async with client.exchange(method, body, headers=given, path=target) as exchange:
            streams = exchange.headers.get("content-type", "").startswith("text/event-stream")
            if streams and "content-length" not in exchange.headers and method != "POST":
                event = await exchange.next_sse()
                return exchange.status, exchange.headers, event.data.partition("session_id")[0].encode()
            return exchange.status, exchange.headers, await exchange.read_body()


STREAMS = {"read_events", "read_stderr"}  # they have no end


def endpoints(paths):
    found = [place.rstrip("/") for place in paths.values() if place != "/"]
    found += [f"{place}/v" for place in found] + [f"{place}/nowhere" for place in found]
    admin = {one.path.replace("{name}", "echo") for one in OPERATIONS if one.name not in STREAMS}
    return [*found, *sorted(admin), "/nothing", "/.well-known/oauth-protected-resource"]


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS)
async def test_a_slash_at_the_end_changes_nothing(paths):
    async with open_harness(paths=paths) as client:
        for endpoint in endpoints(paths):
            for method in METHODS:
                if (method, endpoint) in {("POST", "/reload"), ("DELETE", "/servers/echo")} or "able" in endpoint:
                    continue  # done once below: it changes what the next request finds
                body = INITIALIZE if method == "POST" else b""
                plain = await send(client, method, endpoint, body)
                for slashed in (f"{endpoint}/", f"{endpoint}//"):
                    found = await send(client, method, slashed, body)
                    assert summary(found) == summary(plain), (method, slashed)
                    assert not 300 <= found[0] < 400
        place = paths["mcp"].rstrip("/")
        assert (await send(client, "POST", f"{place}/", INITIALIZE))[0] == 200
        assert (await send(client, "POST", f"{place}/v/", INITIALIZE))[0] == 200
        assert (await send(client, "POST", f"{place}/?x=1", INITIALIZE))[0] == 200


def summary(found):
    """What must not depend on how a path is written."""
    status, headers, body = found
    kept = {name: headers.get(name) for name in ("allow", "content-type", "www-authenticate", "location")}
    is_page = status == 200 and not body.startswith(b'{"error"')
    return status, kept, b"" if is_page else body  # ages and the like are not the same twice


async def test_changes_over_the_management_api_with_a_slash():
    async with open_harness() as client:
        added = json.dumps({"mcpServers": {"two": CONFIG["mcpServers"]["echo"]}}).encode()
        for method, path, body in (
            ("POST", "/servers/", added),
            ("POST", "/servers/two/disable/", b"{}"),
            ("POST", "/servers/two/enable/", b"{}"),
            ("POST", "/servers/two/restart/", b"{}"),
            ("DELETE", "/servers/two/", b""),
            ("POST", "/reload/", b"{}"),
        ):
            assert (await send(client, method, path, body))[0] == 401, path
            status, _, answer = await send(client, method, path, body, **ADMIN)
            assert status == 200, (path, answer)
        for endpoint in ("/events", "/events/"):
            async with client.exchange("GET", headers=ADMIN, path=endpoint) as exchange:
                assert exchange.status == 200


async def test_sessions_continue_under_either_spelling():
    async with open_harness() as client:
        for path in ("/mcp", "/mcp/", "/mcp/v", "/mcp/v/"):
            status, headers, _ = await send(client, "POST", path, INITIALIZE)
            assert status == 200
            own = {"Mcp-Session-Id": headers["mcp-session-id"]}
            ping = json.dumps(make_request(2, "ping")).encode()
            assert (await send(client, "POST", path.rstrip("/") + "/", ping, **own))[0] == 200
            async with client.exchange("GET", headers=own | {"Accept": "text/event-stream"}, path=path) as exchange:
                assert exchange.status == 200
            assert (await send(client, "DELETE", path, b"", **own))[0] == 200


async def test_rules_hold_under_every_spelling():
    config = CONFIG | {"access": keys(views=["v"])}
    async with open_harness(config) as client:
        for path in ("/mcp", "/mcp/", "/mcp/v", "/mcp/v/", "/sse", "/sse/", "/messages", "/messages/", "/health/"):
            for target in (path, f"http://127.0.0.1:{client.port}{path}"):
                method = "GET" if "sse" in path or "health" in path else "POST"
                body = INITIALIZE if method == "POST" else b""
                for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
                    status, _, answer = await send(client, method, target, body, **headers)
                    if "Host" in headers and target != path:
                        continue  # the authority of the target counts, and that one is ours
                    assert (status, b"evil.example" in answer) == (403, True), (target, headers)
                if "health" in path:
                    continue
                assert (await send(client, method, target, body))[0] == 401, target
                expected = 200 if "/v" in path else 403
                assert (await send(client, method, target, body, **KEY))[0] == expected, target
                assert (await send(client, "OPTIONS", target))[0] == 401


async def test_the_authority_of_an_absolute_target_is_checked():
    async with open_harness() as client:
        ours = f"127.0.0.1:{client.port}"
        for target, host, status in (
            (f"http://{ours}/livez", ours, 200),
            (f"HTTP://LocalHost:{client.port}/livez", ours, 200),
            (f"https://{ours}/livez", ours, 200),
            (f"http://{ours}/livez", "evil.example", 200),
            (f"http://{ours}/livez/?x=/", ours, 200),
            (f"http://{ours}", ours, 404),
            (f"http://{ours}?x", ours, 404),
            (f"http://{ours}/nothing", ours, 404),
            ("http://evil.example/livez", ours, 403),
            (f"http://evil.example:{client.port}/livez", ours, 403),
            (f"http://{ours}@evil.example/livez", ours, 403),
            (f"http://evil.example@{ours}/livez", ours, 403),
            ("http:///livez", ours, 403),
        ):
            assert (await send(client, "GET", target, host=host))[0] == status, target
        for path in ("/mcp", "/mcp/", "/mcp/v"):
            assert (await send(client, "POST", f"http://{ours}{path}", INITIALIZE))[0] == 200
            assert (await send(client, "POST", f"http://evil.example{path}", INITIALIZE))[0] == 403
        status, _, event = await send(client, "GET", f"http://{ours}/sse")
        assert (status, event) == (200, b"/messages?")
        assert (await send(client, "POST", f"http://{ours}/servers", b"{}"))[0] == 401
        assert (await send(client, "GET", "http://evil.example/health"))[0] == 403


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "zstd", "identity, gzip", "nonsense"])
async def test_a_compressed_body_is_refused_by_name(encoding):
    async with open_harness() as client:
        session = (await send(client, "GET", "/sse"))[2].decode()
        async with client.exchange("GET", headers={"Accept": "text/event-stream"}, path="/sse") as stream:
            session = (await stream.next_sse()).data
            modern = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/list"}
            for path, headers in (("/mcp", {}), ("/mcp", modern), ("/mcp/v", {}), (session, {}), ("/servers", ADMIN)):
                given = {"Content-Encoding": encoding, **headers}
                status, found, answer = await send(client, "POST", path, gzip.compress(INITIALIZE), **given)
                assert (status, found["accept-encoding"]) == (415, "identity"), path
                assert encoding.rpartition(", ")[2] in answer.decode()
        for harmless in ("identity", "Identity", "", "identity, identity"):
            assert (await send(client, "POST", "/mcp", INITIALIZE, **{"Content-Encoding": harmless}))[0] == 200


async def test_a_foreign_host_is_named_with_the_setting():
    async with open_harness() as client:
        for path in ("/mcp", "/sse", "/messages", "/health", "/livez", "/.well-known/oauth-protected-resource"):
            status, _, answer = await send(client, "GET", path, host="host.docker.internal:8080")
            assert status == 403
            assert "'host.docker.internal:8080'" in answer.decode()
            assert "access.allow_hosts" in answer.decode()
    config = CONFIG | {"access": {"allow_hosts": ["host.docker.internal"]}}
    async with open_harness(config) as client:
        assert (await send(client, "POST", "/mcp", INITIALIZE, host="host.docker.internal:8080"))[0] == 200


@pytest.mark.parametrize("accept", ["text/event-stream", "TEXT/*", "text/event-stream;q=0.1, application/json;q=0"])
async def test_a_client_that_takes_streams_only_gets_streams(accept):
    await check_kinds(accept, "text/event-stream")


@pytest.mark.parametrize("accept", ["application/json", "APPLICATION/JSON", "application/*, text/event-stream;q=0"])
async def test_a_client_that_takes_json_only_gets_json(accept):
    await check_kinds(accept, "application/json")


async def check_kinds(accept, kind):
    """Check answers of gateway and backends in both eras, and heads of streams."""
    async with open_harness() as client:
        response = await client.send("POST", INITIALIZE, headers={"Accept": accept})
        assert response.headers["content-type"] == kind
        assert response.messages()[0]["result"]["serverInfo"]
        client.session_id = response.headers["mcp-session-id"]
        call = ("tools/call", {"name": "echo.echo", "arguments": {"text": "x"}})
        for method, params in (("ping", {}), ("tools/list", {}), call, ("tools/call", {"name": "no"})):
            response = await client.post(make_request(5, method, params), headers={"Accept": accept})
            assert (response.status, response.headers["content-type"]) == (200, kind), method
            assert [one["id"] for one in response.messages() if "id" in one] == [5]
        for method, params in (("server/discover", {}), ("tools/list", {}), call, ("tools/call", {"name": "no"})):
            response = await client.post_modern(method, params, headers={"Accept": accept})
            assert (response.status, response.headers["content-type"]) == (200, kind), method
            assert len(response.messages()) == 1
        refused = await client.post(make_request(6, "ping"), headers={"Accept": "text/html"})
        assert refused.status == 406
