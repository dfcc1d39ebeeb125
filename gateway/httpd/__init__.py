"""An HTTP/1.1 server on trio with Hypercorn's configuration, sockets, TLS and HTTP/2. Knows nothing of MCP."""
