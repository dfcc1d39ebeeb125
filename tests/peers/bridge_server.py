"""The rich server on stdio, streamable HTTP or SSE; standard library only.

It is for tests of the bridge between eras. Run as a script: `python bridge_server.py [--transport http|sse]` and any
option of `rich_server.py`. Over HTTP it serves on 127.0.0.1, at a free port, says `listening on URL` on stderr, and
holds its client to the letter: a legacy request needs its session, a modern one the headers that mirror its body. A
modern client gets no request that was not declared on the request (-32021). It serves one client: request ids are not
checked for their owner.

Tools, besides those of the rich server: `grow` {features} -> lists one tool, prompt or resource more, and says so ·
`dare` {requests} -> as `ask`, but asks (modern) without looking at what was declared · `count` {} -> how many times
each tool was called so far · `ask_and_sleep` {} (legacy) -> asks for the roots, counts as `answered`, then sleeps ·
`say` {messages} -> sends messages as given, `"$token"` standing for the call's own progress token · `caught` -> the
notifications and responses so far, as received · `stopped` -> `{"tools": [names of calls that were cancelled]}`.
The method `vendor/echo` answers with its params as received.
The resource `memo://NAME/item/missing` fits a template and is not found.
"""

from __future__ import annotations

import json
import queue
import select
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from echo_server import META, MODERN, RpcError, encode, schema
from rich_server import RichServer, is_modern, make_rich_parser

NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
STATUS = {-32601: 404, -32020: 400, -32021: 400, -32022: 400}
POLL = 0.02  # seconds between two checks for a hang-up


def missing(capabilities, wanted):
    """Return the undeclared capabilities that a server request needs, as `requiredCapabilities`."""
    method, params = wanted["method"], wanted.get("params", {})
    name = method.partition("/")[0]
    declared = capabilities.get(name)
    mode = params.get("mode", "form") if name == "elicitation" else None
    needed = {mode: {}} if mode else {"tools": {}} if "tools" in params else {}
    if declared is None or not (needed.keys() <= declared.keys() or (mode == "form" and not declared)):
        return {name: needed}
    return {}


class BridgeServer(RichServer):
    """Routes what the rich server says to the exchange that it belongs to."""

    def __init__(self, options):
        super().__init__(options)
        self.local = threading.local()
        self.exchanges = {}  # request id -> Queue of the messages for its stream
        self.ear = queue.Queue()  # of the GET stream
        self.counts = {}
        self.called, self.stopped = {}, []  # names of tools: by request id, and of those that were cancelled
        self.grown = {"tools": 0, "prompts": 0, "resources": 0}
        self.methods["vendor/echo"] = lambda _message, params: {"params": params}
        self.caught = []

    # -- what it can do besides -------------------------------------------------------------------------------------

    def make_tools(self):
        tools = super().make_tools()
        added = {
            "grow": self.tool_grow,
            "dare": self.tool_dare,
            "count": self.tool_count,
            "ask_and_sleep": self.tool_ask_and_sleep,
            "say": self.tool_say,
            "stopped": lambda _message, _params, _arguments: structured({"tools": list(self.stopped)}),
            "caught": lambda _message, _params, _arguments: structured({"messages": list(self.caught)}),
        }
        entry = {"description": "Of the bridge.", "inputSchema": schema()}
        return tools | {name: (function, {"name": name, **entry}) for name, function in added.items()}

    def call_tool(self, message, params):
        name = params.get("name")
        self.counts[name] = self.counts.get(name, 0) + 1
        self.called[message["id"]] = name
        return super().call_tool(message, params)

    def handle_notification(self, method, params):
        super().handle_notification(method, params)
        if method == "notifications/cancelled" and params.get("requestId") in self.called:
            self.stopped.append(self.called[params["requestId"]])

    def tool_count(self, _message, _params, _arguments):
        return {"content": [], "structuredContent": dict(self.counts)}

    def tool_grow(self, message, params, arguments):
        for feature in arguments.get("features", ["prompts"]):
            self.grown[feature] += 1
            result = self.tool_change(message, params, {"feature": feature})
        return result

    def handle_line(self, line):
        message = json.loads(line)
        if "method" not in message or "id" not in message:
            self.caught.append(message)
        super().handle_line(line)

    def tool_say(self, _message, params, arguments):
        for message in arguments["messages"]:
            token = params.get("_meta", {}).get("progressToken")
            if message.get("params", {}).get("progressToken") == "$token":
                message["params"]["progressToken"] = token
            self.send({"jsonrpc": "2.0", **message})
        return {"content": [{"type": "text", "text": "said"}]}

    def list_tools(self, message, params):
        result = super().list_tools(message, params)
        added = [{"name": f"grown_{number}", "inputSchema": schema()} for number in range(self.grown["tools"])]
        return result | {"tools": result["tools"] + added}

    def list_resources(self, message, params):
        result = super().list_resources(message, params)
        result["resources"] += [
            {"uri": self.uri(f"grown_{number}"), "name": "grown"} for number in range(self.grown["resources"])
        ]
        return result

    def list_prompts(self, message, params):
        result = super().list_prompts(message, params)
        result["prompts"] += [{"name": f"grown_{number}"} for number in range(self.grown["prompts"])]
        return result

    def has_resource(self, uri):
        return not uri.endswith("/missing") and super().has_resource(uri)

    def tool_ask_and_sleep(self, message, _params, _arguments):
        def run():
            self.ask_all({"roots": {"method": "roots/list"}})
            self.counts["answered"] = self.counts.get("answered", 0) + 1
            self.tool_sleep(message, {}, {"seconds": 60})

        self.on_thread(run)

    def tool_dare(self, message, params, arguments):
        self.local.dares = True
        try:
            return self.tool_ask(message, params, arguments)
        finally:
            self.local.dares = False

    def asking(self, message, params, requests, make, rounds=1):
        if is_modern(params) and not getattr(self.local, "dares", False):
            declared = params["_meta"][META + "clientCapabilities"]
            for wanted in requests.values():
                required = missing(declared, wanted)
                if required:
                    raise RpcError(-32021, "Missing client capability", {"requiredCapabilities": required})
        return super().asking(message, params, requests, make, rounds)

    # -- streams ----------------------------------------------------------------------------------------------------

    def send(self, message):
        if self.options.transport == "stdio":
            super().send(message)
        elif self.options.transport == "sse":
            self.ear.put(message)
        else:
            stream = self.stream_of(message)
            if stream is not None:
                stream.put(message)

    def send_all(self, messages):
        if self.options.transport == "stdio":
            super().send_all(messages)
        else:
            for message in messages:
                self.send(message)

    def stream_of(self, message):
        if "method" not in message:
            return self.exchanges.get(message["id"])
        listen = message.get("params", {}).get("_meta", {}).get(META + "subscriptionId")
        if listen is not None:
            return self.exchanges.get(listen)
        if message["method"].endswith(("list_changed", "resources/updated", "elicitation/complete")):
            return self.ear
        return self.local.exchange

    def on_thread(self, function, *args):
        exchange = getattr(self.local, "exchange", None)

        def run():
            self.local.exchange = exchange
            function(*args)

        super().on_thread(run)

    def refusal(self, message, headers):
        """(status, code, text) of a request that must not be served, or None."""
        method, params = message.get("method"), message.get("params") or {}
        if self.options.era == "legacy" or (self.options.era == "both" and not is_modern(params)):
            known = headers.get("Mcp-Session-Id") == "the-session" or method == "initialize"
            return None if known else (400, -32000, "Bad Request: no session")
        mirrored = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method}
        if method in NAMED:
            mirrored["Mcp-Name"] = params.get(NAMED[method])
        for name, value in mirrored.items():
            if headers.get(name) != value:
                return 400, -32020, f"{name} is {headers.get(name)!r}, the body says {value!r}"
        return None

    def serve_http(self):
        server = self

        class Handler(SseHandler if self.options.transport == "sse" else HttpHandler):
            peer = server

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                """A disconnected client needs no answer."""

        with Listener(("127.0.0.1", 0), Handler) as listener:
            print(f"listening on http://127.0.0.1:{listener.server_port}/mcp", file=sys.stderr, flush=True)
            threading.Thread(target=self.wait_for_eof, args=(listener,), daemon=True).start()
            listener.serve_forever(poll_interval=0.05)

    def wait_for_eof(self, listener):
        self.stdin.read()  # the parent ends this process by closing its stdin
        listener.shutdown()


class HttpHandler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 60
    peer: BridgeServer

    def log_message(self, *_args):
        """Say nothing."""

    def reply(self, status, message=None, **headers):
        body = b"" if message is None else encode(message).encode()
        lines = {"Content-Length": len(body), **({"Content-Type": "application/json"} if body else {}), **headers}
        self.head(status, lines, body)

    def head(self, status, headers, body=b""):
        text = f"HTTP/1.1 {status} -\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.wfile.write(text.encode() + b"\r\n" + body)

    def event(self, message):
        data = b"data: " + encode(message).encode() + b"\n\n" if message is not None else b": hello\n\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def begin_stream(self):
        self.head(200, {"Content-Type": "text/event-stream", "Transfer-Encoding": "chunked"})

    def hung_up(self):
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def do_POST(self):
        peer = self.peer
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message = json.loads(body)
        refused = peer.refusal(message, self.headers)
        if refused is not None:
            status, code, text = refused
            error = {"code": code, "message": text}
            self.reply(status, {"jsonrpc": "2.0", "id": message.get("id"), "error": error})
        elif "method" not in message or "id" not in message:
            peer.handle_line(body)
            self.reply(202)
        else:
            stream = peer.local.exchange = peer.exchanges[message["id"]] = queue.Queue()
            try:
                peer.handle_line(body)
                self.carry(message, stream)
            finally:
                peer.exchanges.pop(message["id"], None)

    def carry(self, message, stream):
        """Send what comes for this request until its response."""
        streaming = False
        while True:
            if self.hung_up():
                if is_modern(message.get("params") or {}):
                    self.peer.handle_notification("notifications/cancelled", {"requestId": message["id"]})
                self.close_connection = True
                return
            try:
                item = stream.get(timeout=POLL)
            except queue.Empty:
                continue
            if "method" in item or streaming:
                if not streaming:
                    self.begin_stream()
                streaming = True
                self.event(item)
            if "method" not in item:
                if streaming:
                    self.wfile.write(b"0\r\n\r\n")
                else:
                    session = {"Mcp-Session-Id": "the-session"} if message["method"] == "initialize" else {}
                    legacy = self.peer.options.era == "legacy"
                    code = item.get("error", {}).get("code")
                    self.reply(200 if legacy else STATUS.get(code, 200), item, **session)
                return

    def do_GET(self):
        if self.peer.options.era != "legacy":
            self.reply(405)
            return
        self.begin_stream()
        self.event(None)
        while not self.hung_up():
            try:
                self.event(self.peer.ear.get(timeout=POLL))
            except queue.Empty:
                continue
        self.close_connection = True

    def do_DELETE(self):
        self.reply(200)


class SseHandler(HttpHandler):
    """One connection of the older transport: GET opens the stream, which names the POST address."""

    def do_GET(self):
        ear = self.peer.ear = queue.Queue()
        self.begin_stream()
        self.event("/messages?session_id=1", "endpoint")
        while not self.hung_up():
            try:
                self.event(ear.get(timeout=POLL), "message")
            except queue.Empty:
                continue
        self.close_connection = True

    def event(self, message, name):
        data = message if isinstance(message, str) else encode(message)
        frame = f"event: {name}\ndata: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(frame), frame))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/messages?session_id=1":
            self.reply(405)
            return
        self.reply(202)
        self.peer.handle_line(body)


def structured(value):
    return {"content": [], "structuredContent": value}


def main():
    parser = make_rich_parser()
    parser.add_argument("--transport", choices=["stdio", "http", "sse"], default="stdio")
    options = parser.parse_args()
    server = BridgeServer(options)
    if options.transport == "stdio":
        server.run()
    else:
        server.serve_http()


if __name__ == "__main__":
    main()
