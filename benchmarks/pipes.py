"""A child on its pipes, with bounded silence; calls in closed or open loop."""

from __future__ import annotations

import json
import os
import select
import subprocess

from benchmarks.answers import FIRST_ID, WrongAnswer
from benchmarks.clock import ClosedLoop, OpenLoop, now
from benchmarks.wire import NO_ANSWER, encode, initialize_params, make_message


class Pipes:
    """A child with its pipes; it inherits stderr and the environment, plus `env`."""

    def __init__(self, command, *, env=None, cwd=None, stderr=None):
        pipe = subprocess.PIPE
        environment = {**os.environ, **(env or {})}
        self.child = subprocess.Popen(
            command, bufsize=0, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, cwd=cwd
        )
        self.fd = self.child.stdout.fileno()
        self.rest = bytearray()

    def send(self, line):
        self.child.stdin.write(line + b"\n")

    def lines(self, timeout=NO_ANSWER):
        """Return the lines of the next reads; without a `timeout` at least one.

        Fails after a silence.
        """
        while True:
            if not select.select([self.fd], (), (), timeout)[0]:
                if timeout < NO_ANSWER:
                    return []
                raise WrongAnswer(f"no answer for {NO_ANSWER} s")
            data = os.read(self.fd, 1 << 20)
            if not data:
                raise WrongAnswer("the child closed its stdout")
            if b"\n" not in data:
                self.rest += data
                continue
            *lines, rest = (bytes(self.rest) + data).split(b"\n")
            self.rest = bytearray(rest)
            return lines

    def open(self, era):
        """Do the legacy handshake; nothing in the modern era."""
        if era == "modern":
            return
        self.send(encode(make_message("initialize", initialize_params(), "legacy", 0)))
        answer = self.lines()[0]
        if b'"result"' not in answer:
            raise WrongAnswer(f"initialize got {answer[:300]!r}")
        self.send(encode(make_message("notifications/initialized", {}, "legacy")))

    def ask(self, line, request_id):
        """Send the only request in flight; return its response line, skipping other messages."""
        self.send(line)
        while True:
            for line in self.lines():
                if b'"id"' in line and json.loads(line).get("id") == request_id:
                    return line

    def close(self):
        self.child.stdin.close()
        self.child.stdout.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


class Talk:
    """Calls on the pipes of one child, any number of them in flight."""

    def __init__(self, pipes, question):
        self.pipes, self.question = pipes, question
        self.next_id = FIRST_ID
        self.sent = {}  # request id -> when its latency began
        # The first call also waits for a backend that is still starting.
        question.check(pipes.ask(question.fill(FIRST_ID), FIRST_ID), FIRST_ID)

    def call(self, since=None):
        self.next_id += 1
        request = self.question.fill(self.next_id)
        self.sent[self.next_id] = now() if since is None else since
        self.pipes.send(request)

    def answers(self, timeout=NO_ANSWER):
        """Return (began, answered) of each call that the next lines answer, after checking them."""
        for line in self.pipes.lines(timeout):
            answered = now()
            request_id = id_of(line)
            if request_id is None:
                continue
            if request_id not in self.sent:
                raise WrongAnswer(f"response to an unknown id {request_id!r}")
            began = self.sent.pop(request_id)
            yield began, answered
            self.question.check(line, request_id)


def id_of(line):
    """Return the id of a JSON-RPC response; None for other messages.

    Long ones begin or end with it.
    """
    if len(line) > 1 << 15:
        near = line[:200] + line[-200:]
        at = near.find(b'"id":')
        if at >= 0 and (digits := near[at + 5 :].lstrip()[:7]).isdigit():
            return int(digits)
    message = json.loads(line)
    return message.get("id") if "method" not in message else None


def run_stdio(spec, question):
    """Keep `window` calls in flight on one child's pipes, or call at a fixed rate."""
    pipes = Pipes(spec["command"], env=spec.get("env"), cwd=spec.get("cwd"))
    try:
        pipes.open(spec["era"])
        talk = Talk(pipes, question)
        if "rate" in spec:
            return run_open(talk, OpenLoop(spec["seconds"], spec["rate"]))
        return run_closed(talk, ClosedLoop(spec["seconds"]), spec["window"])
    finally:
        pipes.close()


def run_closed(talk, clock, window):
    go_on = True
    for _ in range(window):
        talk.call()
    while talk.sent:
        for began, answered in talk.answers():
            go_on = clock.add(began, answered) and go_on
            if go_on:
                talk.call()
    return clock.result()


def run_open(talk, clock):
    while True:
        at = now()
        clock.due(at)
        while clock.waiting:
            talk.call(clock.waiting.popleft())
        wait = clock.next_in(now())
        if wait is None and not talk.sent:
            return clock.result()
        for began, answered in talk.answers(NO_ANSWER if wait is None else wait):
            clock.add(began, answered)
