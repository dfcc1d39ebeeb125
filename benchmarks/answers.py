"""The checks of answers: accepting anything would measure how fast a server can be wrong."""

from __future__ import annotations

import json

FIRST_ID = 1_000_000  # ids have seven digits, so that a request's length does not depend on its number
TEXT = "hello, is anybody there? %d"

# The bare app's constant: the answer of the echo backend to the first request, with the same length in bytes.
CONSTANT = json.dumps(
    {"jsonrpc": "2.0", "id": FIRST_ID, "result": {"content": [{"type": "text", "text": TEXT % FIRST_ID}]}},
    separators=(",", ":"),
).encode()


NONE_IN_TIME = "not one call was answered within the measured time"


class WrongAnswer(Exception):
    """The answer is wrong, or answers another request."""


def check_constant(body, _request_id):
    if body != CONSTANT:
        raise WrongAnswer(f"not the constant: {body[:200]!r}")


def check_echo(body, request_id):
    """Check the answer to `echo` with the text of this request."""
    try:
        message = json.loads(body)
        right = message["id"] == request_id and message["result"]["content"][0]["text"] == TEXT % request_id
    except (ValueError, LookupError, TypeError):
        right = False
    if not right:
        raise WrongAnswer(f"request {request_id} got {body[:300]!r}")


def check_list(entries, expected):
    """Check all pages of a list: exactly this many tools, unique names, schemas."""
    names = {entry["name"] for entry in entries if entry["inputSchema"]["type"] == "object"}
    if not len(names) == len(entries) == expected:
        raise WrongAnswer(f"{len(entries)} tools with {len(names)} names, not {expected}")
