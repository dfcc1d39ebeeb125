"""JSON-RPC messages as a test writes them, and a raw stdio client."""

from __future__ import annotations

import json
from typing import Any

import trio

ANSWER_WITHIN = 15.0  # seconds that a client waits for one message
MAX_BYTES = 256 << 20  # a longer line or body fails the test before it fills the memory

LATEST_LEGACY = "2025-11-25"
MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
CLIENT_INFO = {"name": "test-client", "version": "1.0.0"}

Message = dict[str, Any]


# -- messages --------------------------------------------------------------------------------------------------------


def make_request(request_id: object, method: str, params: Message | None = None) -> Message:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method}
    return message if params is None else message | {"params": params}


def make_notification(method: str, params: Message | None = None) -> Message:
    message: Message = {"jsonrpc": "2.0", "method": method}
    return message if params is None else message | {"params": params}


def modern_params(params: Message | None = None, *, capabilities: Message | None = None) -> Message:
    """Return params with the `_meta` of modern requests; a given `_meta` takes precedence."""
    meta = {
        META + "protocolVersion": MODERN,
        META + "clientInfo": CLIENT_INFO,
        META + "clientCapabilities": capabilities or {},
    }
    return {**(params or {}), "_meta": meta | (params or {}).get("_meta", {})}


def initialize_params(version: str = LATEST_LEGACY, capabilities: Message | None = None) -> Message:
    return {"protocolVersion": version, "capabilities": capabilities or {}, "clientInfo": CLIENT_INFO}


# -- stdio -----------------------------------------------------------------------------------------------------------


class StdioClient:
    """JSON lines over two streams.

    Any number of tasks may wait at the same time: one of them reads, and keeps the others' messages in `arrived`, in
    the order of arrival; the others check again after each message. A cancelled wait loses nothing.
    """

    def __init__(self, send: trio.abc.SendStream, receive: trio.abc.ReceiveStream) -> None:
        self.sending, self.receiving = send, receive
        self.arrived: list[Message] = []
        self.buffer = bytearray()
        self.ended = False
        self.last_id = 0
        self.reading, self.news = False, trio.Event()
        self.write_lock = trio.Lock()

    async def send_raw(self, data: bytes) -> None:
        async with self.write_lock:
            await self.sending.send_all(data)

    async def send(self, message: object) -> None:
        await self.send_raw(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def notify(self, method: str, params: Message | None = None) -> None:
        await self.send(make_notification(method, params))

    async def request(self, method: str, params: Message | None = None, *, within: float = ANSWER_WITHIN) -> Message:
        """Send a request under a fresh id and return its response, a whole message."""
        request_id = await self.start(method, params)
        return await self.response(request_id, within=within)

    async def request_modern(self, method: str, params: Message | None = None, **options: Any) -> Message:
        return await self.request(method, modern_params(params), **options)

    async def start(self, method: str, params: Message | None = None) -> int:
        """Send a request and return its id without waiting."""
        request_id = self.last_id = self.last_id + 1
        await self.send(make_request(request_id, method, params))
        return request_id

    async def response(self, request_id: object, *, within: float = ANSWER_WITHIN) -> Message:
        return await self.wait_for(
            lambda m: "method" not in m and m.get("id") == request_id and type(m.get("id")) is type(request_id), within
        )

    async def notification(self, method: str, *, within: float = ANSWER_WITHIN) -> Message:
        """Return the next notification (or server request) with this method."""
        return await self.wait_for(lambda message: message.get("method") == method, within)

    async def next_message(self, *, within: float = ANSWER_WITHIN) -> Message:
        """Return the next message of any kind that has not been taken yet."""
        return await self.wait_for(lambda _message: True, within)

    async def wait_for(self, wanted: Any, within: float) -> Message:
        with trio.fail_after(within):
            while True:
                for index, message in enumerate(self.arrived):
                    if wanted(message):
                        return self.arrived.pop(index)
                if self.reading:
                    await self.news.wait()
                else:
                    await self.read_message()

    async def read_message(self) -> None:
        """Read one more message into `arrived`; waiting tasks check again, or read next."""
        self.reading = True
        try:
            line = await self.read_line()
            if not line:
                raise EOFError("the other side closed its stdout")
            self.arrived.append(json.loads(line))
        finally:
            self.reading = False
            self.news.set()
            self.news = trio.Event()

    async def read_line(self) -> bytes:
        r"""Return one line with its ; b"" at the end.

        Bytes after the last line end are a line too.
        """
        searched = 0
        while True:
            end = self.buffer.find(b"\n", searched)
            if end < 0 and self.ended:
                end = len(self.buffer) - 1
            if end >= 0 or self.ended:
                line = bytes(self.buffer[: end + 1])
                del self.buffer[: end + 1]
                return line
            searched = len(self.buffer)
            data = await self.receiving.receive_some(1 << 18)
            self.ended = not data
            self.buffer += data
            assert len(self.buffer) <= MAX_BYTES, "a line without end"

    async def initialize(self, version: str = LATEST_LEGACY, capabilities: Message | None = None) -> Message:
        """The legacy handshake; the result of `initialize`."""
        answer = await self.request("initialize", initialize_params(version, capabilities))
        await self.notify("notifications/initialized")
        return answer["result"]

    async def call_tool(self, name: str, arguments: Message | None = None, **options: Any) -> Message:
        return await self.request("tools/call", {"name": name, "arguments": arguments or {}}, **options)
