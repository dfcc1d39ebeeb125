"""`mcp-proxy` (PyPI): on the Python SDK 1.x, one backend session for all clients; uvicorn."""

from __future__ import annotations

from benchmarks.peers.peer import COMMAND, LEGACY_HTTP, SSE, Peer

PEERS = [
    Peer(
        "mcp-proxy (PyPI)",
        runtime="python",
        pins=("mcp-proxy==0.13.0",),
        argv=("{python}", "-m", "mcp_proxy", "--log-level", "WARNING", "--port", "{port}", "--", COMMAND),
        frontends={LEGACY_HTTP: "/mcp", SSE: "/sse"},
        least=2,
    )
]
