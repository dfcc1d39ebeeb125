"""Copying of lines between a client's stdio and a gateway that may be replaced.

Whole lines are copied, so that a dying gateway leaves no partial line; a line that is too long to buffer is streamed,
and skipped to its end if the gateway dies in the middle. Each direction buffers at most one read; its source is not
read again until the target has accepted it.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import time

from gateway.relay.places import RelayError, warn
from gateway.relay.record import EDGE_BYTES, SessionRecord

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.relay.greetings import Greetings

READ_BYTES = 65_536
HOLD_BYTES = 65_536
"""Buffered bytes of an incomplete line."""
HOLD_WHOLE_BYTES = 64 * 1024 * 1024
"""The same for lines that must be decoded: batches, and the response to a replayed `initialize`."""
MAX_RESTARTS = 5
"""Gateways that may die within `RESTART_INTERVAL` before the relay fails."""
RESTART_INTERVAL = 60.0
FIRST_LINE_TIMEOUT = 30.0
"""Seconds for a client's first line while the gateway starts; later it is not answered early."""
FLUSH_TIMEOUT = 5.0
"""Seconds for the client to read the last responses."""
GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Direction:
    """One direction: passes each line to `note`, which returns the bytes to copy."""

    def __init__(self, note: Callable[[bytes, bool], bytes]) -> None:
        self._note = note
        self._held = bytearray()
        self._head = b""
        """The beginning of a line that was too long to buffer; its rest is streamed."""
        self._tail = b""
        self.hold_all = False
        self.skipping = False
        """Whether the rest of that line is dropped, since its gateway has died."""

    def feed(self, data: bytes) -> bytes:
        """Process input bytes; return the bytes to copy."""
        *ended, last = data.split(b"\n")
        copied: list[bytes] = []
        for line in ended:
            if self._held:
                line, self._held = bytes(self._held) + line, bytearray()  # ruff: ignore[redefined-loop-name]
            if not self._head:
                copied.append(self._note(line, False))
                continue
            ends = self._head + (self._tail + line)[-EDGE_BYTES:]
            self._head = self._tail = b""
            self._note(ends, True)
            if not self.skipping:
                copied.append(line + b"\n")
            self.skipping = False
        if last and not self._head:
            self._held += last
            whole = self.hold_all or self._held.startswith(b"[")
            if len(self._held) <= (HOLD_WHOLE_BYTES if whole else HOLD_BYTES):
                last = b""
            else:
                last, self._held = bytes(self._held), bytearray()
                self._head = last[:EDGE_BYTES]
        if last:
            self._tail = (self._tail + last[-EDGE_BYTES:])[-EDGE_BYTES:]
            if not self.skipping:
                copied.append(last)
        return b"".join(copied)

    @property
    def is_inside(self) -> bool:
        """Whether a line has been copied only in part."""
        return bool(self._head)

    def drop(self) -> None:
        """Drop the incomplete line."""
        self._held.clear()
        self._head = self._tail = b""


class Relay:
    """One client's relay.

    `connect` returns a connection to the gateway. Its arguments are the highest id of a gateway's request to this
    client, and a function to call while the gateway starts. `greetings` has the answer for that time.
    """

    def __init__(
        self,
        connect: Callable[[int, Callable[[socket.socket], None] | None], socket.socket],
        greetings: Greetings,
        stdin: int = 0,
        stdout: int = 1,
    ) -> None:
        self._connect = connect
        self._greetings = greetings
        self._stdin, self._stdout = stdin, stdout
        self._record = SessionRecord()
        self._from_client = Direction(self._note_request)
        self._from_gateway = Direction(self._note_answer)
        self._to_client = self._to_gateway = b""
        self._ended = False
        """Whether stdin is at EOF."""
        self._broken = False
        """Whether this gateway accepts no more input; its output is still read."""
        self._restarts: list[float] = []

    def run(self) -> None:
        """Copy until the client has closed stdin and received its responses, or no longer reads.

        Raises:
            RelayError: no gateway can be started, or gateways die repeatedly.
        """
        mode = os.fstat(self._stdout).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
            os.set_blocking(self._stdout, False)
        try:
            try:
                sock = self._connect(0, self._answer_early)
                while True:
                    with sock:
                        self._copy(sock)
                    if self._ended:
                        break
                    sock = self._restart()
            finally:
                self._to_client += self._record.fail_pending(also_initialize=True)
                deadline = time.monotonic() + FLUSH_TIMEOUT
                poll = select.poll()
                poll.register(self._stdout, select.POLLOUT)
                while self._to_client and poll.poll(max(deadline - time.monotonic(), 0) * 1000):
                    self._write()
        except BrokenPipeError:
            pass  # the client has closed its read end

    def _answer_early(self, sock: socket.socket) -> None:
        """Answer the client's `initialize` as the last gateway did, unless this one is ready first."""
        poll, data = select.poll(), b""
        poll.register(self._stdin, select.POLLIN)
        poll.register(sock, select.POLLIN)
        while b"\n" not in data and len(data) < HOLD_BYTES:
            ready = poll.poll(FIRST_LINE_TIMEOUT * 1000)
            if not ready or any(fd != self._stdin for fd, _ in ready):
                break
            try:
                part = os.read(self._stdin, READ_BYTES)
            except OSError:
                break
            data += part
            if not part:
                break
        line, newline, rest = data.partition(b"\n")
        copied = self._from_client.feed(line + newline)
        answer = self._greetings.answer(line) if newline else None
        if answer is not None:
            self._record.note_answer(answer)
            self._to_client = answer
            self._write()
            copied = self._record.replay()
            self._from_gateway.hold_all = True
        self._to_gateway = copied + self._from_client.feed(rest)

    def _copy(self, sock: socket.socket) -> None:
        """Copy until the gateway closes."""
        poll, applied = select.poll(), None
        while True:
            reads_client = not (self._ended or self._to_gateway or self._broken)
            wanted = reads_client, bool(self._to_gateway), bool(self._to_client)
            if wanted != applied:
                poll, applied = select.poll(), wanted
                if reads_client:
                    poll.register(self._stdin, select.POLLIN)
                awaited = (select.POLLOUT if self._to_gateway else 0) | (0 if self._to_client else select.POLLIN)
                if awaited:
                    poll.register(sock, awaited)
                poll.register(self._stdout, select.POLLOUT if self._to_client else 0)
            for fd, event in poll.poll():
                if fd == self._stdin:
                    try:
                        data = os.read(self._stdin, READ_BYTES)
                    except BlockingIOError:
                        continue
                    except OSError:  # a closed terminal
                        data = b""
                    self._ended = not data
                    self._to_gateway = self._from_client.feed(data or b"\n")  # the last line may lack a newline
                    self._send(sock)
                elif fd == self._stdout:
                    if event & GONE:
                        raise BrokenPipeError
                    self._write()
                else:
                    self._send(sock)
                    if not self._to_client and not self._read_gateway(sock):
                        return

    def _send(self, sock: socket.socket) -> None:
        if not self._to_gateway:
            return
        try:
            self._to_gateway = self._to_gateway[os.write(sock.fileno(), self._to_gateway) :]
            if self._ended and not self._to_gateway:
                sock.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass
        except OSError:
            self._broken, self._to_gateway = True, b""

    def _read_gateway(self, sock: socket.socket) -> bool:
        """Copy the gateway's output; return whether more may come."""
        try:
            data = os.read(sock.fileno(), READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if data:
            self._to_client = self._from_gateway.feed(data)
            self._from_gateway.hold_all = self._record.is_replaying
            self._write()
        return bool(data)

    def _write(self) -> None:
        if self._to_client:
            try:
                self._to_client = self._to_client[os.write(self._stdout, self._to_client) :]
            except BlockingIOError:
                pass

    def _restart(self) -> socket.socket:
        """Fail the dead gateway's requests, connect to another gateway, and restore the session there."""
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if at > now - RESTART_INTERVAL] + [now]
        self._to_gateway, self._broken = b"", False
        if self._from_gateway.is_inside:
            self._to_client += b"\n"
        self._from_gateway.drop()
        self._from_client.skipping = self._from_client.is_inside
        self._to_client += self._record.fail_pending()
        self._write()
        if len(self._restarts) > MAX_RESTARTS:
            text = f"the gateway has ended {len(self._restarts)} times within {RESTART_INTERVAL:g} s"
            raise RelayError(text)
        warn("the gateway has ended; connecting to another one")
        sock = self._connect(self._record.last_asked, None)
        self._to_gateway = self._record.replay()
        self._from_gateway.hold_all = self._record.is_replaying
        return sock

    def _note_request(self, line: bytes, cut: bool) -> bytes:
        if self._from_client.skipping:  # the gateway that had its beginning has died
            lost = SessionRecord()
            lost.note_request(line, cut=cut)
            self._to_client += lost.fail_pending()
            return b""
        self._record.note_request(line, cut=cut)
        return line + b"\n"

    def _note_answer(self, line: bytes, cut: bool) -> bytes:
        noted = self._record.note_answer(line)
        if not cut and self._greetings.confirms(line):
            return b""
        return line + b"\n" if noted is line or cut else noted
