"""Two small MCP servers on stdio, standard library only.

`python servers.py calculator` or `python servers.py echo`: run by path as a separate program, so that a demo child
costs only a bare interpreter. Implements the legacy handshake (2025-11-25 basic/lifecycle), and exits at EOF on stdin.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
_TWO_NUMBERS = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
    "required": ["a", "b"],
}
_TEXT = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


SERVERS: dict[str, dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], str]]]] = {
    "calculator": {
        "add": ("Add two numbers.", _TWO_NUMBERS, lambda given: f"{given['a'] + given['b']:g}"),
        "multiply": ("Multiply two numbers.", _TWO_NUMBERS, lambda given: f"{given['a'] * given['b']:g}"),
    },
    "echo": {"echo": ("Return the given text.", _TEXT, lambda given: str(given["text"]))},
}


class _Refused(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def answer(server: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
    """Return the result of one request."""
    tools = SERVERS[server]
    match method:
        case "initialize":
            version = params.get("protocolVersion")
            return {
                "protocolVersion": version if version in VERSIONS else VERSIONS[0],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": server, "version": "1.0.0"},
            }
        case "ping":
            return {}
        case "tools/list":
            listed = [{"name": n, "description": d, "inputSchema": s} for n, (d, s, _) in tools.items()]
            return {"tools": listed}
        case "tools/call" if params.get("name") in tools:
            _, _, tool = tools[params["name"]]
            try:
                text, is_error = tool(params.get("arguments") or {}), False
            except (KeyError, TypeError, ValueError) as exc:
                # The caller's model corrects wrong arguments, so this is a result (server/tools, "Error Handling").
                text, is_error = f"bad arguments: {exc!r}", True
            return {"content": [{"type": "text", "text": text}], "isError": is_error}
        case "tools/call":
            raise _Refused(-32602, f"Unknown tool: {params.get('name')}")
        case _:
            raise _Refused(-32601, f"method {method!r} is not served")


def main() -> None:
    """Serve until EOF on stdin."""
    server = sys.argv[1] if len(sys.argv) > 1 else "echo"
    for line in sys.stdin.buffer:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        if "id" not in message or "method" not in message:
            continue
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        try:
            reply["result"] = answer(server, message["method"], message.get("params") or {})
        except _Refused as exc:
            reply["error"] = {"code": exc.code, "message": str(exc)}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
