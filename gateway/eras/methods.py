"""Every method of MCP, one row each, with everything that depends only on the method.

The rows are those of the schemas of 2024-11-05 to 2026-07-28 and of the extension for tasks (SEP-2663). A new method is
one row here, plus code if it has behaviour of its own. Pure.
"""

from __future__ import annotations

import enum
from typing import Final, Literal

import msgspec

from gateway.calls import Era

LISTEN: Final = "subscriptions/listen"


class Kind(enum.Enum):
    """One kind of list: method, the result's member, the key member, feature, noun."""

    TOOLS = ("tools/list", "tools", "name", "tools", "tool")
    PROMPTS = ("prompts/list", "prompts", "name", "prompts", "prompt")
    RESOURCES = ("resources/list", "resources", "uri", "resources", "resource")
    TEMPLATES = ("resources/templates/list", "resourceTemplates", "uriTemplate", "resources", "resource template")

    def __init__(self, list_method: str, member: str, key: str, feature: str, noun: str) -> None:
        self.list_method = list_method
        self.member = member
        self.key = key
        self.feature = feature
        self.noun = noun

    __hash__ = object.__hash__
    """By identity: each call looks up tables by kind, and `Enum` would hash names in Python."""

    @property
    def namespaced(self) -> bool:
        """Whether items get public names; resources keep their URIs, which are their identity."""
        return self.key == "name"


class Role(enum.Enum):
    """The sender of a method, and its responder."""

    LIST = enum.auto()
    """A client's request, answered from the catalog."""
    CALL = enum.auto()
    """A client's request, routed to the backend that owns the name (for completions, the name in `ref`)."""
    WATCH = enum.auto()
    """Routed too, but counted across all clients: see `gateway.frontends.resource_subscriptions`."""
    GATEWAY = enum.auto()
    """A request that the gateway answers itself."""
    TASK = enum.auto()
    """A request that only the gateway sends, to drive a task; over HTTP `Mcp-Name` is the task's id (SEP-2663)."""
    SERVER_REQUEST = enum.auto()
    """A backend's request to a client; an entry of `inputRequests` in the modern era."""
    CLIENT_NOTIFICATION = enum.auto()
    """A client's notification, whether or not servers send it too; handled here or by its own rule."""
    SERVER_NOTIFICATION = enum.auto()


class Method(msgspec.Struct, frozen=True):
    """One method of MCP."""

    name: str
    role: Role
    kind: Kind | None = None
    """The kind that it lists, or that `params.<kind.key>` names, which determines the owner and is mirrored by
    `Mcp-Name`."""
    eras: tuple[Era, ...] = (Era.LEGACY, Era.MODERN)
    content: Literal["", "blocks", "contents"] = ""
    """Where its result has content: in blocks, or in the `contents` of resources."""
    suspendable: bool = False
    """Whether it may be answered with `input_required`, and sent again with the input (basic/patterns/mrtr)."""
    cacheable: bool = False
    """Whether its modern result must carry `ttlMs` and `cacheScope` (server/utilities/caching)."""
    opens: bool = False
    """Whether it is sent before the version is negotiated."""
    capability: str = ""
    """The client's capability that a server request needs."""
    optional: tuple[str, ...] = ()
    """Members of its params, beside `_meta`, that a sender may leave out (schemas of 2025-11-25, 2026-07-28)."""


_LEGACY: Final = (Era.LEGACY,)
_MODERN: Final = (Era.MODERN,)
_SAMPLING: Final = (
    "modelPreferences", "systemPrompt", "includeContext", "temperature", "stopSequences", "metadata", "tools",
    "toolChoice", "task",
)  # fmt: skip
_ELICITATION: Final = ("mode", "requestedSchema", "url", "elicitationId", "task")

APPS: Final = "io.modelcontextprotocol/ui"
"""MCP Apps (SEP-1865): pages that present a tool."""
RELAYED_EXTENSIONS: Final = frozenset({APPS})
"""Extensions that the gateway declares if a backend does: all their requests and notifications between client and
server must be in this table. MCP Apps adds none: methods with the prefix `ui/` are between a page and its host."""

FEATURES: Final = tuple(dict.fromkeys(kind.feature for kind in Kind))
LIST_CHANGED: Final = {f"notifications/{feature}/list_changed": feature for feature in FEATURES}
LISTENED: Final = {f"{feature}ListChanged": feature for feature in FEATURES}
"""Members of the filter of `subscriptions/listen`."""

METHODS: Final = (
    *(Method(kind.list_method, Role.LIST, kind, cacheable=True, optional=("cursor",)) for kind in Kind),
    Method("tools/call", Role.CALL, Kind.TOOLS, content="blocks", suspendable=True, optional=("arguments", "task")),
    Method("prompts/get", Role.CALL, Kind.PROMPTS, content="blocks", suspendable=True, optional=("arguments",)),
    Method("resources/read", Role.CALL, Kind.RESOURCES, content="contents", suspendable=True, cacheable=True),
    Method("completion/complete", Role.CALL, optional=("context",)),
    Method("resources/subscribe", Role.WATCH, Kind.RESOURCES, eras=_LEGACY),
    Method("resources/unsubscribe", Role.WATCH, Kind.RESOURCES, eras=_LEGACY),
    Method("initialize", Role.GATEWAY, eras=_LEGACY, opens=True),
    Method("server/discover", Role.GATEWAY, eras=_MODERN, opens=True, cacheable=True),
    Method("ping", Role.GATEWAY, eras=_LEGACY),
    Method("logging/setLevel", Role.GATEWAY, eras=_LEGACY),
    Method(LISTEN, Role.GATEWAY, eras=_MODERN),
    Method("tasks/get", Role.TASK),
    Method("tasks/update", Role.TASK, eras=_MODERN),
    Method("tasks/cancel", Role.TASK),
    Method("tasks/result", Role.TASK, eras=_LEGACY),
    Method("tasks/list", Role.TASK, eras=_LEGACY),
    Method("sampling/createMessage", Role.SERVER_REQUEST, capability="sampling", optional=_SAMPLING),
    Method("elicitation/create", Role.SERVER_REQUEST, capability="elicitation", optional=_ELICITATION),
    Method("roots/list", Role.SERVER_REQUEST, capability="roots"),
    Method("notifications/cancelled", Role.CLIENT_NOTIFICATION, optional=("reason",)),
    Method("notifications/progress", Role.CLIENT_NOTIFICATION, optional=("total", "message")),
    Method("notifications/initialized", Role.CLIENT_NOTIFICATION, eras=_LEGACY),
    Method("notifications/roots/list_changed", Role.CLIENT_NOTIFICATION, eras=_LEGACY),
    Method("notifications/tasks/status", Role.CLIENT_NOTIFICATION, eras=_LEGACY),
    Method("notifications/message", Role.SERVER_NOTIFICATION, optional=("logger",)),
    *(Method(name, Role.SERVER_NOTIFICATION) for name in LIST_CHANGED),
    Method("notifications/resources/updated", Role.SERVER_NOTIFICATION),
    Method("notifications/subscriptions/acknowledged", Role.SERVER_NOTIFICATION, eras=_MODERN),
    Method("notifications/elicitation/complete", Role.SERVER_NOTIFICATION, eras=_LEGACY),
)  # fmt: skip

BY_NAME: Final = {row.name: row for row in METHODS}
FAMILIES: Final = frozenset(row.name.partition("/")[0] for row in METHODS if "/" in row.name)
LISTED_KIND: Final = {kind.list_method: kind for kind in Kind}
OWNER_KIND: Final = {row.name: row.kind for row in METHODS if row.kind is not None and row.role is not Role.LIST}
"""Methods that one backend owns, and the kind of thing whose name they carry."""
ROUTED: Final = frozenset(row.name for row in METHODS if row.role is Role.CALL)
WATCHED: Final = frozenset(row.name for row in METHODS if row.role is Role.WATCH)
TASK_METHODS: Final = frozenset(row.name for row in METHODS if row.role is Role.TASK)
CLIENT_NOTIFICATIONS: Final = frozenset(row.name for row in METHODS if row.role is Role.CLIENT_NOTIFICATION)
REMOVED_IN_MODERN: Final = frozenset(
    row.name for row in METHODS if Era.MODERN not in row.eras and not row.name.startswith("notifications/")
)
"""Requests that only the legacy era has."""
SUSPENDABLE: Final = frozenset(row.name for row in METHODS if row.suspendable)
CACHEABLE: Final = frozenset(row.name for row in METHODS if row.cacheable)
OPENING: Final = frozenset(row.name for row in METHODS if row.opens)
CONTENT: Final = {row.name: row.content for row in METHODS if row.content}
CAPABILITY: Final = {row.name: row.capability for row in METHODS if row.capability}
"""Requests that can be passed to a client, and the capability that each needs."""
OPTIONAL: Final = {
    row.name: row.optional + (("inputResponses", "requestState") if row.suspendable else ()) for row in METHODS
}
