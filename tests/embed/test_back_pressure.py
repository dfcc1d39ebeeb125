"""Mounted gateway clients that do not read, in another thread's application and on its loop."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from starlette.applications import Starlette

import gateway
from tests.support.embedding import config_of, run_on, until
from tests.support.wire import make_request, modern_params

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.runtime import GatewayRuntime

pytestmark = pytest.mark.leak_check
SIZE = 3_000_000


class Visitor:
    """A modern call as the application's server passes it on.

    Its client reads only while `reading` is set.
    """

    def __init__(self, app: Any, tool: str, **arguments: Any) -> None:
        self._app = app
        message = make_request(1, "tools/call", modern_params({"name": tool, "arguments": arguments}))
        self._body = [json.dumps(message).encode()]
        self._headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"application/json, text/event-stream"),
            (b"mcp-protocol-version", b"2026-07-28"),
            (b"mcp-method", b"tools/call"),
            (b"mcp-name", tool.encode()),
        ]
        self.reading, self.ended = anyio.Event(), anyio.Event()
        self.status = 0
        self.body = b""
        self.is_complete = False

    async def run(self) -> None:
        head = {"type": "http", "method": "POST", "path": "/mcp", "root_path": "", "query_string": b""}
        await self._app({**head, "headers": self._headers}, self._receive, self._send)
        self.ended.set()

    async def read(self) -> dict[str, Any]:
        """Run it to its end, with a client that reads; return the response."""
        self.reading.set()
        await self.run()
        return json.loads(self.body)

    async def _receive(self) -> dict[str, Any]:
        if not self._body:
            await anyio.sleep_forever()
        return {"type": "http.request", "body": self._body.pop(), "more_body": False}

    async def _send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)
        if message["type"] == "http.response.body":
            await self.reading.wait()
        self.body += message.get("body", b"")
        self.is_complete = message["type"] == "http.response.body" and not message.get("more_body")


@asynccontextmanager
async def open_mounted(kind: str) -> AsyncGenerator[tuple[Any, GatewayRuntime]]:
    """The mounted application, and the runtime behind it."""
    if kind == "native":
        async with gateway.open_gateway(config_of()) as running:
            await running.list_tools()
            yield running.asgi_app, running.runtime
        return
    manager = gateway.ProxyManager(config=config_of())
    app = Starlette()
    await manager.mount_to_app(app)
    try:
        served = next(route.app for route in app.routes if getattr(route, "path", "") == "/mcp")  # type: ignore[attr-defined]
        assert (await Visitor(served, "a.echo", text="x").read())["result"]
        yield served, manager._engine._gateway.runtime  # type: ignore[union-attr]
    finally:
        await manager.shutdown()


def run(kind: str, body: Any) -> None:
    async def with_mounted() -> None:
        async with open_mounted(kind) as (app, runtime):
            await body(app, runtime)
            await until(lambda: not (runtime.buffers.used or runtime.router.under_way))

    run_on("trio" if kind == "native" else kind, with_mounted)


each = pytest.mark.parametrize("kind", ["asyncio", "trio", "native"])


@each
def test_an_unread_response_delays_no_other_call(kind: str) -> None:
    async def body(app: Any, runtime: GatewayRuntime) -> None:
        slow = Visitor(app, "a.big", n=SIZE)
        async with anyio.create_task_group() as group:
            group.start_soon(slow.run)
            await until(lambda: runtime.buffers.used > SIZE)
            for _ in range(3):
                assert (await Visitor(app, "a.echo", text="x").read())["result"]["content"][0]["text"] == "x"
            assert not slow.ended.is_set()
            slow.reading.set()
        assert len(json.loads(slow.body)["result"]["content"][0]["text"]) == SIZE

    run(kind, body)


@each
def test_over_the_total_bound_the_largest_connection_closes(kind: str) -> None:
    async def body(app: Any, runtime: GatewayRuntime) -> None:
        runtime.buffers.most = SIZE + SIZE // 2
        slow, other = Visitor(app, "a.big", n=SIZE), Visitor(app, "a.big", n=SIZE)
        other.reading.set()
        with anyio.fail_after(15):
            async with anyio.create_task_group() as group:
                group.start_soon(slow.run)
                await until(lambda: runtime.buffers.used > SIZE)
                group.start_soon(other.run)  # its result makes room
        assert not slow.is_complete
        assert other.is_complete
        assert (await Visitor(app, "a.echo", text="x").read())["result"]["content"][0]["text"] == "x"

    run(kind, body)


@each
def test_an_exception_in_a_sink_ends_its_exchange(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(app: Any, runtime: GatewayRuntime) -> None:
        broken, other = Visitor(app, "a.echo", text="x"), Visitor(app, "a.sleep", seconds=0.2)
        other.reading.set()
        async with anyio.create_task_group() as group:
            group.start_soon(other.run)
            await until(lambda: runtime.router.under_way)
            with monkeypatch.context() as patch:
                patch.setattr(runtime.handler, "encode_outcome", lambda *_: 1 / 0)
                broken.reading.set()
                if kind == "native":  # the server around it answers 500
                    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True, allow_unwrapped=True):
                        await broken.run()
                else:
                    await broken.run()
                    assert (broken.status, broken.is_complete) == (503, True)
        assert json.loads(other.body)["result"]
        assert (await Visitor(app, "a.echo", text="x").read())["result"]

    run(kind, body)
