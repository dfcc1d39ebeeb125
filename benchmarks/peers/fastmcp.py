"""`fastmcp` (PyPI): the framework's own proxy, with a backend process per session.

Made from a config file.
"""

from __future__ import annotations

from benchmarks.peers.peer import LEGACY_HTTP, MODERN_HTTP, Peer

PEERS = [
    Peer(
        "fastmcp proxy (PyPI)",
        runtime="python",
        pins=("fastmcp==4.2.3",),
        argv=(
            *("{bin}/fastmcp", "run", "{config}", "--transport", "http", "--host", "127.0.0.1", "--port", "{port}"),
            *("--log-level", "WARNING", "--no-banner"),
        ),
        environment=(("FASTMCP_CHECK_FOR_UPDATES", "off"), ("FASTMCP_HOME", "{folder}")),
        frontends={LEGACY_HTTP: "/mcp", MODERN_HTTP: "/mcp"},
        least=100,
    )
]
