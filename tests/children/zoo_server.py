"""The zoo as MCP servers: `python -I -S -E zoo_server.py TEMPER MARK`.

Each answers once set up. A temper is ready when it has answered the handshake up to its list of tools; then it
misbehaves. MARK is in the command line of every process here, as in the zoo.
"""

import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import zoo

ME = [sys.executable, "-I", "-S", "-E", os.path.abspath(__file__)]
TOOL = {"name": "echo", "inputSchema": {"type": "object"}}
ANSWERS = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "zoo", "version": "1"},
    },
    "tools/list": {"tools": [TOOL]},
    "tools/call": {"content": [{"type": "text", "text": "here"}]},
    "ping": {},
}

unread = b""


def read_line() -> bytes:
    global unread
    while b"\n" not in unread:
        if not (data := os.read(0, 65536)):
            return b""
        unread += data
    line, _, unread = unread.partition(b"\n")
    return line


def serve(last: str = "") -> None:
    """Answer until stdin ends, or until a request with the method `last` has been answered."""
    while line := read_line():
        message = json.loads(line)
        method = message.get("method")
        if "id" not in message or method is None:
            continue
        answer = {"jsonrpc": "2.0", "id": message["id"]}
        if method in ANSWERS:
            answer["result"] = ANSWERS[method]
        else:
            answer["error"] = {"code": -32601, "message": "Method not found"}
        os.write(1, json.dumps(answer).encode() + b"\n")
        if method == last:
            return


def echo() -> None:
    zoo.say()
    serve()


def shell() -> None:
    """A shell that spawns a shell that spawns a server, and a background process."""
    mark = sys.argv[2]
    lingerer = " ".join([*zoo.ME, "ignores_eof", mark, "< /dev/null > /dev/null"])
    inner = " ".join([lingerer, "&", *ME, "echo", mark, "; wait"])
    os.execv("/bin/sh", ["sh", "-c", f"sh -c '{inner}'; true # {mark}"])


zoo.say = lambda text="ready": serve("tools/list")
zoo.read_to_end = serve
OWN = {"echo": echo, "shell": shell}

if __name__ == "__main__":
    (OWN.get(sys.argv[1]) or getattr(zoo, sys.argv[1]))()
