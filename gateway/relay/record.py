"""State of a client's session, without payloads, for continuing it with another gateway.

It examines both directions line by line: the pending requests, and the session state in the gateway (`initialize`, log
level, subscriptions). Clients write the id at the end of a request, gateways at the start of a response, so that whole
lines need not be decoded.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Id = int | str

EDGE_BYTES = 4_096
"""Bytes examined at either end of a long line."""
MAX_STATE_BYTES = 64 * 1024
"""Maximum length of a line that changes the session state: an `initialize` has a few hundred bytes."""
MAX_SUBSCRIPTIONS = 10_000
REPLAYED = "mcp-gateway:replayed:"
"""Prefix of the ids of the relay's own requests, whose responses are not for the client."""
REASON = "gateway_restarted"
"""The error code for a request whose gateway has died."""
RESTARTED = (
    "the gateway ended while it had this request, and was restarted; whether the request took effect is unknown, so it"
    " was not repeated"
)
_ANSWER = b'{"jsonrpc":"2.0","id":'
"""The beginning of a gateway's message with an id."""
_STATEFUL = (b'"initialize"', b'"notifications/', b'"logging/setLevel"', b'"resources/subscribe"', b'"resources/unsub')


class SessionRecord:
    """The pending requests and the state of the session."""

    def __init__(self) -> None:
        self.pending: dict[Id, None] = {}
        """The client's requests without a response."""
        self.last_asked = 0
        """The highest id of the gateway's requests to the client, from which the next gateway continues."""
        self._initialize: dict[str, Any] | None = None
        self._initialized = False
        self._level: dict[str, Any] | None = None
        self._subscriptions: dict[str, dict[str, Any]] = {}
        self._replayed: set[Id] = set()
        self._count = 0

    @property
    def is_replaying(self) -> bool:
        """Whether responses to replayed messages are due, which are not for the client."""
        return bool(self._replayed)

    # From the client.

    def note_request(self, line: bytes, *, cut: bool = False) -> None:
        """Record one line of the client; `cut` says that its middle is missing."""
        if not cut and len(line) <= MAX_STATE_BYTES and any(map(line.__contains__, _STATEFUL)):
            for message in _messages(line):
                self._note_state(message)
        if b'"method"' not in line:
            return  # a response of the client
        request_id = _id_at_end(line)
        if cut:
            request_id = _id_at_start(line) if request_id is None else request_id
            if request_id is not None:
                self.pending[request_id] = None
        elif request_id is None or b'"result"' in line or b'"error"' in line or line[:1] == b"[":
            # The id is elsewhere, or the line may be a response with a member "method" somewhere.
            for message in _messages(line):
                request_id = _id_of(message)
                if request_id is not None and isinstance(message.get("method"), str):
                    self.pending[request_id] = None
        else:
            self.pending[request_id] = None

    def _note_state(self, message: dict[str, Any]) -> None:
        uri = _member(message, "params", "uri")
        match message.get("method"):
            case "initialize":
                self._initialize, self._initialized, self._level = message, False, None
                self._subscriptions.clear()
            case "notifications/initialized":
                self._initialized = True
            case "notifications/cancelled":
                self._answered(_id_of({"id": _member(message, "params", "requestId")}))
            case "logging/setLevel":
                self._level = message
            case "resources/subscribe" if isinstance(uri, str) and len(self._subscriptions) < MAX_SUBSCRIPTIONS:
                self._subscriptions[uri] = message
            case "resources/unsubscribe" if isinstance(uri, str):
                self._subscriptions.pop(uri, None)
            case _:
                pass

    # From the gateway, whose responses begin with their id.

    def note_answer(self, line: bytes) -> bytes:
        """Record one line of the gateway, perhaps cut; return the bytes for the client."""
        if line[:1] == b"[":
            for message in _messages(line):
                self._answered(_id_of(message))
            return line
        request_id = _id_at_start(line) if line.startswith(_ANSWER) else None
        if request_id is None:
            return line
        if line.startswith(b'"method"', line.find(b',"', len(_ANSWER)) + 1):
            if isinstance(request_id, int):
                self.last_asked = max(self.last_asked, request_id)
        elif request_id in self._replayed:
            self._replayed.remove(request_id)
            return _changes(line)
        else:
            self._answered(request_id)
        return line

    def _answered(self, request_id: Id | None) -> None:
        if request_id is not None:
            self.pending.pop(request_id, None)

    # After a crash.

    def fail_pending(self, *, also_initialize: bool = False) -> bytes:
        """Answer all pending requests with an error, except `initialize`, which is sent again unchanged."""
        again = None if self._initialize is None or also_initialize else self._initialize.get("id")
        answers = b""
        for request_id in self.pending:
            if request_id != again:
                error = {"code": -32603, "message": RESTARTED, "data": {"reason": REASON}}
                answers += _encode({"jsonrpc": "2.0", "id": request_id, "error": error})
        self.pending = {again: None} if again is not None and again in self.pending else {}
        return answers

    def replay(self) -> bytes:
        """Return the messages that restore the session in another gateway."""
        self._replayed.clear()
        if self._initialize is None:
            return b""
        if self._initialize.get("id") in self.pending:  # still unanswered: the client gets this response
            lines = _encode(self._initialize)
        else:
            lines = self._again(self._initialize)
        if self._initialized:
            lines += _encode({"jsonrpc": "2.0", "method": "notifications/initialized"})
        if self._level is not None:
            lines += self._again(self._level)
        return lines + b"".join(map(self._again, self._subscriptions.values()))

    def _again(self, message: dict[str, Any]) -> bytes:
        self._count += 1
        request_id = f"{REPLAYED}{self._count}"
        self._replayed.add(request_id)
        return _encode({**message, "id": request_id})


def _changes(line: bytes) -> bytes:
    """Return list-changed notifications after the response to `initialize`; otherwise nothing."""
    for message in _messages(line):
        offered = _member(message, "result", "capabilities")
        if offered is not None:
            names = [name for name in ("tools", "prompts", "resources") if _member(offered, name) is not None]
            return b"".join(
                _encode({"jsonrpc": "2.0", "method": f"notifications/{name}/list_changed"}) for name in names
            )
    return b""


def _id_at_end(line: bytes) -> Id | None:
    """Return the id if it is the message's last member, except perhaps the version."""
    at = line.rfind(b'"id"', -EDGE_BYTES)
    if at < 0:
        return None
    if line.endswith(b"}"):
        digits = line[at + 4 : -1].lstrip(b": ")
        if digits.isdigit():
            return int(digits)
    # If this is an object, its end is the end of the message: the id is a member of the message, not of its params.
    found = _messages(b"{" + line[at:])
    return _id_of(found[0]) if found and not found[0].keys() - {"id", "jsonrpc"} else None


def _id_at_start(line: bytes) -> Id | None:
    """Return the id if it is preceded only by members with scalar values."""
    if line.startswith(_ANSWER):
        digits = line[len(_ANSWER) : line.find(b",", len(_ANSWER), len(_ANSWER) + EDGE_BYTES)]
        if digits.isdigit():
            return int(digits)
    import re  # already imported; the pattern is compiled on use

    text = rb'"(?:[^"\\]|\\.)*"'
    plain = rb"\s*" + text + rb"\s*:\s*(?:" + text + rb"|-?[0-9]+|true|false|null)\s*,"
    pattern = rb"(?:\s|\xef\xbb\xbf)*\{(?:" + plain + rb')*?\s*"id"\s*:\s*(' + text + rb"|-?[0-9]+)\s*[,}]"
    match = re.match(pattern, line[:EDGE_BYTES])
    return None if match is None else _id_of(_messages(b'{"id":' + match[1] + b"}")[0])


def _id_of(message: dict[str, Any]) -> Id | None:
    """Return the id of a request; 2.0 equals 2, as in the gateway."""
    found = message.get("id")
    if isinstance(found, float) and found.is_integer():
        return int(found)
    return found if isinstance(found, int | str) else None


def _messages(line: bytes) -> list[dict[str, Any]]:
    """Return the messages of a line; none for invalid JSON, which the gateway reports."""
    try:
        decoded: Any = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError):
        return []
    if not _is(decoded, list):
        decoded = [decoded]
    return [member for member in decoded if _is(member, dict)]


def _member(value: Any, *names: str) -> Any:
    """Return a nested member, None if it is absent."""
    for name in names:
        value = value.get(name) if _is(value, dict) else None
    return value


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind)


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
