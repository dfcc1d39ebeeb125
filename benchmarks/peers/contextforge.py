"""`mcp-contextforge-gateway` (PyPI): only its bridge, `mcpgateway.translate`.

The whole gateway reaches no stdio server by itself: it needs this bridge before each, and adds a database, a login and
a second hop on top; so this is the minimum cost of a call there.
"""

from __future__ import annotations

from benchmarks.peers.peer import LEGACY_HTTP, SSE, Peer

SECRETS = tuple(
    (name, f"{name.lower()}-Aa1!-only-for-a-benchmark-{number * 7919}")
    for number, name in enumerate(("JWT_SECRET_KEY", "AUTH_ENCRYPTION_SECRET"), 1)
)

PEERS = [
    Peer(
        "mcp-contextforge-gateway, its bridge (PyPI)",
        runtime="python",
        pins=("mcp-contextforge-gateway==1.0.7.post20260921",),
        argv=(
            *("{python}", "-m", "mcpgateway.translate", "--stdio", "{command}", "--port", "{port}"),
            *("--expose-streamable-http", "--expose-sse", "--logLevel", "warning"),
        ),
        environment=(*SECRETS, ("DATABASE_URL", "sqlite:///{folder}/mcp.db")),
        frontends={LEGACY_HTTP: "/mcp", SSE: "/sse"},
    )
]
