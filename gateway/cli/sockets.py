"""The address of a gateway on a Unix socket, as `serve --uds` says it: `http://unix:/PATH/OF/SOCKET:/mcp`."""

from __future__ import annotations

import http.client
import re
import socket
from typing import Final

_ADDRESS: Final = re.compile(r"(https?)://unix:(/.*?):(/[^:]*)?$")


def split_address(url: str) -> tuple[str, str | None]:
    """The address with a host in it, and the socket by which that is reached; None is the network."""
    found = _ADDRESS.match(url)
    return (url, None) if found is None else (f"{found[1]}://localhost{found[3] or ''}", found[2])


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
