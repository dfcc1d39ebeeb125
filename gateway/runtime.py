"""The composed gateway without its process: its parts, their start order and their stop order.

`gateway.app` runs a `GatewayRuntime` as a process of its own, `gateway.embed.native` inside another program. The
shutdown order is always the same: refuse new calls, drain, end open streams, stop the frontends, stop all backends
concurrently, and the audit last.
"""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.access.table import Access
from gateway.audit import Audit
from gateway.backends.opener import SessionOpener
from gateway.backends.stdio import GATEWAYS_VARIABLE
from gateway.budget import Budget
from gateway.config.access import NO_ACCESS
from gateway.config.difference import changed_at_start_only
from gateway.config.shown import secrets_of_config
from gateway.errors import ConfigError
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.masking import SECRETS
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Mapping

    from gateway.access.authority import Fetch
    from gateway.access.principals import Principal
    from gateway.backends.session.interface import Opener
    from gateway.config import Config
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard
    from gateway.store import Store
    from gateway.supervisor.fleet import Applied
    from gateway.tracing.spans import Tracing

CLOSE_GRACE: Final = 2.0
"""Seconds for frontends to write their last responses and close, once all calls have ended."""
FORCED_GRACE: Final = 0.25
"""The same after `stop_now`: enough for a client that reads, short enough not to be delayed by one that does not."""

MAX_DEPTH: Final = 3
"""Maximum depth of nested gateways; stops a config that writes another one for each start."""

log = logging.getLogger("gateway.runtime")


class Lineage(msgspec.Struct, frozen=True):
    """The chain of gateways that started one another, outermost first: their names and configs.

    A child reads it from its environment. Without it, a gateway that starts itself would recurse forever.
    """

    names: tuple[str, ...] = ()
    configs: tuple[str, ...] = ()

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Lineage:
        """Return the gateways that have started this process."""
        try:
            return msgspec.json.decode(environ.get(GATEWAYS_VARIABLE, "{}"), type=cls)
        except jsonrpc.UNDECODABLE:
            return cls()

    def check(self, config: Path) -> None:
        """Raise ConfigError if a gateway with this config would start itself, or nest too deeply."""
        path = str(config.resolve())
        way = " -> ".join((*self.configs, path))
        if path in self.configs:
            text = f"{config}: started by a gateway with the same config ({way}); remove that server from it"
            raise ConfigError([text])
        if len(self.configs) >= MAX_DEPTH:
            raise ConfigError([f"{config}: {len(self.configs)} gateways are already nested ({way})"])

    def with_own(self, name: str, source: str) -> Lineage:
        """Return the chain extended by this gateway; `source` is its config's path, if any."""
        path = Path(source)
        configs = (*self.configs, str(path.resolve())) if path.exists() else self.configs
        return Lineage((*self.names, f"{name}#{secrets.token_hex(4)}"), configs)


class GatewayRuntime:
    """The composed gateway: fleet, router, access control, suspended calls, buffered bytes, audit, secret masking.

    Args:
        config: the configuration to start with.
        guard: starts and ends the child processes.
        store: the state directory; None stores nothing.
        opener: opens backend sessions (default: a `SessionOpener`).
        fetch: sends requests to an authorization server (default: over HTTP).
        tracing: begins spans; None traces nothing.
    """

    def __init__(
        self,
        config: Config,
        guard: ChildGuard,
        store: Store | None = None,
        *,
        opener: Opener | None = None,
        fetch: Fetch | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self._guard = guard
        self.buffers = Budget(config.gateway.max_buffered_bytes)
        lineage = Lineage.of(os.environ).with_own(config.gateway.name, config.source)
        self._opener = SessionOpener(
            guard,
            name=config.gateway.name,
            store=store,
            gateways=lineage.names,
            marker=jsonrpc.encode(lineage).decode(),
            buffers=self.buffers,
            waiting=self._calls_waiting_for,
            note_login_required=self._note_login_required,
            tracing=tracing,
        )
        self.fleet = Fleet(config, opener or self._opener, store)
        self.audit = Audit(self.fleet)
        self.access = Access(
            config.access or NO_ACCESS, fetch, end_calls=self._end_calls, note_denied=self.audit.note_denied
        )
        self.router = Router(self.fleet, self.access, buffers=self.buffers, note_refused=self.audit.note_refused)
        self.suspended_calls = SuspendedCalls(RequestStateCodec(config.gateway.state_keys()))
        self.handler: RequestHandler
        if tracing is None:
            self.handler = RequestHandler(self.router, VERSION, self.suspended_calls, lineage.names)
        else:
            from gateway.frontends.traced import TracedRequestHandler

            self.handler = TracedRequestHandler(self.router, VERSION, self.suspended_calls, lineage.names, tracing)
        self.stopping = trio.Event()
        """Set when the gateway begins to stop."""
        self.closing = trio.Event()
        """Set when all calls have ended: streams end, and frontends close."""
        self._applying = trio.Lock()
        self._frontends_nursery: trio.Nursery  # opened and left by run

    async def run(
        self,
        start_frontends: Callable[[], Awaitable[None]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> bool:
        """Serve until `stop`, then shut down; return whether all calls ended within the grace period.

        `start_frontends` is awaited once the fleet runs; it calls `start_frontend`. Secrets stay masked until
        `forget_secrets`, since log lines about the shutdown may contain them.
        """
        self._mask_and_audit(self.fleet.config)
        async with trio.open_nursery() as services:
            services.start_soon(self.suspended_calls.run)
            await services.start(self.audit.run)
            await services.start(self._opener.run)
            await services.start(self.fleet.run)
            async with trio.open_nursery() as self._frontends_nursery:
                await start_frontends()
                task_status.started()
                await self.stopping.wait()
                self.suspended_calls.close_all()
                clean = await self.router.drain(self.fleet.settings.drain_grace)
                self.closing.set()
                self._limit_close(FORCED_GRACE if self._guard.force_stopped.is_set() else CLOSE_GRACE)
            self.fleet.stop()
            await self.fleet.ended.wait()
            services.cancel_scope.cancel(reason="everything has stopped")
        return clean

    async def start_frontend(self, run: Callable[..., Awaitable[object]], *args: object) -> Any:
        """Start the task of a frontend; return the value passed to `task_status.started`.

        It must end when `closing` is set, and is cancelled after `CLOSE_GRACE`.
        """
        return await self._frontends_nursery.start(run, *args)

    def stop(self) -> None:
        """Begin the shutdown. Idempotent."""
        self.router.refuse_new()
        self.stopping.set()

    def stop_now(self) -> None:
        """Stop without waiting for calls or clients: children are killed."""
        self.stop()
        self._guard.force_stop()
        self.router.stop_draining()
        if self.closing.is_set():  # before that, the end of the drain sets the deadline
            self._limit_close(FORCED_GRACE)

    async def apply(self, config: Config, *, restart: Container[str] = ()) -> Applied:
        """Replace the configuration; see `Fleet.apply`.

        Settings that apply only at the next start keep their values.

        Raises:
            ShuttingDown: the gateway is stopping; nothing has changed.
        """
        async with self._applying:
            before = self.fleet.settings
            applied = await self.fleet.apply(config, restart=restart)
            for name in changed_at_start_only(before, config.gateway):
                log.warning(
                    "gateway.%s has changed, which takes effect at the next start",
                    name,
                    extra={"event": "restart_needed", "setting": name},
                )
            self.access.apply(config.access or NO_ACCESS)
            self._mask_and_audit(config)
            return applied

    def forget_secrets(self) -> None:
        """Stop masking the configuration's secrets. Idempotent."""
        SECRETS.release(self)

    def _mask_and_audit(self, config: Config) -> None:
        SECRETS.hold(self, secrets_of_config(config))
        self.audit.apply(config.gateway.audit)

    def _limit_close(self, grace: float) -> None:
        scope = self._frontends_nursery.cancel_scope
        scope.deadline = min(scope.deadline, trio.current_time() + grace)

    def _end_calls(self, principal: Principal) -> None:
        """End a principal's state outside the frontends, after its sessions (`Access`)."""
        self.suspended_calls.close_of(principal.name)
        self.router.cut_off(principal)
        self.fleet.client_gone(principal.name)

    def _calls_waiting_for(self, backend: str) -> list[PendingCall]:
        return self.router.waiting(backend)

    def _note_login_required(self, backend: str, reason: str) -> None:
        self.fleet.login_owed(backend, reason)
