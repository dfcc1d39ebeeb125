"""`ProxyManager`: the gateway as an object, for programs on asyncio, on trio, or without a loop.

It owns a trio loop in a thread of its own, started at first use and ended by `close_all_connections`, `shutdown`, the
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
from gateway.embed.client import Client
from gateway.embed.engine import OWNERS_WITHIN, Engine
from gateway.embed.errors import CallTimeout, Closed, InvalidConfig, MountError
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
"""Seconds that closing may take beyond `drain_grace`: a shutdown sequence, the sweep behind it, and a busy machine."""

log = logging.getLogger("gateway.embed")
T = TypeVar("T")


class Handles(dict[str, Client]):  # ruff: ignore[subclass-builtin] - a dict is what users expect, and nothing is overridden
    """The handles by name. May be awaited too, for programs that know the method as a coroutine."""

    def __await__(self) -> Generator[Any, None, Handles]:
        return self
        yield


class Done:
    """What a method returns that has done its work already, and that some programs await."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


class _Mounted(NamedTuple):
    """One application that serves the gateway."""

    routes: MountedRoutes
    swappable: SwappableApp
    frontends: AsgiFrontends


class ProxyManager:
    """Many MCP servers in one object: call them one by one, or mount them all into a web application.

    `name` is the name that clients see. With `auth_enabled`, whoever comes over HTTP needs the `api_key`. `config` is
    a dict in the format `{"mcpServers": {...}}`.

    Raises:
        InvalidConfig: the configuration is wrong, or there is to be a key and is none (a ValueError).
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
            raise InvalidConfig(["auth_enabled needs an api_key that is not empty"])
        self._name = name
        self._key = api_key if auth_enabled else None
        self._registry = Registry() if config is None else read_registry(config, strict=True, name=name)
        self._lock = threading.Lock()  # of the two below
        self._thread: LoopThread | None = None
        self._engine: Engine | None = None
        self._mounted: list[_Mounted] = []

    # Configuration.

    @accepts_former_names
    def initialize_connections(self, mcp_config: dict[str, Any]) -> Handles:
        """Check a configuration and record its servers; none is started before its first use. Returns their handles.

        A server whose entry is wrong is recorded with its error, and has no handle.

        Raises:
            InvalidConfig: it is no configuration at all (a ValueError); nothing has changed.
        """
        self._adopt(read_registry(mcp_config, strict=False, name=self._name))
        return Handles({name: Client(self, name) for name, one in self._registry.records.items() if one.is_usable})

    def initialize(self, config: dict[str, Any] | None = None) -> Done:
        """Take the configuration for a gateway that will be mounted; without one the constructor's holds.

        Raises:
            InvalidConfig: it is wrong (a ValueError); nothing has changed.
        """
        if config is not None:
            with _logged("the configuration is wrong"):
                registry = read_registry(config, strict=True, name=self._name)
            self._adopt(registry)
        return Done()

    @accepts_former_names
    async def reload(self, new_mcp_config: dict[str, Any]) -> tuple[bool, str | None]:
        """Replace the configuration. Return `(True, None)`, or `(False, message)` with nothing changed.

        What is the same in both is left undisturbed, calls in flight included; what is gone or changed gets
        `drain_grace` seconds for its calls. New servers start at their first use; those of a mounted gateway start now,
        and one that does not come up is in the log and goes on trying.
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
        """The handle of a server, to be used as `async with client:`.

        Raises:
            UnknownServer: there is no such server (a KeyError).
            NotInitialized: its entry is wrong or disabled; the message has the recorded reason (a RuntimeError).
        """
        self._registry[server_name].check_usable()
        return Client(self, server_name)

    @accepts_former_names
    async def test_connection(self, server_name: str, timeout_ms: float = 5000, max_retries: int = 3) -> bool:
        """Connect to a server and list its tools; `max_retries` attempts, 0.5 s, 1 s, 2 s ... between them.

        Return whether an attempt succeeded, and update the status. `timeout_ms` is for one attempt.

        Raises:
            UnknownServer: there is no such server (a KeyError).
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
        """Call a tool by the server's own name for it, in a session of its own. Cancelling it cancels the call.

        `timeout_ms` counts from now on, the server's start included; left out, its `call_timeout` holds.

        Raises:
            UnknownServer: there is no such server (a KeyError).
            CallTimeout: it took too long (a TimeoutError); the server was told to cancel.
            CallFailed: there is no result (a RuntimeError); the message names the tool and the server.
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
        """A server's tools, under its own names, read in a session of their own. Raises as `call_tool` does."""
        record = self._registry[server_name]
        raws = await self._run_in_engine(
            f"the tools of server {server_name!r}", lambda engine: engine.list_tools, record
        )
        return results.tool_list(raws)

    async def _run_in_engine(self, what: str, method: Callable[[Engine], Callable[..., Awaitable[T]]], *args: Any) -> T:
        """Call a method of the engine; what goes wrong names what was wanted."""
        try:
            thread, engine = self._started()
            return await thread.call(method(engine), *args)
        except GatewayError as exc:
            raise results.failure(what, exc) from exc

    # What `Client` needs.

    async def acquire_session(self, client: Client) -> object:
        """Open the client's session, or share it; returns what gives it back."""
        record = self._registry[client.name]
        record.check_usable()
        token = object()
        try:
            await self._run_in_engine(
                f"server {client.name!r}", lambda engine: engine.acquire_session, client, token, record
            )
        except BaseException:
            running = self._running()
            if running is not None:  # the session may have been opened just when the wait for it was cancelled
                running[0].post(partial(running[1].release, token))
            raise
        return token

    async def release_session(self, token: object) -> None:
        """Give a session back; one that has ended with its loop needs nothing."""
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
        """Return `{"connected", "error", "initialized"}`; for an unknown server False, "" and False."""
        record = self._registry.records.get(server_name)
        return {"connected": False, "error": "", "initialized": False} if record is None else record.status()

    def get_all_servers(self) -> list[str]:
        """The names of all servers, those that could not be initialized included."""
        return list(self._registry.records)

    def get_servers_config(self) -> dict[str, Any]:
        """The entries of all servers as they were given, by name."""
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
        """Serve all servers, as one MCP server, in a FastAPI or Starlette application, which may be running.

        A server that waits for its clients before it ends waits for event streams too: call `shutdown` before that, or
        give it a limit (uvicorn: `timeout_graceful_shutdown`).

        `allow_origins` are the web pages that may use it (CORS), `["*"]` all; loopback always may. Mounted already on
        this application, only what is different changes, and clients stay connected.

        Raises:
            MountError: the application cannot take it, or the gateway cannot start; it is as it was before.
        """
        origins = (allow_origins,) if isinstance(allow_origins, str) else tuple(allow_origins)
        paths = Paths(path, sse_path, message_path)
        with _logged("the gateway could not be mounted"):
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
        """Offer exactly these tools: `{"name", "description", "parameters"}`, by public name `SERVER.TOOL`.

        `parameters` is a JSON Schema; what is left out is as the server says. Starts the gateway if it is not running,
        and blocks while servers in their first start may own one of the tools, at most `OWNERS_WITHIN` seconds.

        Raises:
            InvalidTools: an entry is wrong, or no server has the tool (a ValueError); nothing has changed.
        """
        with _logged("the tools are not offered"):
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
        """Offer exactly these tools, and serve them in the application at once; arguments as of `mount_to_app`.

        Connected clients are told that the list has changed, and calls in flight finish.

        Raises:
            InvalidTools, MountError: as `update_tools` and `mount_to_app`.
        """
        with _logged("the tools are not offered"):
            offers = read_tools(tools)
            thread, engine = self._started()
            await thread.call(engine.offer, offers)
        await self.mount_to_app(app, allow_origins, **paths)

    # The end.

    async def close_all_connections(self) -> None:
        """Close everything: calls of the mounted gateway get `drain_grace`, then all servers are stopped, all at once.

        Each by the shutdown sequence (close stdin, SIGTERM, SIGKILL); one that does not end holds up no other.
        """
        for mounted in list(self._mounted):
            self._unmount(mounted)
        running = self._running()
        if running is None:
            return
        within = self._registry.settings.drain_grace + CLOSE_MARGIN
        if not await running[0].stop(within):
            log.error("the gateway has not ended %g s after it was closed; its servers may still be there", within)
        with self._lock:
            if self._thread is running[0]:
                self._thread = self._engine = None

    async def shutdown(self) -> None:
        """The same; for programs that have mounted it."""
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
            weakref.finalize(self, thread.stop_soon).atexit = False  # then all loops are stopped and waited for
            self._thread, self._engine = thread, engine
            return thread, engine


class _logged:  # noqa: N801 - used like a function
    """Logs a failure and lets it through, as one of this project's errors whatever it is."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: type[BaseException] | None, problem: BaseException | None, _trace: object) -> None:
        if isinstance(problem, GatewayError):
            log.error("%s: %s", self._what, problem)
        elif isinstance(problem, Exception):
            log.error("%s", self._what, exc_info=problem)
            text = f"{self._what}: {problem}"
            raise MountError(text) from problem
