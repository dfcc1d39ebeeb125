"""Every frontend with every backend transport: calls a second with 1 and 16 in flight.

Frontends: streamable HTTP in both eras, the SSE transport, stdio. Backends: the stdlib echo on pipes; on HTTP the
tests' own small servers (trio and h11), streamable in the modern era, and of the SSE transport; and one on the SDK, on
pipes. Direct is the same client at the backend itself. Figures show the cost of each bridge on this machine.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack

from benchmarks.processes import (
    PEERS,
    backend,
    config_file,
    gateway_command,
    load,
    serving_config,
    serving_peer,
)
from benchmarks.table import Figure, Table

WINDOWS = (1, 16)


def measure(rounds, seconds, *, quick):
    """Claims (none), pieces to show, data."""
    results = {}
    with ExitStack() as stack:
        modern = stack.enter_context(serving_peer("--server", "modern"))
        # One for each client: that peer has one stream, and the latest client has it.
        sse = [stack.enter_context(serving_peer("--server", "sse")) for _ in range(3)]
        servers = make_servers(modern.port, sse[0].port)
        gateway = stack.enter_context(serving_config({"mcpServers": servers}, "streamable-http,sse"))
        path = stack.enter_context(config_file({"mcpServers": make_servers(modern.port, sse[1].port)}))
        gateway.wait_ready(len(servers))
        frontends = {
            "HTTP legacy": {"kind": "http", "era": "legacy", "port": gateway.port},
            "HTTP modern": {"kind": "http", "era": "modern", "port": gateway.port},
            "SSE": {"kind": "sse", "era": "legacy", "port": gateway.port},
            "stdio": {"kind": "stdio", "era": "legacy", "command": gateway_command(path, "stdio")},
        }
        direct = {
            "stdio": {"kind": "stdio", "era": "legacy", "command": backend(), "tool": "echo"},
            "http": {"kind": "http", "era": "modern", "port": modern.port, "tool": "echo"},
            "sse": {"kind": "sse", "era": "legacy", "url": f"http://127.0.0.1:{sse[2].port}/mcp", "tool": "echo"},
            "sdk": {"kind": "stdio", "era": "legacy", "command": backend("sdk"), "tool": "echo"},
        }
        for _ in range(rounds):
            for window in WINDOWS[-1:] if quick else WINDOWS:
                shape = {"window": window, "connections": window, "seconds": seconds}
                for server in servers:
                    if server != "sse" or window == 1:
                        results.setdefault(("direct", server, window), []).append(load(**direct[server], **shape))
                    for frontend, spec in frontends.items():
                        found = load(**spec, **shape, tool=f"{server}.echo")
                        results.setdefault((frontend, server, window), []).append(found)
    rows = []
    for (frontend, server, window), found in results.items():
        rate, p50 = (Figure.of([one[key] for one in found]) for key in ("per_second", "p50"))
        rows.append([frontend, server, window, rate.show(1, 0), p50.show(1e3, 2)])
    data = [
        {"frontend": key[0], "backend": key[1], "under_way": key[2], "rounds": found} for key, found in results.items()
    ]
    header = ["frontend", "backend", "under way", "calls/s", "p50 ms"]
    return [], [Table(header, rows, "Frontends and backend transports")], data


def make_servers(http_port, sse_port):
    return {
        "stdio": {"command": sys.executable, "args": [str(PEERS / "echo_server.py")]},
        "http": {"url": f"http://127.0.0.1:{http_port}/mcp"},
        "sse": {"url": f"http://127.0.0.1:{sse_port}/mcp", "type": "sse"},
        # A process for each era: else the first legacy client restarts it within the measured time.
        "sdk": {"command": sys.executable, "args": [str(PEERS / "sdk_server.py")], "era": "each"},
    }
