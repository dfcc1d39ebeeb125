"""Baselines for a gateway: relays on trio that do only the necessary work.

`python -m benchmarks.relay COMMAND...` runs the command between its pipes and copies bytes. Its cost is the minimum for
anything in between: two more wake-ups, and one more trio loop that reads and writes twice.

`python -m benchmarks.relay --http COMMAND...` calls the tools of the command for HTTP clients, on a free port of
127.0.0.1 that it names on stderr, until SIGTERM. It parses the HTTP, reads the envelope and the name, gives each call
an id of its own, and the reader of the command's answers writes the response; no task a call. There are no sessions, no
checks, no bounds and no deadlines, so that no gateway in Python with these libraries can be expected to be as fast.

`measure`: the gateway and that relay, alternating, over HTTP in both eras with 1 and 16 connections.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial

import httptools
import msgspec
import trio

from benchmarks.processes import backend, cpu_seconds, load, serving, serving_gateway
from benchmarks.table import Claim, Figure, Table, differences, ratios
from benchmarks.wire import LEGACY, encode, initialize_params, make_message

MOST = 65_536  # bytes of one read: the capacity of a pipe
RESPONSE = b"HTTP/1.1 %d OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
FORWARDED = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%b","arguments":%b}}\n'
ANSWER = b'{"jsonrpc":"2.0","id":%b,"result":%b}'
INITIALIZED = encode({"protocolVersion": LEGACY, "capabilities": {"tools": {}}, "serverInfo": {"name": "relay"}})
MANY = 16  # connections


async def copy(source, sink):
    while True:
        await trio.lowlevel.wait_readable(source)
        data = os.read(source, MOST)
        if not data:
            return
        os.write(sink, data)


async def relay_bytes(process):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, process.stdout.fileno(), 1)
        await copy(0, process.stdin.fileno())
        process.stdin.close()


class Envelope(msgspec.Struct):
    id: msgspec.Raw = msgspec.Raw(b"")
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"{}")
    result: msgspec.Raw = msgspec.Raw(b"null")


class CallParams(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


decode = msgspec.json.Decoder(Envelope).decode
decode_params = msgspec.json.Decoder(CallParams).decode


class HttpRelay:
    """Clients over HTTP, and one child that answers their calls."""

    def __init__(self, process):
        self.stdin = process.stdin.fileno()
        self.stdout = trio.lowlevel.FdStream(os.dup(process.stdout.fileno()))
        self.waiting = {}  # id of a call at the child -> (socket, id of the request)
        self.last_id = 0

    def handle(self, sock, body):
        message = decode(body)
        if message.method == "tools/call":
            params = decode_params(message.params)
            self.last_id += 1
            self.waiting[self.last_id] = sock, message.id
            name = params.name.rpartition(".")[2].encode()
            os.write(self.stdin, FORWARDED % (self.last_id, name, bytes(params.arguments)))
        elif bytes(message.id):
            respond(sock, 200, ANSWER % (bytes(message.id), INITIALIZED))
        else:
            respond(sock, 202, b"")

    async def serve_client(self, stream):
        sock = stream.socket._sock  # trio's own has no send that does not wait
        request = Request()
        parser = httptools.HttpRequestParser(request)
        try:
            while data := await stream.socket.recv(MOST):
                parser.feed_data(data)
                if request.whole:
                    dict(request.headers)
                    body = b"".join(request.body)
                    request.clear()
                    self.handle(sock, body)
        except OSError:
            return

    async def read_answers(self):
        rest = b""
        while data := await self.stdout.receive_some(MOST):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                answer = decode(line)
                sock, request_id = self.waiting.pop(int(bytes(answer.id)), (None, b""))
                if sock is not None and sock.fileno() >= 0:
                    respond(sock, 200, ANSWER % (bytes(request_id), bytes(answer.result)))


class Request:
    """Called by httptools, for one request at a time."""

    def __init__(self):
        self.clear()

    def clear(self):
        self.headers, self.body, self.whole = [], [], False

    def on_header(self, name, value):
        self.headers.append((name.lower(), value))

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        self.whole = True


def respond(sock, status, body):
    sock.send(RESPONSE % (status, len(body), body))


async def serve_http(process):
    relay = HttpRelay(process)
    os.write(relay.stdin, encode(make_message("initialize", initialize_params(), "legacy", 0)) + b"\n")
    serve_tcp = partial(trio.serve_tcp, relay.serve_client, 0, host="127.0.0.1")
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.read_answers)
            (listener,) = await nursery.start(serve_tcp)
            print(f"listening on http://127.0.0.1:{listener.socket.getsockname()[1]}/", file=sys.stderr, flush=True)
            await anext(signals)
            nursery.cancel_scope.cancel()
    process.stdin.close()


# -- the measurement ---------------------------------------------------------------------------------------------------


def measure(rounds, seconds, *, quick):
    """Claims, pieces to show, data."""
    del quick
    command = backend()
    results = {}
    with (
        serving([sys.executable, "-m", "benchmarks.relay", "--http", *command]) as relay,
        serving_gateway({"echo": command}) as gateway,
    ):
        gateway.wait_ready(1)
        for _ in range(rounds):
            for era in ("legacy", "modern"):
                for connections in (1, MANY):
                    for who, server in (("relay", relay), ("gateway", gateway)):
                        spec = {"kind": "http", "era": era, "connections": connections, "port": server.port}
                        cpu = cpu_seconds(server.pid)
                        found = load(**spec, tool="echo.echo", seconds=seconds)
                        cpu = cpu_seconds(server.pid) - cpu
                        found["cpu_call"] = cpu / found["answered"]
                        results.setdefault((who, era, connections), []).append(found)
    return make_claims(results), make_details(results), [
        {"who": who, "era": era, "connections": connections, "rounds": found}
        for (who, era, connections), found in results.items()
    ]  # fmt: skip


def make_claims(results):
    def values(who, era, connections, key):
        return [one[key] for one in results[who, era, connections]]

    def both(era, connections, key):
        return values("gateway", era, connections, key), values("relay", era, connections, key)

    claims = []
    for era in ("legacy", "modern"):
        what = f"HTTP {era}, {MANY} connections"
        rate = ratios(*both(era, MANY, "per_second"))
        cpu = ratios(*both(era, MANY, "cpu_call"))
        added = differences(*both(era, 1, "p50"))
        claims += [
            Claim(f"{what}: calls/s over a relay", rate, "ratio", least=0.45),
            Claim(f"{what}: CPU of a call over a relay's", cpu, "ratio", most=2.2),
            Claim(f"HTTP {era}, 1 connection: added p50 over a relay", added, "ms", 1e3, most=0.15),
        ]
    return claims


def make_details(results):
    rows = []
    for (who, era, connections), measured in results.items():
        figures = {key: Figure.of([one[key] for one in measured]) for key in ("per_second", "p50", "p99", "cpu_call")}
        shown = [figures[key].show(scale, digits) for key, scale, digits in
                 (("per_second", 1, 0), ("p50", 1e3, 3), ("p99", 1e3, 3), ("cpu_call", 1e6, 1))]  # fmt: skip
        rows.append([who, era, connections, *shown])
    header = ["who", "era", "connections", "calls/s", "p50 ms", "p99 ms", "CPU us a call"]
    return [Table(header, rows, "HTTP clients of a stdlib echo on pipes: the gateway and a relay")]


def main(arguments):
    run, command = (serve_http, arguments[1:]) if arguments[:1] == ["--http"] else (relay_bytes, arguments)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        trio.run(run, child)


if __name__ == "__main__":
    main(sys.argv[1:])
