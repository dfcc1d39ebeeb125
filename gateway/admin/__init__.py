"""Managing a running gateway: over HTTP beside the MCP endpoint, and over a Unix socket in every mode.

It reads snapshots and asks; it never reaches into a supervisor. `operations` lists the endpoints with
their handlers, `http` is the ASGI app around them, `servers` what the handlers ask; `report` is what `ps` shows,
`control` its socket.
"""
