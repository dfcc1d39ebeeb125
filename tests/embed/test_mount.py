"""The mounted proxy, rows M1 to M6: in a running application, under uvicorn and Hypercorn."""

from __future__ import annotations

import builtins
import logging
import os
import sys
import threading
from typing import Any

import anyio
import pytest
from mcp import Client
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import gateway
from gateway.embed import bridge, mount
from gateway.errors import GatewayError
from tests.support.embedding import (
    Wire,
    both_loops,
    children,
    config_of,
    open_http,
    open_server,
    open_wire,
    run_on,
    until,
)
from tests.support.gateway_process import echo_backend, faulty_backend

pytestmark = [
    pytest.mark.leak_check,
    # A stream that never ends is left in the middle, and the client library leaves its own generators to trio.
    pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2:ResourceWarning"),
]
PAGE = "https://page.example"
ECHO = {
    "name": "a.echo",
    "description": "Says it again.",
    "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}


def make_app() -> Starlette:
    """An application with a page for everything, which must not hide what is mounted."""

    async def page(request: Any) -> PlainTextResponse:  # noqa: RUF029 - plain ones run in threads
        return PlainTextResponse("a page of the application")

    return Starlette(routes=[Route("/{rest:path}", page)])


# -- M1, M2 ----------------------------------------------------------------------------------------------------------


def test_guarantee_m1_name_key_and_memory_config_suffice() -> None:
    manager = gateway.ProxyManager(name="mine", auth_enabled=True, api_key="key", config=config_of())
    assert manager.get_all_servers() == ["a"]
    assert gateway.ProxyManager("mine", True, "key").get_all_servers() == []
    for key in (None, ""):
        with pytest.raises(ValueError, match="api_key"):
            gateway.ProxyManager(auth_enabled=True, api_key=key)
    with pytest.raises(GatewayError, match="'command'"):
        gateway.ProxyManager(config=config_of(a={"command": 3}))


@both_loops
def test_guarantee_m1_no_file_is_read_or_written(loop: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    real = builtins.open

    def note(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not isinstance(file, int) and not str(file).startswith(("/proc/", "/dev/", sys.prefix)):
            opened.append(str(file))
        return real(file, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", note)

    async def body() -> None:
        manager = gateway.ProxyManager("mine", config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with open_wire(url) as wire:
                assert (await wire.call("a.echo", text="x"))["result"]["content"][0]["text"] == "x"
            await manager.shutdown()

    run_on(loop, body)
    assert not [name for name in opened if "state" in name or name.endswith(".json")]
    assert os.listdir(tmp_path) == []


@both_loops
def test_guarantee_m2_it_mounts_in_a_running_application(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager("mine")
        manager.initialize(config_of())
        app = make_app()
        async with open_server(app) as url:
            async with open_http(url) as http:
                assert (await http.get("/mcp")).text == "a page of the application"
            await manager.mount_to_app(app, allow_origins=[PAGE])
            async with open_wire(url) as wire:
                assert (await wire.introduce())["serverInfo"]["name"] == "mine"
                assert set(await wire.tools()) >= {"a.echo", "a.sleep"}
                assert (await wire.call("a.echo", text="hi"))["result"]["content"][0]["text"] == "hi"
                assert (await wire.http.get("/other")).text == "a page of the application"
                answer = await wire.http.post("/mcp/", json={}, headers=wire.headers)
                assert answer.status_code != 307
            await manager.shutdown()
            assert children() == []
            async with open_http(url) as http:
                assert (await http.get("/mcp")).text == "a page of the application"
            await manager.mount_to_app(app)  # and once more
            async with open_wire(url) as wire:
                assert "a.echo" in await wire.tools()
            await manager.shutdown()
        assert not any(thread.name.startswith("gateway") for thread in threading.enumerate())

    run_on(loop, body)


@both_loops
def test_guarantee_m2_both_eras_and_the_older_transport_are_served(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            for mode in ("legacy", "auto"):
                async with Client(f"{url}/mcp", mode=mode) as client:
                    result = await client.call_tool("a.echo", {"text": mode})
                    assert result.content[0].text == mode  # type: ignore[union-attr]
            async with open_http(url) as http, http.stream("GET", "/sse") as stream:
                lines = stream.aiter_lines()
                assert await anext(lines) == "event: endpoint"
                path = (await anext(lines)).removeprefix("data: ")
                assert path.startswith("/messages/?session_id=")
                answer = await http.post(path, json={"jsonrpc": "2.0", "id": 1, "method": "ping"})
                assert answer.status_code == 202
                found = [await anext(lines) for _ in range(3)]
                assert '"result":{}' in found[2]
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_a_trailing_slash_changes_nothing(loop: str) -> None:
    async def body() -> None:
        for path, sse_path, message_path in (("/tools", "/sse", "/messages"), ("/tools/", "/sse/", "/messages/")):
            manager, app = gateway.ProxyManager(config=config_of()), make_app()
            await manager.mount_to_app(app, path=path, sse_path=sse_path, message_path=message_path)
            async with open_server(app) as url, open_http(url) as http:
                for place in ("/tools", "/tools/"):
                    wire = Wire(http, place)
                    await wire.introduce()
                    assert "a.echo" in await wire.tools()
                for place in ("/sse", "/sse/"):
                    async with http.stream("GET", place) as stream:
                        assert (stream.status_code, stream.headers["content-type"]) == (200, "text/event-stream")
                for place in ("/messages", "/messages/"):
                    assert (await http.post(place, json={})).status_code == 400  # it names no session
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_guarantee_m2_it_mounts_elsewhere_and_in_two_applications(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        one, two = make_app(), make_app()
        await manager.mount_to_app(one, path="/tools", sse_path=None)
        await manager.mount_to_app(two)
        async with open_server(one) as url, open_http(url) as http:
            wire = Wire(http, "/tools")
            await wire.introduce()
            assert "a.echo" in await wire.tools()
            assert (await http.get("/sse")).text == "a page of the application"
        async with open_server(two) as url, open_wire(url) as wire:
            assert "a.echo" in await wire.tools()
        assert len(children()) == 1
        await manager.shutdown()

    run_on(loop, body)


# -- M3, M4 ----------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_m3_exactly_the_chosen_tools_are_offered(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of(a=echo_backend(), b=echo_backend()))
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with open_wire(url) as wire:
                manager.update_tools([ECHO, {"name": "b.echo"}])
                tools = await wire.tools()
                assert set(tools) == {"a.echo", "b.echo"}
                assert tools["a.echo"]["description"] == ECHO["description"]
                assert tools["a.echo"]["inputSchema"] == ECHO["parameters"]
                assert tools["b.echo"]["description"] == "The echo tool."
                assert (await wire.call("a.echo", text="x"))["result"]["content"][0]["text"] == "x"
                refused = await wire.call("a.sleep", seconds=0)
                assert refused["error"]["code"] == -32602
                assert "Unknown tool: a.sleep" in refused["error"]["message"]
                assert text_of_direct(await manager.call_tool("a", "echo", {"text": "direct"})) == "direct"
            await manager.shutdown()

    run_on(loop, body)


def text_of_direct(result: Any) -> str:
    return result.content[0].text


@both_loops
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([ECHO, {"name": "a.nothing"}, {"name": "zzz.echo"}], ["'a.nothing'", "'zzz.echo'"]),
        ([{"name": "echo"}], ["'echo'"]),
        ([{"description": "nameless"}, "a.echo", ECHO, ECHO], ["tools[0]", "tools[1]", "tools[3]", "twice"]),
        ([{**ECHO, "parameters": {"type": "string"}}], ["'parameters'"]),
        ([{**ECHO, "parameters": {"default": object()}}], ["tools[0]"]),
        ([{**ECHO, "description": 7}], ["'description'"]),
        ({"a.echo": {}}, ["must be a list"]),
    ],
)
def test_guarantee_m3_invalid_tools_are_refused_without_effect(loop: str, wrong: Any, words: list[str]) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            await manager.update_and_remount(app, [ECHO])
            async with open_wire(url) as wire:
                before = await wire.tools()
                with pytest.raises(ValueError, match="tool") as caught:
                    manager.update_tools(wrong)
                assert isinstance(caught.value, GatewayError)
                assert all(word in str(caught.value) for word in words), str(caught.value)
                with pytest.raises(ValueError, match="tool"):
                    await manager.update_and_remount(app, wrong)
                assert await wire.tools() == before
            await manager.shutdown()

    run_on(loop, body)


def test_guarantee_m3_tools_may_be_chosen_before_mounting() -> None:
    manager = gateway.ProxyManager(config=config_of(a=echo_backend("--start-delay", 0.3)))
    manager.update_tools([ECHO])

    async def body() -> None:
        await manager.update_tools([ECHO])  # which may be awaited as well
        app = make_app()
        await manager.mount_to_app(app)
        async with open_server(app) as url, open_wire(url) as wire:
            assert set(await wire.tools()) == {"a.echo"}
        await manager.shutdown()

    run_on("asyncio", body)


@both_loops
def test_guarantee_m4_a_remount_serves_immediately_and_finishes_calls(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            finished: list[Any] = []
            async with open_wire(url) as wire, wire.listen() as message, anyio.create_task_group() as group:

                async def call_slowly() -> None:
                    finished.append(await wire.call("a.sleep", seconds=1, text="kept"))

                group.start_soon(call_slowly)
                await until(lambda: manager._engine._gateway.router.under_way)  # type: ignore[union-attr]
                await manager.update_and_remount(app, [ECHO], allow_origins=[PAGE])
                assert set(await wire.tools()) == {"a.echo"}
                assert (await message())["method"] == "notifications/tools/list_changed"
                allowed = await wire.post("ping", origin=PAGE)
                assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, PAGE)
                assert not finished
            assert finished[0]["result"]["content"][0]["text"] == "kept"
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_guarantee_m4_a_reload_reaches_connected_clients_too(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with open_wire(url) as wire, wire.listen() as message:
                pid = (await wire.call("a.env"))["result"]["structuredContent"]["pid"]
                assert await manager.reload(config_of(a=echo_backend(), b=echo_backend())) == (True, None)
                assert "b.echo" in await wire.tools()
                assert (await message())["method"] == "notifications/tools/list_changed"
                assert (await wire.call("a.env"))["result"]["structuredContent"]["pid"] == pid
                assert (await manager.reload({"mcpServers": {"a": {}}}))[0] is False
                assert "b.echo" in await wire.tools()
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_guarantee_m4_a_gateway_without_servers_can_reload(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager()
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with open_wire(url) as wire:
                assert await wire.tools() == {}
                assert await manager.reload(config_of()) == (True, None)
                assert "a.echo" in await wire.tools()
            await manager.shutdown()

    run_on(loop, body)


# -- M5 --------------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_m5_a_wrong_key_gets_only_401(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(auth_enabled=True, api_key="the key", config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with open_http(url) as http:
                wrong = [
                    {},
                    {"x-api-key": ""},
                    {"x-api-key": "the ke"},
                    {"x-api-key": "the key2"},
                    {"authorization": "the key"},
                    {"authorization": "Basic the key"},
                    {"authorization": "Bearer wrong"},
                ]
                for headers in wrong:
                    for path in ("/mcp", "/sse", "/messages/"):
                        for method in ("POST", "GET", "DELETE"):
                            answer = await http.request(method, path, headers=headers, content=b"{")
                            assert answer.status_code == 401
                            assert answer.content == b""
                for headers in ({"x-api-key": "the key"}, {"authorization": "Bearer the key"}):
                    wire = Wire(http, **headers)
                    await wire.introduce()
                    assert "a.echo" in await wire.tools()
                assert (await http.get("/other")).status_code == 200
            await manager.shutdown()

    run_on(loop, body)


def test_guarantee_m5_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    monkeypatch.setattr(mount.hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    sent: list[Any] = []

    async def send(message: Any) -> None:  # noqa: RUF029 - ASGI's form
        sent.append(message)

    async def body() -> None:
        check = mount.KeyCheck(None, "key")
        for headers in ([(b"x-api-key", b"k")], [(b"x-api-key", b"k" * 999), (b"Authorization", b"Bearer x")]):
            await check({"headers": headers}, None, send)  # type: ignore[arg-type]

    run_on("trio", body)
    assert compared == [(32, 32)] * 2
    assert [message["status"] for message in sent if "status" in message] == [401, 401]


@both_loops
def test_guarantee_m5_cors_follows_allow_origins(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(auth_enabled=True, api_key="k", config=config_of())
        app = make_app()
        async with open_server(app) as url, open_http(url) as http:
            await manager.mount_to_app(app, allow_origins=[PAGE])
            asked = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key,mcp-param-x"}
            preflight = await http.options("/mcp", headers={"origin": PAGE, **asked})
            assert preflight.status_code == 200  # a browser sends no key with it
            assert preflight.headers["access-control-allow-origin"] == PAGE
            assert "x-api-key" in preflight.headers["access-control-allow-headers"]
            assert (await http.options("/mcp", headers={"origin": "https://evil.example", **asked})).status_code == 400
            wire = Wire(http, **{"x-api-key": "k", "origin": PAGE})
            await wire.introduce()
            answer = await wire.post("ping")
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "mcp-session-id" in answer.headers["access-control-expose-headers"].lower()
            for origin, status in [("https://evil.example", 403), ("http://localhost:3000", 200), (PAGE, 200)]:
                assert (await wire.post("ping", origin=origin)).status_code == status
            refused = await http.post("/mcp", headers={"origin": PAGE})
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
            await manager.mount_to_app(app, allow_origins="*")
            assert (await wire.post("ping", origin="https://any.example")).status_code == 200
            await manager.shutdown()

    run_on(loop, body)


# -- M6 --------------------------------------------------------------------------------------------------------------


@both_loops
def test_guarantee_m6_a_failed_mount_raises_and_changes_nothing(loop: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        taken = Starlette(routes=[Route("/sse", lambda _: None)])
        for app, words in [(object(), "FastAPI"), (taken, "'/sse'"), (None, "FastAPI")]:
            caplog.clear()
            with pytest.raises(GatewayError, match=words):
                await manager.mount_to_app(app)
            assert words in caplog.text
        assert len(taken.routes) == 1
        app = make_app()
        with pytest.raises(GatewayError, match="path"):
            await manager.mount_to_app(app, path="mcp")
        await manager.mount_to_app(app)
        other = gateway.ProxyManager(config=config_of())
        with pytest.raises(GatewayError, match="'/mcp'"):
            await other.mount_to_app(app)
        await manager.shutdown()
        await other.shutdown()
        assert len(app.routes) == 1

    caplog.set_level(logging.ERROR)
    run_on(loop, body)


@both_loops
def test_guarantee_m6_a_failed_start_is_not_half_mounted(
    loop: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()

        async def fail(*_: object) -> None:  # noqa: RUF029 - the signature of the function it replaces
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr("gateway.embed.native.EmbeddedGateway.open_asgi_frontends", fail)
            with pytest.raises(GatewayError):
                await manager.mount_to_app(app)
        assert "could not be mounted" in caplog.text
        assert len(app.routes) == 1
        await manager.shutdown()
        await manager.mount_to_app(app)  # another try succeeds
        assert len(app.routes) > 1
        await manager.shutdown()

    run_on(loop, body)


def test_guarantee_m6_a_wrong_config_is_refused_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    manager = gateway.ProxyManager(config=config_of())
    with pytest.raises(GatewayError, match="'b'"):
        manager.initialize(config_of(b={"command": 3}))
    assert "'b'" in caplog.text
    assert manager.get_all_servers() == ["a"]


# -- The bridge ------------------------------------------------------------------------------------------------------


@both_loops
def test_a_client_that_hangs_up_cancels_its_call(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            modern = {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "a.sleep"}
            meta = {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
                "io.modelcontextprotocol/clientCapabilities": {},
            }
            async with open_http(url) as http:
                wire = Wire(http, **modern)
                async with anyio.create_task_group() as group:
                    params = {"name": "a.sleep", "arguments": {"seconds": 60}, "_meta": meta}
                    group.start_soon(wire.post, "tools/call", params)
                    await until(lambda: manager._engine._gateway.fleet.supervisors["a"].in_flight)  # type: ignore[union-attr]
                    group.cancel_scope.cancel()
            await until(lambda: not manager._engine._gateway.router.under_way)  # type: ignore[union-attr]
            async with open_wire(url) as wire:
                log = await wire.call("a.cancelled_log")
                assert len(log["result"]["structuredContent"]["cancelled"]) == 1
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_large_bodies_and_answers_cross(loop: str) -> None:
    async def body() -> None:
        config = {**config_of(), "gateway": {"max_body_bytes": 1_000_000}}
        manager = gateway.ProxyManager(config=config)
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with open_wire(url) as wire:
                for size in (1, 70_000, 900_000):
                    text = "x" * size
                    assert (await wire.call("a.echo", text=text))["result"]["content"][0]["text"] == text
                big = await wire.call("a.big", n=3_000_000)
                assert len(big["result"]["content"][0]["text"]) == 3_000_000
                refused = await wire.post("tools/call", {"name": "a.echo", "arguments": {"text": "x" * 1_100_000}})
                assert refused.status_code == 413
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_progress_streams_through(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            async with Client(f"{url}/mcp", mode="legacy") as client:
                received: list[float] = []

                async def note(progress: float, total: float | None, message: str | None) -> None:  # noqa: RUF029
                    received.append(progress)

                arguments = {"n": 300, "delay": 0.001}
                result = await client.call_tool("a.progress", arguments, progress_callback=note)
                assert result.content[0].text == "300 steps"  # type: ignore[union-attr]
                assert received == sorted(received)
                assert received[-1] == 300
            await manager.shutdown()

    run_on(loop, body)


@both_loops
def test_shutdown_ends_connected_clients_streams_and_calls(loop: str) -> None:
    async def body() -> None:
        config = {**config_of(), "gateway": {"drain_grace": 0.5}}
        manager = gateway.ProxyManager(config=config)
        app = make_app()
        async with open_server(app) as url:
            await manager.mount_to_app(app)
            answers: list[Any] = []
            async with open_wire(url) as wire, anyio.create_task_group() as group:

                async def call_slowly() -> None:
                    answers.append(await wire.call("a.sleep", seconds=20))

                async def listen() -> None:
                    async with wire.http.stream("GET", "/mcp", headers=wire.headers) as stream:
                        async for _ in stream.aiter_bytes():
                            pass
                    answers.append("stream ended")

                group.start_soon(call_slowly)
                group.start_soon(listen)
                await until(lambda: manager._engine._gateway.router.under_way)  # type: ignore[union-attr]
                with anyio.fail_after(15):
                    await manager.shutdown()
            assert len(answers) == 2
            assert any("shutting down" in str(answer) for answer in answers)

    run_on(loop, body)


@both_loops
def test_a_client_that_does_not_read_is_dropped(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        await manager.mount_to_app(app)
        thread, _ = manager._started()
        served = bridge.Bridge(thread, manager._mounted[0].frontends, 65_536, send_timeout=0.3)
        ended = anyio.Event()
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            if "body" not in sent:
                sent.append("body")
                message = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}'
                return {"type": "http.request", "body": message, "more_body": False}
            await ended.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            await ended.wait()

        headers = [(b"content-type", b"application/json"), (b"accept", b"application/json, text/event-stream")]
        head = {"type": "http", "method": "POST", "path": "/mcp", "root_path": "", "query_string": b""}
        with anyio.fail_after(15):
            await served({**head, "headers": headers}, receive, send)
        await manager.shutdown()

    run_on(loop, body)


def test_a_fastapi_application_serves_it_undocumented() -> None:
    fastapi = pytest.importorskip("fastapi", reason="a development dependency")

    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = fastapi.FastAPI()
        async with open_server(app) as url:
            await manager.mount_to_app(app, allow_origins=["*"])
            async with open_wire(url) as wire:
                assert "a.echo" in await wire.tools()
                assert (await wire.http.get("/openapi.json")).json()["paths"] == {}
            await manager.shutdown()

    run_on("asyncio", body)


def test_a_server_that_never_starts_delays_no_other() -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(
            config=config_of(a=echo_backend(), dead=faulty_backend("exit_at_once", "--when", "start"))
        )
        app = make_app()
        with anyio.fail_after(15):
            await manager.mount_to_app(app)
        async with open_server(app) as url, open_wire(url) as wire:
            assert "a.echo" in await wire.tools()
        await manager.shutdown()

    run_on("asyncio", body)


def test_the_answers_of_a_closed_gateway_are_503() -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=config_of())
        app = make_app()
        await manager.mount_to_app(app)
        served = next(route for route in app.routes if getattr(route, "path", "") == "/mcp")
        await manager.shutdown()
        app.routes.insert(0, served)  # as a request that was on its way found it
        async with open_server(app) as url, open_http(url) as http:
            assert (await http.post("/mcp", json={})).status_code == 503

    run_on("asyncio", body)
