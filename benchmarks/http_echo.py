"""A backend over HTTP fast enough not to be the limit, with the tool `echo`.

`python -m benchmarks.http_echo` serves on a free port, both eras, on trio and httptools, with one task for each
connection, and answers with JSON. Its address is on stderr, as the gateway's; it ends on SIGTERM. Requests on one
connection must come one after the other.
"""

from __future__ import annotations

import json
import signal
import socket
import sys

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
encode = json.JSONEncoder(separators=(",", ":")).encode


class Request:
    """The request being received; llhttp calls the methods."""

    def __init__(self):
        self.body, self.complete = [], False

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        self.complete = True


def answer(method, body):
    """Return the whole response."""
    if method != b"POST":
        return b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n"
    message = json.loads(body)
    if "id" not in message:
        return b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n"
    if message["method"] == "tools/call":
        result = {"content": [{"type": "text", "text": message["params"]["arguments"]["text"]}]}
    else:
        result = METHODS.get(message["method"], {})
    result = {"resultType": "complete", **result}
    data = encode({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


async def serve(stream):
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
                    plain.send(answer(parser.get_method(), b"".join(request.body)))
                    request.body, request.complete = [], False
            except (OSError, httptools.HttpParserError):
                return


async def main():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            print(f"listening on http://127.0.0.1:{listener.socket.getsockname()[1]}/mcp", file=sys.stderr, flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
