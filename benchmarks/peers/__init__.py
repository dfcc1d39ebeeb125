"""Other gateways for the same work, one module each: `roster` lists, `compare` measures them.

A peer is described by data (`peer.Peer`): its packages, its start before one stdio backend, and its transports and
eras. Its module's docstring describes its peculiarities.
"""
