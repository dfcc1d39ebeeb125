"""Clients over HTTP with one call in flight each, also over the SSE transport.

`send` writes a request; `receive(fd)`, called when a socket is readable, gives (status, answer) once both are complete.
"""

from __future__ import annotations

import json
from itertools import count
from urllib.parse import urljoin

from benchmarks.answers import FIRST_ID, WrongAnswer
from benchmarks.clock import now
from benchmarks.wire import (
    CHUNKED,
    CLOSE,
    Connection,
    initialize_params,
    make_message,
    parse_response,
)


def address_of(spec, path="/mcp"):
    return spec.get("url") or f"http://127.0.0.1:{spec['port']}{path}"


class HttpCaller:
    """One connection of the streamable HTTP transport."""

    def __init__(self, spec, question, shared=None):
        self.question = question
        self.connection = Connection.at(address_of(spec), spec["era"], spec.get("headers", ()))
        if shared is not None:  # a server that knows one session at a time
            self.connection.session, self.connection.version = shared.connection.session, shared.connection.version
        elif spec.get("check") == "constant":
            self.connection.session = b"0123456789abcdef0123456789abcdef"  # the head is as long as a real one
        else:
            self.connection.open()
        self.head = self.connection.head(question.length, "tools/call", spec["tool"])
        self.ids = count(FIRST_ID) if shared is None else shared.ids  # unique within a session
        self.request_id = FIRST_ID
        self.sent = 0.0

    def sockets(self):
        return [self.connection.socket]

    def send(self):
        self.request_id = next(self.ids)
        request = self.head + self.question.fill(self.request_id)
        self.sent = now()
        self.connection.socket.sendall(request)

    def receive(self, _fd):
        """Return status and answer, if the response is complete."""
        data = self.connection.receive()
        if not data:
            raise WrongAnswer(f"hung up on request {self.request_id}")
        buffer = self.connection.buffer
        if buffer:
            buffer += data
            data = buffer
        response = parse_response(data)
        if response is None:
            if data is not buffer:
                buffer += data
            return None
        if response.length != len(data):
            raise WrongAnswer(f"more than one response to request {self.request_id}: {bytes(data[:2000])!r}")
        buffer.clear()
        self.must_close = CLOSE.search(response.head) is not None
        return response.status, response.message() if response.body else response.head

    must_close = False

    def reconnect(self):
        """Replace a closed connection; closing removes the old socket from an epoll."""
        self.refresh()
        self.must_close = False

    def refresh(self):
        """Continue over another connection."""
        self.connection.socket.close()
        self.connection.connect()


class SseCaller:
    """The transport of 2024-11-05: answers on an open GET, posts to its address."""

    def __init__(self, spec, question, shared=None):
        del shared
        self.question = question
        url = address_of(spec, "/sse")
        self.stream = Connection.at(url, "legacy", spec.get("headers", ()))
        self.stream.socket.sendall(self.stream.head(0, "", verb="GET"))
        self.chunked, self.raw, self.text, self.events = None, bytearray(), bytearray(), []
        endpoint = self.wait_event()
        self.posts = Connection.at(urljoin(url, endpoint.decode()), "legacy", spec.get("headers", ()))
        self.posts.post(make_message("initialize", initialize_params(), "legacy", 0))
        while b'"id"' not in (event := self.wait_event()):
            pass  # a notification, or a keep-alive
        if b'"result"' not in event:
            raise WrongAnswer(f"initialize was refused: {bytes(event[:300])!r}")
        self.posts.post(make_message("notifications/initialized", {}, "legacy"))
        self.head = self.posts.head(question.length, "tools/call", spec["tool"])
        self.request_id = FIRST_ID - 1
        self.sent, self.status, self.answer = 0.0, None, None

    must_close = False

    def reconnect(self):
        """Replace the closed connection of the POSTs."""
        self.refresh()
        self.must_close = False

    def refresh(self):
        """Continue posting over another connection; the server never sees an idle stream."""
        self.posts.socket.close()
        self.posts.connect()

    def sockets(self):
        return [self.stream.socket, self.posts.socket]

    def send(self):
        self.request_id += 1
        self.status = self.answer = None
        request = self.head + self.question.fill(self.request_id)
        self.sent = now()
        self.posts.socket.sendall(request)

    def receive(self, fd):
        if fd == self.posts.socket.fileno():
            data = self.posts.receive()
            if not data and self.must_close:
                return None  # closed as announced; the answer comes on the stream
            if not data:
                raise WrongAnswer(f"hung up on request {self.request_id}")
            self.posts.buffer += data
            response = parse_response(self.posts.buffer)
            if response is not None:
                self.must_close = CLOSE.search(response.head) is not None
                del self.posts.buffer[: response.length]
                self.status = 200 if response.status == 202 else response.status
        else:
            self.read_stream()
            for event in self.take_events():
                if b'"id"' in event:
                    self.answer = event
        whole = self.status is not None and (self.answer is not None or self.status != 200)
        return (self.status, self.answer or b"") if whole else None

    # -- the stream ----------------------------------------------------------------------------------------------------

    def wait_event(self):
        while not self.events:
            self.read_stream()
        return self.events.pop(0)

    def take_events(self):
        events, self.events = self.events, []
        return events

    def read_stream(self):
        data = self.stream.receive()
        if not data:
            raise WrongAnswer("the event stream ended")
        self.raw += data
        if self.chunked is None:
            end = self.raw.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.raw[: end + 2])
            if int(head[9:12]) != 200:
                raise WrongAnswer(f"GET got {head!r}")
            self.chunked = CHUNKED.search(head) is not None
            del self.raw[: end + 4]
        if self.chunked:
            self.unchunk()
        else:
            self.text += self.raw
            self.raw.clear()
        *blocks, rest = self.text.replace(b"\r\n", b"\n").split(b"\n\n")
        self.text = bytearray(rest)
        for block in blocks:
            data = [line[5:].strip() for line in block.split(b"\n") if line.startswith(b"data:")]
            if data:
                self.events.append(b"\n".join(data))

    def unchunk(self):
        """Move whole chunks from the received bytes to the stream's text."""
        while (end := self.raw.find(b"\r\n")) >= 0:
            size = int(self.raw[:end].split(b";")[0], 16)
            if len(self.raw) < end + size + 4:
                return
            self.text += self.raw[end + 2 : end + 2 + size]
            del self.raw[: end + size + 4]


def is_error(status, answer):
    """Return whether a call was answered with an error, in any spelling."""
    if status != 200:
        return True
    try:
        message = json.loads(answer)
        return "error" in message or bool(message["result"].get("isError"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return True
