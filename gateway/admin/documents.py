"""What the management API answers, as Structs: what is sent and what the OpenAPI document says come from here both.

All times are seconds unless the name says otherwise; all moments are ISO 8601 in UTC.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.reload.reloader import LastReload  # ruff: ignore[typing-only-first-party-import] - msgspec reads it
from gateway.supervisor.history import ErrorRecord, Latency  # ruff: ignore[typing-only-first-party-import] - the same
from gateway.supervisor.lifecycle import Status  # ruff: ignore[typing-only-first-party-import] - the same


class Probe(msgspec.Struct, frozen=True):
    """All that an orchestrator needs to know."""

    status: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was refused."""

    error: str
    code: str | None = None
    """The code of the gateway's error, where the request was refused with one."""
    details: list[str] = []
    hint: str | None = None


class Health(msgspec.Struct, frozen=True):
    """The gateway as a whole."""

    status: str
    transport: str
    servers: list[str]
    backends: dict[str, Status]
    reload: LastReload | None = None
    """The latest change of the config that was tried in this run."""


class ServerLine(msgspec.Struct, frozen=True):
    """One server in the list of all."""

    state: str
    """As in `Status`, or `disabled`."""
    origin: str
    transport: str
    required: bool
    restarts: int = 0
    tools: int = 0
    last_error: str | None = None
    disabled: str | None = None
    """What has disabled it, and since when."""


class ServerList(msgspec.Struct, frozen=True):
    """All servers of the config, the disabled ones too."""

    servers: list[str]
    details: dict[str, ServerLine]


class ToolLine(msgspec.Struct, frozen=True):
    """One tool under its public name and under the server's own."""

    name: str
    own: str


class ServerDetail(msgspec.Struct, frozen=True):
    """Everything about one server; no value of a secret is in it."""

    name: str
    origin: str
    """`file`, `api`, or `file, changed by api`."""
    config: dict[str, Any]
    status: Status | None
    """Null if the server is disabled."""
    protocol_version: str | None
    server_info: Any
    capabilities: dict[str, Any]
    tools: list[ToolLine]
    calls: int
    failed: int
    latency: Latency
    errors: list[ErrorRecord]
    stderr: list[str]
    """The last lines that its children have written to stderr, 20 at most."""


class Tools(msgspec.Struct, frozen=True):
    """Public names of tools by server."""

    tools: dict[str, list[str]]


class Added(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which servers were added or replaced."""

    added: list[str]
    not_ready: dict[str, str] = {}
    """Those of them that did not come up in time, and why; they go on trying."""


class Removed(msgspec.Struct, frozen=True):
    """Which server was removed."""

    removed: str


class Done(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was done to which server."""

    server: str
    done: str
    not_ready: str | None = None


class Reloaded(msgspec.Struct, frozen=True):
    """What a reload has changed; names of servers."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    unchanged: list[str]
    not_ready: dict[str, str]


class CallNode(msgspec.Struct, frozen=True):
    """A call under way."""

    call: int
    """Its number in this run, as in the logs."""
    method: str
    name: str
    backend: str
    pid: int | None
    age: float
    deadline_in: float
    waits_for: str
    """`queue`, `start`, `backend`, `client` (an answer of a person), or `delivery`."""


class SessionNode(msgspec.Struct, frozen=True):
    """A client's session, or all modern requests that belong to none."""

    session: str | None
    """What tells it from others; not its id, which is a secret."""
    era: str
    client: str | None
    principal: str | None
    calls: list[CallNode]


class BackendNode(msgspec.Struct, frozen=True):
    """A backend with its processes."""

    name: str
    state: str
    pid: int | None
    descendants: list[int]
    age: float | None
    in_flight: int
    queued: int


class Tree(msgspec.Struct, frozen=True):
    """Who does what for whom, now."""

    pid: int
    sessions: list[SessionNode]
    backends: list[BackendNode]
