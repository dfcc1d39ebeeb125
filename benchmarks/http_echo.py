"""A backend over HTTP fast enough not to be the limit, with the tool `echo`.

`python -m benchmarks.http_echo` serves on a free port, both eras, on trio and httptools, with one task for each
connection, and answers with JSON; with `--sse`, with an event stream in three sends, as servers on the SDKs do: the
head, the event, the end. Its address is on stderr, as the gateway's; it ends on SIGTERM. Requests on one connection
must come one after the other.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
from functools import partial

import httptools
import trio

from benchmarks.wire import LEGACY, MODERN

INFO = {"name": "echo", "version": "1"}
TOOL = {"name": "echo", "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}
METHODS = {
    "initialize": {"protocolVersion": LEGACY, "capabilities": {"tools": {}}, "serverInfo": INFO},
    "server/discover": {"supportedVersions": [MODERN], "capabilities": {"tools": {}}, "serverInfo": INFO},
    "tools/list": {"tools": [TOOL]},
}
SSE_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
encode = json.JSONEncoder(separators=(",", ":")).encode


class Request:
    """The request being received; llhttp calls the methods."""

    def __init__(self):
        self.body, self.complete = [], False

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        self.complete = True


def answer(method, body, *, sse):
    """Return the parts of the response, each to be sent by itself."""
    if method != b"POST":
        return [b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n"]
    message = json.loads(body)
    if "id" not in message:
        return [b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"]
    if message["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]}
    else:
        result = METHODS.get(message["method"], {})
    result = {"resultType": "complete", **result}
    data = encode({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
    if sse:
        event = b"event: message\r\ndata: %b\r\n\r\n" % data
        return [SSE_HEAD, b"%x\r\n%b\r\n" % (len(event), event), b"0\r\n\r\n"]
    return [b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)]


async def serve(stream, *, sse):
    """Answer the requests of one connection."""
    plain = socket.socket(fileno=stream.socket.detach())
    plain.setblocking(False)
    request = Request()
    parser = httptools.HttpRequestParser(request)
    with plain:
        while True:
            await trio.lowlevel.wait_readable(plain)
            try:
                data = plain.recv(65536)
                if not data:
                    return
                parser.feed_data(data)
                if request.complete:
                    first, *others = answer(parser.get_method(), b"".join(request.body), sse=sse)
                    plain.send(first)
                    for part in others:
                        await trio.lowlevel.checkpoint()
                        plain.send(part)
                    request.body, request.complete = [], False
            except (OSError, httptools.HttpParserError):
                return


async def main(*, sse):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, partial(serve, sse=sse), [listener])
            print(f"listening on http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp", file=sys.stderr, flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(partial(main, sse="--sse" in sys.argv))
