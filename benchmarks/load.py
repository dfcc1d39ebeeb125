"""The load generator: `python -m benchmarks.load SPEC`, with the result as JSON on stdout.

SPEC is a JSON object. `kind` is "http" or "sse" (`connections` with one call in flight each; to `url`, or to
`port` of this machine, with `headers`), "stdio" (the `command`, with `env` and `cwd`, is started and called over its
pipes, `window` calls in flight) or "list" (whole lists of `tools` tools, one after the other, `count` of them, after
`warm_up` uncounted ones). Calls: `era` "legacy" or "modern", `tool`, for `seconds`; requests and their checks are in
`questions` (`check`, `size`, `prefix`, `arguments`). Closed loop, or with `rate` open loop: this many calls a second
are due, answered or not, and latencies count from then. `one_session`: all connections share one. `timeline`: errors
are answers too, the result has `calls_made`: [sent, answered, ok] of each, in seconds on the machine's monotonic clock,
and SIGTERM ends the measurement early.
A call ends when its last byte was read; it is checked afterwards. A wrong answer ends the program with status 1; over
HTTP each connection has texts of its own, so that another client's answer is one.
Result: calls, seconds, per_second, p50, p99 and quantiles (seconds), cpu (seconds of this process); of a closed loop
also `answered`, the calls of the warm-up included.
"""

from __future__ import annotations

import json
import select
import signal
import sys
from contextlib import closing

from benchmarks.answers import FIRST_ID, WrongAnswer, check_list
from benchmarks.callers import HttpCaller, SseCaller, address_of, is_error
from benchmarks.clock import ClosedLoop, OpenLoop, now, summarize
from benchmarks.pipes import Pipes, run_stdio
from benchmarks.questions import make_question
from benchmarks.wire import NO_ANSWER, Connection, make_message

__all__ = ["KINDS", "Pipes", "run", "summarize"]

STALE = 2.0  # seconds of handshakes after which the first connections are replaced: servers close idle ones


class Crowd:
    """All callers, by the sockets that they wait on, in one thread."""

    def __init__(self, spec, kind):
        self.callers, self.poll = {}, select.epoll()
        callers, begun = [], now()
        for number in range(spec["connections"]):
            question = make_question(spec, number)
            callers.append(kind(spec, question, callers[0] if callers and spec.get("one_session") else None))
        for caller in callers:
            if now() - begun > STALE:
                caller.refresh()
            self.add(caller)

    def add(self, caller):
        for socket in caller.sockets():
            self.callers[socket.fileno()] = caller
            self.poll.register(socket, select.EPOLLIN)

    def close(self):
        for caller in self.each():
            for socket in caller.sockets():
                socket.close()
        self.poll.close()

    def each(self):
        return list(dict.fromkeys(self.callers.values()))

    def answers(self, timeout=None):
        """Return (caller, when, status, answer) of all complete responses, perhaps of none."""
        if timeout is None:
            ready = [fd for fd, _events in self.poll.poll(NO_ANSWER)]
            if not ready:
                raise WrongAnswer(f"no answer for {NO_ANSWER} s")
        else:  # to the microsecond, which epoll is not
            ready = select.select(list(self.callers), (), (), timeout)[0]
        for fd in ready:
            caller = self.callers.get(fd)
            if caller is None:
                continue
            received = caller.receive(fd)
            if received is None:
                continue
            yield caller, now(), *received
            if caller.must_close:
                for socket in caller.sockets():
                    del self.callers[socket.fileno()]
                    self.poll.unregister(socket)
                caller.reconnect()
                self.add(caller)


def check(caller, status, answer):
    if status != 200:
        raise WrongAnswer(f"status {status} to request {caller.request_id}: {bytes(answer[:500])!r}")
    caller.question.check(answer, caller.request_id)


def run_calls(spec, kind):
    with closing(Crowd(spec, kind)) as crowd:
        if spec.get("timeline"):
            return run_timeline(crowd, ClosedLoop(spec["seconds"]))
        if "rate" in spec:
            return run_open(crowd, OpenLoop(spec["seconds"], spec["rate"]))
        return run_closed(crowd, ClosedLoop(spec["seconds"]))


def run_closed(crowd, clock):
    """Send again on each connection as soon as it has its answer."""
    idle, left = crowd.each(), len(crowd.each())
    while left:
        while idle:  # connections closed by their server have been replaced by now
            idle.pop().send()
        for caller, at, status, answer in crowd.answers():
            go_on = clock.add(caller.sent, at)
            check(caller, status, answer)
            if go_on and not caller.must_close:
                caller.send()
            elif go_on:
                idle.append(caller)
            else:
                left -= 1
    return clock.result()


def run_open(crowd, clock):
    """Send calls when they are due, or as soon afterwards as a connection is free."""
    idle, due, heard = crowd.each(), {}, now()
    while True:
        clock.due(now())
        while clock.waiting and idle:
            caller = idle.pop()
            due[caller] = clock.waiting.popleft()
            caller.send()
        wait = clock.next_in(now())
        if wait is None and not due:
            return clock.result()
        for caller, at, status, answer in crowd.answers(NO_ANSWER if wait is None else wait):
            heard = at
            clock.add(due.pop(caller), at)
            check(caller, status, answer)
            idle.append(caller)
        if due and now() - heard > NO_ANSWER:
            raise WrongAnswer(f"no answer for {NO_ANSWER} s")


def run_timeline(crowd, clock):
    """Run the closed loop against a failing server: count errors, fail on wrong answers."""

    def stop(_number, _frame):
        clock.end = min(clock.end, now())

    before = signal.signal(signal.SIGTERM, stop)
    calls, idle, left = [], crowd.each(), len(crowd.each())
    while left:
        while idle:  # here, since reconnecting callers have their new connections by now
            idle.pop().send()
        for caller, at, status, answer in crowd.answers():
            failed = is_error(status, answer)
            calls.append([caller.sent, at, not failed])
            if not failed:
                check(caller, status, answer)
            if clock.add(caller.sent, at):
                idle.append(caller)
            else:
                left -= 1
    signal.signal(signal.SIGTERM, before)
    return clock.result() | {"calls_made": calls}


def run_list(spec):
    """Request whole lists, all pages of each, over one connection."""
    latencies, begin, entries = [], now(), []
    with closing(Connection.at(address_of(spec), spec["era"], spec.get("headers", ()))) as connection:
        connection.open()
        for number in range(spec["count"] + spec["warm_up"]):
            entries, took = read_list(connection, FIRST_ID + number)
            if spec["tools"] is not None:
                check_list(entries, spec["tools"])
            if number >= spec["warm_up"]:
                latencies.append(took)
    return summarize(latencies, now() - begin) | {"tools": len(entries)}


def read_list(connection, request_id):
    """Return all entries, and the seconds that the requests took."""
    entries, params, took = [], {}, 0.0
    while True:
        message = make_message("tools/list", params, connection.era, request_id)
        sent = now()
        response = connection.post(message)
        took += now() - sent
        answer = json.loads(response.message())
        if answer["id"] != request_id:
            raise WrongAnswer(f"id {answer['id']!r} for {request_id!r}")
        entries += answer["result"]["tools"]
        if (cursor := answer["result"].get("nextCursor")) is None:
            return entries, took
        params = {"cursor": cursor}


KINDS = {
    "http": lambda spec: run_calls(spec, HttpCaller),
    "sse": lambda spec: run_calls(spec, SseCaller),
    "stdio": lambda spec: run_stdio(spec, make_question(spec)),
    "list": run_list,
}


def run(spec):
    """The result of one measurement."""
    return KINDS[spec["kind"]](spec)


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
