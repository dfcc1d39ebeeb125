"""The era-neutral call: what meets in the middle of M frontends and N backends.

A frontend builds a `Call` from its era's request; a backend's session turns it into its own era's request and hands
notifications and one `Outcome` back through its `PendingCall`. Nothing here knows an era's spelling of anything.
Pure: no I/O.
"""

from __future__ import annotations

import enum
import hashlib
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.errors import GatewayError
from gateway.jsonrpc import ABSENT, EMPTY_OBJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.jsonrpc import Id


class Era(enum.StrEnum):
    """The two families of protocol revisions (basic/versioning, "Terminology")."""

    LEGACY = "legacy"
    MODERN = "modern"

    @property
    def other(self) -> Era:
        """The other one of the two."""
        return Era.MODERN if self is Era.LEGACY else Era.LEGACY


ALL: Final = ("*",)
"""Globs that fit every name."""


SEPARATORS: Final = ("_", "__")
NAME_LENGTHS: Final = (48, 64)
"""What a client may choose: few values, so that all choices together (with none of a kind, eight) cost eight renamed
catalogs, however many clients there are. 48 leaves room for the prefixes of clients that take 60 or 64 in all."""


class NameChoice(msgspec.Struct, frozen=True, cache_hash=True):
    """How a client wants public names made; None is as the config has it."""

    separator: str | None = None
    max_length: int | None = None

    @property
    def query(self) -> str:
        """The choice, as the query of an address."""
        members = (("separator", self.separator), ("max_name_length", self.max_length))
        return "&".join(f"{name}={value}" for name, value in members if value is not None)


class Scope(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """What one caller may see; what is beyond it looks as if there were none. A value: equal scopes share all work.

    Globs know `*`, `?` and `[...]`, and case counts. A tool or prompt is held against them under its public name (the
    one without a view) and as `<server>.<its own name>`; one name that fits is enough.
    """

    servers: tuple[str, ...] = ALL
    """Globs over the servers' names in the config."""
    tools: tuple[str, ...] = ALL
    excluded_tools: tuple[str, ...] = ()
    """Globs over tools that are not seen although `tools` fits them."""
    prompts: tuple[str, ...] = ALL
    resources: bool = True
    """Whether resources and templates of those servers are seen; tools' own pages (MCP Apps) are in any case."""
    view: str | None = None
    """The view of the gateway within which all this holds; one that does not exist shows nothing."""
    names: NameChoice | None = None
    """What the names are that the caller sees; everything above goes by the names of the config."""

    def sees_server(self, name: str) -> bool:
        """Whether anything of this server may be seen."""
        return fits(self.servers, (name,))

    def sees_tool(self, names: Iterable[str]) -> bool:
        """Whether a tool with these names, of a server that is seen, may be seen."""
        names = tuple(names)
        return fits(self.tools, names) and not fits(self.excluded_tools, names)

    def sees_prompt(self, names: Iterable[str]) -> bool:
        """The same for a prompt."""
        return fits(self.prompts, tuple(names))

    @property
    def whole_servers(self) -> bool:
        """Whether all of each server may be seen that may be seen at all."""
        return self.tools == self.prompts == ALL and not self.excluded_tools and self.resources

    def without(self, **applied: None) -> Scope:
        """The same where `view` or `names` has been applied already."""
        return msgspec.structs.replace(self, **applied)


EVERYTHING: Final = Scope()
NOTHING: Final = Scope(servers=())


def fits(globs: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Whether one of the names fits one of the globs."""
    return globs == ALL or any(fnmatchcase(name, glob) for glob in globs for name in names)


class Identity(msgspec.Struct, frozen=True, cache_hash=True):
    """The client and the endpoint that it uses, as far as they are known before a request is read."""

    principal: str | None = None
    """Who the client has proved to be, or None."""
    scope: Scope | None = None
    """What may be seen; None is everything."""

    @property
    def view(self) -> str | None:
        """The view whose endpoint was used; None is the gateway's own endpoint."""
        return None if self.scope is None else self.scope.view

    @property
    def names(self) -> NameChoice | None:
        """The names that the client has chosen at that endpoint."""
        return None if self.scope is None else self.scope.names

    def same_door(self, other: Identity) -> bool:
        """Whether what one of them has begun may be gone on with by the other."""
        return self.principal == other.principal and self.view == other.view and self.names == other.names


ANYBODY: Final = Identity()


@lru_cache(maxsize=1_024)
def at_endpoint(identity: Identity, view: str | None, names: NameChoice | None = None) -> Identity:
    """The same client at a view's endpoint (None: the gateway's own), and with the names that it has chosen there."""
    if view is names is None:
        return identity
    return Identity(identity.principal, msgspec.structs.replace(identity.scope or EVERYTHING, view=view, names=names))


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, and what that client can do; one per legacy session, one per modern request."""

    era: Era
    version: str
    """The protocol version negotiated (legacy) or declared on the request (modern)."""
    capabilities: msgspec.Raw = EMPTY_OBJECT
    """The client's capabilities as it declared them."""
    client_info: msgspec.Raw = ABSENT
    log_level: str | None = None
    """Least severe level of log messages that the client asked for; None if it did not ask."""
    session: str | None = None
    """The legacy session or the stdio process; None for a modern request over HTTP, which stands alone."""
    principal: str | None = None
    """Who the client has proved to be, or None."""
    scope: Scope | None = None
    """What the client may see; None is everything."""
    address: str | None = None
    """Where a request came from that has neither session nor principal."""
    gateways: tuple[str, ...] = ()
    """The gateways through which the client is reached, itself included; none where it is no gateway."""

    @property
    def origin(self) -> str:
        """Whom its calls are counted to where that is not left to principals; shown in logs."""
        if self.principal is not None:
            return f"principal {self.principal!r}"
        return f"address {self.address}" if self.session is None else f"session {self.label}"

    @property
    def label(self) -> str | None:
        """The name of the session in logs and documents: its id would let a reader use it."""
        return None if self.session is None else session_label(self.session)

    def same_client(self, other: Caller) -> bool:
        """Whether both are certainly one and the same client."""
        if self is other:
            return True
        key = self.session or self.principal
        return key is not None and key == (other.session or other.principal)


@lru_cache(maxsize=1024)
def session_label(key: str) -> str:
    """See `Caller.label`; the key of the stdio process is no secret."""
    return key if key == "stdio" else hashlib.sha256(key.encode()).hexdigest()[:12]


class Call(msgspec.Struct, kw_only=True, gc=False):
    """One request on its way from a client to a backend.

    `params` holds the members as the client sent them, without `_meta`; `meta` holds the members of `_meta` without
    the keys that belong to one hop only. `name` is the public name (or URI) that says who owns the call.
    """

    method: str
    name: str
    params: dict[str, msgspec.Raw]
    meta: dict[str, msgspec.Raw]
    caller: Caller
    known_as: str = ""
    """Its name in the config's own naming, where the client sees another one: what rules and the audit go by."""
    progress_token: Id | None = None
    """The token that the client wants progress under; None if it wants none."""


class Complete(msgspec.Struct, frozen=True, gc=False):
    """The call's final result, as the backend wrote it, and the era in which it is written."""

    result: bytes
    era: Era


class InputRequired(msgspec.Struct, frozen=True, gc=False):
    """A modern backend needs input before it can go on (basic/patterns/mrtr)."""

    result: bytes


class Failure(msgspec.Struct, frozen=True, gc=False):
    """A backend's own JSON-RPC error: its code, message and data travel on."""

    code: int
    message: str
    data: bytes | None
    era: Era


Outcome = Complete | InputRequired | Failure | GatewayError
"""How a call ends. A `GatewayError` is the gateway's own verdict (dead backend, deadline, full queue)."""


class Notification(msgspec.Struct, frozen=True, gc=False):
    """One notification that belongs to a call: `notifications/progress` or `notifications/message`.

    In progress notices the token is the client's own, put back by the session that minted another for its hop.
    """

    method: str
    params: dict[str, msgspec.Raw]


class ServerRequest:
    """A request that a server sends to the client of one call: sampling, elicitation or roots.

    The frontend that shows it to the client settles it, and only the first time counts: `answer` with the client's
    result, or `refuse`.
    """

    __slots__ = ("_observer", "_settle", "method", "on_progress", "params", "settled")

    def __init__(
        self,
        method: str,
        params: dict[str, msgspec.Raw],
        settle: Callable[[bytes | Failure], None],
        on_progress: Callable[[dict[str, msgspec.Raw]], None] | None = None,
    ) -> None:
        self.method = method
        self.params = params
        self.on_progress = on_progress
        """Takes the params of the client's progress notifications about this request, if the server wants them."""
        self.settled = False
        self._settle = settle
        self._observer: Callable[[], None] | None = None

    def observe(self, observer: Callable[[], None]) -> None:
        """Have the call that the request belongs to notified when it is settled."""
        self._observer = observer

    def answer(self, result: bytes) -> None:
        """Hand the client's result to the server."""
        self._end(result)

    def refuse(self, code: int, message: str, data: bytes | None = None) -> None:
        """Hand an error to the server: the client's own, or the gateway's."""
        self._end(Failure(code, message, data, Era.LEGACY))

    def _end(self, reply: bytes | Failure) -> None:
        if not self.settled:
            self.settled = True
            self._settle(reply)
            observer, self._observer = self._observer, None
            if observer is not None:
                observer()


class Withdrawn(msgspec.Struct, frozen=True, gc=False):
    """The server does not need the answer to this request any more."""

    ask: ServerRequest


class StreamClosed(msgspec.Struct, frozen=True, gc=False):
    """The backend has closed the call's stream for now, and wants its peer to come back for the rest.

    2025-11-25 basic/transports: the call goes on. Legacy HTTP clients are sent the same way; others need not know.
    """

    retry_ms: int
    """How long the peer is to wait before it comes back."""


Event = Notification | ServerRequest | Withdrawn | StreamClosed
"""What can come of a call before its outcome."""
