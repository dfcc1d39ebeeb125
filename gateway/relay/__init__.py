"""`mcp-gateway connect`: relay of one client's stdio to the shared gateway of a config.

Each desktop client starts a relay, so it imports only light parts of the standard library and nothing else of this
package: `places` finds the gateway's socket, `starting` starts a gateway if none runs, `greetings` answers `initialize`
meanwhile, `record` keeps the state to continue a session after a crash, `copying` copies.

The relay copies bytes. Passing the client's pipes to the gateway (SCM_RIGHTS) would cost nothing per call, but then
only the gateway would know what it has read: a request read just before a crash would be lost, and its client would
wait forever. The process must stay in any case, since a client watches the exit of its child and sends signals to it.
So the relay sees every request before the gateway does.
"""

from gateway.relay.main import main

__all__ = ["main"]
