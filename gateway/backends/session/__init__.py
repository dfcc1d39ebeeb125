"""One MCP session with a backend, whatever the transport: ids, handshake, server requests, tasks."""
