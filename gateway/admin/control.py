"""The control socket: a Unix socket in the state directory, in every mode.

One request per connection: the client connects, writes a line, reads one JSON document, and the connection closes. The
line is `ps`, or a command as JSON, such as `{"do": "restart", "name": "time"}`. Only the user who runs the gateway can
connect: the file has mode 0600 before the socket listens.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import socket
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.errors import GatewayError
from gateway.lines import LineSplitter, OversizedLine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from gateway.admin.servers import Management
    from gateway.store import Store

ANSWER_WITHIN: Final = 5.0
"""Seconds for one connection, so that a silent client holds no slot."""
COMMAND_TIMEOUT: Final = 60.0
"""Seconds for a command: a change is answered when its servers have started or their start has timed out."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds before accepting again after running out of file descriptors."""
MAX_QUESTION: Final = 1_024
"""Bytes of a request."""
MAX_CONNECTIONS: Final = 16
"""Concurrent connections; further ones wait in the socket's backlog."""
UNKNOWN_QUESTION: Final = jsonrpc.encode({"error": "unknown request; send ps"})

log = logging.getLogger("gateway.control")


class Command(msgspec.Struct):
    """A request other than `ps`; `name` is the server's, if it concerns one."""

    do: str
    name: str = ""


async def run_command(question: bytes, management: Management) -> bytes:
    """Run a command and return its result or problem, as the management API would."""
    from gateway.admin.http import refusal

    try:
        command = msgspec.json.decode(question, type=Command)
        match command.do:
            case "list":
                return await management.list_all()
            case "diagnose":
                found = await management.diagnose()
            case "reload":
                found = await management.reload()
            case "restart":
                found = await management.restart(command.name)
            case "enable" | "disable":
                found = await management.switch(command.name, disabled=command.do == "disable")
            case _:
                return UNKNOWN_QUESTION
    except GatewayError as exc:
        return jsonrpc.encode(refusal(exc).problem)
    except msgspec.MsgspecError:
        return UNKNOWN_QUESTION
    return jsonrpc.encode(found)


async def serve_control(store: Store, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
    """Answer requests with `answer` until cancelled; return if no socket can be created."""
    try:
        path = store.socket_path()
        listener = _listen(path)
    except OSError as exc:
        log.warning("no control socket, so `mcp-gateway ps` will not see this gateway: %s", exc)
        return
    try:
        with listener:
            await _accept(listener, answer)
    finally:
        path.unlink(missing_ok=True)


def _listen(path: Path) -> trio.socket.SocketType:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # Under its final name only once it listens: a socket that refuses looks like a dead gateway's, and `ps` removes it.
    temporary = path.with_name(f".{secrets.token_hex(4)}.new")
    before = os.umask(0o177)  # the file must never exist with another mode, even briefly
    try:
        sock.bind(str(temporary))
        sock.listen(MAX_CONNECTIONS)
        temporary.replace(path)  # and of a dead gateway that had our pid
    except OSError as exc:
        sock.close()
        temporary.unlink(missing_ok=True)
        if exc.errno is None:  # "AF_UNIX path too long" has no number
            raise OSError(errno.ENAMETOOLONG, f"the path is too long for a socket: {path}") from None
        raise
    finally:
        os.umask(before)
    return trio.socket.from_stdlib_socket(sock)


async def _accept(listener: trio.socket.SocketType, answer: Callable[[bytes], Awaitable[bytes]]) -> None:
    places = trio.Semaphore(MAX_CONNECTIONS)

    async def serve(sock: trio.socket.SocketType) -> None:
        try:
            with (
                sock,
                trio.move_on_after(ANSWER_WITHIN) as scope,
                contextlib.suppress(OSError, trio.BrokenResourceError),
            ):
                stream = trio.SocketStream(sock)
                splitter = LineSplitter(MAX_QUESTION)
                while data := await stream.receive_some(MAX_QUESTION):
                    for question in splitter.feed(bytes(data)):
                        scope.deadline = trio.current_time() + COMMAND_TIMEOUT
                        await stream.send_all(await answer(b"" if isinstance(question, OversizedLine) else question))
                        await stream.aclose()
                        return
        finally:
            places.release()

    async with trio.open_nursery() as nursery:
        while True:
            await places.acquire()
            try:
                sock, _ = await listener.accept()
            except OSError as exc:
                if exc.errno not in {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}:
                    raise
                places.release()
                await trio.sleep(ACCEPT_PAUSE)
                continue
            nursery.start_soon(serve, sock)
