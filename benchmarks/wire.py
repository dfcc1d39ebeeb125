"""The load generator's HTTP and JSON-RPC: requests from templates, minimal parsing of responses."""

from __future__ import annotations

import json
import re
import socket
import ssl
from urllib.parse import urlsplit

from benchmarks.answers import TEXT, WrongAnswer

LEGACY = "2025-11-25"
MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "load", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
NO_ANSWER = 30.0  # seconds of silence after which a measurement has failed

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
STREAM = re.compile(rb"\r\ncontent-type: *text/event-stream", re.IGNORECASE)
CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
SESSION = re.compile(rb"\r\nmcp-session-id: *([!-~]+)", re.IGNORECASE)


def make_message(method, params, era, request_id=None):
    message = {"jsonrpc": "2.0", "method": method}
    if request_id is not None:
        message["id"] = request_id
    if era == "modern":
        params = {**params, "_meta": META}
    return message | {"params": params}


def encode(message):
    return json.dumps(message, separators=(",", ":")).encode()


def initialize_params():
    return {"protocolVersion": LEGACY, "capabilities": {}, "clientInfo": {"name": "load", "version": "1"}}


def call_template(tool, era, text=TEXT):
    """Return the body of an echo call with two places for its id.

    Use it as `call_template(...) % (id, id)`.
    """
    return template_of(tool, {"text": "@text@"}, era).replace(b"@text@", text.encode())


def template_of(tool, arguments, era):
    """Return the body of a call with one place for its id."""
    message = make_message("tools/call", {"name": tool, "arguments": arguments}, era, "@id@")
    return encode(message).replace(b"%", b"%%").replace(b'"@id@"', b"%d")


class Response:
    """A whole HTTP response: `length` bytes of the buffer it was found in."""

    __slots__ = ("body", "head", "length")

    def __init__(self, head, body, length):
        self.head, self.body, self.length = head, body, length

    @property
    def status(self):
        return int(self.head[9:12])

    def message(self):
        """Return the JSON-RPC response: the body itself, or a stream's last event."""
        if not STREAM.search(self.head):
            return self.body
        blocks = [b for b in self.body.replace(b"\r\n", b"\n").split(b"\n\n") if b"data:" in b]
        if not blocks:
            raise WrongAnswer("a stream without any event")
        return b"\n".join(line[5:].strip() for line in blocks[-1].split(b"\n") if line.startswith(b"data:"))


def parse_response(buffer):
    """Return the response at the start of the buffer; None while it is incomplete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head, start = bytes(buffer[: end + 2]), end + 4
    if found := LENGTH.search(head):
        stop = start + int(found[1])
        return Response(head, bytes(buffer[start:stop]), stop) if len(buffer) >= stop else None
    if CHUNKED.search(head):
        return parse_chunks(buffer, head, start)
    return Response(head, b"", start)


def parse_chunks(buffer, head, start):
    body = b""
    while True:
        end = buffer.find(b"\r\n", start)
        if end < 0:
            return None
        size, start = int(buffer[start:end], 16), end + 2
        if len(buffer) < start + size + 2:
            return None
        body += buffer[start : start + size]
        start += size + 2
        if size == 0:
            return Response(head, body, start)


class Connection:
    """One keep-alive connection and, in the legacy era, one session."""

    def __init__(self, port, era, path="/mcp", *, host="127.0.0.1", tls=False, headers=()):
        self.port, self.era, self.path, self.host, self.tls = port, era, path, host, tls
        self.headers = [f"{name}: {value}" for name, value in dict(headers).items()]
        self.session = b""
        self.version = LEGACY
        self.connect()

    @classmethod
    def at(cls, url, era, headers=()):
        """Open a connection to any address."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(parts.port or (443 if tls else 80), era, path, host=parts.hostname, tls=tls, headers=headers)

    def connect(self):
        self.buffer = bytearray()
        self.socket = socket.create_connection((self.host, self.port), timeout=NO_ANSWER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            self.socket = ssl.create_default_context().wrap_socket(self.socket, server_hostname=self.host)

    def close(self):
        self.socket.close()

    def receive(self, size=1 << 18):
        """Return received bytes, also those that TLS holds back; b"" after a disconnect."""
        data = self.socket.recv(size)
        while self.tls and (held := self.socket.pending()):
            data += self.socket.recv(held)
        return data

    def head(self, length, method, name="", verb="POST"):
        lines = [f"{verb} {self.path} HTTP/1.1", f"Host: {self.host}:{self.port}", *self.headers]
        if verb == "POST":
            accept = "Accept: application/json, text/event-stream"
            lines += ["Content-Type: application/json", accept, f"Content-Length: {length}"]
        else:
            lines.append("Accept: text/event-stream")
        if self.era == "modern":
            lines += [f"MCP-Protocol-Version: {MODERN}", f"Mcp-Method: {method}"] + [f"Mcp-Name: {name}"] * bool(name)
        elif self.session:
            lines += [f"MCP-Protocol-Version: {self.version}", f"Mcp-Session-Id: {self.session.decode()}"]
        return "\r\n".join([*lines, "", ""]).encode()

    def post(self, message):
        """Send one message and wait for the whole response."""
        body = encode(message)
        self.socket.sendall(self.head(len(body), message["method"], message["params"].get("name", "")) + body)
        while (response := parse_response(self.buffer)) is None:
            data = self.receive(1 << 20)
            if not data:
                raise WrongAnswer(f"hung up after {bytes(self.buffer[:200])!r}")
            self.buffer += data
        del self.buffer[: response.length]
        if CLOSE.search(response.head):
            self.socket.close()
            self.connect()
        return response

    def open(self):
        """Do the legacy handshake, at the server's version; nothing in the modern era."""
        if self.era == "modern":
            return
        response = self.post(make_message("initialize", initialize_params(), self.era, 0))
        if response.status != 200 or b'"result"' not in response.message():
            raise WrongAnswer(f"initialize got {response.head!r} {response.body[:300]!r}")
        self.version = json.loads(response.message())["result"]["protocolVersion"]
        found = SESSION.search(response.head)
        self.session = found[1] if found else b""
        response = self.post(make_message("notifications/initialized", {}, self.era))
        if response.status not in {200, 202, 204}:
            raise WrongAnswer(f"notifications/initialized got {response.head!r}")
