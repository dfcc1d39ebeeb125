"""The frontend of `mcp-gateway connect`: many clients, each with its own Unix socket connection.

Every connection begins with one line from each side: the relay sends its client's options and the time for which the
gateway stays after it (`Hello`); the gateway accepts or names the problem. From then on it is a stdio client like any
other. Some seconds after the last client has disconnected, the gateway stops. After the step that decides to stop it
accepts no connection, so a relay either gets its session or finds no gateway.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import ANYBODY, NameChoice, at_endpoint
from gateway.errors import ConfigError
from gateway.frontends.stdio import StdioFrontend
from gateway.httpd.listening import is_listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.frontends.request_handler import RequestHandler

LISTEN_FD: Final = 3
"""The descriptor of the socket, as in sd_listen_fds(3)."""
FIRST_CLIENT_TIMEOUT: Final = 30.0
"""Seconds for the first client to connect: the relay that started the gateway may have been killed since."""
HELLO_TIMEOUT: Final = 5.0
"""Seconds for a relay to send its line; it does so right after it has connected."""
MAX_HELLO: Final = 4_096
ACCEPT_PAUSE: Final = 0.1
"""Seconds until the next attempt if the process has no free descriptors."""

log = logging.getLogger("gateway.relays")


class Hello(msgspec.Struct, kw_only=True):
    """The first line of a relay."""

    linger: float
    """Seconds that the gateway stays after this client, if it was the last."""
    view: str | None = None
    separator: Literal["_", "__"] | None = None
    max_name_length: Literal[48, 64] | None = None
    last_asked: int = 0
    """The highest id that another gateway has used for a request to this client, before it died."""


_hellos = msgspec.json.Decoder(Hello)


def open_listener() -> socket.socket:
    """Take over the socket that the process was started with. Raises ConfigError."""
    with contextlib.suppress(OSError):
        listener = socket.socket(fileno=LISTEN_FD)
        if listener.family == socket.AF_UNIX and is_listening(listener) is not False:
            listener.set_inheritable(False)
            return listener
        listener.detach()
    text = f"--transport connect needs a listening Unix socket as descriptor {LISTEN_FD}"
    raise ConfigError([f"{text}; `mcp-gateway connect FILE` starts a gateway with one"])


def find_log(listener: socket.socket | None) -> str | None:
    """Return the path of the log beside a socket, if stderr is that file."""
    if listener is None:
        return None
    path = Path(listener.getsockname()).with_suffix(".log")
    with contextlib.suppress(OSError):
        if os.path.samestat(path.stat(), os.fstat(2)):
            return str(path)
    return None


class RelayFrontend:
    """The frontend for the clients that relays connect.

    Args:
        answers: answers requests.
        listener: the listening socket; it is closed, and its file removed, when the gateway begins to stop.
        stopping: set when the gateway begins to stop.
        closing: set when all calls have ended.
        idle: called when the last client has gone long enough ago; begins to stop the gateway.
    """

    def __init__(
        self,
        answers: RequestHandler,
        listener: socket.socket,
        *,
        stopping: trio.Event,
        closing: trio.Event,
        idle: Callable[[], None],
    ) -> None:
        self._answers = answers
        self._path = Path(listener.getsockname())
        self._inode = _inode(self._path)
        self._listener = trio.socket.from_stdlib_socket(listener)
        self._stopping = stopping
        self._closing = closing
        self._idle = idle
        self._clients = 0
        self._most = answers.settings.max_sessions
        self._nursery: trio.Nursery  # of the clients; opened and closed by `run`
        self._lease = trio.CancelScope()
        """Counts down while there is no client."""
        self.all_answered = True
        """Whether every client that left had got all its responses."""

    def report(self) -> dict[str, object]:
        """Return the columns of `ps` for a gateway without a terminal: clients, log file."""
        return {"clients": self._clients, "log": str(self._path.with_suffix(".log"))}

    async def run(self) -> None:
        """Serve until the gateway closes."""
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._end_lease, FIRST_CLIENT_TIMEOUT, self._lease)
            try:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._accept)
                    await self._stopping.wait()
                    accepting.cancel_scope.cancel(reason="the gateway is stopping")
            finally:
                self._close_listener()
                self._lease.cancel(reason="the gateway is stopping")

    async def _accept(self) -> None:
        while True:
            try:
                sock, _ = await self._listener.accept()
            except trio.ClosedResourceError:
                return  # the lease has ended
            except OSError as exc:
                if self._listener.fileno() < 0:
                    return  # it ended when a connection had just arrived
                if exc.errno == errno.ECONNABORTED:  # macOS: the relay has gone meanwhile
                    continue
                if exc.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                await trio.sleep(ACCEPT_PAUSE)
                continue
            self._nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        """Serve one connection from its first line to its end."""
        with sock:
            try:
                uid = peer_uid(sock)
            except OSError:
                return  # macOS: the relay has gone meanwhile
            if uid != os.getuid():
                log.warning("connection of another user (uid %d) refused", uid, extra={"event": "relay_refused"})
                return
            line = b""
            with trio.move_on_after(HELLO_TIMEOUT), contextlib.suppress(OSError):
                while not line.endswith(b"\n") and len(line) < MAX_HELLO and (part := await sock.recv(MAX_HELLO)):
                    line += part
            try:
                hello = jsonrpc.read(_hellos, line)
            except jsonrpc.UNDECODABLE:
                return
            if self._stopping.is_set():
                return
            problem = None
            views = self._answers.fleet.config.views
            if hello.view is not None and hello.view not in views:
                known = ", ".join(views) or "none"
                problem = f"--view {hello.view}: there is no such view; the config's section 'views' has {known}"
            elif self._clients >= self._most:
                problem = f"{self._most} clients are connected (max_sessions); try again"
            reply = {"pid": os.getpid()} if problem is None else {"error": problem}
            with contextlib.suppress(OSError):
                await sock.send(jsonrpc.encode(reply) + b"\n")
            if problem is not None:
                return
            self._clients += 1
            self._lease.cancel(reason="a client has connected")
            names = None
            if hello.separator is not None or hello.max_name_length is not None:
                names = NameChoice(hello.separator, hello.max_name_length)
            frontend = StdioFrontend(
                self._answers,
                sock.fileno(),
                os.dup(sock.fileno()),
                self._closing,
                at_endpoint(ANYBODY, hello.view, names),
                session=f"relay-{secrets.token_hex(8)}",
                last_asked=hello.last_asked,
            )
            try:
                answered = await frontend.run()
                self.all_answered = self.all_answered and answered
            finally:
                self._clients -= 1
                if not self._clients and not self._stopping.is_set():
                    self._lease = trio.CancelScope()
                    self._nursery.start_soon(self._end_lease, hello.linger, self._lease)

    async def _end_lease(self, seconds: float, scope: trio.CancelScope) -> None:
        """Begin to stop, unless a client connects within this time."""
        with scope:
            await trio.sleep(seconds)
            log.info("no client for %g s: stopping", seconds, extra={"event": "lease_ended"})
            self._close_listener()
            self._idle()

    def _close_listener(self) -> None:
        """Let the next relay start a gateway. Safe to repeat."""
        if self._listener.fileno() >= 0 and _inode(self._path) == self._inode:
            self._path.unlink(missing_ok=True)
        self._listener.close()


def peer_uid(sock: trio.socket.SocketType) -> int:
    """Return the user id of the process at the other end of a Unix socket."""
    if sys.platform == "linux":
        size = struct.calcsize("3i")
        credentials: tuple[int, ...] = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
        return credentials[1]
    # LOCAL_PEERCRED of the BSDs and macOS, level 0: struct xucred begins with a version and the uid.
    found: tuple[Any, ...] = struct.unpack_from("=Ii", sock.getsockopt(0, 1, 128))
    return found[1]


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None
