"""Refusals of the era probe and the protocol version, as rules of the players.

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
    ("a non-object result", [{"method": PROBE, "say": ['{"jsonrpc":"2.0","id":$id,"result":[1]}']}]),
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
    ("JSON but not a message", [{"method": PROBE, "body": "[1, 2"}]),
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


# -- versions ----------------------------------------------------------------------------------------------------------

KNOWN: dict[str, list[str]] = {
    "the newest but one": ["2025-06-18", "2025-03-26", "2024-11-05"],
    "the oldest": ["2024-11-05"],
    "the oldest, and others that we do not know": ["2024-10-07", "2024-11-05", "2099-01-01"],
}
"""What a server speaks."""


def refusals(known: list[str]) -> list[Row]:
    """stdio and SSE: refusals of unknown versions."""
    rule = {"method": "initialize", "unless": known}
    listed = {"supported": known, "requested": "2025-11-25"}
    text = f"Unsupported protocol version: 2025-11-25 (supported versions: {', '.join(known)})"

    def say(code: int, message: str, data: Any = None, request_id: Any = "$id") -> dict[str, Any]:
        error = {"code": code, "message": message} | ({} if data is None else {"data": data})
        return rule | {"say": [{"jsonrpc": "2.0", "id": request_id, "error": error}]}

    return [
        ("data.supported", [say(-32602, "Unsupported protocol version", listed)]),
        ("data.supported, no id", [say(-32602, "Unsupported protocol version", listed, None)]),
        ("data.supported, another code", [say(-32000, "no", listed)]),
        ("a list in data", [say(-32602, "no", known)]),
        ("a list in the text", [say(-32602, text)]),
        ("a list in the text, another code", [say(-32000, text)]),
        ("a list in the text, no id", [say(-32000, text, None, None)]),
        ("no list", [say(-32602, "Unsupported protocol version: 2025-11-25")]),
        ("no list, an empty one", [say(-32602, "no", {"supported": []})]),
        ("no list, data of another form", [say(-32602, "no", {"supported": "?"})]),
        *((f"no list, {code}", [say(code, "no")]) for code in (-32600, -32603, -32000, 0)),
    ]


def ends(known: list[str]) -> list[Row]:
    """stdio: the process ends at an unknown version."""
    rule = {"method": "initialize", "unless": known}
    error = {"code": -32602, "message": "no", "data": {"supported": known}}
    return [
        ("exit 1", [rule | {"then": "exit 1"}]),
        ("exit 0", [rule | {"then": "exit 0"}]),
        ("stdout closed", [rule | {"then": "close"}]),
        (
            "data.supported, then exit",
            [rule | {"say": [{"jsonrpc": "2.0", "id": "$id", "error": error}], "then": "exit 1"}],
        ),
        ("exit at the probe too", [{"method": PROBE, "then": "exit 1"}, rule | {"then": "exit 1"}]),
    ]


def http_refusals(known: list[str]) -> list[Row]:
    """Streamable HTTP: responses that refuse unknown versions."""
    rule = {"method": "initialize", "unless": known}
    text = f"Bad Request: Unsupported protocol version (supported versions: {', '.join(known)})"
    error = {"code": -32000, "message": text}
    listed = {"code": -32602, "message": "no", "data": {"supported": known}}
    plain = {"code": -32000, "message": "no"}

    def body(error: dict[str, Any], request_id: Any = "$id") -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": request_id, "error": error}

    return [
        *((f"{status}, data.supported", [rule | {"status": status, "body": body(listed)}]) for status in (200, 400)),
        ("400, data.supported, no id", [rule | {"status": 400, "body": body(listed, None)}]),
        ("400, a list in the text, no id", [rule | {"status": 400, "body": body(error, None)}]),
        ("400, a list in the text", [rule | {"status": 400, "body": body(error)}]),
        ("400, plain text", [rule | {"status": 400, "body": text, "type": "text/plain"}]),
        ("422, plain text", [rule | {"status": 422, "body": text, "type": "text/plain"}]),
        ("400, no list", [rule | {"status": 400, "body": body(plain)}]),
        ("400, no list, no id", [rule | {"status": 400, "body": body(plain, None)}]),
        ("400, plain text, no list", [rule | {"status": 400, "body": "Bad Request", "type": "text/plain"}]),
        ("400, empty", [rule | {"status": 400}]),
        ("400, with a session", [rule | {"status": 400, "body": body(listed), "headers": {"mcp_session_id": "x"}}]),
        ("200, with a session", [rule | {"status": 200, "body": body(listed), "headers": {"mcp_session_id": "x"}}]),
        ("an event, data.supported", [rule | {"say": [body(listed)]}]),
        ("an event, data.supported, no id", [rule | {"say": [body(listed, None)]}]),
        ("an event, no list, no id", [rule | {"say": [body(plain, None)]}]),
        ("closed", [rule | {"then": "cut"}]),
        ("an empty event stream", [rule | {"say": []}]),
    ]


def sse_refusals(known: list[str]) -> list[Row]:
    """SSE: refusals on the stream, by the POST's response, and by its end."""
    answers = [row for row in http_refusals(known) if row[0].startswith("4")]
    end = {"method": "initialize", "unless": known, "then": "cut"}
    return [*refusals(known), *answers, ("the end of the stream", [end])]
