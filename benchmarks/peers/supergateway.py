"""`supergateway` (npm): passes the messages of one stdio server on, in three ways.

Over streamable HTTP a session has a backend process of its own (`--stateful`), or each request has (its default); over
SSE all clients share one. Only the first and the last are measured: the other one starts a process a call.
"""

from __future__ import annotations

from benchmarks.peers.peer import LEGACY_HTTP, SSE, Peer

PINS = ("supergateway@4.0.0",)
START = ("{node}", "{modules}/.bin/supergateway", "--logLevel", "none", "--port", "{port}", "--stdio", "{command}")

PEERS = [
    Peer(
        "supergateway --stateful (npm)",
        runtime="node",
        pins=PINS,
        argv=(*START, "--outputTransport", "streamableHttp", "--stateful"),
        frontends={LEGACY_HTTP: "/mcp"},
        least=1,
    ),
    Peer(
        "supergateway, SSE (npm)",
        runtime="node",
        pins=PINS,
        argv=(*START, "--outputTransport", "sse"),
        frontends={SSE: "/sse"},
        least=1,
    ),
    Peer(
        "supergateway, stateless (npm)",
        runtime="node",
        pins=PINS,
        argv=(*START, "--outputTransport", "streamableHttp"),
        frontends={LEGACY_HTTP: "/mcp"},
        least=1,
    ),
]
