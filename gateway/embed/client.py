"""What `ProxyManager.get_client` gives: one server, used as `async with client:`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from mcp_types import CallToolResult, Tool

    from gateway.embed.manager import ProxyManager


class Client:
    """A handle on one server. Inside `async with client:` all its calls share one session; entering connects.

    Several tasks may be inside at once; the session ends when the last one leaves.
    """

    def __init__(self, manager: ProxyManager, name: str) -> None:
        self.name = name
        self._manager = manager
        self._tokens: list[object] = []

    async def __aenter__(self) -> Self:
        """Connect. Raises what `ProxyManager.call_tool` raises, and NotInitialized."""
        self._tokens.append(await self._manager.acquire_session(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect, and wait until the server has been stopped; cancelled, it stops all the same."""
        await self._manager.release_session(self._tokens.pop())  # noqa: ASYNC102 - it is on its way before the first wait

    async def list_tools(self) -> list[Tool]:
        """The server's tools, under its own names."""
        return await self._manager.list_held(self)

    async def call_tool(
        self, name: str, arguments: Mapping[str, object] | None = None, timeout_ms: float | None = None
    ) -> CallToolResult:
        """Call a tool by the server's own name for it; see `ProxyManager.call_tool`."""
        return await self._manager.call_held(self, name, arguments, timeout_ms)

    def __repr__(self) -> str:
        return f"<Client of server {self.name!r}>"
