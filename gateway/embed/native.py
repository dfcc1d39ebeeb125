"""The gateway inside a trio program: `async with open_gateway(config) as gw`.

It uses no signals, sockets or stdin: these belong to the program. Leaving the block shuts down in the order of
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
"""The embedding program as a client, without capabilities for server requests."""
CONFIG_SHAPE: Final = "a dict, the path of a file, or a gateway.config.Config"


class EmbeddedGateway:
    """A running gateway; made by `open_gateway`."""

    def __init__(self, config: Config, guard: ChildGuard, store: Store | None = None) -> None:
        self.runtime = GatewayRuntime(config, guard, store)
        self.fleet = self.runtime.fleet
        self.router = self.runtime.router
        self._own_frontends: AsgiFrontends

    # For the program.

    async def call_tool(
        self, name: str, arguments: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> CallToolResult:
        """Call a tool by its public name. Cancelling this cancels the call at its server.

        Args:
            name: The public name, `SERVER.TOOL`.
            arguments: The tool's arguments; None means none.
            timeout: Seconds from now; None leaves only the server's `call_timeout`, which always applies.

        Returns:
            The server's result; one with `isError` is also a result.

        Raises:
            CallTimeout: The call took longer than `timeout` (a TimeoutError); the server was sent a cancellation.
            CallFailed: The call failed (a RuntimeError); the message names the tool, `__cause__` has the reason.
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
                    self.router.release(pending, "the program has stopped waiting")
            except GatewayError as exc:
                raise results.failure(what, exc) from exc
            return results.tool_result(f"{what} of server {pending.backend!r}", outcome)
        text = f"{what} did not answer within {timeout:g} s"
        raise CallTimeout(text)

    async def list_tools(self) -> list[Tool]:
        """List all tools; wait for first starts as every list does, at most `start_grace`.

        Returns:
            The tools under their public names. A tool that is invalid for the SDK's type is left out and logged.
        """
        from gateway.embed import results

        await self.fleet.first_starts(era=PROGRAM.era)
        page = self.fleet.snapshot().page(Kind.TOOLS, None, None, View.LATEST)
        return results.tool_list(bytes(raw) for raw in jsonrpc.decode_array(b"[" + page.joined + b"]"))

    def status(self) -> dict[str, Status]:
        """Return the state of every server.

        Returns:
            For each server name its state, restarts, last error, calls in flight, process and more, as in
            `GET /health`.
        """
        return self.fleet.statuses()

    @property
    def asgi_app(self) -> AsgiFrontends:
        """The gateway as an ASGI application, for a server on this trio loop.

        It serves `/mcp`, `/sse` and `/messages/`, with views below each. Web pages are admitted from loopback and from
        the config's `access.allow_origins`. With `access.oauth`, the metadata of the resource are at
        `/.well-known/oauth-protected-resource...`, which must be reachable at the root of the host. Applications on
        asyncio use `ProxyManager` instead.
        """
        return self._own_frontends

    async def open_asgi_frontends(self, paths: Paths, origins: Sequence[str] | None) -> AsgiFrontends:
        """Open another set of paths, which closes with the gateway.

        Args:
            paths: The paths to serve.
            origins: Web pages to admit, whose CORS the program handles; None is as for `asgi_app`.

        Returns:
            An ASGI application for this trio loop.
        """
        frontends = AsgiFrontends(self.runtime.handler, self.runtime.access, paths, origins)
        await self.runtime.start_frontend(frontends.run, self.runtime.closing)
        return frontends

    async def reload(self, config: object) -> None:
        """Apply another configuration. Unchanged servers keep their processes and calls.

        Args:
            config: As for `open_gateway`.

        Raises:
            InvalidConfig: The configuration is wrong (a ValueError); nothing has changed.
        """
        await self.adopt(read_config(config))

    async def adopt(self, config: Config) -> None:
        """Apply a validated configuration.

        Args:
            config: The configuration.
        """
        await self.runtime.apply(config)

    def offer(self, offers: Mapping[str, Offer] | None) -> list[str]:
        """Offer exactly these tools.

        Args:
            offers: The offers by public name; None offers all.

        Returns:
            The names that no server owns; nothing has changed if there are any.
        """
        return self.fleet.offer(offers)

    # The task.

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - the runtime does
        """Serve until `stop`.

        Args:
            task_status: Started when the gateway is usable.
        """
        try:
            await self.runtime.run(self._start_frontends, task_status=task_status)
        finally:
            self.runtime.forget_secrets()

    async def _start_frontends(self) -> None:
        self._own_frontends = await self.open_asgi_frontends(Paths(), None)

    def stop(self) -> None:
        """Request an orderly shutdown and return immediately. Idempotent."""
        self.runtime.stop()


@asynccontextmanager
async def open_gateway(
    config: object, *, state_directory: str | os.PathLike[str] | None = None
) -> AsyncGenerator[EmbeddedGateway]:
    """Run a gateway in a trio program for the duration of a block.

    Leaving the block waits until all calls have ended or `drain_grace` has passed, and all servers have stopped. If the
    block is cancelled, the servers are still stopped.

    Args:
        config: A dict in the format `{"mcpServers": {...}}`, the path of a file with one, or a
            `mcp_gateway.config.Config`.
        state_directory: Directory of last-good lists and tokens; None keeps them only in memory.

    Yields:
        The running gateway.

    Raises:
        RuntimeError: The program does not run on trio; use `ProxyManager` instead.
        InvalidConfig: The configuration is wrong (a ValueError); nothing was started.
        ConfigError: Other users can write the state directory; nothing was started.
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
    """Validate the configuration given to `open_gateway`.

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
