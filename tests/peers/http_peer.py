"""A raw HTTP server scripted by the test: h11 over trio sockets, no SDK.

`open_peer(handler)` serves on 127.0.0.1 while a block runs. `LegacyServer`, `ModernServer` and `SseServer` are handlers
of well-behaved MCP servers; a test replaces single answers: `server.on["tools/call"] = my_answer`, where
`async my_answer(request, reply)` does what it likes with the connection. As a script (`python http_peer.py
--server legacy|modern|sse `) it serves one of them and says `listening on URL` on stderr.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11
import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    Handler = Callable[["Request", "Reply"], Awaitable[None]]

META = "io.modelcontextprotocol/"
MODERN = "2026-07-28"
JSON = "application/json"
EVENTS = "text/event-stream"
WITHIN = 10.0  # seconds until a test that waits for something fails


class Cut(Exception):
    """The peer breaks the connection."""


@dataclass(eq=False)
class Request:
    """One request as it came; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def message(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body else {}

    @property
    def rpc(self) -> str:
        """The JSON-RPC method, or the HTTP method where there is no body."""
        return self.message.get("method", "response") if self.body else self.method

    @property
    def params(self) -> dict[str, Any]:
        return self.message.get("params", {})


@dataclass(eq=False)
class Reply:
    """How a handler answers. A handler that returns without having answered sends 202."""

    stream: trio.SocketStream
    connection: h11.Connection
    request: Request
    begun: bool = False
    ended: bool = False
    lock: trio.Lock = field(default_factory=trio.Lock)

    async def _send(self, event: Any) -> None:
        async with self.lock:
            await self.stream.send_all(self.connection.send(event) or b"")

    async def send(self, status: int, body: bytes = b"", kind: str = JSON, **headers: str) -> None:
        """A whole response. Header names are keywords with `_` for `-`."""
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        fields += [("content-type", kind)] if body else []
        head = h11.Response(status_code=status, headers=[*fields, ("content-length", str(len(body)))])
        self.begun = self.ended = True
        await self._send(head)
        if body:
            await self._send(h11.Data(data=body))
        await self._send(h11.EndOfMessage())

    async def result(self, result: Any, **headers: str) -> None:
        await self.send(200, dump({"jsonrpc": "2.0", "id": self.request.message["id"], "result": result}), **headers)

    async def error(self, code: int, text: str, *, status: int = 200, data: Any = None, request_id: Any = ...) -> None:
        error = {"code": code, "message": text} | ({} if data is None else {"data": data})
        number = self.request.message["id"] if request_id is ... else request_id
        await self.send(status, dump({"jsonrpc": "2.0", "id": number, "error": error}))

    async def begin(self, **headers: str) -> None:
        """The head of an event stream."""
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.begun = True
        fields += [("content-type", EVENTS), ("transfer-encoding", "chunked")]
        await self._send(h11.Response(status_code=200, headers=fields))

    async def raw(self, data: bytes) -> None:
        await self._send(h11.Data(data=data))

    async def event(self, message: Any, **fields: str) -> None:
        """One event; `fields` are `id`, `event`, `retry`."""
        lines = [f"{name}: {value}" for name, value in fields.items()]
        data = message if isinstance(message, str) else dump(message).decode()
        await self.raw("\n".join([*lines, f"data: {data}", "", ""]).encode())

    async def answer_event(self, result: Any, **fields: str) -> None:
        await self.event({"jsonrpc": "2.0", "id": self.request.message["id"], "result": result}, **fields)

    async def end(self) -> None:
        """The clean end of an event stream."""
        self.ended = True
        await self._send(h11.EndOfMessage())

    async def hung_up(self, within: float = WITHIN) -> None:
        """Wait until the client has closed the connection."""
        with trio.fail_after(within):
            try:
                while await self.stream.receive_some(65536):
                    pass
            except trio.BrokenResourceError:
                pass
        raise Cut

    async def cut(self) -> None:
        """Break the connection in the middle of the response."""
        raise Cut


def dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(eq=False)
class HttpPeer:
    """A running peer and the requests it received."""

    handler: Handler
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    open_connections: int = 0
    connections: int = 0
    changed: trio.Condition = field(default_factory=trio.Condition)
    serving: trio.CancelScope = field(default_factory=trio.CancelScope)

    def stop(self) -> None:
        """Stop listening and close all connections."""
        self.serving.cancel()

    async def listen(self, *, task_status: trio.TaskStatus[Any]) -> None:
        with self.serving:
            await trio.serve_tcp(self.serve, 0, host="127.0.0.1", task_status=task_status)

    async def wait(self, wanted: Callable[[], Any]) -> None:
        """Wait until something is so, checked after each request and closed connection."""
        with trio.fail_after(WITHIN):
            async with self.changed:
                while not wanted():
                    await self.changed.wait()

    async def received(self, rpc: str, times: int = 1) -> Request:
        """Wait for the n-th request with this JSON-RPC or HTTP method."""
        await self.wait(lambda: len(self.all(rpc)) >= times)
        return self.all(rpc)[times - 1]

    def all(self, rpc: str) -> list[Request]:
        return [request for request in self.requests if request.rpc == rpc]

    async def note(self) -> None:
        async with self.changed:
            self.changed.notify_all()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.open_connections += 1
        self.connections += 1
        number = self.connections
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        try:
            async with stream:
                while await self._one(stream, connection, number):
                    connection.start_next_cycle()
        except (Cut, h11.RemoteProtocolError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open_connections -= 1
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self.note()

    async def _one(self, stream: trio.SocketStream, connection: h11.Connection, number: int) -> bool:
        body = b""
        head: h11.Request | None = None
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert head is not None
        headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        request = Request(head.method.decode(), head.target.decode(), headers, body, number)
        self.requests.append(request)
        await self.note()
        reply = Reply(stream, connection, request)
        await self.handler(request, reply)
        if not reply.begun:
            await reply.send(202)
        elif not reply.ended:
            await reply.end()
        return connection.our_state is h11.DONE and connection.their_state is h11.DONE


@asynccontextmanager
async def open_peer(handler: Handler, *, path: str = "/mcp") -> AsyncGenerator[HttpPeer]:
    """Serve while the block runs. An error of the handler fails the test."""
    peer = HttpPeer(handler)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(peer.listen)
        peer.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}{path}"
        try:
            yield peer
        finally:
            nursery.cancel_scope.cancel()


# -- well-behaved servers ----------------------------------------------------------------------------------------------


def tool(name: str, **properties: Any) -> dict[str, Any]:
    return {"name": name, "inputSchema": {"type": "object", "properties": properties}}


def text(value: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": value}]}


class Server:
    """Answers by JSON-RPC method (or by GET and DELETE); `on` replaces single answers."""

    def __init__(self) -> None:
        self.on: dict[str, Handler] = {}
        self.tools = [tool("echo", text={"type": "string"})]

    async def __call__(self, request: Request, reply: Reply) -> None:
        handler = self.on.get(request.rpc) or getattr(self, "on_" + request.rpc.replace("/", "_").lower(), None)
        if handler is not None:
            await handler(request, reply)
        elif "id" in request.message:
            await reply.error(-32601, "Method not found")

    async def on_ping(self, request: Request, reply: Reply) -> None:
        await reply.result({})

    async def on_tools_call(self, request: Request, reply: Reply) -> None:
        await reply.result(text(request.params.get("arguments", {}).get("text", "")))


class LegacyServer(Server):
    """2025-11-25 with sessions; without a GET stream unless a test gives it one."""

    def __init__(self, *, sessions: bool = True) -> None:
        super().__init__()
        self.sessions = sessions
        self.session = 0

    async def __call__(self, request: Request, reply: Reply) -> None:
        session = request.headers.get("mcp-session-id")
        if request.rpc == "server/discover" and request.rpc not in self.on:
            await reply.error(-32000, "Bad Request: no session", status=400, request_id=None)
        elif self.sessions and request.rpc != "initialize" and session != f"session-{self.session}":
            await reply.error(-32001, "Session not found", status=404, request_id=None)
        else:
            await super().__call__(request, reply)

    async def on_initialize(self, request: Request, reply: Reply) -> None:
        self.session += 1
        headers = {"mcp_session_id": f"session-{self.session}"} if self.sessions else {}
        result = {
            "protocolVersion": request.params["protocolVersion"],
            "capabilities": {"tools": {"listChanged": True}},
            "serverInfo": {"name": "peer", "version": "1"},
        }
        await reply.result(result, **headers)

    async def on_tools_list(self, request: Request, reply: Reply) -> None:
        await reply.result({"tools": self.tools})

    async def on_get(self, request: Request, reply: Reply) -> None:
        await reply.send(405)

    async def on_delete(self, request: Request, reply: Reply) -> None:
        await reply.send(200)


class ModernServer(Server):
    """2026-07-28; POST only."""

    async def __call__(self, request: Request, reply: Reply) -> None:
        if request.method != "POST":
            await reply.send(405)
        elif META + "protocolVersion" not in request.params.get("_meta", {}):
            await reply.error(-32602, "no _meta", status=400)
        else:
            await super().__call__(request, reply)

    async def on_server_discover(self, request: Request, reply: Reply) -> None:
        found = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "private"}
        await reply.result({"resultType": "complete", **found})

    async def on_tools_list(self, request: Request, reply: Reply) -> None:
        await reply.result({"resultType": "complete", "tools": self.tools, "ttlMs": 0, "cacheScope": "private"})

    async def on_tools_call(self, request: Request, reply: Reply) -> None:
        await reply.result({"resultType": "complete", **text(request.params.get("arguments", {}).get("text", ""))})


class SseServer(Server):
    """2024-11-05: GET opens the stream, POSTs go to the address that its first event names."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = "/messages/?session_id=1"
        self.stream: Reply | None = None

    async def __call__(self, request: Request, reply: Reply) -> None:
        if request.method == "GET" and "GET" not in self.on:
            await self.on_get(request, reply)
        elif request.method == "POST" and request.target != self.endpoint:
            await reply.send(405)
        elif request.rpc in self.on:
            await self.on[request.rpc](request, reply)
        else:
            await reply.send(202, b"Accepted", "text/plain")
            await self.answer(request)

    async def on_get(self, request: Request, reply: Reply) -> None:
        await reply.begin()
        self.stream = reply
        await reply.event(self.endpoint, event="endpoint")
        await reply.hung_up(math.inf)

    async def say(self, message: Any) -> None:
        assert self.stream is not None
        await self.stream.event(message, event="message")

    async def answer(self, request: Request) -> None:
        result: dict[str, Any]
        match request.rpc:
            case "initialize":
                result = {
                    "protocolVersion": "2024-11-05",
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "peer", "version": "1"},
                }
            case "tools/list":
                result = {"tools": self.tools}
            case "tools/call":
                result = text(request.params.get("arguments", {}).get("text", ""))
            case "ping":
                result = {}
            case _:
                return
        await self.say({"jsonrpc": "2.0", "id": request.message["id"], "result": result})


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", choices=["legacy", "modern", "sse"], default="legacy")
    server = {"legacy": LegacyServer, "modern": ModernServer, "sse": SseServer}[parser.parse_args().server]()
    async with open_peer(server) as peer:
        print(f"listening on {peer.url}", file=sys.stderr, flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
