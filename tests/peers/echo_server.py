"""A well-behaved MCP server on stdio, standard library only, as fast as Python allows.

Run as a script: `python echo_server.py [options]`. It reads JSON lines, answers on stdout, and exits on stdin EOF.
`--era legacy` (the default) knows the initialize handshake of 2024-11-05 ... 2025-11-25; `--era modern` knows
2026-07-28 (server/discover, a version in each request's `_meta`); `--era both` tells the two apart by the request.
Slow tools run on threads of their own, so that other calls continue; every line is written under one lock.

Tools: `echo` {text} -> the text · `tool_0` ... `tool_N-1` {text} -> "NAME.tool_I TEXT" (NAME as of --name) ·
`sleep` {seconds, text?, until?} (cancelled, it is never answered; it ends early when the file `until` is there) ·
`progress` {n, delay?} -> n progress notifications, if the request has a token, then the answer · `structured` {value,
extra?} -> `structuredContent` is the value, and the members of extra are in the result ·
`params` -> `structuredContent` is the request's params as received · `crash` {code?} -> exits without an answer ·
`big` {n} -> n bytes of text · `env` {name?} -> environment, pid and working directory · `cancelled_log` ->
`{"cancelled": [request ids cancelled so far]}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time

LEGACY = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN = "2026-07-28"
META = "io.modelcontextprotocol/"
VERSION_KEY = META + "protocolVersion"

POLL = 0.01  # seconds between two checks of a file

encode = json.JSONEncoder(separators=(",", ":")).encode


class RpcError(Exception):
    """Becomes a JSON-RPC error; arguments: code, message, and data if there is any."""


def text_result(text):
    return {"content": [{"type": "text", "text": text}]}


def structured_result(value):
    return {"content": [{"type": "text", "text": encode(value)}], "structuredContent": value}


def schema(**properties):
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in properties.items()}}


class Server:
    """One conversation on stdin and stdout; `faulty_server.py` builds its faults on it."""

    def __init__(self, options):
        self.options = options
        self.stdin, self.stdout = sys.stdin.buffer, sys.stdout.buffer
        self.write_lock = threading.Lock()
        self.cancelled = []
        self.sleeping = {}  # request id -> Event that a cancel sets
        self.listens = []  # ids of open subscriptions/listen requests that want tools/list_changed
        self.tools = self.make_tools()
        self.methods = {
            "tools/call": self.call_tool,
            "tools/list": self.list_tools,
            "ping": lambda _message, _params: {},
            "initialize": self.initialize,
            "server/discover": self.discover,
            "subscriptions/listen": self.listen,
            "logging/setLevel": lambda _message, _params: {},
        }

    # -- the wire ------------------------------------------------------------------------------------------------

    def write(self, data):
        try:
            with self.write_lock:
                self.stdout.write(data)
                self.stdout.flush()
        except BrokenPipeError:
            os._exit(0)  # the reader is gone; the interpreter's flush at exit would only complain

    def send(self, message):
        self.write(encode(message).encode() + b"\n")

    def send_all(self, messages):
        """In one write, so that the reader gets them together."""
        self.write(b"".join(encode(message).encode() + b"\n" for message in messages))

    def answer(self, request_id, result):
        self.send({"jsonrpc": "2.0", "id": request_id, "result": result})

    def answer_error(self, request_id, code, text, data=None):
        error = {"code": code, "message": text} if data is None else {"code": code, "message": text, "data": data}
        self.send({"jsonrpc": "2.0", "id": request_id, "error": error})

    def notify(self, method, params):
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def run(self):
        time.sleep(self.options.start_delay)
        for line in self.stdin:
            self.handle_line(line)
        self.at_eof()

    def at_eof(self):
        os._exit(0)  # sleeping threads need not be waited for

    def handle_line(self, line):
        try:
            message = json.loads(line)
        except ValueError:
            self.answer_error(None, -32700, "Parse error")
            return
        method, params = message.get("method"), message.get("params") or {}
        if method is None:
            return
        if "id" not in message:
            self.handle_notification(method, params)
            return
        try:
            result = self.handle_request(message, method, params)
        except RpcError as error:
            self.answer_error(message["id"], *error.args)
        else:
            if result is not None:
                self.answer(message["id"], result)

    def handle_notification(self, method, params):
        if method == "notifications/cancelled":
            request_id = params.get("requestId")
            self.cancelled.append(request_id)
            if request_id in self.listens:
                self.listens.remove(request_id)
            if request_id in self.sleeping:
                self.sleeping[request_id].set()

    def handle_request(self, message, method, params):
        """The result; None if a thread answers later, or no answer comes."""
        if self.hangs(method):
            return None
        modern = self.check_era(method, params)
        handler = self.methods.get(method)
        if handler is None:
            raise RpcError(-32601, "Method not found", {"method": method})
        result = handler(message, params)
        if modern and result is not None:
            result.setdefault("resultType", "complete")
        return result

    def hangs(self, method):
        stage = self.options.hang
        if stage is None:
            return False
        if stage == "initialize":
            return method == "initialize" or (method == "server/discover" and self.options.era != "legacy")
        return method == {"discover": "server/discover", "list": "tools/list", "call": "tools/call"}[stage]

    # -- eras ----------------------------------------------------------------------------------------------------

    def check_era(self, method, params):
        """Whether the request is a modern one; refuses what the chosen era does not know."""
        era = self.options.era
        if era == "legacy":
            if method in {"server/discover", "subscriptions/listen"}:
                raise RpcError(-32601, "Method not found", {"method": method})
            return False
        version = params.get("_meta", {}).get(VERSION_KEY)
        if version is None:
            if era == "both":
                return False
            if method in {"initialize", "ping", "logging/setLevel"}:
                raise RpcError(-32601, "Method not found", {"supported": [MODERN]})
            raise RpcError(-32602, f"params._meta lacks {VERSION_KEY}")
        if version != MODERN:
            raise RpcError(-32022, "Unsupported protocol version", {"supported": [MODERN], "requested": version})
        if method in {"initialize", "ping", "logging/setLevel"}:
            raise RpcError(-32601, "Method not found", {"supported": [MODERN]})
        return True

    def server_info(self):
        return {"name": self.options.name, "version": "1.0.0"}

    def initialize(self, _message, params):
        asked = params.get("protocolVersion")
        return {
            "protocolVersion": asked if asked in LEGACY else LEGACY[-1],
            "capabilities": {"tools": {"listChanged": True}, "logging": {}},
            "serverInfo": self.server_info(),
        }

    def discover(self, _message, _params):
        return {
            "supportedVersions": [MODERN],
            "capabilities": {"tools": {"listChanged": True}},
            "ttlMs": 0,
            "cacheScope": "private",
            "_meta": {META + "serverInfo": self.server_info()},
        }

    def listen(self, message, params):
        wanted = {k: True for k, v in params.get("notifications", {}).items() if k == "toolsListChanged" and v}
        if wanted:
            self.listens.append(message["id"])
        subscription = {"_meta": {META + "subscriptionId": message["id"]}, "notifications": wanted}
        self.notify("notifications/subscriptions/acknowledged", subscription)

    def tools_changed(self):
        """Notify each listen stream, or the legacy session, of a changed tool list."""
        if self.options.era != "modern":
            self.send({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        for listen in self.listens:
            self.notify("notifications/tools/list_changed", {"_meta": {META + "subscriptionId": listen}})

    # -- tools ---------------------------------------------------------------------------------------------------

    def make_tools(self):
        """All tools: name -> (function, entry in the list)."""
        special = {
            "echo": (self.tool_echo, schema(text="string")),
            "sleep": (self.tool_sleep, schema(seconds="number", text="string")),
            "progress": (self.tool_progress, schema(n="integer", delay="number")),
            "structured": (self.tool_structured, {"type": "object"}),
            "params": (self.tool_params, {"type": "object"}),
            "crash": (self.tool_crash, schema(code="integer")),
            "big": (self.tool_big, schema(n="integer")),
            "env": (self.tool_env, schema(name="string")),
            "cancelled_log": (self.tool_cancelled_log, {"type": "object"}),
        }
        if self.options.plain:
            special = {}
        numbered = {f"tool_{i}": (self.tool_numbered, schema(text="string")) for i in range(self.options.tools)}
        return {
            name: (function, {"name": name, "description": f"The {name} tool.", "inputSchema": input_schema})
            for name, (function, input_schema) in (special | numbered).items()
        }

    def list_tools(self, _message, params):
        entries = [entry for _function, entry in self.tools.values()]
        size, cursor = self.options.page_size, params.get("cursor")
        result = {}
        if size:
            # The second page's cursor is "": legal, and not the end of the list.
            page = 0 if cursor is None else int(cursor or "1")
            if (page + 1) * size < len(entries):
                result["nextCursor"] = "" if page == 0 else str(page + 1)
            entries = entries[page * size : (page + 1) * size]
        result["tools"] = entries
        if params.get("_meta", {}).get(VERSION_KEY) is not None:
            result |= {"ttlMs": 0, "cacheScope": "private"}
        return result

    def call_tool(self, message, params):
        tool = self.tools.get(params.get("name"))
        if tool is None:
            raise RpcError(-32602, f"Unknown tool: {params.get('name')}")
        return tool[0](message, params, params.get("arguments") or {})

    def on_thread(self, function, *args):
        threading.Thread(target=function, args=args, daemon=True).start()

    def late_answer(self, message, params, result):
        """Answer from a thread, in the era of the request."""
        if self.options.era != "legacy" and VERSION_KEY in params.get("_meta", {}):
            result["resultType"] = "complete"
        self.answer(message["id"], result)

    def tool_echo(self, _message, _params, arguments):
        return text_result(arguments.get("text", ""))

    def tool_numbered(self, _message, params, arguments):
        return text_result(f"{self.options.name}.{params['name']} {arguments.get('text', '')}")

    def tool_sleep(self, message, params, arguments):
        woken = self.sleeping[message["id"]] = threading.Event()

        def sleep():
            until, left = arguments.get("until"), arguments.get("seconds", 1)
            while not (cancelled := woken.wait(POLL if until else left)) and until and not os.path.exists(until):
                left -= POLL
                if left <= 0:
                    break
            del self.sleeping[message["id"]]
            if not cancelled:
                self.late_answer(message, params, text_result(arguments.get("text", "slept")))

        self.on_thread(sleep)

    def tool_progress(self, message, params, arguments):
        n, delay = arguments.get("n", 3), arguments.get("delay", 0)
        token = params.get("_meta", {}).get("progressToken")

        def report():
            for i in range(n):
                if token is not None:
                    progress = {"progressToken": token, "progress": i + 1, "total": n, "message": f"step {i + 1}"}
                    self.notify("notifications/progress", progress)
                time.sleep(delay)
            text = arguments["then"] * arguments["times"] if "then" in arguments else f"{n} steps"
            self.late_answer(message, params, text_result(text))

        self.on_thread(report) if delay else report()

    def tool_structured(self, _message, _params, arguments):
        value = arguments.get("value")
        return structured_result(value) | arguments.get("extra", {})

    def tool_params(self, _message, params, _arguments):
        return structured_result(params)

    def tool_crash(self, _message, _params, arguments):
        os._exit(arguments.get("code", 3))

    def tool_big(self, _message, _params, arguments):
        return text_result(arguments.get("of", "x") * arguments.get("n", 1024))

    def tool_env(self, _message, _params, arguments):
        if "name" in arguments:
            return text_result(os.environ.get(arguments["name"], ""))
        return structured_result({"env": dict(os.environ), "pid": os.getpid(), "cwd": os.getcwd()})

    def tool_cancelled_log(self, _message, _params, _arguments):
        return structured_result({"cancelled": self.cancelled})


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--era", choices=["legacy", "modern", "both"], default="legacy")
    parser.add_argument("--name", default="echo", help="name in serverInfo and in the answers of the numbered tools")
    parser.add_argument("--tools", type=int, default=0, metavar="N", help="number of tools tool_0 ... tool_N-1")
    parser.add_argument("--plain", action="store_true", help="offer only the numbered tools")
    parser.add_argument("--page-size", type=int, default=0, help="tools on one page of the list; 0: all")
    parser.add_argument("--start-delay", type=float, default=0, metavar="S", help="seconds before the first read")
    parser.add_argument(
        "--hang",
        choices=["initialize", "discover", "list", "call"],
        help="the request never answered (initialize: server/discover too, if the era has it; discover: in every era)",
    )
    return parser


if __name__ == "__main__":
    Server(make_parser().parse_args()).run()
