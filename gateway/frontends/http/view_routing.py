"""What an address says: the view, below the path of the endpoint, and the names that the client wants, as its query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

from gateway.calls import NAME_LENGTHS, SEPARATORS, NameChoice

if TYPE_CHECKING:
    from collections.abc import Container

    from gateway.frontends.http.exchange import Exchange

NO_VIEW: Final = (
    "there is no such view here: views stand in the section 'views' of the gateway's config, and each is found under"
    " its name below the endpoint, as in /mcp/NAME"
)


def without_slash(path: str) -> str:
    """A path without the slash that many clients and guides write at its end."""
    return path.rstrip("/") or "/"


def view_in(path: str, endpoint: str | None, views: Container[str]) -> str | None:
    """The view that a path below an endpoint names; None where it names none.

    It need not exist, for what is asked of a view that is gone must be answered as such; but an endpoint at the root
    has only the views that there are, since everything else is below it, too.
    """
    if endpoint is None or not path.startswith(endpoint):
        return None
    name = path.removeprefix(endpoint if endpoint.endswith("/") else endpoint + "/").removesuffix("/")
    if not name or "/" in name or (endpoint == "/" and name not in views):
        return None
    return name


def choose_names(exchange: Exchange) -> None:
    """Note the names that the query of a request chooses. Raises ValueError for names that cannot be chosen."""
    if query := exchange.scope.get("query_string"):
        exchange.names = chosen_names(query)


def chosen_names(query: bytes) -> NameChoice | None:
    """The names that a query chooses, None for those of the config. Raises ValueError for what cannot be chosen."""
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
    """Answer who has come to the endpoint of a view that there is not. Raises ClientGone."""
    await exchange.refuse(404, NO_VIEW)
