"""The handle returned by `ProxyManager.get_client`: one server, used as `async with client:`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import TracebackType

    from mcp_types import CallToolResult, Tool


class ClientSessions(Protocol):
    """The sessions of clients. Implemented by `gateway.embed.manager.ProxyManager`."""

    async def acquire_session(self, client: Client) -> object:
        """Open or share the client's session; return the token for its release."""
        ...

    async def release_session(self, token: object) -> None:
        """Release a session."""
        ...

    async def call_held(
        self, client: Client, tool: str, arguments: Mapping[str, object] | None, timeout_ms: float | None
    ) -> CallToolResult:
        """Call a tool in the client's session."""
        ...

    async def list_held(self, client: Client) -> list[Tool]:
        """List tools in the client's session."""
        ...


class Client:
    """A handle on one server; inside `async with client:` all calls share one session.

    Entering connects. Several tasks may be inside at once; the session ends when the last one leaves.
    """

    def __init__(self, sessions: ClientSessions, name: str) -> None:
        self.name = name
        self._sessions = sessions
        self._tokens: list[object] = []

    async def __aenter__(self) -> Self:
        """Connect. Raises NotInitialized and the errors of `ProxyManager.call_tool`."""
        self._tokens.append(await self._sessions.acquire_session(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnect and wait until the server has stopped; it also stops on cancellation."""
        await self._sessions.release_session(self._tokens.pop())  # noqa: ASYNC102 - starts before the first checkpoint

    async def list_tools(self) -> list[Tool]:
        """List the server's tools.

        Returns:
            The tools under the server's own names.

        Raises:
            CallTimeout: The list took longer than the server's `call_timeout` (a TimeoutError).
            CallFailed: The list failed (a RuntimeError).
        """
        return await self._sessions.list_held(self)

    async def call_tool(
        self, name: str, arguments: Mapping[str, object] | None = None, timeout_ms: float | None = None
    ) -> CallToolResult:
        """Call a tool in this client's session. Cancelling this cancels the call at its server.

        Args:
            name: The server's own name of the tool.
            arguments: The tool's arguments; None means none.
            timeout_ms: Milliseconds from now; None leaves only the server's `call_timeout`.

        Returns:
            The server's result; one with `isError` is also a result.

        Raises:
            CallTimeout: The call took too long (a TimeoutError); the server was sent a cancellation.
            CallFailed: The call failed (a RuntimeError); the message names the tool and the server.
        """
        return await self._sessions.call_held(self, name, arguments, timeout_ms)

    def __repr__(self) -> str:
        return f"<Client of server {self.name!r}>"


class Handles(dict[str, Client]):  # ruff: ignore[subclass-builtin] - a dict is what users expect, and nothing is overridden
    """The handles by name. Awaitable, for programs that expect a coroutine."""

    def __await__(self) -> Generator[Any, None, Handles]:
        return self
        yield
