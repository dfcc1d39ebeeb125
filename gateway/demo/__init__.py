"""The built-in servers and the guided first run: `mcp-gateway demo`.

`servers` is a separate program (two small stdio servers, standard library only), `tour` starts a gateway in front of
both, calls a tool through it with the official SDK's client, prints what happened, and serves until it is stopped.
"""
