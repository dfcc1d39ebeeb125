"""The common part of all soak clients: random steps, with exactly known answers.

Every message of a client carries a unique text, and so must every answer and request that it gets. A `Tally` counts the
steps and collects the mistakes. Each client has its own random stream, so with the same seed it does the same; only the
timing depends on the machine.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import aclosing
from random import Random

import h11
import trio

from tests.support.wire_http import HttpClient

WITHIN = 25.0  # seconds in which every call must be answered unless cancelled, with all clients on the same cores
THINK = 0.25  # seconds between two calls of one client, on average
LONGEST = 1.0  # less than the time after which a session counts as abandoned
CAN = {"elicitation": {"form": {}}, "sampling": {}}
MAX_REPORTED = 200  # mistakes that are reported in full
MISTAKES = ("misdirected", "lost", "doubled", "misasked", "unexpected")
WORDS = {
    "misdirected": "answers to another client or request",
    "lost": "answers that did not come",
    "doubled": "answers or runs that came twice",
    "misasked": "requests of servers at the wrong client",
    "unexpected": "whatever else was wrong",
}

BREAKAGES = (trio.TooSlowError, OSError, trio.BrokenResourceError, h11.ProtocolError, AssertionError, EOFError)
ODDITIES = (LookupError, TypeError, ValueError, AttributeError)  # an answer of invalid form


class Tally:
    """The steps taken, and the mistakes found."""

    def __init__(self, *, patient=False):
        self.patient = patient  # whether a client may leave a backend waiting until its timeout: half a minute
        self.done = Counter()
        self.mistakes = Counter()
        self.reported = []
        self.forgotten = 0  # suspended calls whose clients never return; a gateway keeps a limited number

    def fail(self, mistake, text):
        self.mistakes[mistake] += 1
        if len(self.reported) < MAX_REPORTED:
            self.reported.append(f"{mistake}: {text}")


class Asked:
    """A client's plan for one request that it has made a backend send to it."""

    def __init__(self, nonce, method, how):
        self.nonce, self.method, self.how = nonce, method, how
        self.seen = trio.Event()

    @property
    def request(self):
        if self.method == "elicitation/create":
            form = {"type": "object", "properties": {"name": {"type": "string"}}}
            return {"method": self.method, "params": {"message": self.nonce, "requestedSchema": form}}
        said = {"role": "user", "content": {"type": "text", "text": self.nonce}}
        return {"method": self.method, "params": {"messages": [said], "maxTokens": 9}}

    @property
    def answer(self):
        if self.method == "elicitation/create":
            return {"action": "accept", "content": {"name": self.nonce}}
        return {"role": "assistant", "content": {"type": "text", "text": self.nonce}, "model": "none"}


def nonce_of(request):
    """Return the text by which a client recognizes a backend's request as its own."""
    params = request["params"]
    return params["message"] if "message" in params else params["messages"][0]["content"]["text"]


def text_of(answer):
    return answer["result"]["content"][0]["text"]


def is_stream(exchange):
    return exchange.headers.get("content-type", "").startswith("text/event-stream")


async def receive(exchange, take):
    """Pass every message of a response to `take(message, event id)`, to its end."""
    if is_stream(exchange):
        async with aclosing(exchange.events()) as events:
            async for event in events:
                take(json.loads(event.data) if event.data else None, event.id)
    elif body := await exchange.read_body():
        take(json.loads(body), None)


class Client:
    """The common part of both eras: texts, steps and the checks of answers."""

    def __init__(self, name, url, seed, tally):
        self.name, self.tally = name, tally
        self.http = HttpClient(url)
        self.random = Random(f"{seed} {name}")
        self.serial = 0

    def nonce(self):
        self.serial += 1
        return f"{self.name}-{self.serial}-{self.random.getrandbits(64):x}"

    def fail(self, mistake, text):
        self.tally.fail(mistake, f"{self.name}: {text}")

    async def step(self, steps, random):
        """Take one of the steps, chosen by its weight."""
        (step,) = random.choices(list(steps), list(steps.values()))
        name = step.__name__.removeprefix("step_")
        try:
            with trio.fail_after(WITHIN):
                await step(random)
            self.tally.done[self.era + " " + name] += 1
        except trio.TooSlowError:
            self.fail("lost", f"{name} took more than {WITHIN:g} s")
        except BREAKAGES + ODDITIES as exc:
            self.fail("unexpected", f"{name}: {exc!r}")

    @staticmethod
    async def think(random):
        await trio.sleep(min(random.expovariate(1 / THINK), LONGEST))

    def judge(self, answer, wanted, what):
        """Check that the answer to `what` holds the text that it was called with."""
        if answer is None:
            self.fail("lost", f"{what}: the stream ended without an answer")
        elif "result" not in answer:
            self.fail("unexpected", f"{what}: {answer}")
        elif text_of(answer) != wanted:
            self.fail("misdirected", f"{what}: {text_of(answer)!r} instead of {wanted!r}")

    def judge_asked(self, answer, asked, what):
        if answer is None:
            self.fail("lost", f"{what}: the stream ended without an answer")
        elif "result" not in answer:
            self.fail("unexpected", f"{what}: {answer}")
        elif answer["result"]["structuredContent"]["answers"] != {key: one.answer for key, one in asked.items()}:
            self.fail("misdirected", f"{what}: the backend got {answer['result']}")

    def make_asks(self, random, how):
        """Return one or two requests for a backend to send: key -> Asked."""
        methods = ("elicitation/create", "sampling/createMessage")
        count = random.choice((1, 1, 1, 2))
        return {f"key-{i}": Asked(self.nonce(), random.choice(methods), how) for i in range(count)}
