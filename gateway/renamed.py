"""Former public names: each still works, with a warning, until the release that removes it.

Metrics have no entries, since two series for one count would be summed; CHANGELOG announces their renaming.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
P = ParamSpec("P")


class Rename(NamedTuple):
    """One name that has changed."""

    where: str
    """A method, by its qualified name, or a document."""
    former: str
    present: str
    gone_in: str
    """The release that removes the former name: two minor releases after the one that renamed it."""


RENAMES: Final = (
    Rename("ProxyManager.initialize_connections", "config", "mcp_config", "0.4.0"),
    Rename("ProxyManager.reload", "new_config", "new_mcp_config", "0.4.0"),
    Rename("ProxyManager.get_client", "name", "server_name", "0.4.0"),
    Rename("ProxyManager.test_connection", "name", "server_name", "0.4.0"),
    Rename("ProxyManager.call_tool", "server", "server_name", "0.4.0"),
    Rename("ProxyManager.call_tool", "tool", "tool_name", "0.4.0"),
    Rename("ProxyManager.list_tools", "server", "server_name", "0.4.0"),
    Rename("ProxyManager.get_server_status", "name", "server_name", "0.4.0"),
    Rename("audit", "untold", "suppressed", "0.4.0"),
)


def accepts_former_names(method: Callable[P, T]) -> Callable[P, T]:
    """Accept the former names of a method's arguments, with a DeprecationWarning."""
    name = method.__qualname__
    renames = [each for each in RENAMES if each.where == name]

    def translate(kwargs: dict[str, Any]) -> None:
        for _, former, present, gone_in in renames:
            if former not in kwargs:
                continue
            if present in kwargs:
                text = f"{name}() got both {present!r} and its former name {former!r}"
                raise TypeError(text)
            text = f"{name}(): {former!r} has been renamed to {present!r}; the former name goes in {gone_in}"
            warnings.warn(text, DeprecationWarning, stacklevel=3)
            kwargs[present] = kwargs.pop(former)

    if not inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            translate(kwargs)
            return method(*args, **kwargs)

        return call

    @functools.wraps(method)
    async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        translate(kwargs)
        return await method(*args, **kwargs)

    return cast("Callable[P, T]", call_async)


def with_former_fields(document: str, fields: dict[str, object]) -> dict[str, object]:
    """Return a document's fields, with renamed ones under their former names as well."""
    return fields | {each.former: fields[each.present] for each in RENAMES if each.where == document}
