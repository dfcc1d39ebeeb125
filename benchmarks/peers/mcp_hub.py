"""`mcp-hub` (npm): many servers behind one SSE endpoint, on the TypeScript SDK.

It has a management API. It keeps logs and state below the home directory, so it gets its own.
"""

from __future__ import annotations

from benchmarks.peers.peer import SSE, Peer

PEERS = [
    Peer(
        "mcp-hub (npm)",
        runtime="node",
        pins=("mcp-hub@4.2.1",),
        argv=("{node}", "{modules}/.bin/mcp-hub", "--port", "{port}", "--config", "{config}"),
        environment=(("HOME", "{folder}"), ("XDG_STATE_HOME", "{folder}"), ("XDG_CONFIG_HOME", "{folder}")),
        frontends={SSE: "/mcp"},
        tool="echo__echo",
    )
]
