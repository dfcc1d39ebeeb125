"""The gateway as a process: signals, file descriptors, and which frontends run.

What they serve, and the order in which it starts and stops, is `gateway.runtime`. A second signal skips to SIGKILL.
Every task in the process descends from the nursery in `Gateway.run`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket  # ruff: ignore[typing-only-standard-library-import] - msgspec reads it
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway.admin.access import AdminAccess
from gateway.admin.report import encode_report
from gateway.backends.session.contracts import wait_any
from gateway.calls import ANYBODY, NameChoice, at_endpoint
from gateway.clock import AwakeClock
from gateway.errors import ConfigError
from gateway.frontends.http.listen_address import InsecureListen, ListenAddress, ListenError
from gateway.processes.guard import open_guard
from gateway.processes.spawn import raise_nofile_limit
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.runtime import GatewayRuntime
from gateway.store import Store
from gateway.tracing.opening import open_configured

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping
    from pathlib import Path

    from gateway.admin.servers import Management
    from gateway.config import Config
    from gateway.frontends.http.listen_address import ListeningSocket
    from gateway.frontends.http.server import HttpFrontend
    from gateway.frontends.relays import RelayFrontend
    from gateway.processes.guard import ChildGuard
    from gateway.supervisor.fleet import Applied
    from gateway.tracing.spans import Tracing

GC_THRESHOLD: Final = 5_000
"""Allocations before a collection of the youngest generation: what a few hundred active calls hold. Python's default of
700 cost 3 % of a busy gateway's time."""
M_MMAP_THRESHOLD: Final = -3
LARGE_BLOCK_BYTES: Final = 2**18
"""Larger blocks are mapped individually. Most messages are smaller; a mapped one costs one page fault per page."""
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger("gateway.app")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one run; the rest is in the config."""

    transports: tuple[str, ...] = ("stdio",)
    host: str = "127.0.0.1"
    port: int = 8080
    uds: Path | None = None
    """A Unix socket to listen on instead of `host` and `port`."""
    uds_mode: int = 0o600
    inherited: ListenAddress | None = None
    """The address of a socket that a service manager has passed, in place of all that."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    """Whether the gateway may listen on a network without authentication."""
    path: str = "/mcp"
    sse_path: str = "/sse"
    message_path: str = "/messages/"
    stdin: int = 0
    stdout: int = 1
    relays: socket.socket | None = None
    """The listening socket to which the clients of `mcp-gateway connect` connect."""
    state_directory: Path | None = None
    """Where last-good catalogs and the control socket are stored; None stores nothing."""
    source: ConfigSource | None = None
    """The source of the config, used by reloads; None for a config passed by a program."""
    watching: bool = True
    """Whether a change of the config file triggers a reload."""
    view: str | None = None
    """The view served on stdio, None for everything; over HTTP each view has its own endpoint."""
    names: NameChoice | None = None
    """The names that the client on stdio sees; over HTTP each client chooses its own."""
    tracing: Tracing | None = None
    """Begins spans; None traces nothing."""
    admin: AdminAccess | None = None
    """Access control of the management API; None allows everyone on loopback to read and no one to change."""

    @property
    def is_local(self) -> bool:
        """True if clients connect over pipes or the user's own relays, not over HTTP."""
        return bool({"stdio", "connect"}.intersection(self.transports))

    @property
    def binding(self) -> ListenAddress:
        """The address of the HTTP frontend."""
        address = self.inherited or ListenAddress(host=self.host, port=self.port, uds=self.uds, uds_mode=self.uds_mode)
        return msgspec.structs.replace(address, tls_cert=self.tls_cert, tls_key=self.tls_key)


class Gateway:
    """One run: the runtime with its frontends, the control socket, reloads, and the signals."""

    def __init__(self, config: Config, options: Options, guard: ChildGuard, signals: Iterable[int] = ()) -> None:
        self._options = options
        self._early = signals
        self._guard = guard
        self._store = None if options.state_directory is None else Store(options.state_directory)
        self.runtime = GatewayRuntime(config, guard, self._store, tracing=options.tracing)
        self._source = options.source or ConfigSource(None, environ={}, given=config)
        self._reloader = Reloader(self._source, self.runtime.fleet, apply=self._apply, check=self._check)
        self._all_answered = True
        self._bound: ListeningSocket | None = None
        self._urls: list[str] = []
        self._management: Management | None = None
        self._relays: RelayFrontend | None = None

    async def run(self, bound: ListeningSocket | None, ready: Callable[[str], None]) -> bool:
        """Serve until a signal or EOF on stdin; return whether all calls ended in time.

        `bound` is where the HTTP frontend listens, None with stdio.
        """

        async def start_frontends() -> None:
            await services.start(partial(self._reloader.run, watching=self._options.watching))
            if self._store is not None:
                await services.start(self._serve_control, self._store)
            if self._options.relays is not None:
                await self.runtime.start_frontend(self._serve_relays, self._options.relays)
            elif bound is None:
                await self.runtime.start_frontend(self._serve_stdio)
            else:
                frontend = self._make_http_frontend()
                if self._options.admin is None or self._options.admin.mode != "off":
                    await services.start(self._make_management().history.run)
                self._urls = await self.runtime.start_frontend(frontend.run, bound)
                for url in self._urls:
                    ready(url)
                if views := self.runtime.fleet.config.views:
                    log.info("views, each below %s: %s", " and ".join(self._urls), ", ".join(views))
            spare_collector()
            return_large_blocks()

        absent = {one.name: one.disabled_by for one in self.runtime.fleet.config.servers.values() if one.disabled}
        absent |= dict.fromkeys(self._source.overlay.removed, "removed over the management API")
        for name, how in absent.items():
            log.info("server %r is %s", name, how, extra={"event": "server_absent", "backend": name})
        self._bound = bound
        async with trio.open_nursery() as services:
            services.start_soon(self._handle_signals)
            clean = await self.runtime.run(start_frontends)
            services.cancel_scope.cancel(reason="everything has stopped")
        return clean and self._all_answered

    def _stop(self) -> None:
        self._reloader.stop()
        self.runtime.stop()

    def _check(self, config: Config) -> None:
        """Refuse a config that would expose this gateway to a network without authentication. Raises ConfigError.

        Also read the certificate again, which may have been renewed.
        """
        try:
            if self._bound is not None:
                self._bound.renew_certificate()
        except ListenError as exc:
            raise ConfigError([str(exc)]) from None
        if self._options.is_local or self._options.insecure:
            return
        try:
            self._options.binding.check(config.access)
        except InsecureListen as exc:
            raise ConfigError([f"{exc}; {exc.hint}"]) from None

    async def _apply(self, config: Config, *, restart: Container[str] = ()) -> Applied:
        applied = await self.runtime.apply(config, restart=restart)
        view = self._options.view
        if view is not None and view not in config.views:
            log.warning(
                "view %r, served here, has been removed from the config: offering nothing",
                view,
                extra={"event": "view_removed", "view": view},
            )
        return applied

    async def _serve_stdio(self, *, task_status: trio.TaskStatus[None]) -> None:
        from gateway.frontends.stdio import StdioFrontend

        task_status.started()
        options = self._options
        identity = at_endpoint(ANYBODY, options.view, options.names)
        runtime = self.runtime
        frontend = StdioFrontend(runtime.handler, options.stdin, options.stdout, runtime.closing, identity)
        self._all_answered = await frontend.run()
        # Otherwise clients with sessions shorter than a server's start would never get its lists.
        unknown = [] if runtime.stopping.is_set() else runtime.fleet.starting_first()
        if unknown:
            names = ", ".join(one.name for one in unknown)
            log.info("stdin closed: waiting for the first lists of %s (drain_grace)", names)
        with trio.move_on_after(runtime.fleet.settings.drain_grace):
            for one in unknown:
                await wait_any(one.settled, runtime.stopping)
        self._stop()

    async def _serve_relays(self, listener: socket.socket, *, task_status: trio.TaskStatus[None]) -> None:
        from gateway.frontends.relays import RelayFrontend

        runtime = self.runtime
        self._relays = RelayFrontend(
            runtime.handler, listener, stopping=runtime.stopping, closing=runtime.closing, idle=self._stop
        )
        task_status.started()
        await self._relays.run()
        self._all_answered = self._relays.all_answered

    async def _serve_control(self, store: Store, *, task_status: trio.TaskStatus[None]) -> None:
        from gateway.admin.control import serve_control

        task_status.started()
        await serve_control(store, self._answer)

    async def _answer(self, question: bytes) -> bytes:
        """Answer a request on the control socket."""
        if question == b"ps":
            await self._guard.scan()
            transport = ",".join(self._options.transports)
            shared = None if self._relays is None else self._relays.report()
            return encode_report(self.runtime.fleet, self._guard, transport=transport, urls=self._urls, shared=shared)
        from gateway.admin.control import run_command

        return await run_command(question, self._make_management())

    def _make_management(self, gauges: Mapping[str, Callable[[], int]] | None = None) -> Management:
        if self._management is None:
            from gateway.admin.servers import Management

            self._management = Management(
                self.runtime.router,
                self._reloader,
                transport=",".join(self._options.transports),
                draining=self.runtime.stopping.is_set,
                closing=self.runtime.closing,
                guard=self._guard,
                gauges=gauges,
                audit_lines_dropped=lambda: self.runtime.audit.dropped,
                spans_dropped=int if self._options.tracing is None else self._options.tracing.dropped,
                note_cancelled=self.runtime.audit.note_cancelled,
            )
        return self._management

    def _make_http_frontend(self) -> HttpFrontend:
        from gateway.admin.http import make_admin_app
        from gateway.frontends.http.host_policy import HostPolicy
        from gateway.frontends.http.mcp_app import McpApp, Paths
        from gateway.frontends.http.server import HttpFrontend

        options, runtime = self._options, self.runtime
        paths = Paths(
            options.path if "streamable-http" in options.transports else None,
            options.sse_path if "sse" in options.transports else None,
            options.message_path,
        )
        policy = HostPolicy(options.binding.policy_host)
        mcp = McpApp(runtime.handler, runtime.access, paths, policy=policy, closing=runtime.closing)
        management = self._make_management({
            "sessions": lambda: mcp.sessions,
            "streams": lambda: mcp.streams,
            "calls_suspended": lambda: len(runtime.suspended_calls),
        })
        admin = options.admin or AdminAccess("token", host=options.binding.admin_host)
        others = make_admin_app(management, admin)
        return HttpFrontend(mcp, others=others, closing=runtime.closing, stopping=runtime.stopping)

    async def _handle_signals(self) -> None:
        """Handle signals: the first starts the shutdown, the second kills; SIGHUP reloads the config."""
        with trio.open_signal_receiver(*SIGNALS) as signals:
            for number in self._early:
                self._handle_signal(number)
            async for number in signals:
                self._handle_signal(number)

    def _handle_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGHUP:
            self.runtime.audit.reopen()
            self._reloader.reload_soon(name)
        elif not self.runtime.stopping.is_set():
            self.runtime.router.refuse_new()  # before it is logged
            log.info("%s: draining, then stopping", name, extra={"event": "shutdown_begun", "by": name})
            self._stop()
        else:
            log.warning("%s again: stopping immediately", name, extra={"event": "shutdown_forced", "by": name})
            self.runtime.stop_now()


async def serve(config: Config, options: Options, ready: Callable[[str], None]) -> bool:
    """Run a gateway until it is stopped; pass each URL to `ready` once it listens.

    Returns whether all calls ended within the grace period. Raises `gateway.frontends.http.listen_address.ListenError`.
    Only for a process that does nothing else: it permanently raises the process's limit of open files.
    """
    before, now = raise_nofile_limit()
    if before != now:
        log.debug("raised RLIMIT_NOFILE from %d to %d; children keep the old limit", before, now)
    listening = nullcontext() if options.is_local else options.binding.open()  # before anything starts
    with listening as bound:
        signals = keep_signals()  # not before: signals must be able to end a slow name lookup
        async with open_guard(subreaper=True) as guard:
            return await Gateway(config, options, guard, signals).run(bound, ready)


def keep_signals() -> list[int]:
    """Collect signals in the returned list until a receiver takes over.

    A receiver restores the previous handlers on exit. With the default ones, a signal during the first or last steps
    would kill the gateway and leave the file of its Unix socket.
    """
    kept: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: kept.append(number))
    return kept


def spare_collector() -> None:
    """Exclude long-lived objects of the start (modules, functions, tables, config) from garbage collection.

    Traversing about 40,000 of them in each full collection delayed all calls by 20 ms, more than once a second under
    load; that tripled the p99 of a light client beside a flood.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)


def return_large_blocks() -> None:
    """Have glibc's allocator return the memory of large messages when they are freed.

    By default glibc raises this threshold to the size of what was freed, up to 32 MiB. Large messages then share the
    heap with small ones that outlive them: after 256 MiB of responses had waited, the process kept 200 MB more.
    """
    import ctypes  # already loaded for children; imported late for programs that embed the gateway

    with suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def set_stdio_apart() -> tuple[int, int]:
    """Give the stdio frontend its own descriptors; redirect stdout to stderr, stdin to EOF.

    Returns (stdin, stdout) for the frontend. After that, no library, print or child can break the protocol.
    """
    stdin, stdout = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return stdin, stdout


def run(config: Config, options: Options, ready: Callable[[str], None]) -> bool:
    """Run `serve` in its own loop; ignore later stop signals, since the program exits."""
    try:
        with open_configured(os.environ) as tracing:  # which ends last: what the shutdown did is exported too
            serving = partial(serve, config, msgspec.structs.replace(options, tracing=tracing), ready)
            return trio.run(serving, clock=AwakeClock())
    finally:
        for number in SIGNALS:  # at exit the interpreter restores the default, which kills, for all but ignored signals
            signal.signal(number, signal.SIG_IGN)
