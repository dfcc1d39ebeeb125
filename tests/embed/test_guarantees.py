"""Every public method of `ProxyManager`, by keyword and by position, with its result."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final

import mcp_types
import pytest
from starlette.applications import Starlette

import gateway
from tests.support.embedding import both_loops, config_of, run_on, text_of
from tests.support.gateway_process import echo_backend

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.leak_check,
    pytest.mark.filterwarnings("ignore:Async generator 'http(x|core)2:ResourceWarning"),
]
TOOLS: Final = [{"name": "a.echo", "description": "Repeat.", "parameters": {"type": "object"}}]


def is_handles(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == ["a"] and hasattr(value["a"], "call_tool")


def is_handle(value: Any) -> bool:
    return hasattr(value, "__aenter__") and hasattr(value, "list_tools") and hasattr(value, "call_tool")


def is_result(value: Any) -> bool:
    return isinstance(value, mcp_types.CallToolResult) and text_of(value) == "x"


def is_tools(value: Any) -> bool:
    return all(isinstance(one, mcp_types.Tool) for one in value) and "echo" in {one.name for one in value}


def is_status(value: Any) -> bool:
    return {name: type(one) for name, one in value.items()} == {"connected": bool, "error": str, "initialized": bool}


def is_success(value: Any) -> bool:
    return value == (True, None) and isinstance(value, tuple)


def is_failure(value: Any) -> bool:
    success, message = value
    return success is False and isinstance(message, str) and bool(message)


def is_(wanted: object) -> Callable[[Any], bool]:
    return lambda value: value is wanted


CONFIG: Final = config_of(a=echo_backend())
APP: Final = object()  # replaced by an application made for each test
# The method, its arguments by name in the order of their positions, and whether what it returns has the right shape.
ROWS: Final[list[tuple[str, dict[str, Any], Callable[[Any], bool]]]] = [
    ("initialize_connections", {"mcp_config": CONFIG}, is_handles),
    ("get_client", {"server_name": "a"}, is_handle),
    ("test_connection", {"server_name": "a", "timeout_ms": 20_000, "max_retries": 1}, is_(True)),
    ("test_connection", {"server_name": "a"}, is_(True)),
    (
        "call_tool",
        {"server_name": "a", "tool_name": "echo", "arguments": {"text": "x"}, "timeout_ms": 20_000},
        is_result,
    ),
    ("call_tool", {"server_name": "a", "tool_name": "echo", "arguments": {"text": "x"}}, is_result),
    ("list_tools", {"server_name": "a"}, is_tools),
    ("get_server_status", {"server_name": "a"}, is_status),
    ("get_server_status", {"server_name": "unknown"}, is_status),
    ("get_all_servers", {}, lambda value: value == ["a"]),
    ("get_servers_config", {}, lambda value: value == CONFIG["mcpServers"]),
    ("reload", {"new_mcp_config": CONFIG}, is_success),
    ("reload", {"new_mcp_config": {"mcpServers": {"a": {"command": 3}}}}, is_failure),
    ("reload", {"new_mcp_config": None}, is_failure),
    ("initialize", {"config": CONFIG}, lambda _: True),
    ("mount_to_app", {"app": APP, "allow_origins": ["https://page.example"]}, is_(None)),
    ("mount_to_app", {"app": APP}, is_(None)),
    ("update_tools", {"tools": TOOLS}, lambda _: True),
    ("update_and_remount", {"app": APP, "tools": TOOLS, "allow_origins": ["*"]}, is_(None)),
    ("update_and_remount", {"app": APP, "tools": TOOLS}, is_(None)),
    ("close_all_connections", {}, is_(None)),
    ("shutdown", {}, is_(None)),
]


async def value_of(found: Any) -> Any:
    """Return a method's result, awaited if possible (`Handles` is its own value)."""
    return await found if hasattr(found, "__await__") else found


@both_loops
@pytest.mark.parametrize("by", ["keyword", "position"])
@pytest.mark.parametrize(("method", "arguments", "fits"), ROWS, ids=[f"{row[0]}-{len(row[1])}" for row in ROWS])
def test_seeds_take_documented_arguments(
    loop: str, by: str, method: str, arguments: dict[str, Any], fits: Callable[[Any], bool]
) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=CONFIG)
        app = Starlette()
        given = {name: app if value is APP else value for name, value in arguments.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("error", DeprecationWarning)
            bound = getattr(manager, method)
            value = await value_of(bound(**given) if by == "keyword" else bound(*given.values()))
        await manager.close_all_connections()
        assert fits(value), value

    run_on(loop, body)


@both_loops
def test_the_handle_takes_documented_arguments(loop: str) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=CONFIG)
        async with manager.get_client(server_name="a") as client:
            assert is_tools(await client.list_tools())
            assert is_result(await client.call_tool("echo", {"text": "x"}))
            assert is_result(await client.call_tool(name="echo", arguments={"text": "x"}))
        await manager.close_all_connections()

    run_on(loop, body)


def test_the_constructor_takes_documented_arguments() -> None:
    for manager in (
        gateway.ProxyManager(),
        gateway.ProxyManager("n", True, "k"),
        gateway.ProxyManager(name="n", auth_enabled=True, api_key="k", config=CONFIG),
        gateway.MCPProxyManager("n", False, None, config=CONFIG),
    ):
        assert isinstance(manager.get_all_servers(), list)


@both_loops
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("get_client", {}),
        ("test_connection", {}),
        ("call_tool", {"tool_name": "echo", "arguments": {}}),
        ("list_tools", {}),
    ],
)
def test_an_unknown_server_is_a_key_error(loop: str, method: str, arguments: dict[str, Any]) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=CONFIG)
        for given in ({"server_name": "unknown"}, {"server_name": ""}):
            with pytest.raises(KeyError, match="there is no server"):
                await value_of(getattr(manager, method)(**given, **arguments))
            with pytest.raises(KeyError, match="there is no server"):
                await value_of(getattr(manager, method)(*given.values(), *arguments.values()))

    run_on(loop, body)


@both_loops
@pytest.mark.parametrize(
    ("method", "former", "fits"),
    [
        ("initialize_connections", {"config": CONFIG}, is_handles),
        ("get_client", {"name": "a"}, is_handle),
        ("test_connection", {"name": "a"}, is_(True)),
        ("call_tool", {"server": "a", "tool": "echo", "arguments": {"text": "x"}}, is_result),
        ("list_tools", {"server": "a"}, is_tools),
        ("get_server_status", {"name": "a"}, is_status),
        ("reload", {"new_config": CONFIG}, is_success),
    ],
)
def test_former_names_work_with_a_warning(
    loop: str, method: str, former: dict[str, Any], fits: Callable[[Any], bool]
) -> None:
    async def body() -> None:
        manager = gateway.ProxyManager(config=CONFIG)
        with pytest.warns(DeprecationWarning, match="has been renamed to") as seen:
            value = await value_of(getattr(manager, method)(**former))
        assert {one.filename for one in seen if one.category is DeprecationWarning} == {__file__}
        await manager.close_all_connections()
        assert fits(value), value

    run_on(loop, body)


def test_former_and_present_names_together_are_refused() -> None:
    manager: Any = gateway.ProxyManager(config=CONFIG)
    with pytest.raises(TypeError, match="both 'server_name' and its former name 'name'"):
        manager.get_client(server_name="a", name="a")
    with pytest.raises(TypeError, match="server_name"), pytest.warns(DeprecationWarning, match="renamed"):
        manager.get_client("a", name="a")
