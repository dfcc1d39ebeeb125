"""An MCP server on stdio with one chosen fault, standard library only.

Run as a script: `python faulty_server.py --fault NAME [--when start|call|eof] [--variant V] [--size N]`, and any option
of `echo_server.py`, on which it is built. All of that server's tools work; the tool `go` commits the fault
(`go` {"delay": S} waits S seconds first, so that something else can happen meanwhile). `--when start` commits it before
the first line is read, `--when eof` when stdin ends, for the faults that need no request. `--help` lists the faults.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from echo_server import RpcError, Server, encode, make_parser, schema, text_result

MEGABYTE = 1 << 20

GARBAGE = (
    b"Starting server...\n",
    b"\n",
    b"\xff\xfe\x00 not utf-8 \x80\n",
    b"42\n",
    b"null\n",
    b'"a string"\n',
    b"[]\n",
    b"{}\n",
    b'{"jsonrpc":"2.0"\n',
    b'{"jsonrpc":"2.0","id":{"an":"object"},"result":{}}\n',
    b'{"jsonrpc":"1.0","method":5}\n',
    b"{'single': 'quotes'}\n",
)

ODD_RESULTS = {
    # A result that no model knows, and that must arrive as it is, byte for byte but for the id around it.
    "plain": (
        b'{"content":[{"type":"hologram","shape":{"points":[1,null,-0.0,1e-7]},"extra":null},'
        b'{"type":"text","text":"\\u00e9\\ud83d\\ude00 caf\xc3\xa9","annotations":null,"_meta":{"x/y":null}}],'
        b'"structuredContent":null,"isError":null,"unknown":{"deep":{"deeper":{"deepest":[[[[null]]]]}}},'
        b'"big":123456789012345678901234567890,"float":1.0,"exponent":1E+2,"empty":"",'
        b'"twice":1,"Twice":2,"twice ":3,"_meta":{"vendor.example/x":[null,{"y":null}]}}'
    ),
    # The same member twice: JSON allows it, readers differ.
    "duplicate": b'{"content":[],"twice":1,"twice":2,"\\u0074wice":3}',
    # A number that overflows a double but is legal JSON.
    "huge_float": b'{"content":[],"huge":1e400}',
    # A lone surrogate: legal JSON text, no Unicode string.
    "surrogate": b'{"content":[{"type":"text","text":"\\ud800"}]}',
    # No JSON, though many writers emit it.
    "nan": b'{"content":[],"value":NaN}',
    # No UTF-8.
    "latin1": b'{"content":[{"type":"text","text":"caf\xe9"}]}',
    # Not even an object.
    "number": b"7",
    "missing_content": b'{"structuredContent":{"only":true}}',
}

BAD_TOOLS = (
    {"description": "no name", "inputSchema": {"type": "object"}},
    {"name": 17, "inputSchema": {"type": "object"}},
    {"name": None},
    {"name": ""},
    "not an object",
    None,
    ["a", "list"],
    {"name": "not_a_number", "inputSchema": {"type": "object", "minimum": float("nan")}},
    {"name": "half_a_character", "description": "\ud800", "inputSchema": {"type": "object"}},
)


class Faulty(Server):
    """The echo server with a tool `go`, which commits `fault_NAME`.

    A fault's docstring is its line in --help.
    """

    def __init__(self, options):
        super().__init__(options)
        self.fault = getattr(self, "fault_" + options.fault)
        entry = {"name": "go", "description": f"Commits {options.fault}.", "inputSchema": schema(delay="number")}
        self.tools["go"] = (self.tool_go, entry)
        self.grown = 0
        prepare = getattr(self, "prepare_" + options.fault, None)
        if prepare is not None:
            prepare()

    def run(self):
        if self.options.when == "start":
            self.fault(None, {})
        super().run()

    def at_eof(self):
        if self.options.when == "eof":
            self.fault(None, {})
        super().at_eof()

    def tool_go(self, message, params, arguments):
        time.sleep(arguments.get("delay", 0))
        if self.options.when != "call":
            return text_result("fine")
        return self.fault(message, params)

    @staticmethod
    def hang_until_killed():
        while True:
            signal.pause()

    # -- before or instead of the conversation -------------------------------------------------------------------

    def prepare_exit_at_once(self):
        sys.exit(4)

    def fault_exit_at_once(self, _message, _params):
        """Exits with status 4 before it reads anything."""

    def prepare_hang_before_initialize(self):
        self.handle_line = lambda _line: None

    def fault_hang_before_initialize(self, _message, _params):
        """Reads everything and never answers anything; exits on EOF."""

    def prepare_slow_start(self):
        self.options.start_delay = self.options.start_delay or 2.0

    def fault_slow_start(self, _message, _params):
        """Reads its first line only after --start-delay seconds (2), then is well."""
        return text_result("fine")

    # -- ends ----------------------------------------------------------------------------------------------------

    def fault_dies_mid_call(self, _message, _params):
        """Dies without an answer; --variant kill: by SIGKILL, else exits with status 5."""
        if self.options.variant == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(5)

    def fault_hang(self, _message, _params):
        """Stops reading and answering for good; even EOF is not seen."""
        self.hang_until_killed()

    def fault_closes_stdout(self, _message, _params):
        """Closes stdout but lives, and continues to read until EOF."""
        self.stdout.flush()
        os.close(1)
        self.write = lambda _data: None

    def fault_half_line(self, message, _params):
        """Writes the first half of an answer, then exits with status 6."""
        self.write(encode({"jsonrpc": "2.0", "id": message and message["id"], "result": {"content": []}}).encode()[:30])
        os._exit(6)

    # -- lines that are none -------------------------------------------------------------------------------------

    def prepare_garbage(self):
        self.list_tools = self.methods["tools/list"] = self.after_garbage(self.list_tools)
        self.methods["initialize"] = self.after_garbage(self.initialize)

    def after_garbage(self, handler):
        def noisy(message, params):
            self.fault_garbage(message, params)
            return handler(message, params)

        return noisy

    def fault_garbage(self, _message, _params):
        """Prints invalid lines (text, bad UTF-8, numbers, empty lines) before its answers."""
        for line in GARBAGE:
            self.write(line)
        return text_result("amid garbage")

    def fault_big_line(self, message, _params):
        """Answers with one line of --size bytes (100 MB); --variant id_start (as usual), id_end, id_absent."""
        id_member = b'"id":' + encode(message["id"] if message else 0).encode()
        head, tail = b'{"jsonrpc":"2.0",', b"}\n"
        if self.options.variant == "id_end":
            tail = b"," + id_member + tail
        elif self.options.variant != "id_absent":
            head += id_member + b","
        head += b'"result":{"content":[{"type":"text","text":"'
        tail = b'"}]}' + tail
        size = self.options.size or 100 * MEGABYTE
        with self.write_lock:
            self.stdout.write(head)
            filler = b"x" * MEGABYTE
            for _ in range(size // MEGABYTE):
                self.stdout.write(filler)
            self.stdout.write(filler[: size % MEGABYTE] + tail)
            self.stdout.flush()

    def prepare_crlf(self):
        self.send = lambda message: self.write(encode(message).encode() + b"\r\n")

    def fault_crlf(self, _message, _params):
        r"""Ends every line with \r\n."""
        return text_result("crlf")

    def prepare_bom(self):
        write = self.write
        self.write = lambda data: write(b"".join(b"\xef\xbb\xbf" + line for line in data.splitlines(keepends=True)))
        write(b"\xef\xbb\xbf\r\n")

    def fault_bom(self, _message, _params):
        """Writes a byte order mark before every line, and one alone at first."""
        return text_result("marked")

    def prepare_pretty(self):
        def send(message):
            self.write(json.dumps(message, indent=2).replace("\n", "\r").encode() + b"\n")

        self.send = send

    def fault_pretty(self, _message, _params):
        r"""Writes indented JSON whose inner line ends are \r (legal white space within one line)."""
        return text_result("pretty")

    # -- floods --------------------------------------------------------------------------------------------------

    def fault_floods_stderr(self, _message, _params):
        """Writes --size bytes (20 MB) to stderr, half of them in one line, then answers."""
        size = self.options.size or 20 * MEGABYTE
        line = b"E" * 99 + b"\n"
        for _ in range(size // 2 // len(line)):
            os.write(2, line)
        for _ in range(size // 2 // 4096):
            os.write(2, b"e" * 4096)
        return text_result("flooded")

    def fault_flood_stdout(self, _message, _params):
        """Sends log notifications without end for one second, then answers."""
        until, line = time.monotonic() + 1.0, encode({"level": "info", "data": "flood " * 20})
        line = b'{"jsonrpc":"2.0","method":"notifications/message","params":' + line.encode() + b"}\n"
        while time.monotonic() < until:
            self.write(line * 50)
        return text_result("flooded")

    # -- answers that are wrong or odd ---------------------------------------------------------------------------

    def fault_unknown_ids(self, message, _params):
        """Answers unknown ids (999999, "nobody", null, -1), then the right one."""
        for request_id in (999_999, "nobody", None, -1):
            self.answer(request_id, text_result("unexpected"))
        self.answer_error(888_888, -32603, "unexpected")
        return text_result("the right one") if message else None

    def fault_answers_twice(self, message, _params):
        """Answers the same request twice, "first" and then "second"."""
        self.answer(message["id"], text_result("first"))
        return text_result("second")

    def fault_odd_result(self, message, _params):
        """Answers with a result no model knows; --variant names one of ODD_RESULTS (plain)."""
        result = ODD_RESULTS[self.options.variant or "plain"]
        self.write(b'{"jsonrpc":"2.0","id":' + encode(message["id"]).encode() + b',"result":' + result + b"}\n")

    def fault_error_result(self, _message, params):
        """Answers with a JSON-RPC error: `go` {code, message, data}, or -31999 with nested data."""
        arguments = params.get("arguments") or {}
        data = arguments.get("data", {"nested": [None, {"why": "because"}]})
        raise RpcError(arguments.get("code", -31999), arguments.get("message", "as asked"), data)

    def fault_no_result(self, message, _params):
        """Answers with neither result nor error."""
        self.send({"jsonrpc": "2.0", "id": message["id"]})

    def fault_string_id(self, message, _params):
        """Answers with the id as a string ("7" for 7)."""
        self.answer(str(message["id"]), text_result("stringly"))

    def fault_progress_after_result(self, message, params):
        """Answers, and then sends three progress notifications for the finished call."""
        self.answer(message["id"], text_result("done"))
        for i in range(3):
            token = (params.get("_meta") or {}).get("progressToken")
            self.notify("notifications/progress", {"progressToken": token, "progress": i + 1})

    def fault_asks(self, message, _params):
        """Sends server requests (ping, unknown method) with ids 1 and "a", then answers."""
        self.send({"jsonrpc": "2.0", "id": 1, "method": "ping"})
        self.send({"jsonrpc": "2.0", "id": "a", "method": "vendor/unknown", "params": {}})
        return text_result("asked") if message else None

    # -- lists ---------------------------------------------------------------------------------------------------

    def prepare_bad_tool(self):
        plain = self.list_tools

        def list_tools(message, params):
            result = plain(message, params)
            result["tools"] = [BAD_TOOLS[0], *result["tools"], *BAD_TOOLS[1:]]
            return result

        self.methods["tools/list"] = list_tools

    def fault_bad_tool(self, _message, _params):
        """Lists invalid tools (no name, number as name, string, null, no JSON) among good ones."""
        return text_result("fine")

    def prepare_dup_tools(self):
        plain = self.list_tools

        def list_tools(message, params):
            result = plain(message, params)
            again = [
                entry | {"description": "The same name again."} for entry in result["tools"] if entry["name"] == "echo"
            ]
            result["tools"] = result["tools"] + again
            return result

        self.methods["tools/list"] = list_tools

    def fault_dup_tools(self, _message, _params):
        """Lists the tool `echo` twice, with different descriptions."""
        return text_result("fine")

    def prepare_list_changed(self):
        for name, change in (("grow", 1), ("shrink", -1)):
            entry = {"name": name, "description": "Changes the list.", "inputSchema": {"type": "object"}}
            self.tools[name] = (lambda _m, _p, _a, change=change: self.resize(change), entry)

    def resize(self, change):
        if change > 0:
            entry = {"name": f"grown_{self.grown}", "description": "Grown.", "inputSchema": schema(text="string")}
            self.tools[entry["name"]] = (self.tool_numbered, entry)
        else:
            self.tools.pop(f"grown_{self.grown - 1}", None)
        self.grown = max(0, self.grown + change)
        self.tools_changed()
        return text_result(f"{self.grown} grown")

    def fault_list_changed(self, _message, _params):
        """Tools `grow` and `shrink` add or remove grown_K and notify; `go` notifies 50 times."""
        for _ in range(50):
            self.tools_changed()
        return text_result("notified 50 times")


FAULTS = {name.removeprefix("fault_"): getattr(Faulty, name) for name in vars(Faulty) if name.startswith("fault_")}


def main():
    parser = make_parser()
    parser.description = __doc__ + "\n" + "\n".join(f"{name}: {fault.__doc__}" for name, fault in FAULTS.items())
    parser.add_argument("--fault", choices=sorted(FAULTS), required=True)
    parser.add_argument("--when", choices=["start", "call", "eof"], default="call")
    parser.add_argument("--variant", default="", help="see the fault")
    parser.add_argument("--size", type=int, default=0, help="bytes, for the faults with a size")
    Faulty(parser.parse_args()).run()


if __name__ == "__main__":
    main()
