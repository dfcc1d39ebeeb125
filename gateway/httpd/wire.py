"""The byte stream of one HTTP/1.1 connection: a plain or TLS socket, with bounded sends.

Invariant: no call here waits for the peer without a deadline except `receive`, and every waiter is woken when the
wire is closed from another task. `close` and `abort` are synchronous, so that a task that is itself cancelled can
still end the connection. The connection (`httpd.connection`) owns its wire; one task receives, one at a time flushes,
and every task may call `send_nowait`.

The wire works on the standard library's socket, not on `trio.SocketStream`: waiting for readiness first saves
one failing `recv` a request, and a send that fits into the kernel's buffer is one system call without a reschedule.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from gateway.budget import Share

MAX_RECEIVE = 2**16
"""Bytes of one read, as in Hypercorn."""

MAX_ENCRYPTED = 2**16
"""Bytes that are encrypted at a time: OpenSSL's buffer keeps the largest size that it ever had."""

LEAST_RATE = 256
"""Average bytes a second that a peer must read of a message: otherwise one byte now and then would hold it."""

RESET_ON_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: `close` drops unsent data and sends RST instead of FIN."""


class Wire:
    """A TCP or Unix socket from trio's listener.

    Every method may be called on a closed wire.

    Unsent bytes are counted in `share`, which may close the wire while it is added to.
    """

    def __init__(
        self, stream: trio.SocketStream, share: Share, *, send_timeout: float, least_rate: float = LEAST_RATE
    ) -> None:
        held = stream.socket
        family, kind, proto = held.family, held.type, held.proto
        self._socket = socket.socket(family, kind, proto, fileno=held.detach())
        self._socket.setblocking(False)
        self._send_timeout = send_timeout
        self._least_rate = least_rate
        self._unsent: deque[bytes | memoryview] = deque()
        self._sent = 0  # sent bytes of the first of them; a piece is kept, and counted, until all of it is sent
        self._share = share

    async def receive(self) -> bytes:
        """Return the next bytes; empty for EOF, a reset, or a wire closed here."""
        try:
            while (fd := self._socket.fileno()) != -1:
                await trio.lowlevel.wait_readable(fd)
                try:
                    return self._socket.recv(MAX_RECEIVE)
                except BlockingIOError:  # spurious wake-up, which the kernel permits
                    continue
        except (OSError, trio.ClosedResourceError):
            pass
        await trio.lowlevel.checkpoint()
        return b""

    @property
    def has_input(self) -> bool:
        """Whether `receive` would return immediately, with data or with the end."""
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            pass
        return True

    @property
    def unsent(self) -> int:
        """The number of bytes kept for `flush`."""
        return self._share.size

    def send_nowait(self, data: bytes | memoryview) -> None:
        """Send without waiting; keep the rest for `flush`. Raises OSError without a peer."""
        if not self._unsent:
            sent = 0
            with contextlib.suppress(BlockingIOError):
                sent = self._socket.send(data)
            if sent == len(data):
                return
            self._sent = sent
        self._unsent.append(data)
        self._share.add(len(data))

    async def flush(self) -> None:
        """Send the rest. Cancelled: a part may be sent.

        Raises TooSlowError when the peer reads nothing for `send_timeout` s, or of it all less than `least_rate` bytes
        a second; OSError or ClosedResourceError when it is gone.
        """
        last = trio.current_time() + self._send_timeout + self.unsent / self._least_rate
        while self._unsent:
            with trio.fail_at(min(last, trio.current_time() + self._send_timeout)):
                await trio.lowlevel.wait_writable(self._socket)
            if not self._unsent:  # closed meanwhile
                raise trio.ClosedResourceError
            data = self._unsent[0]
            with contextlib.suppress(BlockingIOError):
                self._sent += self._socket.send(memoryview(data)[self._sent :])
            if self._sent == len(data):
                self._unsent.popleft()
                self._sent = 0
                self._share.remove(len(data))
        await trio.lowlevel.checkpoint()

    def send_eof(self) -> None:
        """Close the sending side only, if the transport can (TLS cannot)."""
        with contextlib.suppress(OSError):  # closed on this side, or reset by the peer
            self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close immediately; the kernel still delivers its buffer."""
        if self._socket.fileno() != -1:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._unsent.clear()
            self._share.release()

    def abort(self) -> None:
        """Close immediately and drop unsent data: the peer sees a break, not an end."""
        if self._socket.fileno() != -1:
            with contextlib.suppress(OSError):  # some systems refuse once the peer has reset the connection
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close()


class TLSWire(Wire):
    """A TLS stream whose handshake is done; like Hypercorn's, it ends without a close notification.

    Data is encrypted immediately, so that it can wait, and be sent in part, as on a plain wire.
    """

    def __init__(self, stream: trio.SSLStream[trio.SocketStream], share: Share, *, send_timeout: float) -> None:
        super().__init__(stream.transport_stream, share, send_timeout=send_timeout)
        # The parts of trio's stream, which itself can neither send without waiting nor report how much was sent.
        self._tls = stream._ssl_object  # pyright: ignore[reportPrivateUsage]
        self._incoming = stream._incoming  # pyright: ignore[reportPrivateUsage]
        self._outgoing = stream._outgoing  # pyright: ignore[reportPrivateUsage]
        self._outgoing.write(stream._delayed_outgoing or b"")  # pyright: ignore[reportPrivateUsage] - session tickets

    async def receive(self) -> bytes:
        """See `Wire`."""
        while True:
            try:
                return self._tls.read(MAX_RECEIVE)  # noqa: ASYNC910 - at most what one read has brought
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                await trio.lowlevel.checkpoint()
                return b""
            data = await super().receive()
            if not data:
                return b""
            self._incoming.write(data)

    @property
    def has_input(self) -> bool:
        """See `Wire`; true also for data of TLS itself."""
        return bool(self._incoming.pending or self._tls.pending()) or super().has_input

    def send_nowait(self, data: bytes | memoryview) -> None:
        """See `Wire`."""
        for start in range(0, len(data), MAX_ENCRYPTED):
            self._tls.write(memoryview(data)[start : start + MAX_ENCRYPTED])
            super().send_nowait(self._outgoing.read())

    def send_eof(self) -> None:
        """Do nothing: TLS ends both sides together."""
