"""The built-in servers and the guided first run: `mcp-gateway demo`.

`servers` is a program of its own (two small stdio servers, standard library only), `tour` starts a gateway in front of
both, lets the official SDK's client call a tool through it, says what happened, and serves on until it is stopped.
"""
