"""Protocol conversations as transcripts: `>>` sent by the test, `<<` expected from the code.

    await play('''
        << {"id": "$probe", "method": "server/discover", "params": "..."}
        >> {"id": "$probe", "error": {"code": -32601, "message": "what?"}}
        << {"id": "$hello", "method": "initialize", "params": {"protocolVersion": "2025-11-25", "...": "..."}}
    ''')

Each message is JSON without its `jsonrpc` member and may continue on the following lines. A string `"$name"` is a
placeholder: the first message that is expected with it sets its value, which all later ones must have and the sent ones
get; keyword arguments set values in advance. `"..."` matches any value, and as a key any further members.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.fakes import Script

WITHIN = 1e6  # seconds for an expected message; on a clock that jumps, all else happens first
ANYTHING = "..."


class Playbook:
    """Plays transcripts against one peer; values of placeholders last from one transcript to the next."""

    def __init__(
        self, send: Callable[[Any], Awaitable[None]], receive: Callable[[], Awaitable[Any]], *, within: float = WITHIN
    ) -> None:
        self._send, self._receive, self._within = send, receive, within
        self.values: dict[str, Any] = {}

    async def __call__(self, transcript: str, **values: Any) -> None:
        self.values |= values
        for direction, message in parse_transcript(transcript):
            if direction == ">>":
                await self._send({"jsonrpc": "2.0", **self._fill(message)})
                continue
            with trio.fail_after(self._within):
                found = await self._receive()
            problem = self._compare({"jsonrpc": "2.0", **message}, found, "message")
            assert not problem, f"{problem}\nexpected << {json.dumps(message)}\nreceived << {json.dumps(found)}"

    def _fill(self, value: Any) -> Any:
        match value:
            case dict():
                return {key: self._fill(member) for key, member in value.items()}
            case list():
                return [self._fill(member) for member in value]
            case str() if value.startswith("$"):
                return self.values[value[1:]]
            case _:
                return value

    def _compare(self, expected: Any, found: Any, where: str) -> str:
        """Return the first difference, or nothing; set placeholders that have no value yet."""
        if expected == ANYTHING:
            return ""
        if isinstance(expected, str) and expected.startswith("$"):
            expected = self.values.setdefault(expected[1:], found)
        if isinstance(expected, dict) and isinstance(found, dict):
            names = expected.keys() - {ANYTHING}
            if names - found.keys() or (ANYTHING not in expected and found.keys() - names):
                return f"{where} has the members {sorted(found)}"
            problems = (self._compare(expected[name], found[name], f"{where}.{name}") for name in sorted(names))
            return next(filter(None, problems), "")
        if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
            pairs = enumerate(zip(expected, found, strict=True))
            problems = (self._compare(one, other, f"{where}[{index}]") for index, (one, other) in pairs)
            return next(filter(None, problems), "")
        # True is 1, and 1 is 1.0, but not in JSON.
        same = type(expected) is type(found) and expected == found
        return "" if same else f"{where} is {found!r}, not {expected!r}"


def parse_transcript(text: str) -> list[tuple[str, Any]]:
    """The messages of a transcript, each with its direction."""
    parts: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        direction = line[:2]
        if direction in {">>", "<<"}:
            parts.append((direction, line[2:]))
        else:
            assert parts, f"neither '>>' nor '<<' before {line!r}"
            parts[-1] = (parts[-1][0], f"{parts[-1][1]}\n{line}")
    return [(direction, json.loads(message)) for direction, message in parts]


def play_backend(script: Script) -> Playbook:
    """A playbook whose test is the backend of the script's conversation."""
    read = 0

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        script.feed(message)

    async def receive() -> Any:
        nonlocal read
        while len(script.posted) <= read:
            await script.has_posted.wait()
        read += 1
        return script.posted[read - 1]

    return Playbook(send, receive)
