"""Sockets that another program has opened."""

from __future__ import annotations

import socket


def is_listening(sock: socket.socket) -> bool | None:
    """Return whether a socket listens; None where the system does not say so (macOS)."""
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return None
