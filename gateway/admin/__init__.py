"""Management of a running gateway: over HTTP, and over a Unix socket in every mode.

It reads snapshots and requests changes; it never accesses a supervisor directly. `operations` lists the endpoints with
their handlers, `http` is the ASGI app around them, `servers` implements them; `report` is the output of `ps`, `control`
its socket.
"""
