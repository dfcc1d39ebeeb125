"""The address of a request: the path names a view, the query chooses names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from gateway.calls import NAME_LENGTHS, SEPARATORS, NameChoice

if TYPE_CHECKING:
    from collections.abc import Container

    from gateway.frontends.http.exchange import Exchange

NO_VIEW: Final = (
    "no such view: views are defined in the section 'views' of the gateway's config, and each is served under"
    " its name below the endpoint, as in /mcp/NAME"
)


def without_slash(path: str) -> str:
    """Strip the trailing slash that many clients and guides add."""
    return path.rstrip("/") or "/"


def view_in(path: str, endpoint: str | None, views: Container[str]) -> str | None:
    """Return the view that a path below an endpoint names; None without one.

    It need not exist, since a request to a removed view must be answered as such. But for an endpoint at the root only
    existing views count, since every other path is below it too.
    """
    if endpoint is None or not path.startswith(endpoint):
        return None
    name = path.removeprefix(endpoint if endpoint.endswith("/") else endpoint + "/").removesuffix("/")
    if not name or "/" in name or (endpoint == "/" and name not in views):
        return None
    return name


def choose_names(exchange: Exchange) -> None:
    """Store the name choices of a request's query. Raises ValueError if they are not allowed."""
    if query := exchange.scope.get("query_string"):
        exchange.names = chosen_names(query)


def chosen_names(query: bytes) -> NameChoice | None:
    """Return the name choices of a query; None: those of the config.

    Raises ValueError if they are not allowed.
    """
    if b"separator" not in query and b"max_name_length" not in query:
        return None
    members = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    chosen: dict[str, str | None] = {}
    for name, offered in (("separator", SEPARATORS), ("max_name_length", NAME_LENGTHS)):
        values = members.get(name, [None])
        if len(values) > 1 or values[0] not in {None, *map(str, offered)}:
            text = f"{name} in the address must be one of {', '.join(map(str, offered))}, once"
            raise ValueError(text)
        chosen[name] = values[0]
    length = chosen["max_name_length"]
    return NameChoice(chosen["separator"], None if length is None else int(length)) if any(chosen.values()) else None


async def refuse(exchange: Exchange) -> None:
    """Answer a request to a view that does not exist. Raises ClientGone."""
    await exchange.refuse(404, NO_VIEW)
