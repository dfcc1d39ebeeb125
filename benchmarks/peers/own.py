"""This gateway, and the bound above every gateway: the bare app on stock Hypercorn."""

from __future__ import annotations

from benchmarks.peers.peer import LEGACY_HTTP, MODERN_HTTP, SSE, Peer

OWN = Peer(
    "this gateway",
    argv=(
        *("{python}", "-m", "gateway", "serve", "--config", "{config}", "--transport", "streamable-http,sse"),
        *("--port", "{port}", "--state-dir", "{folder}/state", "--log-level", "warning"),
    ),
    frontends={LEGACY_HTTP: "/mcp", MODERN_HTTP: "/mcp", SSE: "/sse"},
    tool="echo.echo",
)
