"""How servers refuse the era probe, as rules of the players.

A row is (name, rules). The names of the tables say over which transport they are played.
"""

from __future__ import annotations

from typing import Any

Row = tuple[str, list[dict[str, Any]]]

PROBE = "server/discover"
ERROR = {"jsonrpc": "2.0", "id": "$id", "error": {"code": -32601, "message": "Method not found"}}
NO_ID = {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "Bad Request: initialize first"}}
CODES = (-32700, -32600, -32601, -32602, -32603, -32000, -32001, -32002, -32042, 0, 1, 400)
"""Error codes that are none of the modern era's."""


def _error(code: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": "$id", "error": {"code": code, "message": "no"}}


ENDS: list[Row] = [
    *((f"exit {status}", [{"method": PROBE, "then": f"exit {status}"}]) for status in (0, 1, 101, 255)),
    *((f"signal {number}", [{"method": PROBE, "then": f"signal {number}"}]) for number in (6, 9, 15)),
    ("stdout closed", [{"method": PROBE, "then": "close"}]),
    ("an error, then exit", [{"method": PROBE, "say": [ERROR], "then": "exit 1"}]),
    ("an error without an id, then exit", [{"method": PROBE, "say": [NO_ID], "then": "exit 1"}]),
    ("garbage, then exit", [{"method": PROBE, "say": ["Error: expect initialize"], "then": "exit 1"}]),
    ("half a line, then exit", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"resu'], "then": "exit 1"}]),
]
"""stdio: the process ends at the probe, so that `initialize` needs another one."""

ANSWERS: list[Row] = [
    *((f"error {code}", [{"method": PROBE, "say": [_error(code)]}]) for code in CODES),
    ("an error without an id", [{"method": PROBE, "say": [NO_ID]}]),
    (
        "an error whose id is missing",
        [{"method": PROBE, "say": ['{"jsonrpc":"2.0","error":{"code":1,"message":"x"}}']}],
    ),
    ("an error of no form", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"error":"no"}']}]),
    ("an empty result", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"result":{}}']}]),
    ("a result that is no object", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"result":[1]}']}]),
    ("a result that is null", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"result":null}']}]),
    (
        "a result of other types",
        [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"result":{"supportedVersions":"2026-07-28"}}']}],
    ),
    (
        "legacy versions only",
        [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"result":{"supportedVersions":["2025-06-18"]}}']}],
    ),
]
"""stdio and HTTP: the same process is sent `initialize` next, at once."""

SILENCES: list[Row] = [
    ("silence", [{"method": PROBE, "say": []}]),
    ("garbage", [{"method": PROBE, "say": ["Listening...", "42", "{}", "[]", '{"jsonrpc"']}]),
    ("an answer to another id", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":999,"result":{}}']}]),
]
"""stdio: the same process is sent `initialize` after `probe_timeout`."""

HTTP: list[Row] = [
    *((f"status {status}", [{"method": PROBE, "status": status}]) for status in (200, 202, 204, 400, 404, 405, 406)),
    *((f"status {status}, text", [{"method": PROBE, "status": status, "body": "no", "type": "text/plain"}])
      for status in (200, 400, 404, 405, 409, 415, 418, 422, 426, 429, 500, 501, 502, 503, 504)),
    *((f"status {status}, no id", [{"method": PROBE, "status": status, "body": NO_ID}])
      for status in (200, 400, 404, 405, 500)),
    *((f"status {status}, error", [{"method": PROBE, "status": status, "body": ERROR}])
      for status in (200, 400, 404, 405, 500)),
    ("a page", [{"method": PROBE, "body": "<html>", "type": "text/html"}]),
    ("no content type", [{"method": PROBE, "raw": "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "then": "cut"}]),
    ("JSON cut short", [{"method": PROBE, "body": '{"jsonrpc":"2.0","id":$id,"resu'}]),
    ("JSON that is no message", [{"method": PROBE, "body": "[1, 2"}]),
    ("an empty event stream", [{"method": PROBE, "say": []}]),
    ("an event without an id", [{"method": PROBE, "say": [NO_ID]}]),
    ("an event with an error", [{"method": PROBE, "say": [ERROR]}]),
    ("an event of garbage", [{"method": PROBE, "say": ["garbage"]}]),
    ("an event of another id", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":999,"result":{}}']}]),
    ("an event stream cut off", [{"method": PROBE, "say": ["garbage"], "then": "cut"}]),
    ("closed at once", [{"method": PROBE, "then": "cut"}]),
    ("cut in the status line", [{"method": PROBE, "raw": "HTTP/1.1 2", "then": "cut"}]),
    ("cut in the head", [{"method": PROBE, "raw": "HTTP/1.1 200 OK\r\nContent-Ty", "then": "cut"}]),
    (
        "cut in the body",
        [{
            "method": PROBE,
            "raw": 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"jsonrpc"',
            "then": "cut",
        }],
    ),
    (
        "cut in a chunk",
        [{
            "method": PROBE,
            "raw": "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nda",
            "then": "cut",
        }],
    ),
    ("no HTTP", [{"method": PROBE, "raw": "SSH-2.0-OpenSSH\r\n", "then": "cut"}]),
    ("silence", [{"method": PROBE, "then": "hang"}]),
    ("silence after the head", [{"method": PROBE, "say": [], "then": "hang"}]),
]  # fmt: skip
"""Streamable HTTP: `initialize` follows."""
