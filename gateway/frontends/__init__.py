"""The faces: how clients reach the gateway.

`answers` holds what the gateway says itself, in both eras and whatever carries it; `sessions` the legacy sessions.
`streamable` and `modern` are the two eras over HTTP, `exchange` one HTTP exchange, `http` routes and guards them, and
`stdio` serves both eras over a pipe. Faces know nothing of one another.
"""
