"""`ProxyManager`: the gateway as an object, for programs on asyncio, trio or no loop.

It owns a trio loop in a separate thread, started at first use and ended by `close_all_connections`, `shutdown`, the
garbage collector or the end of the interpreter; after an end, the next use starts another. Methods may be called from
any thread and any loop. No file is read or written.
"""

from __future__ import annotations

import logging
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from gateway.embed import results
from gateway.embed.bridge import Bridge
from gateway.embed.client import Client, Handles
from gateway.embed.engine import OWNERS_WITHIN, Engine
from gateway.embed.errors import CallTimeout, Closed, InvalidConfig, log_failure
from gateway.embed.mount import MountedRoutes, SwappableApp, guarded
from gateway.embed.records import Registry, read_registry
from gateway.embed.thread import LoopThread
from gateway.embed.tools import read_tools
from gateway.errors import GatewayError
from gateway.frontends.http.mcp_app import Paths
from gateway.renamed import accepts_former_names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence

    from mcp_types import CallToolResult, Tool

    from gateway.embed.frontends import AsgiFrontends

CLOSE_MARGIN: Final = 15.0
"""Seconds for closing beyond `drain_grace`: a shutdown sequence, the sweep after it, and a busy machine."""

log = logging.getLogger("gateway.embed")
T = TypeVar("T")


class Done:
    """The awaitable result of a method that has already done its work."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class _Mounted(NamedTuple):
    """One application that serves the gateway."""

    routes: MountedRoutes
    swappable: SwappableApp
    frontends: AsgiFrontends


class ProxyManager:
    """Many MCP servers in one object: call each, or mount all into an application.

    Args:
        name: The name that clients see; None is the config's `gateway.name`.
        auth_enabled: Whether clients over HTTP need `api_key`.
        api_key: The key, sent as `Authorization: Bearer KEY` or `X-API-Key: KEY`.
        config: A dict in the format `{"mcpServers": {...}}`; None if it is set later.

    Raises:
        InvalidConfig: The configuration is wrong, or `auth_enabled` is set without an `api_key` (a ValueError).
    """

    def __init__(
        self,
        name: str | None = None,
        auth_enabled: bool = False,
        api_key: str | None = None,
        *,
        config: dict[str, Any] | None = None,
    ) -> None:
        if auth_enabled and not api_key:
            raise InvalidConfig(["auth_enabled requires a non-empty api_key"])
        self._name = name
        self._key = api_key if auth_enabled else None
        self._registry = Registry() if config is None else read_registry(config, strict=True, name=name)
        self._lock = threading.Lock()  # for the two below
        self._thread: LoopThread | None = None
        self._engine: Engine | None = None
        self._mounted: list[_Mounted] = []

    # Configuration.

    @accepts_former_names
    def initialize_connections(self, mcp_config: dict[str, Any]) -> Handles:
        """Check a configuration and record its servers; none is started before its first use.

        A server whose entry is wrong is recorded with its error, and has no handle.

        Args:
            mcp_config: A dict in the format `{"mcpServers": {...}}`.

        Returns:
            The handles by the servers' names, also if awaited.

        Raises:
            InvalidConfig: The value is not a configuration (a ValueError); nothing has changed.
        """
        self._adopt(read_registry(mcp_config, strict=False, name=self._name))
        return Handles({name: Client(self, name) for name, one in self._registry.records.items() if one.is_usable})

    def initialize(self, config: dict[str, Any] | None = None) -> Done:
        """Set the configuration of a gateway that will be mounted.

        Args:
            config: A dict in the format `{"mcpServers": {...}}`; None keeps the one of the constructor.

        Returns:
            An awaitable without a value.

        Raises:
            InvalidConfig: The configuration is wrong (a ValueError); nothing has changed.
        """
        if config is not None:
            with log_failure("the configuration is wrong"):
                registry = read_registry(config, strict=True, name=self._name)
            self._adopt(registry)
        return Done()

    @accepts_former_names
    async def reload(self, new_mcp_config: dict[str, Any]) -> tuple[bool, str | None]:
        """Replace the configuration. An invalid one is reported without an exception.

        Unchanged servers are not affected, including their calls in flight; removed and changed ones get `drain_grace`
        seconds for their calls. New servers start at their first use; those of a mounted gateway start now, and a
        failure to start is logged and retried.

        Args:
            new_mcp_config: A dict in the format `{"mcpServers": {...}}`.

        Returns:
            `(True, None)`, or `(False, message)` with nothing changed.
        """
        try:
            registry = read_registry(new_mcp_config, strict=True, name=self._name)
            running = self._running()
            if running is None:
                self._registry.replace_with(registry)
            else:
                await running[0].call(running[1].adopt, registry)
        except GatewayError as exc:
            log.warning(
                "the new configuration is not used: %s",
                exc,
                extra={"event": "config_rejected", "by": "program", "code": exc.code},
            )
            return False, str(exc)
        return True, None

    def _adopt(self, registry: Registry) -> None:
        running = self._running()
        gone = self._registry.replace_with(registry)
        if running is not None:
            running[0].spawn(running[1].restart_with_registry, gone)

    # Connections.

    @accepts_former_names
    def get_client(self, server_name: str) -> Client:
        """Return the handle of a server, for `async with client:`.

        Args:
            server_name: The server's name in the configuration.

        Returns:
            The handle; entering it connects.

        Raises:
            UnknownServer: The server is unknown (a KeyError).
            NotInitialized: Its entry is wrong or disabled; the message has the recorded reason (a RuntimeError).
        """
        self._registry[server_name].check_usable()
        return Client(self, server_name)

    @accepts_former_names
    async def test_connection(self, server_name: str, timeout_ms: float = 5000, max_retries: int = 3) -> bool:
        """Connect to a server, list its tools, and update its status.

        Args:
            server_name: The server's name in the configuration.
            timeout_ms: Milliseconds for one attempt.
            max_retries: Number of attempts, with pauses of 0.5 s, 1 s, 2 s and so on between them.

        Returns:
            Whether an attempt succeeded.

        Raises:
            UnknownServer: The server is unknown (a KeyError).
        """
        record = self._registry[server_name]
        if not record.is_usable:
            return False
        thread, engine = self._started()
        try:
            return await thread.call(engine.test, record, timeout_ms / 1000, max(1, max_retries))
        except Closed:
            return False

    @accepts_former_names
    async def call_tool(
        self,
        server_name: str,
        tool_name: str,
        arguments: Mapping[str, object] | None = None,
        timeout_ms: float | None = None,
    ) -> CallToolResult:
        """Call a tool in a separate session. Cancelling this cancels the call at its server.

        Args:
            server_name: The server's name in the configuration.
            tool_name: The server's own name of the tool.
            arguments: The tool's arguments; None means none.
            timeout_ms: Milliseconds from now, including the server's start; None leaves only its `call_timeout`.

        Returns:
            The server's result; one with `isError` is also a result.

        Raises:
            UnknownServer: The server is unknown (a KeyError).
            CallTimeout: The call took too long (a TimeoutError); the server was sent a cancellation.
            CallFailed: The call failed (a RuntimeError); the message names the tool and the server.
        """
        what = f"tool {tool_name!r} of server {server_name!r}"
        record = self._registry[server_name]
        timeout = None if timeout_ms is None else timeout_ms / 1000
        outcome = await self._run_in_engine(
            what, lambda engine: engine.call_tool, record, tool_name, arguments, timeout
        )
        return results.tool_result(what, outcome)

    @accepts_former_names
    async def list_tools(self, server_name: str) -> list[Tool]:
        """List a server's tools in a separate session.

        Args:
            server_name: The server's name in the configuration.

        Returns:
            The tools under the server's own names.

        Raises:
            UnknownServer: The server is unknown (a KeyError).
            CallTimeout: The list took longer than the server's `call_timeout` (a TimeoutError).
            CallFailed: The list failed (a RuntimeError); the message names the server.
        """
        record = self._registry[server_name]
        raws = await self._run_in_engine(
            f"the tools of server {server_name!r}", lambda engine: engine.list_tools, record
        )
        return results.tool_list(raws)

    async def _run_in_engine(self, what: str, method: Callable[[Engine], Callable[..., Awaitable[T]]], *args: Any) -> T:
        """Call a method of the engine; errors name the operation."""
        try:
            thread, engine = self._started()
            return await thread.call(method(engine), *args)
        except GatewayError as exc:
            raise results.failure(what, exc) from exc

    # For `Client`.

    async def acquire_session(self, client: Client) -> object:
        """Open or share the client's session; return the token for its release."""
        record = self._registry[client.name]
        record.check_usable()
        token = object()
        try:
            await self._run_in_engine(
                f"server {client.name!r}", lambda engine: engine.acquire_session, client, token, record
            )
        except BaseException:
            running = self._running()
            if running is not None:  # the session may have opened just as the wait was cancelled
                running[0].post(partial(running[1].release, token))
            raise
        return token

    async def release_session(self, token: object) -> None:
        """Release a session; a no-op if it has ended with its loop."""
        running = self._running()
        if running is not None:
            try:
                await running[0].call(running[1].release_session, token)
            except Closed:
                return

    async def call_held(
        self, client: Client, tool: str, arguments: Mapping[str, object] | None, timeout_ms: float | None
    ) -> CallToolResult:
        """Call a tool in the client's session."""
        what = f"tool {tool!r} of server {client.name!r}"
        timeout = None if timeout_ms is None else timeout_ms / 1000
        outcome = await self._run_in_engine(what, lambda engine: engine.call_held, client, tool, arguments, timeout)
        return results.tool_result(what, outcome)

    async def list_held(self, client: Client) -> list[Tool]:
        """List tools in the client's session."""
        what = f"the tools of server {client.name!r}"
        return results.tool_list(await self._run_in_engine(what, lambda engine: engine.list_held, client))

    # Status.

    @accepts_former_names
    def get_server_status(self, server_name: str) -> dict[str, Any]:
        """Return a server's recorded status, without connecting to it.

        Args:
            server_name: The server's name in the configuration.

        Returns:
            `{"connected": bool, "error": str, "initialized": bool}`; for an unknown server False, "" and False.
        """
        record = self._registry.records.get(server_name)
        return {"connected": False, "error": "", "initialized": False} if record is None else record.status()

    def get_all_servers(self) -> list[str]:
        """Return the names of all servers.

        Returns:
            The names, including servers that could not be initialized.
        """
        return list(self._registry.records)

    def get_servers_config(self) -> dict[str, Any]:
        """Return the entries of all servers.

        Returns:
            The unchanged entries, including secrets, by server name.
        """
        return self._registry.raw()

    # Mounting.

    async def mount_to_app(
        self,
        app: object,
        allow_origins: Sequence[str] = (),
        *,
        path: str = "/mcp",
        sse_path: str | None = "/sse",
        message_path: str = "/messages/",
    ) -> None:
        """Serve all servers as one in a FastAPI or Starlette application, even a running one.

        If it is already mounted on this application, only the differences are applied, and clients stay connected. A
        web server that waits for its clients at shutdown also waits for event streams: call `shutdown` first, or set a
        limit (uvicorn: `timeout_graceful_shutdown`).

        Args:
            app: The application.
            allow_origins: Allowed origins of web pages (CORS), `["*"]` for all; loopback is always allowed.
            path: The path of streamable HTTP; views are below it.
            sse_path: The path of SSE; None disables it.
            message_path: The path for POST requests of SSE clients.

        Raises:
            MountError: The application cannot mount it, or the gateway cannot start (a RuntimeError); nothing has
                changed.
        """
        origins = (allow_origins,) if isinstance(allow_origins, str) else tuple(allow_origins)
        paths = Paths(path, sse_path, message_path)
        with log_failure("the gateway could not be mounted"):
            known = next((one for one in self._mounted if one.routes.app is app), None)
            if known is not None and known.frontends.paths.all() == paths.all() and self._running() is not None:
                thread, _ = self._started()
                guarded_app = self._guarded(thread, known.frontends, origins)
                thread.post(partial(known.frontends.policy.allow, origins))
                known.swappable.app = guarded_app
                return
            if known is not None:
                self._unmount(known)
            routes = MountedRoutes(app, paths)
            thread, engine = self._started()
            frontends = await thread.call(engine.open_asgi_frontends, paths, origins)
            swappable = SwappableApp(self._guarded(thread, frontends, origins))
            routes.open(swappable)
            self._mounted.append(_Mounted(routes, swappable, frontends))

    def _guarded(self, thread: LoopThread, frontends: AsgiFrontends, origins: tuple[str, ...]) -> Any:
        bridge = Bridge(thread, frontends, self._registry.settings.max_body_bytes)
        return guarded(bridge, key=self._key, origins=origins)

    def _unmount(self, mounted: _Mounted) -> None:
        self._mounted.remove(mounted)
        mounted.routes.close()
        mounted.swappable.app = None

    def update_tools(self, tools: Sequence[Mapping[str, Any]]) -> Done:
        """Offer exactly these tools to clients.

        Starts the gateway if it is not running, and blocks for at most 10 s while starting servers may own one of the
        tools.

        Args:
            tools: Dicts with `name`, the public name `SERVER.TOOL`, and optionally `description` and `parameters`, a
                JSON Schema; default: the server's.

        Returns:
            An awaitable without a value.

        Raises:
            InvalidTools: An entry is wrong, or no server has the tool (a ValueError); nothing has changed.
            CallTimeout: The gateway did not answer in time (a TimeoutError).
        """
        with log_failure("the tools are not offered"):
            offers = read_tools(tools)
            thread, engine = self._started()
            try:
                thread.call_blocking(2 * OWNERS_WITHIN, engine.offer, offers)
            except TimeoutError as exc:
                raise CallTimeout(str(exc)) from None
        return Done()

    async def update_and_remount(
        self, app: object, tools: Sequence[Mapping[str, Any]], allow_origins: Sequence[str] = (), **paths: Any
    ) -> None:
        """Offer exactly these tools, and immediately serve them in the application.

        Connected clients are notified that the list has changed, and calls in flight finish.

        Args:
            app: The application.
            tools: As for `update_tools`.
            allow_origins: As for `mount_to_app`.
            **paths: `path`, `sse_path` and `message_path`, as for `mount_to_app`.

        Raises:
            InvalidTools: An entry is wrong, or no server has the tool (a ValueError); nothing has changed.
            MountError: The application cannot mount it, or the gateway cannot start (a RuntimeError).
        """
        with log_failure("the tools are not offered"):
            offers = read_tools(tools)
            thread, engine = self._started()
            await thread.call(engine.offer, offers)
        await self.mount_to_app(app, allow_origins, **paths)

    # Closing.

    async def close_all_connections(self) -> None:
        """Close everything; the next use starts again.

        Calls of the mounted gateway get `drain_grace` seconds. Then all servers are stopped concurrently, each by the
        shutdown sequence (close stdin, SIGTERM, SIGKILL); one that does not end is logged and delays no other.
        """
        for mounted in list(self._mounted):
            self._unmount(mounted)
        running = self._running()
        if running is None:
            return
        within = self._registry.settings.drain_grace + CLOSE_MARGIN
        if not await running[0].stop(within):
            log.error("the gateway has not ended %g s after it was closed; its servers may still be running", within)
        with self._lock:
            if self._thread is running[0]:
                self._thread = self._engine = None

    async def shutdown(self) -> None:
        """Close everything, as `close_all_connections` does; for programs that have mounted the gateway."""
        await self.close_all_connections()

    # The loop.

    def _running(self) -> tuple[LoopThread, Engine] | None:
        thread, engine = self._thread, self._engine
        return None if thread is None or engine is None or not thread.alive else (thread, engine)

    def _started(self) -> tuple[LoopThread, Engine]:
        with self._lock:
            running = self._running()
            if running is not None:
                return running
            engine = Engine(self._registry)
            thread = LoopThread(engine, f"gateway {self._registry.settings.name}")
            thread.start()
            weakref.finalize(self, thread.stop_soon).atexit = False  # then all loops are stopped and joined
            self._thread, self._engine = thread, engine
            return thread, engine
