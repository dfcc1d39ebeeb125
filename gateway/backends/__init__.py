"""Transports to backends, and the lives of the child processes behind some of them.

`ticket` is a call under way, `conversation` correlates one session's messages, `handshake` opens it in either era,
`stdio` carries it over a child's pipes; `children`, `descendants`, `guard` and `sentinel` see to it that no child
outlives the gateway. Every session is owned by one supervisor task; nothing in here is shared between supervisors
but the guard.
"""
