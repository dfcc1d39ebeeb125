"""An HTTP/1.1 server on trio with Hypercorn's configuration, sockets, TLS and HTTP/2.

It is independent of MCP.
"""
