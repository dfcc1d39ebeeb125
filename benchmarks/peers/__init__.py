"""Other gateways doing the same work, one module each; `roster` has them all, `compare` asks the question.

A peer is described by data (`peer.Peer`): what is installed, how it is started before one stdio backend, and which
transports and eras it speaks. What is peculiar about it stands in its module's docstring.
"""
