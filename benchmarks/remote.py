"""A backend over HTTP compared with one on pipes.

CPU time of a call in the gateway, and calls a second over direct.

Method: one gateway, legacy HTTP clients, 16 connections with one session each; in turn the stdlib echo on pipes, and
the echo over HTTP (`http_echo.py`) with answers as JSON and as event streams (SSE), which is also called directly to
show its own rate. Then the server on the SDK over HTTP, with 32 sessions, through the gateway and directly. Last, the
server on the SDK with either kind of answer, both called at the same rate: a process that is often idle needs more CPU
time for each call, so that a slower server would seem to cost more. CPU time is that of the gateway's process, which
other work on the same cores hardly changes.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from benchmarks.processes import backend, cpu_seconds, load, serving, serving_config, serving_peer
from benchmarks.table import Claim, Figure, Table, ratios

CONNECTIONS = 16
SESSIONS = 32
RATE = 60  # calls a second, which the SDK's server reaches with both kinds of answers
FEW = 4  # connections at that rate


def measure(rounds, seconds, **_options):
    """Claims, pieces to show, data."""
    results = {}
    with ExitStack() as stack:
        echo = stack.enter_context(serving([sys.executable, "-m", "benchmarks.http_echo"]))
        echo_sse = stack.enter_context(serving([sys.executable, "-m", "benchmarks.http_echo", "--sse"]))
        streamable = ("--transport", "streamable-http")
        sdk = stack.enter_context(serving_peer(*streamable, script="sdk_server.py"))
        sdk_json = stack.enter_context(serving_peer(*streamable, "--json", script="sdk_server.py"))
        command, *args = backend()
        servers = {
            "pipe": {"command": command, "args": args},
            "http": {"url": f"http://127.0.0.1:{echo.port}/mcp", "era": "legacy"},
            "http-sse": {"url": f"http://127.0.0.1:{echo_sse.port}/mcp", "era": "legacy"},
            "sdk": {"url": f"http://127.0.0.1:{sdk.port}/mcp", "era": "legacy"},
            "sdk-json": {"url": f"http://127.0.0.1:{sdk_json.port}/mcp", "era": "legacy"},
        }
        gateway = stack.enter_context(serving_config({"mcpServers": servers}))
        gateway.wait_ready(len(servers))
        steps = {
            "pipe": {"port": gateway.port, "tool": "pipe.echo", "connections": CONNECTIONS},
            "http": {"port": gateway.port, "tool": "http.echo", "connections": CONNECTIONS},
            "http, SSE": {"port": gateway.port, "tool": "http-sse.echo", "connections": CONNECTIONS},
            "http, directly": {"port": echo.port, "tool": "echo", "connections": CONNECTIONS},
            "sdk": {"port": gateway.port, "tool": "sdk.echo", "connections": SESSIONS},
            "sdk, directly": {"port": sdk.port, "tool": "echo", "connections": SESSIONS},
            f"sdk, JSON, {RATE}/s": {"port": gateway.port, "tool": "sdk-json.echo", "connections": FEW, "rate": RATE},
            f"sdk, SSE, {RATE}/s": {"port": gateway.port, "tool": "sdk.echo", "connections": FEW, "rate": RATE},
        }
        for _ in range(rounds):
            for name, spec in steps.items():
                before = cpu_seconds(gateway.pid)
                found = load(kind="http", era="legacy", seconds=seconds, **spec)
                calls = found.get("answered", found["calls"])  # the latter of the open loop
                found["cpu_call"] = (cpu_seconds(gateway.pid) - before) / calls
                results.setdefault(name, []).append(found)
    return make_claims(results), [make_table(results)], results


def make_claims(results):
    def values(name, key):
        return [found[key] for found in results[name]]

    cpu = ratios(values("http", "cpu_call"), values("pipe", "cpu_call"))
    saturated = ratios(values("http, SSE", "cpu_call"), values("pipe", "cpu_call"))
    sse = ratios(values(f"sdk, SSE, {RATE}/s", "cpu_call"), values(f"sdk, JSON, {RATE}/s", "cpu_call"))
    sdk = ratios(values("sdk", "per_second"), values("sdk, directly", "per_second"))
    return [
        Claim("CPU of a call to a backend over HTTP over one on pipes", cpu, "ratio", most=2.5),
        Claim("CPU of a call to a backend over HTTP that answers with SSE over one on pipes", saturated, "ratio"),
        Claim("CPU of a call answered with SSE over one answered with JSON, same rate", sse, "ratio", most=1.5),
        Claim(f"server on the SDK over HTTP, {SESSIONS} sessions: calls/s over direct", sdk, "ratio", least=0.8),
    ]


def make_table(results):
    rows = []
    for name, found in results.items():
        rate, p50, cpu = (Figure.of([one[key] for one in found]) for key in ("per_second", "p50", "cpu_call"))
        shown = "" if name.endswith("directly") else cpu.show(1e6, 0)
        rows.append([name, rate.show(1, 0), p50.show(1e3, 2), shown])
    return Table(["backend", "calls/s", "p50 ms", "CPU us of the gateway a call"], rows, "Backends over HTTP")
