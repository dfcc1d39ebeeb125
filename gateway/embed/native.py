"""The gateway inside a trio program: `async with open_gateway(config) as gw`.

No signals, no sockets, no stdin: these stay with the program. Leaving the block stops in the order of
`gateway.runtime`: calls drain, streams end, backends stop.
"""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import trio

from gateway import jsonrpc
from gateway.calls import Caller, Era
from gateway.config import Config, load_config
from gateway.embed.connections import NO_REQUESTS, make_call
from gateway.embed.errors import InvalidConfig
from gateway.embed.frontends import AsgiFrontends
from gateway.embed.records import read_registry
from gateway.eras.methods import Kind
from gateway.eras.tools import View
from gateway.eras.versions import LATEST_LEGACY
from gateway.errors import ConfigError, GatewayError
from gateway.frontends.http.mcp_app import Paths
from gateway.processes.guard import open_guard
from gateway.runtime import GatewayRuntime
from gateway.store import Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from mcp_types import CallToolResult, Tool

    from gateway.catalog.offers import Offer
    from gateway.processes.guard import ChildGuard
    from gateway.supervisor.lifecycle import Status

PROGRAM: Final = Caller(era=Era.LEGACY, version=LATEST_LEGACY, session="program")
"""The program around the gateway, as a client among others; it declares nothing that it could be asked for."""
CONFIG_SHAPE: Final = "a dict, the path of a file, or a gateway.config.Config"


class EmbeddedGateway:
    """A running gateway; made by `open_gateway`."""

    def __init__(self, config: Config, guard: ChildGuard, store: Store | None = None) -> None:
        self.runtime = GatewayRuntime(config, guard, store)
        self.fleet = self.runtime.fleet
        self.router = self.runtime.router
        self._own_frontends: AsgiFrontends

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
                pending = await self.router.submit(make_call(name, name, arguments, PROGRAM))
                try:
                    outcome = await pending.wait_outcome(NO_REQUESTS)
                finally:
                    self.router.release(pending, "the program no longer waits")
            except GatewayError as exc:
                raise results.failure(what, exc) from exc
            return results.tool_result(f"{what} of server {pending.backend!r}", outcome)
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
        return self._own_frontends

    async def open_asgi_frontends(self, paths: Paths, origins: Sequence[str] | None) -> AsgiFrontends:
        """Serve another set of paths; it closes with the gateway.

        For pages from these origins too, whose CORS the program sees to; None: as `asgi_app`.
        """
        frontends = AsgiFrontends(self.runtime.handler, self.runtime.access, paths, origins)
        await self.runtime.start_frontend(frontends.run, self.runtime.closing)
        return frontends

    async def reload(self, config: object) -> None:
        """Use another configuration; servers that are the same in both are not touched, nor are their calls.

        Raises:
            InvalidConfig: it is wrong; then nothing has changed.
        """
        await self.adopt(read_config(config))

    async def adopt(self, config: Config) -> None:
        """The same with a configuration that has been checked."""
        await self.runtime.apply(config)

    def offer(self, offers: Mapping[str, Offer] | None) -> list[str]:
        """Offer exactly these tools, None: all; returns the names that nobody owns, and then nothing has changed."""
        return self.fleet.offer(offers)

    # The task.

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - the runtime does
        """Serve until `stop`."""
        try:
            await self.runtime.run(self._start_frontends, task_status=task_status)
        finally:
            self.runtime.forget_secrets()

    async def _start_frontends(self) -> None:
        self._own_frontends = await self.open_asgi_frontends(Paths(), None)

    def stop(self) -> None:
        """Ask for the end, the orderly way. Safe to repeat."""
        self.runtime.stop()


@asynccontextmanager
async def open_gateway(
    config: object, *, state_directory: str | os.PathLike[str] | None = None
) -> AsyncGenerator[EmbeddedGateway]:
    """Run a gateway for the length of a block, in a trio program.

    `config` is a dict in the format `{"mcpServers": {...}}`, the path of a file that holds one, or a
    `gateway.config.Config`. With a `state_directory` the servers' last-good lists and tokens are kept there; without
    one no file is written. The block is left when all calls have ended or `drain_grace` has passed, and all servers
    have stopped.

    Raises:
        RuntimeError: the program runs on another loop than trio's, where `gateway.ProxyManager` is the way.
        InvalidConfig: the configuration is wrong (a ValueError); nothing was started.
        ConfigError: other users can write the state directory; nothing was started.
    """
    if not trio.lowlevel.in_trio_run():
        text = "open_gateway needs a trio program; in an asyncio program use gateway.ProxyManager"
        raise RuntimeError(text)
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
