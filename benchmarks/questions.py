"""The requests of a measurement and the checks of their answers: `make_question(spec)`.

`check` of a spec is one of "echo" (the text of this request comes back; `size` pads it), "numbered" (the same behind
`prefix`, as the echo server's numbered tools answer), "big" (`size` bytes of text), "constant" (the bare app), "any" (a
result and no error, for unknown tools, with their `arguments`).
"""

from __future__ import annotations

import json

from benchmarks.answers import FIRST_ID, TEXT, WrongAnswer, check_constant
from benchmarks.wire import call_template, template_of

LONG = 4096  # bytes of text from which the JSON around it is parsed without it: checking must not be the bottleneck


class Question:
    """`fill(id)` is the request's body, `check(body, id)` raises WrongAnswer; ids have seven digits."""

    def __init__(self, template, places, expected):
        self.template, self.places, self.expected = template, places, expected
        self.length = len(self.fill(FIRST_ID))

    def fill(self, request_id):
        return self.template % ((request_id,) * self.places)

    def check(self, body, request_id):
        if self.expected is check_constant:
            check_constant(body, request_id)
            return
        text = None if self.expected is None else self.expected(request_id)
        if not is_right(body, request_id, text):
            raise WrongAnswer(f"request {request_id} got {bytes(body[:300])!r}")


def is_right(body, request_id, text):
    """Return whether this answers this request; with a text, with just that."""
    if text is not None and len(text) >= LONG:
        spelled = text.encode()
        if body.count(spelled) != 1:
            return False
        body, text = body.replace(spelled, b"", 1), ""
    try:
        message = json.loads(body)
        if message["id"] != request_id or "error" in message:
            return False
        if text is None:
            return not message["result"].get("isError")
        return message["result"]["content"][0]["text"] == text
    except (ValueError, LookupError, TypeError, AttributeError):
        return False


def make_question(spec, client=0):
    """Make the question for the tool, era, check, size, prefix and arguments of a spec.

    The texts of two clients differ, also where their ids do not.
    """
    tool, era, check, size = spec["tool"], spec["era"], spec.get("check", "echo"), spec.get("size", 0)
    if check == "any":
        return Question(template_of(tool, spec.get("arguments") or {}, era), 1, None)
    if check == "big":
        text = "x" * size
        return Question(template_of(tool, {"n": size}, era), 1, lambda _id: text)
    if check == "constant":
        return Question(call_template(tool, era), 2, check_constant)
    filler = f" from client {client:04}"
    filler += "x" * max(0, size - len(TEXT % FIRST_ID + filler))
    template = call_template(tool, era, TEXT + filler)
    if check not in {"echo", "numbered"}:
        raise ValueError(f"no such check: {check}")
    prefix = spec.get("prefix", "")
    return Question(template, 2, lambda request_id: prefix + TEXT % request_id + filler)
