"""A backend over a child's pipes: one JSON message a line (2026-07-28 basic/transports/stdio).

The session owns four tasks: it reads stdout, writes stdin, logs stderr and waits for the child's exit. When the child
has exited or closed its stdout or stdin, every call in flight is answered immediately, before the shutdown sequence.
Garbage on stdout is logged and skipped; a line over the limit costs its own call, not the backend.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sys
import termios
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from gateway.backends.session import handshake, lists
from gateway.backends.session.conversation import Conversation
from gateway.backends.session.session_state import SessionReconciler
from gateway.backends.stderr import SHOWN, StderrLog, StrayLines
from gateway.budget import Intake
from gateway.errors import BackendExited, BackendProtocol, BackendTooSlow
from gateway.jsonrpc import LARGE_BYTES
from gateway.lines import BufferedWriter, LineSplitter, OversizedLine, read_some
from gateway.processes.child import Child, ChildCommand, open_child
from gateway.processes.spawn import search_path

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from gateway.backends.session.contracts import SessionObserver
    from gateway.backends.session.handshake import Attempts, ServerIntroduction
    from gateway.budget import Budget
    from gateway.catalog.listing import Listing
    from gateway.config import ServerConfig
    from gateway.eras.requests import Hop
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard

_POSIX_ENVIRONMENT: Final = "HOME LANG LC_ALL LC_CTYPE LOGNAME PATH SHELL TERM TMPDIR TZ USER"
_NETWORK_ENVIRONMENT: Final = (
    "ALL_PROXY HTTPS_PROXY HTTP_PROXY NO_PROXY all_proxy http_proxy https_proxy no_proxy"
    " CURL_CA_BUNDLE NODE_EXTRA_CA_CERTS REQUESTS_CA_BUNDLE SSL_CERT_DIR SSL_CERT_FILE"
)  # without them `uvx` and `npx` cannot download in a network with a proxy or its own certificate authority
SAFE_ENVIRONMENT: Final = (_POSIX_ENVIRONMENT + " " + _NETWORK_ENVIRONMENT).split()
"""Variables that a child inherits by default. Secrets of the gateway's own environment are not among them, so a proxy
address with a user name is left out."""
GATEWAYS_VARIABLE: Final = "MCP_GATEWAY_GATEWAYS"
"""The variable that tells a child which gateways have started it (`gateway.runtime.Lineage`)."""
EXIT_STATUS_WAIT: Final = 0.02
"""Seconds between the end of a child's stdout and the error for its calls, which names the exit status."""
MAX_UNREAD_REPLIES: Final = 4 * 1_048_576
"""Bytes of queued replies to a backend's own requests; if it sends requests but reads no replies, later requests stay
unanswered. Its stdout cannot be held back instead: it may be busy writing a result there."""
LAST_OUTPUT_WAIT: Final = 0.2
"""Seconds that stdout and stderr are read after the child has exited, since a grandchild may hold the pipes open
forever, and after it has closed its stdin, for responses that are on their way."""

log = logging.getLogger("gateway.backend")


def child_environment(config: ServerConfig, environ: Mapping[str, str], marker: str = "") -> dict[str, str]:
    """Return a child's environment: safe defaults, the config's variables, the gateways above."""
    inherited = {name: environ[name] for name in SAFE_ENVIRONMENT if name in environ}
    for name in [name for name, value in inherited.items() if name.lower().endswith("_proxy") and "@" in value]:
        del inherited[name]
    environment = {**inherited, **config.env, **({GATEWAYS_VARIABLE: marker} if marker else {})}
    if "PATH" not in config.env and config.command is not None:
        path = search_path(config.command, environment)
        if path != os.pathsep.join(os.get_exec_path(environment)):
            environment["PATH"] = path
    return environment


class StdioSession:
    """Implements `gateway.backends.session.interface.Session` over a child's pipes."""

    def __init__(
        self, config: ServerConfig, child: Child, listener: SessionObserver, hop: Hop, buffers: Budget
    ) -> None:
        self.greeting: ServerIntroduction
        self.listing: Listing
        self._config = config
        self._child = child
        self._outbox = BufferedWriter(child.stdin)
        self._stderr = StderrLog(config.name, on_line=listener.wrote_stderr)
        self._stray = StrayLines()
        self._buffers = buffers
        self._splitter = LineSplitter(config.max_line_bytes, intake=Intake(buffers, evict=True))
        self._conversation = Conversation(
            config.name, post=self._post, listener=listener, hop=hop, reply=self._reply, stray=self._stray
        )
        self._is_open = False
        self.upkeep = SessionReconciler(self._conversation, listener, timeout=config.connect_timeout)
        self._replied = self._unanswered = 0
        self._transcode = config.encoding.lower().replace("_", "-") not in {"utf-8", "utf8", "ascii"}
        self._read_to_end = trio.Event()
        self._problem: BackendExited | None = None

    @property
    def in_flight(self) -> int:
        """The number of calls in flight."""
        return self._conversation.in_flight

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._child.pid

    @property
    def stray_output(self) -> str:
        """Output on stdout that is not MCP, as text for the status, or empty."""
        return self._stray.describe()

    @property
    def asked(self) -> tuple[str, ...]:
        """The methods of the backend's requests to clients so far."""
        return self._conversation.asked

    @property
    def can_send(self) -> bool:
        """Whether the child is running, and has read enough of its input."""
        return not self._conversation.is_closed and self._outbox.is_writable

    def send(self, pending_calls: list[PendingCall]) -> None:
        """Send calls: one alone immediately, several concurrent ones in one write."""
        direct = self._conversation.in_flight == 0
        self._post(b"".join(map(self._conversation.encode_call, pending_calls)), direct=direct)

    async def wait_writable(self) -> None:
        """Wait until the child has read enough."""
        await self._outbox.wait_writable()

    async def relist(self, feature: str) -> Listing:
        """Read the lists of one feature again."""
        known = self.listing.warnings
        return await lists.list_feature(self._conversation, feature, timeout=self._config.connect_timeout, known=known)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Run the session's tasks; never returns, but raises BackendExited when the child has exited."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_stdin)
            nursery.start_soon(self._stderr.run, self._child.stderr)
            nursery.start_soon(self._watch_exit)
            nursery.start_soon(self._read_stdout)
            nursery.start_soon(self._conversation.tasks.run)
            task_status.started()

    @property
    def has_read(self) -> bool:
        """Whether the child has read any input; true if the system cannot tell."""
        fd, unread = self._child.stdin.fileno(), 0
        if fd >= 0:
            with contextlib.suppress(OSError):
                unread = int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)
        return self._outbox.written > unread

    async def open(self, attempts: Attempts) -> None:
        """Shake hands and read the lists, within `connect_timeout`. Raises BackendError."""
        config = self._config
        if attempts.era == "auto":
            self._stderr.hold()
        try:
            with trio.move_on_at(attempts.deadline(config.connect_timeout)) as scope:
                self.greeting = await handshake.introduce(
                    self._conversation, attempts, probe_timeout=config.probe_timeout, timeout=config.connect_timeout
                )
                self.listing = await lists.list_all(self._conversation, self.greeting, timeout=config.connect_timeout)
        except BackendTooSlow as problem:
            raise BackendTooSlow(config.name, self._explain(problem.reason)) from None
        if scope.cancelled_caught:
            text = f"was not ready within {config.connect_timeout:g} s (connect_timeout)"
            raise BackendTooSlow(config.name, self._explain(text))
        self._is_open = True
        self._stderr.release(logging.DEBUG)

    def close(self, problem: BackendExited, *, restarts: bool = False) -> None:
        """Finish every pending request; `restarts`: another process follows one that ended at the probe."""
        self._stderr.release(logging.DEBUG if restarts else logging.INFO)
        self._conversation.close(problem)
        self._splitter.release()

    def _post(self, data: bytes, *, direct: bool = True) -> None:
        if self._transcode and not data.isascii():
            # Characters outside ASCII only occur in strings, where escapes mean the same in any encoding.
            text = data.decode().encode("utf-16-be")
            units = (int.from_bytes(text[at : at + 2]) for at in range(0, len(text), 2))
            data = "".join(chr(unit) if unit < 0x80 else f"\\u{unit:04x}" for unit in units).encode("ascii")
        self._outbox.post(data, direct=direct)

    def _reply(self, data: bytes) -> None:
        self._replied = min(self._replied, self._outbox.size)
        if self._replied < MAX_UNREAD_REPLIES:
            self._replied += len(data)
            self._post(data)
            return
        if not self._unanswered:
            text = "backend %r does not read the replies to its own requests; dropping some"
            log.warning(text, self._config.name, extra={"backend": self._config.name})
        self._unanswered += 1

    async def _write_stdin(self) -> None:
        """Write queued messages; a child that does not read counts as gone."""
        async with trio.open_nursery() as nursery:

            async def until_end(wait: Callable[[], Awaitable[None]]) -> None:
                await wait()
                nursery.cancel_scope.cancel(reason="the child does not read")

            nursery.start_soon(until_end, self._outbox.run)
            nursery.start_soon(until_end, self._child.wait_stdin_closed)
        with trio.move_on_after(LAST_OUTPUT_WAIT):
            await self._read_to_end.wait()
            return  # the reader of stdout reports the end
        await self._gone("closed its stdin")

    async def _read_stdout(self) -> None:
        splitter, stdout = self._splitter, self._child.stdout
        try:
            while data := await read_some(stdout):
                if splitter.unfinished >= LARGE_BYTES and (large := splitter.take_large(data)) is not None:
                    parts, data = large
                    await self._handle_large(parts)
                for line in splitter.feed(data):
                    self._handle_line(line)
        except trio.BrokenResourceError:
            log.debug("backend %r: reading its stdout failed", self._config.name)
        finally:
            self._read_to_end.set()
        if splitter.unfinished:
            log.warning("backend %r ended in the middle of a message", self._config.name)
        with trio.move_on_after(EXIT_STATUS_WAIT):
            await self._child.wait()
        await self._gone("closed its stdout")

    def _handle_line(self, line: bytes | OversizedLine) -> None:
        if isinstance(line, OversizedLine):
            self._conversation.feed_overlong(line, self._config.max_line_bytes)
            return
        handler = self._config.encoding_error_handler
        if self._transcode or (handler != "strict" and not line.isascii()):
            try:
                line = line.decode(self._config.encoding, handler).encode()
            except UnicodeDecodeError:
                log.debug("backend %r wrote a line that is not %s", self._config.name, self._config.encoding)
        self._conversation.feed(line)

    async def _handle_large(self, parts: list[bytes]) -> None:
        async with self._buffers.conversion:
            line = await trio.to_thread.run_sync(b"".join, parts)  # without the interpreter's lock
            parts.clear()
            if self._transcode or self._config.encoding_error_handler != "strict":
                self._handle_line(line)
            else:
                await self._conversation.feed_large(line)
        self._splitter.release()

    async def _watch_exit(self) -> None:
        await self._child.wait()
        with trio.move_on_after(LAST_OUTPUT_WAIT):
            await self._read_to_end.wait()
        await self._gone("")

    async def _gone(self, how: str) -> None:
        """End the session, with the exit status and stderr of the child as the reason."""
        if self._child.returncode is not None:
            how = self._child.describe_exit()
            with trio.move_on_after(LAST_OUTPUT_WAIT):
                await self._stderr.ended.wait()
        if self._problem is None:
            self._problem = BackendExited(self._config.name, self._explain(how), self._conversation.suspects())
            self._conversation.close(self._problem)
        raise self._problem

    def _explain(self, problem: str) -> str:
        """Return the problem, with the child's stderr and, before the session opens, its stdout."""
        parts = [problem]
        if not self._is_open:
            parts.append(self._stray.describe())
            if unfinished := self._splitter.peek(SHOWN).decode(errors="replace").strip():
                parts.append(f"its stdout ends with an unfinished line: {unfinished!r}")
        from gateway.backends.causes import informative

        if summary := informative(self._stderr.tail):
            parts.append(f"stderr: {summary}")
        return "; ".join(part for part in parts if part)


@asynccontextmanager
async def open_stdio(
    config: ServerConfig,
    listener: SessionObserver,
    *,
    guard: ChildGuard,
    hop: Hop,
    attempts: Attempts,
    buffers: Budget,
) -> AsyncGenerator[StdioSession]:
    """Start the child and open a session; on leaving, run the shutdown sequence.

    `attempts` decides the first message; `buffers` counts the bytes of arriving messages.

    Raises:
        BackendError: the child cannot be started, does not speak MCP, is not ready within `connect_timeout`, or (in the
            body, grouped) exited.
    """
    if config.command is None:
        raise BackendProtocol(config.name, "has no command")
    argv = (config.command, *config.args)
    command = ChildCommand(argv=argv, env=child_environment(config, os.environ, hop.marker), cwd=config.cwd)
    async with open_child(command, grace=config.shutdown_grace, guard=guard, backend=config.name) as child:
        session = StdioSession(config, child, listener, hop, buffers)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(session.run)
                await session.open(attempts)
                nursery.start_soon(session.upkeep.run, session.greeting)
                yield session
                nursery.cancel_scope.cancel(reason="the supervisor has closed the session")
        finally:
            attempts.has_read = session.has_read
            # No call may wait for a session that is gone, whatever the reason; the shutdown sequence comes after.
            restarts = attempts.is_probing and attempts.has_read
            session.close(BackendExited(config.name, "was stopped"), restarts=restarts)
