"""The composition root: the one root nursery, signals, start order and stop order.

Stopping goes one way, whatever asked for it: refuse new calls, let those under way finish within the grace, end open
streams, stop the faces, stop all backends at once, logs last. A second signal skips to SIGKILL. Nobody but this module
starts services, and every task in the process descends from the nursery in `serve`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from gateway.access.table import Access
from gateway.admin.access import AdminAccess
from gateway.admin.report import encode_report
from gateway.audit import Audit
from gateway.backends.opener import SessionOpener
from gateway.calls import ANYBODY, at_view
from gateway.config.access import NO_ACCESS
from gateway.config.difference import changed_at_start_only
from gateway.config.shown import secrets_of_config
from gateway.errors import ConfigError
from gateway.frontends.http.listen_address import InsecureListen, ListenAddress
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.masking import SECRETS
from gateway.processes.guard import open_guard
from gateway.processes.spawn import raise_nofile_limit
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.router import Router
from gateway.store import Store
from gateway.supervisor.fleet import Fleet
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from gateway.access.principals import Principal
    from gateway.config import Config
    from gateway.frontends.http.listen_address import ListeningSocket
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard

GC_THRESHOLD: Final = 5_000
"""Objects made and not yet freed before the collector looks at the youngest: what a few hundred calls under way hold.
At Python's 700 the looks took 3 % of a busy gateway's time."""
CLOSE_GRACE: Final = 2.0
"""Seconds that faces get to write their last answers and close, once all calls have ended."""
HURRIED_GRACE: Final = 0.25
"""The same after a second signal: enough for a client that reads, too short for one that does not to be in the way."""
RELOAD_SIGNALS: Final = () if sys.platform == "win32" else (signal.SIGHUP,)
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, *RELOAD_SIGNALS)

log = logging.getLogger("gateway.app")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How this run serves; the rest is in the config."""

    transports: tuple[str, ...] = ("stdio",)
    host: str = "127.0.0.1"
    port: int = 8080
    uds: Path | None = None
    """A Unix socket to listen on instead of `host` and `port`."""
    uds_mode: int = 0o600
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    """Whether the gateway may be open to a network without asking anybody for a key."""
    path: str = "/mcp"
    sse_path: str = "/sse"
    message_path: str = "/messages/"
    stdin: int = 0
    stdout: int = 1
    state_directory: Path | None = None
    """Where last-good catalogs and the control socket are kept; None keeps nothing."""
    source: ConfigSource | None = None
    """Where the config came from and is read anew; None for one that a program has given."""
    watching: bool = True
    """Whether a change of the config file is noticed without being told."""
    view: str | None = None
    """The view that is served on stdio, None for everything; over HTTP each view has an endpoint of its own."""
    admin: AdminAccess | None = None
    """Who may use the management API; None lets everybody on loopback read and nobody change."""

    @property
    def binding(self) -> ListenAddress:
        """Where the HTTP face listens."""
        return ListenAddress(
            host=self.host,
            port=self.port,
            uds=self.uds,
            uds_mode=self.uds_mode,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
        )


class Gateway:
    """One run: what is composed, and the order in which it starts and stops."""

    def __init__(self, config: Config, options: Options, guard: ChildGuard, signals: Iterable[int] = ()) -> None:
        self._options = options
        self._early = signals
        self._settings = config.gateway
        self._guard = guard
        self._store = None if options.state_directory is None else Store(options.state_directory)
        self._opener = SessionOpener(
            guard,
            name=config.gateway.name,
            store=self._store,
            waiting=self._calls_waiting_for,
            note_login_required=self._note_login_required,
        )
        self.fleet = Fleet(config, self._opener, self._store)
        source = options.source or ConfigSource(None, environ={}, given=config)
        self._reloader = Reloader(source, self.fleet, held=self._apply_settings, check=self._check)
        self.router = Router(self.fleet)
        self._audit = Audit(self.router)
        self._update_masking_and_audit(config)
        self._parking = SuspendedCalls(RequestStateCodec(config.gateway.state_keys()))
        self._access = self.router.admission = Access(config.access or NO_ACCESS)
        self._access.on_end.append(self._end_principal)
        self._access.on_denied = self._audit.denied
        self._handler = RequestHandler(self.router, config.gateway, VERSION, self._parking)
        self._stop = trio.Event()
        self._closing = trio.Event()
        self._frontends_scope = trio.CancelScope()
        self._all_answered = True
        self._urls: list[str] = []

    async def run(self, bound: ListeningSocket | None, ready: Callable[[str], None]) -> bool:
        """Serve until a signal or the end of stdin; returns whether all calls ended within the grace.

        `bound` is where the HTTP face listens, None with stdio.
        """
        async with trio.open_nursery() as services:
            services.start_soon(self._handle_signals)
            services.start_soon(self._parking.run)
            await services.start(self._audit.run)
            await services.start(self._opener.run)
            await services.start(self.fleet.run)
            await services.start(partial(self._reloader.run, watching=self._options.watching))
            if self._store is not None:
                services.start_soon(self._serve_control, self._store)
            async with trio.open_nursery() as faces:
                self._frontends_scope = faces.cancel_scope
                if bound is None:
                    faces.start_soon(self._serve_stdio)
                else:
                    self._urls = await faces.start(self._make_http_face().run, bound)
                    for url in self._urls:
                        ready(url)
                    if views := self.fleet.config.views:
                        log.info("views, each below %s: %s", " and ".join(self._urls), ", ".join(views))
                spare_collector()
                await self._stop.wait()
                self._reloader.stop()
                self._parking.close_all()
                clean = await self.router.drain(self._settings.drain_grace)
                self._closing.set()
                grace = HURRIED_GRACE if self._guard.force_stopped.is_set() else CLOSE_GRACE
                faces.cancel_scope.deadline = trio.current_time() + grace
            self.fleet.stop()
            await self.fleet.ended.wait()
            services.cancel_scope.cancel(reason="everything has stopped")
        return clean and self._all_answered

    def _check(self, config: Config) -> None:
        """Refuse a config with which this gateway would be open to a network. Raises ConfigError."""
        if "stdio" in self._options.transports or self._options.insecure:
            return
        try:
            self._options.binding.check(config.access)
        except InsecureListen as exc:
            raise ConfigError([f"{exc}; {exc.hint}"]) from None

    def _apply_settings(self, config: Config) -> None:
        """Go by the settings of a config that has come to hold; some are for the next start."""
        for name in changed_at_start_only(self._settings, config.gateway):
            log.warning("gateway.%s has changed, which takes effect at the next start", name)
        view = self._options.view
        if view is not None and view not in config.views:
            log.warning("the view %r, which is served here, is not in the config any more: nothing is offered", view)
        self._settings = self._handler.settings = config.gateway
        self._access.apply(config.access or NO_ACCESS)
        self._update_masking_and_audit(config)

    def _calls_waiting_for(self, backend: str) -> list[PendingCall]:
        return self.router.waiting(backend)

    def _note_login_required(self, backend: str, reason: str) -> None:
        self.fleet.login_owed(backend, reason)

    def _end_principal(self, principal: Principal) -> None:
        """What is kept for somebody outside of the faces ends with its key."""
        self._parking.close_of(principal.name)
        self.router.cut_off(principal)
        self.fleet.client_gone(principal.name)

    def _update_masking_and_audit(self, config: Config) -> None:
        """Have no text show a secret of a config, and calls noted as it says."""
        SECRETS.replace(secrets_of_config(config))
        self._audit.apply(config.gateway.audit)

    async def _serve_stdio(self) -> None:
        from gateway.frontends.stdio import StdioFrontend

        options, identity = self._options, ANYBODY
        if options.view is not None:
            identity = at_view(identity, options.view)
        face = StdioFrontend(self._handler, options.stdin, options.stdout, self._closing, identity)
        self._all_answered = await face.run()
        self._stop.set()

    async def _serve_control(self, store: Store) -> None:
        from gateway.admin.control import serve_control

        await serve_control(store, self._report)

    async def _report(self) -> bytes:
        await self._guard.scan()
        transport = ",".join(self._options.transports)
        return encode_report(self.fleet, self._guard, transport=transport, urls=self._urls)

    def _make_http_face(self) -> Any:
        from gateway.admin.http import make_admin_app
        from gateway.admin.servers import Management
        from gateway.frontends.http.endpoint import HttpFrontend

        options = self._options
        management = Management(
            self.router,
            self._reloader,
            transport=",".join(options.transports),
            draining=self._stop.is_set,
            closing=self._closing,
            guard=self._guard,
        )
        others = make_admin_app(management, options.admin or AdminAccess("token", host=options.binding.admin_host))
        face = HttpFrontend(
            self._handler,
            binding=options.binding,
            path=options.path if "streamable-http" in options.transports else None,
            sse_path=options.sse_path if "sse" in options.transports else None,
            message_path=options.message_path,
            others=others,
            closing=self._closing,
            access=self._access,
        )
        management.lost = lambda: self._audit.dropped
        management.gauges = {
            "sessions": lambda: face.sessions,
            "streams": lambda: face.streams,
            "calls_parked": lambda: len(self._parking),
        }
        return face

    async def _handle_signals(self) -> None:
        """First signal: the orderly way. Second: at once. SIGHUP: read the config anew."""
        with trio.open_signal_receiver(*SIGNALS) as signals:
            for number in self._early:
                self._handle_signal(number)
            async for number in signals:
                self._handle_signal(number)

    def _handle_signal(self, number: int) -> None:
        name = signal.Signals(number).name
        if number in RELOAD_SIGNALS:
            self._audit.reopen()
            self._reloader.reload_soon(name)
            return
        if not self._stop.is_set():
            self.router.refuse_new()  # before it is said
            log.info("%s: draining, then stopping", name)
            self._stop.set()
            return
        log.warning("%s again: stopping at once", name)
        self._guard.force_stop()
        self.router.stop_draining()
        if self._closing.is_set():  # before that the drain, which ends now, sets the deadline
            self._frontends_scope.deadline = min(self._frontends_scope.deadline, trio.current_time() + HURRIED_GRACE)


async def serve(config: Config, options: Options, ready: Callable[[str], None]) -> bool:
    """Run a gateway until it is told to stop; `ready` is called with each URL once an HTTP socket is open.

    Returns whether all calls ended within the grace. Raises `gateway.frontends.http.listen_address.ListenError`. For a
    program that is the gateway and nothing else: it raises the process's limit of open files, once and for good.
    """
    if (limit := raise_nofile_limit()) is not None and limit[0] != limit[1]:
        log.debug("the limit of open files was %d and is %d now; children keep theirs", *limit)
    listening = nullcontext() if "stdio" in options.transports else options.binding.open()  # before anything starts
    with listening as bound:
        signals = keep_signals()  # not before: while a name is looked up, which may take long, they are to end it all
        async with open_guard(subreaper=True) as guard:
            return await Gateway(config, options, guard, signals).run(bound, ready)


def keep_signals() -> list[int]:
    """From now on signals end nothing, but are put into the list that is returned, in front of what a receiver gets.

    A receiver puts back what it finds: were that the default, a signal during the first or the last steps would kill
    the gateway, and the file of its Unix socket would stay behind.
    """
    kept: list[int] = []
    for number in SIGNALS:
        signal.signal(number, lambda number, _frame: kept.append(number))
    return kept


def spare_collector() -> None:
    """Keep the garbage collector off what the start has made, which stays: modules, functions, tables, the config.

    Walking some 40,000 of them in each full collection held up all calls for 20 ms, more than once a second under load:
    the p99 of a light client beside a flood was three times what it is without.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)


def set_stdio_apart() -> tuple[int, int]:
    """Give the stdio face file descriptors of its own; what else writes to stdout lands on stderr, reads find nothing.

    Returns (stdin, stdout) for the face. From then on no library, print or child can break the protocol.
    """
    stdin, stdout = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return stdin, stdout


def run(config: Config, options: Options, ready: Callable[[str], None]) -> bool:
    """`serve` from a program that has no loop and ends next: signals that stop a gateway are ignored from then on."""
    try:
        return trio.run(partial(serve, config, options, ready))
    finally:
        for number in SIGNALS:  # the interpreter, on its way out, gives all but ignored ones their deadly default
            signal.signal(number, signal.SIG_IGN)
