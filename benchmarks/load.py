"""The load generator: `python -m benchmarks.load SPEC`, a process of its own, with the result as JSON on stdout.

SPEC is a JSON object. `kind` "http": so many `connections` to `port`, each with one call under way at a time, for
`seconds`, in an `era`; `check` "constant" (the bare app: no handshake) or "echo". `kind` "stdio": the `command` is
started and called over its pipes with `window` calls under way. `kind` "list": whole lists of `tools` tools from
`port`, one after the other, `count` of them. A call ends when its last byte was read; checking comes after.
Result: calls, seconds, per_second, p50 and p99 (seconds), cpu (seconds of this process).
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time

from benchmarks.answers import FIRST_ID, WrongAnswer, check_constant, check_echo, check_list
from benchmarks.wire import (
    CLOSE,
    NO_ANSWER,
    Connection,
    call_template,
    encode,
    initialize_params,
    make_message,
    parse_response,
)

WARM_UP = 0.2  # of the measured time, before it
MAX_CALLS = 2_000_000  # of one measurement, whatever the time


class Clock:
    """Latencies of one measurement: those of calls sent after the warm-up and answered before the end."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.begin = time.perf_counter() + seconds * WARM_UP
        self.end = self.begin + seconds
        self.latencies = []

    def add(self, sent, answered):
        """Whether to go on."""
        if self.begin <= answered <= self.end:
            self.latencies.append(answered - sent)
        return answered < self.end and len(self.latencies) < MAX_CALLS

    def result(self):
        return summarize(self.latencies, self.seconds)


def summarize(latencies, seconds):
    if not latencies:
        raise WrongAnswer("not one call was answered within the measured time")
    ordered = sorted(latencies)
    return {
        "calls": len(ordered),
        "seconds": seconds,
        "per_second": len(ordered) / seconds,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)],
        "cpu": time.process_time(),
    }


def run_http(spec):
    """Closed loop over all connections from one thread; a connection sends again as soon as it was answered."""
    constant = spec["check"] == "constant"
    check = check_constant if constant else check_echo
    callers = {}
    poll = select.epoll()
    for _ in range(spec["connections"]):
        caller = Caller(spec, handshake=not constant)
        callers[caller.connection.socket.fileno()] = caller
        poll.register(caller.connection.socket, select.EPOLLIN)
    clock = Clock(spec["seconds"])
    for caller in callers.values():
        caller.send()
    under_way = len(callers)
    while under_way:
        ready = poll.poll(NO_ANSWER)
        if not ready:
            raise WrongAnswer(f"no answer for {NO_ANSWER} s")
        for fd, _events in ready:
            caller = callers[fd]
            if (response := caller.receive()) is None:
                continue
            go_on = clock.add(caller.sent, time.perf_counter())
            if response.status != 200:
                raise WrongAnswer(f"{response.head!r} {response.body[:300]!r}")
            check(response.message(), caller.request_id)
            if not go_on:
                under_way -= 1
                continue
            if CLOSE.search(response.head):  # a server may; closing takes the old socket out of the poll
                connection = callers.pop(fd).connection
                connection.socket.close()
                connection.connect()
                callers[connection.socket.fileno()] = caller
                poll.register(connection.socket, select.EPOLLIN)
            caller.send()
    return clock.result()


class Caller:
    """One connection with at most one call under way."""

    def __init__(self, spec, *, handshake):
        self.connection = Connection(spec["port"], spec["era"])
        if handshake:
            self.connection.open()
        else:
            self.connection.session = b"0123456789abcdef0123456789abcdef"  # the head is as long as a real one
        body = call_template(spec["tool"], spec["era"])
        length = len(body % (FIRST_ID, FIRST_ID))
        self.template = self.connection.head(length, "tools/call", spec["tool"]).replace(b"%", b"%%") + body
        self.request_id = FIRST_ID - 1
        self.sent = 0.0

    def send(self):
        self.request_id += 1
        request = self.template % (self.request_id, self.request_id)
        self.sent = time.perf_counter()
        self.connection.socket.sendall(request)

    def receive(self):
        """The response, if what has arrived makes it whole."""
        data = self.connection.socket.recv(1 << 18)
        if not data:
            raise WrongAnswer(f"hung up on request {self.request_id}")
        buffer = self.connection.buffer
        if buffer:
            buffer += data
            data = buffer
        response = parse_response(data)
        if response is None:
            if data is not buffer:
                buffer += data
            return None
        if response.length != len(data):
            raise WrongAnswer(f"more than one response to request {self.request_id}: {bytes(data)!r}")
        buffer.clear()
        return response


class Pipes:
    """A child with its pipes, read line by line with a bound on silence."""

    def __init__(self, command):
        self.child = subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.fd = self.child.stdout.fileno()
        self.poll = select.poll()
        self.poll.register(self.fd, select.POLLIN | select.POLLHUP)
        self.rest = b""

    def send(self, line):
        self.child.stdin.write(line + b"\n")

    def lines(self):
        """The lines of the next read; waits for at least one."""
        while True:
            if not self.poll.poll(NO_ANSWER * 1000):
                raise WrongAnswer(f"no answer for {NO_ANSWER} s")
            data = os.read(self.fd, 1 << 18)
            if not data:
                raise WrongAnswer("the child closed its stdout")
            *lines, self.rest = (self.rest + data).split(b"\n")
            if lines:
                return lines

    def close(self):
        self.child.stdin.close()
        self.child.stdout.close()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def run_stdio(spec):
    """So many calls under way on the pipes of one child; each answer lets the next call go."""
    pipes = Pipes(spec["command"])
    try:
        if spec["era"] == "legacy":
            pipes.send(encode(make_message("initialize", initialize_params(), "legacy", 0)))
            if b'"result"' not in pipes.lines()[0]:
                raise WrongAnswer("initialize was refused")
            pipes.send(encode(make_message("notifications/initialized", {}, "legacy")))
        return call_over_pipes(pipes, call_template(spec["tool"], spec["era"]), spec["window"], spec["seconds"])
    finally:
        pipes.close()


def call_over_pipes(pipes, template, window, seconds):
    sent, next_id = {}, FIRST_ID
    pipes.send(template % (next_id, next_id))  # the first call also waits for a backend that is still starting
    answers = []
    while not answers:  # notices of changed lists may come first
        answers = [line for line in pipes.lines() if b'"id"' in line]
    check_echo(answers[0], next_id)
    clock, go_on = Clock(seconds), True
    for _ in range(window):
        next_id += 1
        sent[next_id] = time.perf_counter()
        pipes.send(template % (next_id, next_id))
    while sent:
        for line in pipes.lines():
            now = time.perf_counter()
            message = json.loads(line)
            if "id" not in message:
                continue
            request_id = message["id"]
            if request_id not in sent:
                raise WrongAnswer(f"nobody asked with id {request_id!r}")
            go_on = clock.add(sent.pop(request_id), now) and go_on
            check_echo(line, request_id)
            if go_on:
                next_id += 1
                request = template % (next_id, next_id)
                sent[next_id] = time.perf_counter()
                pipes.send(request)
    return clock.result()


def run_list(spec):
    """Whole lists, all pages of each, over one connection."""
    connection = Connection(spec["port"], spec["era"])
    connection.open()
    latencies, begin = [], time.perf_counter()
    for number in range(spec["count"] + spec["warm_up"]):
        entries, params, took = [], {}, 0.0
        while True:
            request_id = FIRST_ID + number
            message = make_message("tools/list", params, spec["era"], request_id)
            sent = time.perf_counter()
            response = connection.post(message)
            took += time.perf_counter() - sent
            answer = json.loads(response.message())
            if answer["id"] != request_id:
                raise WrongAnswer(f"id {answer['id']!r} for {request_id!r}")
            entries += answer["result"]["tools"]
            if (cursor := answer["result"].get("nextCursor")) is None:
                break
            params = {"cursor": cursor}
        check_list(entries, spec["tools"])
        if number >= spec["warm_up"]:
            latencies.append(took)
    return summarize(latencies, time.perf_counter() - begin)


KINDS = {"http": run_http, "stdio": run_stdio, "list": run_list}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    print(json.dumps(KINDS[asked["kind"]](asked)))
