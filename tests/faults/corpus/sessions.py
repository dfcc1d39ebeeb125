"""HTTP servers' responses for a lost session: one row each, from reports and SDKs.

`body` may hold `ID`, a placeholder for the id of the refused request. `repeated` says whether the transport refused the
request, so that it is sent once more in a new session; otherwise its client gets the server's answer.
"""

from __future__ import annotations

from dataclasses import dataclass

JSON, TEXT, HTML, EVENTS = "application/json", "text/plain", "text/html", "text/event-stream"


@dataclass(frozen=True)
class Loss:
    name: str
    status: int
    kind: str
    body: str
    repeated: bool
    code: int | None = None
    """Of the error that the client gets, where it is a JSON-RPC error of the server."""


def error(code: int, text: str, request_id: str | None = "null") -> str:
    own = "" if request_id is None else f'"id":{request_id},'
    return f'{{"jsonrpc":"2.0",{own}"error":{{"code":{code},"message":"{text}"}}}}'


NOT_FOUND = error(-32001, "Session not found")
NOT_INITIALIZED = error(-32000, "Bad Request: Server not initialized")
PAGE = "<html><body>Bad Request</body></html>"

LOSSES = [
    # 404 is what the specification demands.
    Loss("404-typescript-sdk", 404, JSON, NOT_FOUND, repeated=True),
    Loss("404-python-sdk", 404, JSON, error(-32600, "Session not found", '"server-error"'), repeated=True),
    Loss("404-own-id", 404, JSON, error(-32001, "Session not found", "ID"), repeated=True),
    Loss("404-empty", 404, TEXT, "", repeated=True),
    Loss("404-page", 404, HTML, PAGE, repeated=True),
    Loss("404-long-page", 404, HTML, PAGE * 2_000, repeated=True),
    # 400 with no answer to this request: the transport refused it.
    Loss("400-no-valid-session", 400, JSON, error(-32000, "Bad Request: No valid session ID provided"), repeated=True),
    Loss("400-not-initialized", 400, JSON, NOT_INITIALIZED, repeated=True),
    Loss("400-no-id", 400, JSON, error(-32000, "Bad Request", None), repeated=True),
    Loss("400-other-id", 400, JSON, error(-32000, "Bad Request", '"server-error"'), repeated=True),
    Loss("400-batch", 400, JSON, f"[{NOT_INITIALIZED}]", repeated=True),
    Loss("400-events", 400, EVENTS, f"data: {NOT_INITIALIZED}\n\n", repeated=True),
    Loss("400-text", 400, TEXT, "Invalid or missing session ID", repeated=True),
    Loss("400-other-json", 400, JSON, '{"error":"Invalid or missing session ID"}', repeated=True),
    Loss("400-page", 400, HTML, PAGE, repeated=True),
    Loss("400-empty", 400, TEXT, "", repeated=True),
    Loss("410-null-id", 410, JSON, NOT_FOUND, repeated=True),
    Loss("410-text", 410, TEXT, "Gone", repeated=True),
    Loss("422-null-id", 422, JSON, NOT_FOUND, repeated=True),
    Loss("422-detail", 422, JSON, '{"detail":[{"loc":["header"],"msg":"unknown"}]}', repeated=True),
    # An error with the request's id may come from a handler.
    Loss("400-own-id", 400, JSON, error(-32000, "Server not initialized", "ID"), repeated=False, code=-32000),
    Loss("400-own-id-batch", 400, JSON, f"[{error(-32001, 'x', 'ID')}]", repeated=False, code=-32001),
    Loss("400-own-id-events", 400, EVENTS, f"data: {error(-32001, 'x', 'ID')}\n\n", repeated=False, code=-32001),
    Loss("404-own-id-handler", 404, JSON, error(-32002, "Unknown client", "ID"), repeated=False, code=-32002),
    Loss("410-own-id", 410, JSON, error(-32001, "Session expired", "ID"), repeated=False, code=-32001),
    Loss("422-own-id", 422, JSON, error(-32602, "unknown session", "ID"), repeated=False, code=-32602),
    Loss("200-session-not-found", 200, JSON, error(-32001, "Session not found", "ID"), repeated=False, code=-32001),
    Loss("200-not-initialized", 200, JSON, error(-32002, "Server not initialized", "ID"), repeated=False, code=-32002),
    Loss("200-no-hint-in-text", 200, JSON, error(-32001, "x", "ID"), repeated=False, code=-32001),
    Loss("200-other-code", 200, JSON, error(-32603, "no such session", "ID"), repeated=False, code=-32603),
    Loss("200-invalid-request", 200, JSON, error(-32600, "Not Initialised", "ID"), repeated=False, code=-32600),
    Loss("200-null-id", 200, JSON, NOT_FOUND, repeated=False, code=-32001),
    Loss("200-event", 200, EVENTS, f"data: {error(-32001, 'x', 'ID')}\n\n", repeated=False, code=-32001),
    # A server that fails may have run the request.
    Loss("500-null-id", 500, JSON, error(-32603, "Session not found"), repeated=False, code=-32603),
    Loss("500-own-id", 500, JSON, error(-32603, "Internal error", "ID"), repeated=False, code=-32603),
    Loss("500-page", 500, HTML, PAGE, repeated=False),
    Loss("500-empty", 500, TEXT, "", repeated=False),
    Loss("502-page", 502, HTML, PAGE, repeated=False),
    Loss("503-null-id", 503, JSON, error(-32000, "unknown session"), repeated=False, code=-32000),
    Loss("503-text", 503, TEXT, "no upstream", repeated=False),
    # And unexpected forms.
    Loss("200-page", 200, HTML, PAGE, repeated=False),
    Loss("200-other-json", 200, JSON, '{"error":"session expired"}', repeated=False, code=-32603),
    Loss("409-text", 409, TEXT, "conflict", repeated=False),
]

UNRELATED = [
    # What says nothing of the session: neither a probe nor a new session follows.
    Loss("401", 401, TEXT, "session", repeated=False),
    Loss("403", 403, TEXT, "session", repeated=False),
    Loss("429", 429, TEXT, "too many sessions", repeated=False),
    Loss("404-unknown-method", 404, JSON, error(-32601, "no such method", "ID"), repeated=False, code=-32601),
    Loss("400-invalid-params", 400, JSON, error(-32602, "no such tool", "ID"), repeated=False, code=-32602),
    Loss("200-tool-failed", 200, JSON, error(-32603, "disk full", "ID"), repeated=False, code=-32603),
    Loss("200-own-code", 200, JSON, error(42, "no", "ID"), repeated=False, code=42),
]
