"""All peers, in the order of the tables."""

from __future__ import annotations

from benchmarks.peers import contextforge, fastmcp, mcp_hub, mcp_proxy, mcp_proxy_npm, sdk_gateway, supergateway
from benchmarks.peers.own import OWN

MODULES = (supergateway, mcp_proxy_npm, mcp_hub, mcp_proxy, sdk_gateway, fastmcp, contextforge)
RIVALS = [peer for module in MODULES for peer in module.PEERS]
EVERYBODY = [OWN, *RIVALS]


def choose(names):
    """Return this gateway and the rivals with one of these words in their names.

    Without words, all.
    """
    chosen = [peer for peer in RIVALS if not names or any(name.lower() in peer.name.lower() for name in names)]
    if not chosen:
        raise SystemExit(f"no peer is called {' or '.join(names)}; there are: {', '.join(p.name for p in RIVALS)}")
    return [OWN, *chosen]
