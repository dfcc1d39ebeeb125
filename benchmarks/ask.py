"""Question: what do server requests, notifications during calls, and waiting clients cost?

Method: a legacy server on pipes, called directly and through the gateway in stdio mode, one call at a time: a plain
call, one that asks for an elicitation, one with 20 progress notifications; then the same elicitation for a modern
client, whose call is suspended. The cost of a request or a notification is the gateway's addition to such a call, less
its addition to a plain one. Differences are taken within a round. A suspended call's bytes are Python's own, counted by
tracemalloc over 1,000 calls in this process (a gateway suspends only a limited number for one client); sessions are the
growth of the gateway's RSS, divided. Units: ms, KB (1,000 bytes), calls per second.
"""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import time
import tracemalloc
from contextlib import ExitStack, contextmanager
from statistics import median

import trio

from benchmarks.answers import WrongAnswer
from benchmarks.memory import read_status
from benchmarks.processes import (
    ROOT,
    backend,
    config_file,
    config_of,
    gateway_command,
    load,
    serving,
    serving_gateway,
)
from benchmarks.table import Claim, Figure, differences, ratios, render
from benchmarks.wire import META, Connection, encode, make_message

CAN = {"elicitation": {"form": {}}, "roots": {}}
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
FORM = {"message": "Who?", "requestedSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}
ANSWER = {"action": "accept", "content": {"name": "Ada"}}
ASK = {"requests": {"one": {"method": "elicitation/create", "params": FORM}}}
STEPS = 20  # progress notifications in one call
WARM = 20  # sessions opened before any is counted
SUSPENDED = 1000  # calls whose memory is counted


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 1)")
    parser.add_argument("--calls", type=int, help="calls of each kind in a round (300; quick: 30)")
    parser.add_argument("--seconds", type=float, help="measured seconds of HTTP calls in each era and round (2; 0.4)")
    parser.add_argument("--sessions", type=int, help="legacy sessions that are opened (500; quick: 100)")


def run(options):
    rounds = options.rounds or (1 if options.quick else 5)
    calls = options.calls or (30 if options.quick else 300)
    seconds = options.seconds or (0.4 if options.quick else 2.0)
    times = measure_times(rounds, calls)
    claims = time_claims(times)
    claims.append(rate_claim(rounds, seconds))
    size = bytes_of_suspended(SUSPENDED)
    claims.append(Claim("a suspended call", Figure.of([size]), "KB", 1e-3, most=10))
    claims += session_claims(options.sessions or (100 if options.quick else 500))
    rows = [[name, Figure.of(found).show(1e3, 3)] for name, found in times.items()]
    return claims, (render(["p50 of a call", "ms"], rows), times)


# -- times -------------------------------------------------------------------------------------------------------------


class Pipes:
    """A client on a child's pipes, with one call in flight at a time."""

    def __init__(self, command, prefix):
        self.prefix = prefix
        self.last_id = 0
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        hello = {"protocolVersion": "2025-11-25", "capabilities": CAN, "clientInfo": {"name": "load", "version": "1"}}
        self.request("initialize", hello)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def send(self, message):
        self.child.stdin.write(encode(message) + b"\n")
        self.child.stdin.flush()

    def request(self, method, params):
        """Return the result; answer every server request meanwhile."""
        self.last_id += 1
        self.send({"jsonrpc": "2.0", "id": self.last_id, "method": method, "params": params})
        self.notices = 0
        while True:
            message = json.loads(self.child.stdout.readline() or b"null")
            if message is None:
                raise WrongAnswer(f"no answer to {method}")
            if "method" not in message:
                if message["id"] != self.last_id or "result" not in message:
                    raise WrongAnswer(f"{method} got {message}")
                return message["result"]
            if "id" in message:
                self.send({"jsonrpc": "2.0", "id": message["id"], "result": ANSWER})
            self.notices += 1

    def call(self, tool, arguments, **meta):
        own = {"_meta": meta} if meta else {}
        return self.request("tools/call", {"name": self.prefix + tool, "arguments": arguments, **own})

    def plain(self):
        if self.call("echo", {"text": "x"})["content"][0]["text"] != "x":
            raise WrongAnswer("no echo")

    def ask(self):
        check(self.call("ask", ASK))

    def report(self):
        self.call("progress", {"n": STEPS}, progressToken=1)
        if self.notices != STEPS:
            raise WrongAnswer(f"{self.notices} of {STEPS} notifications came")

    def park(self):
        own = {**META, CAPABILITIES: CAN}
        first = self.call("ask", ASK, **own)
        params = {"name": self.prefix + "ask", "arguments": ASK, "requestState": first["requestState"], "_meta": own}
        (key,) = first["inputRequests"]
        check(self.request("tools/call", params | {"inputResponses": {key: ANSWER}}))

    def close(self):
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait(30)


def check(result):
    if result["structuredContent"]["answers"] != {"one": ANSWER}:
        raise WrongAnswer(f"the answer came back as {result}")


@contextmanager
def open_pipes(command, prefix=""):
    pipes = Pipes(command, prefix)
    try:
        yield pipes
    finally:
        pipes.close()


def measure_times(rounds, calls):
    """Return the medians by kind of call, one for each round."""
    command = backend("bridge")
    found = {}
    with config_file(config_of({"b": command})) as path, ExitStack() as stack:
        direct = stack.enter_context(open_pipes(command))
        through = stack.enter_context(open_pipes(gateway_command(path, "stdio"), "b."))
        steps = {
            "plain, direct": direct.plain,
            "plain": through.plain,
            "elicitation, direct": direct.ask,
            "elicitation": through.ask,
            "elicitation, suspended": through.park,
            f"{STEPS} progress, direct": direct.report,
            f"{STEPS} progress": through.report,
        }
        for _ in range(rounds):
            for name, step in steps.items():
                found.setdefault(name, []).append(median_time(step, calls))
    return found


def median_time(step, calls):
    for _ in range(max(calls // 10, 1)):
        step()
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return median(times)


def time_claims(times):
    def added(name):
        return [whole - part for whole, part in zip(times[name], times[f"{name}, direct"], strict=True)]

    plain = added("plain")
    progress = [one / STEPS for one in (a - b for a, b in zip(added(f"{STEPS} progress"), plain, strict=True))]
    return [
        Claim("an elicitation round trip: added p50", differences(added("elicitation"), plain), "ms", 1e3, most=0.5),
        Claim("a progress notification: added p50", Figure.of(progress), "ms", 1e3, most=0.5),
        Claim(
            "suspending and resuming, over asking a legacy client: added p50",
            differences(times["elicitation, suspended"], times["elicitation"]),
            "ms",
            1e3,
            most=1,
        ),
    ]


def rate_claim(rounds, seconds):
    rates = {"legacy": [], "modern": []}
    with serving_gateway({"echo": backend()}) as gateway:
        gateway.wait_ready(1)
        spec = {"kind": "http", "port": gateway.port, "connections": 16, "tool": "echo.echo", "check": "echo"}
        for _ in range(rounds):
            for era, found in rates.items():
                found.append(load(**spec, era=era, seconds=seconds)["per_second"])
    return Claim("HTTP calls/s, modern over legacy", ratios(rates["modern"], rates["legacy"]), "ratio", least=0.95)


# -- memory ------------------------------------------------------------------------------------------------------------


def bytes_of_suspended(count):
    """Return the bytes that one suspended call keeps alive, also in its backend's session."""
    return trio.run(_count_suspended, count)


async def _count_suspended(count):
    from gateway import jsonrpc
    from gateway.backends.session.conversation import Conversation
    from gateway.calls import Era, Identity
    from gateway.eras.requests import Hop, modern_call
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.modern import suspended_calls as room
    from gateway.frontends.modern.request_state import RequestStateCodec
    from gateway.inflight.pending import PendingCall

    def drop(_data):
        pass

    class Ears:
        def freed(self):
            pass

    hop = Hop(era=Era.LEGACY, client_info=jsonrpc.raw({}))
    conversation = Conversation("b", post=drop, listener=Ears(), hop=hop)
    parking = room.SuspendedCalls(RequestStateCodec())
    params = {"name": "b.ask", "arguments": ASK, "_meta": {**META, CAPABILITIES: CAN}}
    body = encode(make_message("tools/call", params, "legacy", 1))

    async def park(number):
        call = modern_call(jsonrpc.decode(body), identity=Identity(f"client {number}"))
        pending = PendingCall(call, backend="b", own_name="ask", timeout=300)
        conversation.encode_call(pending)
        asked = {"jsonrpc": "2.0", "id": f"ask-{number}", "method": "elicitation/create", "params": FORM}
        conversation.feed(encode(asked), pending)
        flow = CallStream(None, pending)
        result = await parking.park(flow, await flow.next())
        if not isinstance(result, bytes):
            raise WrongAnswer(f"not suspended: {result}")

    limit, room.MAX_PARKED = room.MAX_PARKED, 2 * count
    try:
        await park(-1)  # imports and one-time allocations
        tracemalloc.start()
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            await park(number)
        gc.collect()
        after = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
        room.MAX_PARKED = limit
    return (after - before) / count


def session_claims(count):
    """Measure an idle legacy session over HTTP, and one whose client listens."""
    config = {"mcpServers": {}, "gateway": {"max_sessions": 2 * count + WARM}}
    with config_file(config) as path, serving(gateway_command(path, "streamable-http")) as gateway:
        open_sessions(gateway.port, WARM)  # one-time allocations, and buffers that grow
        idle = open_sessions(gateway.port, count, gateway.pid)
        listening = open_sessions(gateway.port, count, gateway.pid, listen=True)
    return [
        Claim(f"an idle legacy HTTP session (of {count}): RSS", Figure.of([idle]), "KB", 1e-3, most=20),
        Claim(f"one with an open GET stream (of {count}): RSS", Figure.of([listening]), "KB", 1e-3, most=45),
    ]


def open_sessions(port, count, pid=None, *, listen=False):
    """Open sessions; return the gateway's growth in bytes for each."""
    before = 0 if pid is None else read_status(pid)["VmRSS"]
    streams = []
    try:
        for _ in range(count):
            connection = Connection(port, "legacy")
            connection.open()
            connection.socket.close()
            if listen:
                streams.append(open_stream(port, connection.session))
        return 0 if pid is None else (read_status(pid)["VmRSS"] - before) / count
    finally:
        for stream in streams:
            stream.close()


def open_stream(port, session):
    stream = socket.create_connection(("127.0.0.1", port), timeout=30)
    lines = [
        "GET /mcp HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Accept: text/event-stream",
        "MCP-Protocol-Version: 2025-11-25",
        f"Mcp-Session-Id: {session.decode()}",
    ]
    stream.sendall("\r\n".join([*lines, "", ""]).encode())
    if b" 200 " not in stream.recv(4096):
        raise WrongAnswer("no GET stream")
    return stream
