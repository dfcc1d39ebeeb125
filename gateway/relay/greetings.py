"""The last answers to `initialize`, for a client that waits while its gateway starts.

A gateway takes some ten times as long to start as a relay. Meanwhile a client gets the answer that the last gateway
gave to the same request with the same config. The gateway gets the request too: if its own answer differs, the client
is notified that its lists may have changed, and the next client gets the new answer.
"""

from __future__ import annotations

import json
import os

from gateway.relay.places import blake2b
from gateway.relay.record import REPLAYED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from gateway.relay.places import Place

MAX_KEPT = 16
"""Answers kept: one for each client program and its options."""
MAX_BYTES = 1024 * 1024
"""Bytes of the file: an answer has some hundred, and at most `copying.HOLD_BYTES`."""


class Greetings:
    """The answers kept for one place, and the one that is expected from its gateway."""

    def __init__(self, place: Place, options: object) -> None:
        """Create it; `options` are those of this client, on which its answer depends."""
        self._path = place.greetings
        self._context = f"{place.config_digest} {json.dumps(options)}"
        self._key = ""
        self._id: int | str = 0
        self._given: Any = None

    def answer(self, line: bytes) -> bytes | None:
        """Return the response to a client's `initialize`, None if it is unknown."""
        try:
            request: Any = json.loads(line)
            if request["method"] != "initialize" or not isinstance(request["id"], int | str):
                return None
            params = {name: value for name, value in request["params"].items() if name != "_meta"}  # such as a trace
            text = self._context + json.dumps(params, sort_keys=True)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None
        self._id = request["id"]
        self._key = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        self._given = self._read().get(self._key)
        if self._given is None:
            return None
        response = {"jsonrpc": "2.0", "id": request["id"], "result": self._given}
        return json.dumps(response, separators=(",", ":")).encode() + b"\n"

    def confirms(self, line: bytes) -> bool:
        """Return whether the gateway answers as the client was answered; keep a new answer."""
        if not self._key:
            return False
        try:
            message: Any = json.loads(line)
            request_id, is_request = message["id"], "method" in message
        except (ValueError, TypeError, KeyError, RecursionError):
            return False
        if is_request or (request_id != self._id and not str(request_id).startswith(REPLAYED)):
            return False
        key, self._key = self._key, ""
        result = message.get("result")
        if not _is_object(result) or "serverInfo" not in result:
            return False  # refused: what comes later answers another request
        if result == self._given:
            return True
        kept = self._read()
        kept.pop(key, None)
        kept[key] = result
        self._write(dict(list(kept.items())[-MAX_KEPT:]))
        return False

    def _read(self) -> dict[str, Any]:
        try:
            with open(self._path, "rb") as file:
                found: Any = json.loads(file.read(MAX_BYTES))
        except (OSError, ValueError):
            return {}
        return found if _is_object(found) else {}

    def _write(self, kept: dict[str, Any]) -> None:
        """Replace the file; a failure only costs the next client time."""
        new = f"{self._path}.{os.getpid()}"
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.write(fd, json.dumps(kept, separators=(",", ":")).encode())
            finally:
                os.close(fd)
            os.replace(new, self._path)
        except OSError:
            pass


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
