"""The era-neutral call, between M frontends and N backends.

A frontend builds a `Call` from its era's request; a backend's session turns it into its own era's request and passes
notifications and one `Outcome` back through its `PendingCall`. Nothing here depends on how an era spells anything.
Pure: no I/O.
"""

from __future__ import annotations

import enum
import hashlib
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from gateway.errors import GatewayError
from gateway.jsonrpc import ABSENT, EMPTY_OBJECT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from gateway.jsonrpc import Id, LongStrings


class Era(enum.StrEnum):
    """The two families of protocol revisions (basic/versioning, "Terminology")."""

    LEGACY = "legacy"
    MODERN = "modern"

    @property
    def other(self) -> Era:
        """The other era."""
        return Era.MODERN if self is Era.LEGACY else Era.LEGACY


ALL: Final = ("*",)
"""Globs that match every name."""


SEPARATORS: Final = ("_", "__")
NAME_LENGTHS: Final = (48, 64)
"""The name choices of clients: so few values that all combinations (eight, with none chosen) cost eight renamed
catalogs, however many clients there are. 48 leaves room for the prefixes of clients with a limit of 60 or 64 in all."""


class NameChoice(msgspec.Struct, frozen=True, cache_hash=True):
    """A client's choices for public names; None is the config's."""

    separator: str | None = None
    max_length: int | None = None

    @property
    def query(self) -> str:
        """The choice as the query of an address."""
        members = (("separator", self.separator), ("max_name_length", self.max_length))
        return "&".join(f"{name}={value}" for name, value in members if value is not None)


class Scope(msgspec.Struct, frozen=True, kw_only=True, cache_hash=True):
    """The part of the catalog that a caller may see; the rest does not exist.

    Globs support `*`, `?` and `[...]`, and are case-sensitive. They match a tool or prompt by its public name (the one
    without a view) and by `<server>.<its own name>`; one match is enough. Equal scopes share all work.
    """

    servers: tuple[str, ...] = ALL
    """Globs over the servers' names in the config."""
    tools: tuple[str, ...] = ALL
    excluded_tools: tuple[str, ...] = ()
    """Globs over tools that are excluded although `tools` matches them."""
    prompts: tuple[str, ...] = ALL
    resources: bool = True
    """Whether resources and templates of those servers are visible; tools' own pages (MCP Apps) always are."""
    view: str | None = None
    """The view that all this applies within; an unknown one shows nothing."""
    names: NameChoice | None = None
    """The client's choices for the names it sees; everything above uses the names of the config."""

    def sees_server(self, name: str) -> bool:
        """Return whether anything of this server may be seen."""
        return fits(self.servers, (name,))

    def sees_tool(self, names: Iterable[str]) -> bool:
        """Return whether a tool with these names, of a visible server, may be seen."""
        names = tuple(names)
        return fits(self.tools, names) and not fits(self.excluded_tools, names)

    def sees_prompt(self, names: Iterable[str]) -> bool:
        """Return the same for a prompt."""
        return fits(self.prompts, tuple(names))

    @property
    def whole_servers(self) -> bool:
        """Whether each visible server is visible as a whole."""
        return self.tools == self.prompts == ALL and not self.excluded_tools and self.resources

    def without(self, **applied: None) -> Scope:
        """Return the scope for a catalog to which `view` or `names` has already been applied."""
        return msgspec.structs.replace(self, **applied)


EVERYTHING: Final = Scope()
NOTHING: Final = Scope(servers=())


def fits(globs: tuple[str, ...], names: tuple[str, ...]) -> bool:
    """Return whether one of the names matches one of the globs."""
    return globs == ALL or any(fnmatchcase(name, glob) for glob in globs for name in names)


class Identity(msgspec.Struct, frozen=True, cache_hash=True):
    """The client and its endpoint, as known before a request is read."""

    principal: str | None = None
    """The authenticated principal, or None."""
    scope: Scope | None = None
    """The client's scope; None is everything."""

    @property
    def view(self) -> str | None:
        """The view whose endpoint was used; None is the gateway's own endpoint."""
        return None if self.scope is None else self.scope.view

    @property
    def names(self) -> NameChoice | None:
        """The client's name choices at that endpoint."""
        return None if self.scope is None else self.scope.names

    def same_door(self, other: Identity) -> bool:
        """Return whether one of them may continue a request that the other began."""
        return self.principal == other.principal and self.view == other.view and self.names == other.names


ANYBODY: Final = Identity()


@lru_cache(maxsize=1_024)
def at_endpoint(identity: Identity, view: str | None, names: NameChoice | None = None) -> Identity:
    """Return the same client at a view's endpoint (None: the gateway's), with these choices."""
    if view is names is None:
        return identity
    return Identity(identity.principal, msgspec.structs.replace(identity.scope or EVERYTHING, view=view, names=names))


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A client and its capabilities; one per legacy session, one per modern request."""

    era: Era
    version: str
    """The protocol version negotiated (legacy) or declared on the request (modern)."""
    capabilities: msgspec.Raw = EMPTY_OBJECT
    """The client's capabilities as it declared them."""
    client_info: msgspec.Raw = ABSENT
    log_level: str | None = None
    """The least severe level of log messages that the client asked for; None if it did not ask."""
    session: str | None = None
    """The legacy session or the stdio process; None for a modern request over HTTP, which is stateless."""
    principal: str | None = None
    """The authenticated principal, or None."""
    scope: Scope | None = None
    """The client's scope; None is everything."""
    address: str | None = None
    """The address of a request that has neither session nor principal."""
    gateways: tuple[str, ...] = ()
    """The gateways between the client and this one, itself included; empty if it is not a gateway."""

    @property
    def origin(self) -> str:
        """The identity that its calls are counted to besides principals; shown in logs."""
        if self.principal is not None:
            return f"principal {self.principal!r}"
        return f"address {self.address}" if self.session is None else f"session {self.label}"

    @property
    def label(self) -> str | None:
        """The session's name in logs and documents; its id would be a credential."""
        return None if self.session is None else session_label(self.session)

    def same_client(self, other: Caller) -> bool:
        """Return whether both are certainly the same client."""
        if self is other:
            return True
        key = self.session or self.principal
        return key is not None and key == (other.session or other.principal)


@lru_cache(maxsize=1024)
def session_label(key: str) -> str:
    """See `Caller.label`; the key of the stdio process is not a secret."""
    return key if key == "stdio" else hashlib.sha256(key.encode()).hexdigest()[:12]


class Trace(Protocol):
    """The spans of a client request (`gateway.tracing`).

    No method waits or raises.
    """

    @property
    def ids(self) -> dict[str, str]:
        """The ids of trace and span, for logs."""
        ...

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The HTTP headers of the request to the backend."""
        ...

    def note(self, event: str, **details: str) -> None:
        """Add an event to the client's request."""
        ...

    def backend_ended(self, outcome: Outcome | None, reason: str | None = None) -> None:
        """End the request to the backend, which `reason` has cancelled, if there is one."""
        ...

    def retried(self, outcome: Outcome) -> None:
        """Note that the backend gets the call once more."""
        ...

    def responded(self, code: int | None, outcome: Outcome | None) -> None:
        """End the client's request with its response; `code` is that of an error."""
        ...

    def cancelled(self, reason: str) -> None:
        """End the client's request without a response, unless it has ended."""
        ...

    def suspended(self) -> None:
        """End the client's request with *input required*; the one to the backend continues."""
        ...

    def ask(self, method: str) -> AskTrace:
        """Begin a server request that asks the client for something on its own request's behalf."""
        ...

    def asked(self, method: str, request_id: Id, params: Mapping[str, msgspec.Raw]) -> AskTrace:
        """Begin a server request that the backend has sent."""
        ...


class AskTrace(Protocol):
    """The spans of a server request, likewise."""

    def sent(self, request_id: Id) -> dict[str, str]:
        """Note the request to the client; return the keys for its `_meta`."""
        ...

    def settled(self, reply: bytes | Failure) -> None:
        """End them with the client's reply, or the gateway's refusal."""
        ...


class RequestTrace(Protocol):
    """The span of a request of the gateway's own, likewise."""

    @property
    def keys(self) -> dict[str, str]:
        """The keys for its `_meta`."""
        ...

    def ended(self, outcome: Outcome | None) -> None:
        """End the request; without an outcome it was cancelled."""
        ...


class BackendTracing(Protocol):
    """Begins the spans of requests to one backend."""

    def begin_call(self, call: Call, own_name: str, request_id: int, *, era: Era, version: str) -> dict[str, str]:
        """Begin the request that carries a client's call; return the keys for its `_meta`."""
        ...

    def begin(self, method: str, request_id: int, *, version: str, call: Call | None = None) -> RequestTrace:
        """Begin a request of the gateway's own, perhaps about a client's call."""
        ...


class Call(msgspec.Struct, kw_only=True, gc=False):
    """One request on its way from a client to a backend.

    `params` holds the members as the client sent them, without `_meta`; `meta` holds the members of `_meta` without
    the keys of one hop. `name` is the public name (or URI) that determines the owner.
    """

    method: str
    name: str
    params: dict[str, msgspec.Raw]
    meta: dict[str, msgspec.Raw]
    caller: Caller
    known_as: str = ""
    """Its name as the config forms it, if the client sees another one: for rules and the audit."""
    progress_token: Id | None = None
    """The progress token of the client; None if it wants no progress."""
    trace: Trace | None = None
    """The spans of the client's request; None unless tracing is configured."""
    size: int = 0
    """The bytes of the request's params, as the client sent them."""


class Complete(msgspec.Struct, frozen=True, gc=False):
    """The call's final result, as the backend wrote it, and its era."""

    result: bytes
    era: Era
    strings: LongStrings | None = None
    """Those set aside from a large result, for which `result` has placeholders."""

    @property
    def size(self) -> int:
        """The number of bytes of the result."""
        return len(self.result) + (0 if self.strings is None else self.strings.size)

    def whole(self) -> bytes:
        """Return the result with all of its strings."""
        return self.result if self.strings is None else b"".join(self.strings.restore(self.result))


class InputRequired(msgspec.Struct, frozen=True, gc=False):
    """A modern backend needs input before it can continue (basic/patterns/mrtr)."""

    result: bytes


class Failure(msgspec.Struct, frozen=True, gc=False):
    """A backend's own JSON-RPC error: its code, message and data are passed on."""

    code: int
    message: str
    data: bytes | None
    era: Era


Outcome = Complete | InputRequired | Failure | GatewayError
"""How a call ends. A `GatewayError` is the gateway's own error (dead backend, deadline, full queue)."""


class Notification(msgspec.Struct, frozen=True, gc=False):
    """One notification that belongs to a call: `notifications/progress` or `notifications/message`.

    The token of progress is the client's own, restored by the session that gave it another one on its hop.
    """

    method: str
    params: dict[str, msgspec.Raw]


class ServerRequest:
    """A request of a server to the client of one call: sampling, elicitation or roots.

    The frontend that shows it to the client settles it, and only the first time counts: `answer` with the client's
    result, or `refuse`.
    """

    __slots__ = ("_observer", "_settle", "method", "on_progress", "params", "settled", "trace")

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
        """Receives the params of the client's progress notifications about this request, if the server wants them."""
        self.settled = False
        self.trace: AskTrace | None = None
        """Its spans; None unless tracing is configured."""
        self._settle = settle
        self._observer: Callable[[], None] | None = None

    def observe(self, observer: Callable[[], None]) -> None:
        """Have the call that the request belongs to notified when it is settled."""
        self._observer = observer

    def answer(self, result: bytes) -> None:
        """Pass the client's result to the server."""
        self._end(result)

    def refuse(self, code: int, message: str, data: bytes | None = None) -> None:
        """Pass an error to the server: the client's own, or the gateway's."""
        self._end(Failure(code, message, data, Era.LEGACY))

    def _end(self, reply: bytes | Failure) -> None:
        if not self.settled:
            self.settled = True
            if self.trace is not None:
                self.trace.settled(reply)
            self._settle(reply)
            observer, self._observer = self._observer, None
            if observer is not None:
                observer()


class Withdrawn(msgspec.Struct, frozen=True, gc=False):
    """The server no longer needs the answer to this request."""

    ask: ServerRequest


class StreamClosed(msgspec.Struct, frozen=True, gc=False):
    """The backend has closed the call's stream, and wants it resumed later.

    2025-11-25 basic/transports: the call continues. Legacy HTTP clients are asked to resume too; others see nothing.
    """

    retry_ms: int
    """The time to wait before the stream is resumed."""


Event = Notification | ServerRequest | Withdrawn | StreamClosed
"""Everything that may happen to a call before its outcome."""
