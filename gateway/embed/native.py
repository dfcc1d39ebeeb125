"""The gateway inside a trio program: `async with open_gateway(config) as gw`.

No signals, no sockets, no stdin: what the command's gateway has beside its backends stays with the program. Owns every
task under one nursery; leaving the block stops in the order of `gateway.app`: calls drain, streams end, backends stop.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from gateway import jsonrpc
from gateway.access.table import Access
from gateway.backends.opener import SessionOpener
from gateway.calls import Caller, Era
from gateway.catalog.kinds import Kind
from gateway.config import Config, load_config
from gateway.config.access import NO_ACCESS
from gateway.config.shown import secrets_of_config
from gateway.embed.connections import make_call, wait_outcome
from gateway.embed.errors import InvalidConfig
from gateway.embed.faces import AsgiFrontends, Paths
from gateway.embed.records import read_registry
from gateway.eras.tools import View
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import ConfigError, GatewayError
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.masking import SECRETS
from gateway.processes.guard import open_guard
from gateway.router import Router
from gateway.store import Store
from gateway.supervisor.fleet import Fleet
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from mcp_types import CallToolResult, Tool

    from gateway.access.principals import Principal
    from gateway.catalog.offers import Offer
    from gateway.inflight.pending import PendingCall
    from gateway.processes.guard import ChildGuard
    from gateway.supervisor.lifecycle import Status

PROGRAM: Final = Caller(era=Era.LEGACY, version=LATEST_LEGACY, session="program")
"""The program around the gateway, as a client among others; it declares nothing that it could be asked for."""
CONFIG_SHAPE: Final = "a dict, the path of a file, or a gateway.config.Config"


class EmbeddedGateway:
    """A running gateway; made by `open_gateway`."""

    def __init__(self, config: Config, guard: ChildGuard, store: Store | None = None) -> None:
        self._settings = config.gateway
        self._config = config
        self._opener = SessionOpener(
            guard,
            name=config.gateway.name,
            store=store,
            waiting=self._calls_waiting_for,
            note_login_required=self._note_login_required,
        )
        self.fleet = Fleet(config, self._opener, store)
        self.router = Router(self.fleet)
        self._parking = SuspendedCalls(RequestStateCodec(config.gateway.state_keys()))
        self._access = self.router.admission = Access(config.access or NO_ACCESS)
        self._access.on_end.append(self._end_principal)
        self._answers = RequestHandler(self.router, config.gateway, VERSION, self._parking)
        self._stop = trio.Event()
        self._faces: list[AsgiFrontends] = []
        self._reloading = trio.Lock()
        self._nursery: trio.Nursery  # of the faces; opened and left by run

    # What the program calls.

    async def call_tool(
        self, name: str, arguments: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> CallToolResult:
        """Call a tool by its public name, `SERVER.TOOL`; a result with `isError` is a result. Cancelling cancels it.

        `timeout` is in seconds and counts from now on; the server's `call_timeout` holds as well.

        Raises:
            CallTimeout: it took too long (a TimeoutError); the server was told to cancel.
            CallFailed: there is no result (a RuntimeError); the message names the tool.
        """
        from gateway.embed import results
        from gateway.embed.errors import CallTimeout

        what = f"tool {name!r}"
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            try:
                ticket = await self.router.submit(make_call(name, name, arguments, PROGRAM))
                try:
                    outcome = await wait_outcome(ticket)
                finally:
                    self.router.release(ticket, "the program does not wait any more")
            except GatewayError as exc:
                raise results.failure(what, exc) from exc
            return results.tool_result(f"{what} of server {ticket.backend!r}", outcome)
        text = f"{what} did not answer within {timeout:g} s"
        raise CallTimeout(text)

    async def list_tools(self) -> list[Tool]:
        """All tools under their public names; waits for first starts as every list does (`start_grace`)."""
        from gateway.embed import results

        await self.fleet.first_starts()
        page = self.fleet.snapshot().page(Kind.TOOLS, None, None, View.LATEST)
        return results.tool_list(bytes(raw) for raw in jsonrpc.decode_array(b"[" + page.joined + b"]"))

    def status(self) -> dict[str, Status]:
        """Every server with its state, restarts, last error, calls in flight and process."""
        return self.fleet.statuses()

    @property
    def asgi_app(self) -> AsgiFrontends:
        """The gateway as an ASGI application with `/mcp`, `/sse` and `/messages/`, for a server on this trio loop.

        Views are below each of these. Pages come from loopback, or from where the config's `access.allow_origins` lets
        them; with `access.oauth`, the resource's metadata are at `/.well-known/oauth-protected-resource...`, which must
        be reached at the root of the host. For applications on asyncio there is `gateway.ProxyManager`.
        """
        return self._faces[0]

    async def open_faces(self, paths: Paths, origins: Sequence[str] | None) -> AsgiFrontends:
        """Serve another set of paths; it closes with the gateway.

        For pages from these origins too, whose CORS the program sees to; None: as `asgi_app`.
        """
        faces = AsgiFrontends(self._answers, paths, origins, self._access)
        await self._nursery.start(faces.run)
        self._faces.append(faces)
        return faces

    async def reload(self, config: object) -> None:
        """Use another configuration; servers that are the same in both are not touched, nor are their calls.

        Raises:
            InvalidConfig: it is wrong; then nothing has changed.
        """
        await self.adopt(read_config(config))

    async def adopt(self, config: Config) -> None:
        """The same with a configuration that has been checked."""
        async with self._reloading:
            await self.fleet.apply(config)
            SECRETS.hold(self, secrets_of_config(config))
            self._access.apply(config.access or NO_ACCESS)
            self._config = config

    def _calls_waiting_for(self, backend: str) -> list[PendingCall]:
        return self.router.waiting(backend)

    def _note_login_required(self, backend: str, reason: str) -> None:
        self.fleet.login_owed(backend, reason)

    def _end_principal(self, principal: Principal) -> None:
        self._parking.close_of(principal.name)
        self.router.cut_off(principal)
        self.fleet.client_gone(principal.name)

    def offer(self, offers: Mapping[str, Offer] | None) -> list[str]:
        """Offer exactly these tools, None: all; returns the names that nobody owns, and then nothing has changed."""
        return self.fleet.offer(offers)

    # The task.

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - `_serve` calls `started`
        """Serve until `stop`."""
        SECRETS.hold(self, secrets_of_config(self._config))
        try:
            await self._serve(task_status)
        finally:
            SECRETS.release(self)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as services:
            services.start_soon(self._parking.run)
            await services.start(self._opener.run)
            await services.start(self.fleet.run)
            async with trio.open_nursery() as self._nursery:
                await self.open_faces(Paths(), None)
                task_status.started()
                await self._stop.wait()
                self._parking.close_all()
                await self.router.drain(self._settings.drain_grace)
                for faces in self._faces:
                    faces.close()
            self.fleet.stop()
            await self.fleet.ended.wait()
            services.cancel_scope.cancel(reason="everything has stopped")

    def stop(self) -> None:
        """Ask for the end, the orderly way. Safe to repeat."""
        self._stop.set()


@asynccontextmanager
async def open_gateway(
    config: object, *, state_directory: str | os.PathLike[str] | None = None
) -> AsyncGenerator[EmbeddedGateway]:
    """Run a gateway for the length of a block, in a trio program.

    `config` is a dict in the format `{"mcpServers": {...}}`, the path of a file that holds one, or a
    `gateway.config.Config`. With a `state_directory` the last-good lists and tokens of the servers are kept there;
    without one no file is written. The block is left when all calls have ended or `drain_grace` has passed, and all
    servers have stopped.

    Raises:
        InvalidConfig: the configuration is wrong (a ValueError); nothing was started.
        ConfigError: other users can write the state directory; nothing was started.
    """
    checked = read_config(config)
    store = None if state_directory is None else Store(Path(state_directory))
    if store is not None:
        store.check()
    problem: Exception | None = None
    async with open_guard(subreaper=False) as guard, trio.open_nursery() as nursery:
        running = EmbeddedGateway(checked, guard, store)
        await nursery.start(running.run)
        try:
            yield running
        except Exception as exc:  # noqa: BLE001 - raised again below, not wrapped in the groups of these nurseries
            problem = exc
        running.stop()
    if problem is not None:
        raise problem


def read_config(config: object) -> Config:
    """What `open_gateway` takes, checked.

    Raises:
        InvalidConfig: it is wrong.
    """
    if isinstance(config, Config):
        return config
    if isinstance(config, str | os.PathLike):
        try:
            return load_config(Path(cast("Any", config)), environ=os.environ)
        except ConfigError as exc:
            raise InvalidConfig(exc.problems) from None
    if not isinstance(config, dict):
        raise InvalidConfig([f"the configuration must be {CONFIG_SHAPE}, not {type(config).__name__}"])
    return read_registry(cast("object", config), strict=True).config()
