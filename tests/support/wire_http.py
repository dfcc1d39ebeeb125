"""Raw clients for streamable HTTP and HTTP+SSE: h11 over sockets, every byte visible."""

from __future__ import annotations

import json
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import h11
import trio

from tests.support.wire import (
    ANSWER_WITHIN,
    LATEST_LEGACY,
    MAX_BYTES,
    MODERN,
    Message,
    StdioClient,
    initialize_params,
    make_notification,
    make_request,
    modern_params,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

NAME_PARAM = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}


@dataclass(eq=False)
class Response:
    """An HTTP response with its whole body; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def messages(self) -> list[Message]:
        """Every JSON-RPC message of the body, be it one JSON value or an SSE stream."""
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            return [json.loads(event.data) for event in parse_events(self.body) if event.data]
        return [json.loads(self.body)] if self.body else []


@dataclass(eq=False)
class Event:
    """One SSE event; `comment` is the text of its comment lines."""

    data: str = ""
    event: str = "message"
    id: str | None = None
    retry: int | None = None
    comment: str = ""

    def json(self) -> Any:
        return json.loads(self.data)


def parse_events(body: bytes) -> list[Event]:
    return [parse_event(block) for block in body.replace(b"\r\n", b"\n").split(b"\n\n") if block.strip()]


def parse_event(block: bytes) -> Event:
    event, data, comments = Event(), [], []
    for line in block.decode().split("\n"):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                data.append(value)
            case "":
                comments.append(value)
            case "retry":
                event.retry = int(value)
            case "event" | "id":
                setattr(event, name, value)
    event.data, event.comment = "\n".join(data), "\n".join(comments)
    return event


class Exchange:
    """One HTTP request on its own connection, whose response is read in pieces."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pending = bytearray()

    async def send(self, method: str, target: str, headers: list[tuple[str, str]], body: bytes) -> None:
        data = self.http.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body:
            data += self.http.send(h11.Data(data=body)) or b""
        await self.stream.send_all(data + (self.http.send(h11.EndOfMessage()) or b""))

    async def next_event(self) -> Any:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.http.receive_data(await self.stream.receive_some(1 << 18))

    async def read_head(self) -> None:
        event = await self.next_event()
        while isinstance(event, h11.InformationalResponse):
            event = await self.next_event()
        assert isinstance(event, h11.Response), f"no response but {event!r}"
        self.status = event.status_code
        self.headers = {name.decode().lower(): value.decode("latin-1") for name, value in event.headers}

    async def read_body(self) -> bytes:
        body = bytearray()
        while isinstance(event := await self.next_event(), h11.Data):
            body += event.data
            assert len(body) <= MAX_BYTES, "a body without end"
        return bytes(body)

    async def events(self) -> AsyncGenerator[Event]:
        """Yield SSE events as they come, comments included, until the response ends."""
        while True:
            while (end := self.pending.find(b"\n\n")) >= 0:
                block = bytes(self.pending[:end])
                del self.pending[: end + 2]
                yield parse_event(block)
            event = await self.next_event()
            if not isinstance(event, h11.Data):
                return
            self.pending = (self.pending + event.data).replace(b"\r\n", b"\n")

    async def next_sse(self, *, within: float = ANSWER_WITHIN) -> Event:
        """Return the next event with data."""
        with trio.fail_after(within):
            async with aclosing(self.events()) as events:
                async for event in events:
                    if event.data:
                        return event
        raise EOFError("the stream ended")


class HttpClient:
    """Streamable HTTP, byte for byte, with a connection for each exchange."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        self.host, self.port, self.path = parts.hostname, parts.port, parts.path or "/"
        self.path += f"?{parts.query}" if parts.query else ""
        self.session_id: str | None = None
        self.version: str | None = None
        self.last_id = 0

    @asynccontextmanager
    async def exchange(
        self, method: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, path: str | None = None
    ) -> AsyncGenerator[Exchange]:
        """Send one request; yield the exchange after its head; then hang up."""
        given = {"host": f"{self.host}:{self.port}"}
        if method == "POST":
            given |= {"content-type": "application/json", "content-length": str(len(body))}
        given |= {"accept": "application/json, text/event-stream"}
        given |= {name.lower(): value for name, value in (headers or {}).items()}
        with trio.fail_after(ANSWER_WITHIN):
            stream = await trio.open_tcp_stream(self.host, self.port)
        exchange = Exchange(stream)
        async with stream:
            await exchange.send(method, path or self.path, list(given.items()), body)
            with trio.fail_after(ANSWER_WITHIN):
                await exchange.read_head()
            yield exchange

    async def send(
        self,
        method: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        path: str | None = None,
        within: float = ANSWER_WITHIN,
    ) -> Response:
        """Send one request and read the whole response."""
        with trio.fail_after(within):
            async with self.exchange(method, body, headers=headers, path=path) as exchange:
                return Response(exchange.status, exchange.headers, await exchange.read_body())

    async def post(self, message: object, *, headers: Mapping[str, str] | None = None, **options: Any) -> Response:
        """POST one message (or raw bytes) with the legacy session's headers, if any."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.send("POST", body, headers={**self.session_headers(), **(headers or {})}, **options)

    async def get(self, path: str) -> Response:
        """Send a plain GET, for instance of /health."""
        return await self.send("GET", path=path)

    def stream(self, message: object, *, headers: Mapping[str, str] | None = None) -> Any:
        """POST a message and yield the `HttpRequest`, to read events one by one."""
        return self.exchange(
            "POST", json.dumps(message).encode(), headers={**self.session_headers(), **(headers or {})}
        )

    # legacy

    def session_headers(self) -> dict[str, str]:
        headers = {"Mcp-Session-Id": self.session_id} if self.session_id else {}
        return headers | ({"MCP-Protocol-Version": self.version} if self.version else {})

    async def initialize(self, version: str = LATEST_LEGACY, capabilities: Message | None = None) -> Message:
        """Do the legacy handshake; keep session id and version; return the result."""
        self.session_id = self.version = None
        response = await self.post(make_request(0, "initialize", initialize_params(version, capabilities)))
        assert response.status == 200, response
        (answer,) = response.messages()
        self.session_id = response.headers.get("mcp-session-id")
        self.version = answer["result"]["protocolVersion"]
        accepted = await self.post(make_notification("notifications/initialized"))
        assert accepted.status == 202, accepted
        return answer["result"]

    async def request(self, method: str, params: Message | None = None, **options: Any) -> Message:
        """Send a request in the session; return the last message, its response."""
        self.last_id += 1
        return (await self.post(make_request(self.last_id, method, params), **options)).messages()[-1]

    async def call_tool(self, name: str, arguments: Message | None = None, **options: Any) -> Message:
        return await self.request("tools/call", {"name": name, "arguments": arguments or {}}, **options)

    def open_get_stream(self, last_event_id: str | None = None) -> Any:
        """Open the session's GET stream, or resume the stream of an event's id."""
        resume = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        return self.exchange("GET", headers=self.session_headers() | {"Accept": "text/event-stream"} | resume)

    async def delete_session(self) -> Response:
        return await self.send("DELETE", headers=self.session_headers())

    # modern

    @staticmethod
    def modern_headers(method: str, params: Message | None = None) -> dict[str, str]:
        headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
        name = (params or {}).get(NAME_PARAM.get(method, ""))
        return headers if name is None else headers | {"Mcp-Name": name}

    def modern_request(self, method: str, params: Message | None = None) -> tuple[Message, dict[str, str]]:
        """Message and headers of one modern request, under a fresh id."""
        self.last_id += 1
        return make_request(self.last_id, method, modern_params(params)), self.modern_headers(method, params)

    async def post_modern(
        self, method: str, params: Message | None = None, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> Response:
        """Send a modern request; `headers` are added to the right ones or replace them."""
        message, right = self.modern_request(method, params)
        return await self.send("POST", json.dumps(message).encode(), headers={**right, **(headers or {})}, **options)

    async def call_modern(self, method: str, params: Message | None = None, **options: Any) -> Message:
        """Send a modern request; return the last message, its response."""
        return (await self.post_modern(method, params, **options)).messages()[-1]

    def stream_modern(self, method: str, params: Message | None = None) -> Any:
        """Send a modern request, to read events one by one; leaving cancels it."""
        message, headers = self.modern_request(method, params)
        return self.exchange("POST", json.dumps(message).encode(), headers=headers)


class SseClient(StdioClient):
    """HTTP+SSE (2024-11-05): all messages arrive on one stream, as on a pipe.

    Each sent message is a POST.
    """

    def __init__(self, http: HttpClient, exchange: Exchange) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.http, self.exchange = http, exchange
        self.endpoint = ""
        self.lines: list[bytes] = []

    async def post(self, message: object, *, path: str | None = None, **options: Any) -> Response:
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        return await self.http.send("POST", body, path=self.endpoint if path is None else path, **options)

    async def send_raw(self, data: bytes) -> None:
        response = await self.post(data)
        assert response.status == 202, response

    async def next_event(self) -> Event | None:
        """Return the next event with data; None at the end of the stream."""
        async with aclosing(self.exchange.events()) as events:
            async for event in events:
                if event.data:
                    return event
        return None

    async def read_line(self) -> bytes:
        event = await self.next_event()
        if event is None:
            return b""
        assert event.event == "message", event
        self.lines.append(event.data.encode() + b"\n")
        return self.lines[-1]


@asynccontextmanager
async def open_sse(url: str, **headers: str) -> AsyncGenerator[SseClient]:
    """Open the stream and read where to POST; leaving the block hangs up."""
    http = HttpClient(url)
    async with http.exchange("GET", headers={"Accept": "text/event-stream", **headers}) as exchange:
        assert exchange.status == 200, await exchange.read_body()
        client = SseClient(http, exchange)
        with trio.fail_after(ANSWER_WITHIN):
            first = await client.next_event()
        assert first is not None
        assert first.event == "endpoint"
        client.endpoint = first.data
        yield client
