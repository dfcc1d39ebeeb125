"""Managing a running gateway: over HTTP beside the MCP endpoint, and over a Unix socket in every mode.

It reads snapshots and asks; it never reaches into a supervisor. `report` is what both show of the backends' processes,
`http` the ASGI app, `control` the socket.
"""
