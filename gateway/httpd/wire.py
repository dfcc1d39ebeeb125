"""The byte end of one HTTP connection: a plain or a TLS socket with bounded sends.

Invariant: no call here waits for the peer without a deadline except `receive`, and every waiter is woken when the
wire is closed from another task. `close` and `abort` are synchronous, so that a task that is itself cancelled can
still end the connection. The connection (`httpd.connection`) owns its wire; one task receives, one at a time sends.

The plain wire works on the standard library's socket, not on `trio.SocketStream`: waiting for readiness first saves
one failing `recv` a request, and a send that fits into the kernel's buffer is one system call without a reschedule.
"""

import contextlib
import socket
import struct
from typing import Protocol

import trio

MAX_RECEIVE = 2**16
"""Bytes of one read, as in Hypercorn."""

TLS_RECORDS = 2**16
"""A TLS stream does not tell how much the peer took, so it is fed in slices of this size, each with a deadline."""

LEAST_RATE = 256
"""Bytes a second that a peer must take of a message in the mean, or reading a byte now and then would hold it."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: `close` drops what the peer did not take and sends RST instead of FIN."""


class Wire(Protocol):
    """What a connection needs from its transport; every method may be called on a closed wire."""

    async def receive(self) -> bytes:
        """Return the next bytes; empty for EOF, for a reset and for a wire closed on this side."""
        ...

    def send_nowait(self, data: bytes | memoryview) -> int:
        """Hand over what fits without waiting and return its length; OSError when the peer is gone."""
        ...

    async def send_all(self, data: memoryview) -> None:
        """Send everything; TooSlowError when the peer takes nothing for `send_timeout` s. Cancelled: half is out."""
        ...

    def send_eof(self) -> None:
        """Close the sending side only, where the transport can (TLS cannot)."""
        ...

    def close(self) -> None:
        """Close at once; the kernel still delivers what it took."""
        ...

    def abort(self) -> None:
        """Close at once and throw away what the peer has not taken, so that it sees a break and not an end."""
        ...


class PlainWire:
    """A TCP or Unix socket taken over from trio's listener."""

    def __init__(self, stream: trio.SocketStream, send_timeout: float, least_rate: float = LEAST_RATE) -> None:
        held = stream.socket
        family, kind, proto = held.family, held.type, held.proto
        self._socket = socket.socket(family, kind, proto, fileno=held.detach())
        self._socket.setblocking(False)
        self._send_timeout = send_timeout
        self._least_rate = least_rate

    async def receive(self) -> bytes:
        """See `Wire`."""
        try:
            while self._socket.fileno() != -1:
                await trio.lowlevel.wait_readable(self._socket)
                try:
                    return self._socket.recv(MAX_RECEIVE)
                except BlockingIOError:  # woken for nothing, which the kernel may do
                    continue
        except (OSError, trio.ClosedResourceError):
            pass
        await trio.lowlevel.checkpoint()
        return b""

    def send_nowait(self, data: bytes | memoryview) -> int:
        """See `Wire`."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    async def send_all(self, data: memoryview) -> None:
        """See `Wire`; TooSlowError also when the peer takes less than `least_rate` bytes a second of it all."""
        last = trio.current_time() + self._send_timeout + len(data) / self._least_rate
        while data:
            with trio.fail_at(min(last, trio.current_time() + self._send_timeout)):
                await trio.lowlevel.wait_writable(self._socket)
            data = data[self.send_nowait(data) :]
        await trio.lowlevel.checkpoint()

    def send_eof(self) -> None:
        """See `Wire`."""
        with contextlib.suppress(OSError):  # closed on this side, or reset by the peer
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """See `Wire`."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def abort(self) -> None:
        """See `Wire`."""
        if self._socket.fileno() != -1:
            with contextlib.suppress(OSError):  # some systems refuse once the peer has reset the connection
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close()


class TLSWire:
    """A TLS stream whose handshake is done; like Hypercorn's, it ends without a close notification."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], send_timeout: float) -> None:
        self._stream = stream
        self._send_timeout = send_timeout

    async def receive(self) -> bytes:
        """See `Wire`."""
        try:
            return bytes(await self._stream.receive_some(MAX_RECEIVE))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        await trio.lowlevel.checkpoint()
        return b""

    def send_nowait(self, data: bytes | memoryview) -> int:  # ruff: ignore[unused-method-argument] - Wire
        """Nothing: an encrypted record cannot be handed over in part without losing track of the cipher."""
        return 0

    async def send_all(self, data: memoryview) -> None:
        """See `Wire`."""
        for start in range(0, len(data), TLS_RECORDS):
            with trio.fail_after(self._send_timeout):
                await self._stream.send_all(data[start : start + TLS_RECORDS])
        await trio.lowlevel.checkpoint()

    def send_eof(self) -> None:
        """Nothing: TLS ends both sides at once."""

    def close(self) -> None:
        """See `Wire`."""
        self._stream.transport_stream.socket.close()

    def abort(self) -> None:
        """See `Wire`."""
        held = self._stream.transport_stream.socket
        if held.fileno() != -1:
            with contextlib.suppress(OSError):
                held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            held.close()
