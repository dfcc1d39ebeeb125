"""`mcp-proxy` (npm): TypeScript SDK, one backend session for all, both eras on one endpoint."""

from __future__ import annotations

from benchmarks.peers.peer import COMMAND, LEGACY_HTTP, MODERN_HTTP, SSE, Peer

PEERS = [
    Peer(
        "mcp-proxy (npm)",
        runtime="node",
        pins=("mcp-proxy@6.7.19",),
        argv=("{node}", "{modules}/.bin/mcp-proxy", "--host", "127.0.0.1", "--port", "{port}", "--", COMMAND),
        frontends={LEGACY_HTTP: "/mcp", MODERN_HTTP: "/mcp", SSE: "/sse"},
    )
]
