"""`mcp-gateway connect`: one client's stdio, relayed to the gateway that serves all clients of a config.

Each desktop client starts one relay, so that it imports light parts of the standard library only and nothing else of
this package: `places` finds the gateway's socket, `starting` starts a gateway where none runs, `record` keeps what is
needed to continue a session after a crash, `relay` copies.

The relay copies bytes. Handing the client's pipes over to the gateway (SCM_RIGHTS) would cost nothing per call, but
then only the gateway would know what it has read: of a request that it read just before it was killed nothing would be
left, and its client would wait for an answer without end. The process has to stay in any case, since a client watches
the exit of what it has started, and sends signals to it. So the relay sees every request before the gateway does.
"""

from gateway.relay.main import main

__all__ = ["main"]
