"""Sessions with backends and their transports.

`opener` chooses the transport of a server, and `opening` records its era. `session` is shared by all transports: it
matches responses to calls and does the handshake in either era. `stdio` carries a session over a child's pipes, `http`
over streamable HTTP or SSE. Every session is owned by one supervisor task.
"""
