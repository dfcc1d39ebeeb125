"""Question: what latency does a light client see beside floods, slow backends, slow readers?

Method: a light client has one connection and 50 calls a second that are due at fixed times (open loop: a latency counts
from when the call was due). Beside it runs, in turn within each round: nothing; a client with 16 connections that calls
without a pause; the same two before the bare app on stock Hypercorn, the effect that any server would have; 32
connections whose calls to a second, slow backend take 100 ms each; 8 connections that ask for 1 MB and never read it; 4
connections that get results of 80 MB one after another, from a third backend. The backends are the stdlib echo. The
target is the light client's p99 under the flood over the bare app's, in a round.
Units: ms, ratio.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

from benchmarks import progress
from benchmarks.plots import percentiles
from benchmarks.processes import backend, config_of, load, loading, serving_bare, serving_config
from benchmarks.table import Claim, Figure, Table, ratios
from benchmarks.wire import Connection, encode, make_message

RATE = 50  # calls a second of the light client
FLOOD = 16  # connections
SLOW = 32  # connections to the slow backend
SLOW_SECONDS = 0.1
READERS = 8
BIG = 1_000_000  # bytes that a slow reader asks for
HUGE = 80_000_000  # bytes of a result
HUGE_CONNECTIONS = 4
LEAD = 1.0  # seconds that the others run longer than the light client, so that it is never alone


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (6; quick: 1)")


def run(options):
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (1.0 if options.quick else 6.0)
    results = {}
    progress.plan(rounds * 14)  # the load beside it counts too
    with serving_bare() as bare, serving_config(make_config()) as gateway:
        gateway.wait_ready(3)
        for _ in range(rounds):
            for name, (port, check, others) in situations(bare.port, gateway.port, seconds).items():
                progress.step(name)
                with others():
                    results.setdefault(name, []).append(load(**light(port, check, seconds)))
    return make_claims(results), make_details(results)


def make_config():
    config = config_of(dict.fromkeys(("echo", "slow", "huge"), backend()))
    config["mcpServers"]["huge"]["max_line_bytes"] = 2 * HUGE
    config["gateway"] = {"max_buffered_bytes": 4 * HUGE_CONNECTIONS * HUGE}
    return config


def light(port, check, seconds):
    call = {"kind": "http", "era": "modern", "tool": "echo.echo", "check": check, "port": port}
    return call | {"connections": 1, "rate": RATE, "seconds": seconds}


def situations(bare_port, gateway_port, seconds):
    """Name -> (port, check, load beside the light client)."""
    lasting = {"seconds": 2 * seconds + LEAD + 3}
    call = {"kind": "http", "era": "modern", "tool": "echo.echo"}

    def beside(**spec):
        return lambda: loading(**call | lasting | spec)

    huge = {"tool": "huge.big", "check": "any", "arguments": {"n": HUGE}, "connections": HUGE_CONNECTIONS}
    slow = {"tool": "slow.sleep", "check": "any", "arguments": {"seconds": SLOW_SECONDS}}
    return {
        "bare, alone": (bare_port, "constant", nothing),
        "bare, flood": (bare_port, "constant", beside(port=bare_port, check="constant", connections=FLOOD)),
        "gateway, alone": (gateway_port, "echo", nothing),
        "gateway, flood": (gateway_port, "echo", beside(port=gateway_port, connections=FLOOD)),
        "gateway, slow backend": (gateway_port, "echo", beside(port=gateway_port, connections=SLOW, **slow)),
        "gateway, slow readers": (gateway_port, "echo", lambda: slow_readers(gateway_port)),
        "gateway, large results": (gateway_port, "echo", beside(port=gateway_port, **huge)),
    }


@contextmanager
def nothing():
    yield


@contextmanager
def slow_readers(port):
    """Connections that request large results and read none of them."""
    with ExitStack() as stack:
        for i in range(READERS):
            connection = Connection(port, "modern")
            stack.callback(connection.socket.close)
            message = make_message("tools/call", {"name": "echo.big", "arguments": {"n": BIG}}, "modern", i)
            body = encode(message)
            connection.socket.sendall(connection.head(len(body), "tools/call", "echo.big") + body)
        yield


def make_claims(results):
    def p99(name):
        return [result["p99"] for result in results[name]]

    flood = f"p99 of a light client beside a flood of {FLOOD} connections"
    claims = [
        Claim(f"{flood}, over the bare app's", ratios(p99("gateway, flood"), p99("bare, flood")), "ratio", most=1.5)
    ]
    names = ("alone", "flood", "slow backend", "slow readers")
    told = [Claim(f"p99 of a light client, {name}", Figure.of(p99(f"gateway, {name}")), "ms", 1e3) for name in names]
    beside = f"p99 of a light client, {HUGE_CONNECTIONS} x {HUGE / 1e6:.0f} MB"
    return [*claims, *told, Claim(beside, Figure.of(p99("gateway, large results")), "ms", 1e3, most=60)]


def make_details(results):
    rows = []
    for name, measured in results.items():
        p50, p99 = (Figure.of([result[key] for result in measured]) for key in ("p50", "p99"))
        rows.append([name, p50.show(1e3, 2), p99.show(1e3, 2)])
    curves = {name: measured[len(measured) // 2] for name, measured in results.items()}
    shown = [
        Table(["the light client's calls", "p50 ms", "p99 ms"], rows, f"{RATE} calls/s, from when each was due"),
        percentiles("Latency of the light client", curves),
    ]
    return shown, results
