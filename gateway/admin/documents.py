"""The management API's documents as Structs: the source of responses and OpenAPI document.

Durations are in seconds unless the name says otherwise; timestamps are ISO 8601 in UTC.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from gateway.reload.reloader import LastReload  # ruff: ignore[typing-only-first-party-import] - msgspec reads it
from gateway.supervisor.history import ErrorRecord, Latency, StateChange  # ruff: ignore[typing-only-first-party-import] - the same
from gateway.supervisor.lifecycle import Status  # ruff: ignore[typing-only-first-party-import] - the same


class Probe(msgspec.Struct, frozen=True):
    """The response to an orchestrator's probe."""

    status: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a request was refused."""

    error: str
    code: str | None = None
    """The code of the gateway's error, if the request was refused with one."""
    details: list[str] = []
    hint: str | None = None


class Health(msgspec.Struct, frozen=True):
    """The gateway as a whole."""

    status: str
    transport: str
    servers: list[str]
    backends: dict[str, Status]
    reload: LastReload | None = None
    """The latest attempted change of the config in this run."""


class ServerLine(msgspec.Struct, frozen=True):
    """One entry in the list of servers."""

    state: str
    """As in `Status`, or `disabled`."""
    origin: str
    transport: str
    required: bool
    restarts: int = 0
    tools: int = 0
    last_error: str | None = None
    disabled: str | None = None
    """What disabled it, and when."""
    since: str | None = None
    """When it entered its state."""
    era: str | None = None
    in_flight: int = 0
    queued: int = 0
    hint: str | None = None
    """What to do about the last error, if it has a code."""


class ServerList(msgspec.Struct, frozen=True):
    """All servers of the config, including disabled ones."""

    servers: list[str]
    details: dict[str, ServerLine]


class ToolLine(msgspec.Struct, frozen=True):
    """One tool under its public name and under the server's own."""

    name: str
    own: str


class ServerDetail(msgspec.Struct, frozen=True):
    """Details of one server, without values of secrets."""

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
    """The last lines that its processes wrote to stderr, at most 20."""
    states: list[StateChange]
    """The states that it has entered, at most 20, oldest first."""
    hint: str | None = None
    """What to do about the last error, if it has a code."""


class Item(msgspec.Struct, frozen=True):
    """One tool, prompt, resource or template as clients see it.

    The name of a resource is its URI, that of a template its pattern.
    """

    name: str
    own: str
    item: Any
    era: str | None = None
    """The only era whose clients see it; null for both."""


class ServerItems(msgspec.Struct, frozen=True):
    """Everything that one server offers, with schemas."""

    tools: list[Item]
    prompts: list[Item]
    resources: list[Item]
    templates: list[Item]


class ProcessLine(msgspec.Struct, frozen=True):
    """One process of a server."""

    pid: int
    child: int
    """The process that the gateway has started, of which it is a descendant or which it is itself."""
    age: float
    """Seconds since that one was started."""
    name: str
    memory: int
    """Resident memory in bytes."""
    cpu: float
    """Processor time in seconds."""


class Processes(msgspec.Struct, frozen=True):
    """The processes of one server, at most 200."""

    processes: list[ProcessLine]


class Samples(msgspec.Struct, frozen=True, kw_only=True):
    """The gateway at a fixed interval: one entry for each sample, oldest first."""

    interval: float
    number: int
    """The number of the last sample in this run."""
    until: str
    """When the last sample was taken."""
    calls: list[int]
    """Calls that have ended since the sample before."""
    failed: list[int]
    refused: list[int]
    """Calls refused before a queue."""
    duration: list[int]
    """The sum of the durations of calls in microseconds."""
    buckets: list[list[int]]
    """The number of calls in each bucket of `bounds`, and above the last; empty without calls."""
    memory: list[int]
    """Resident memory of the gateway in bytes; 0 where it is unknown."""
    children_memory: list[int]
    """The same for its children with their descendants."""
    processes: list[int]
    """The number of these."""
    in_flight: list[int]


class BackendHistory(msgspec.Struct, frozen=True):
    """One backend in the recent samples, from the first with a call to the last."""

    calls: list[int]
    p50: list[int]
    """An estimate of the median duration in microseconds, from a histogram; 0 without calls."""
    p99: list[int]


class History(msgspec.Struct, frozen=True):
    """The past of the gateway and its backends."""

    started: str
    """When the recording began; samples are numbered from then on."""
    bounds: list[float]
    """Upper bounds of the buckets in seconds."""
    recent: Samples
    """The last 15 minutes."""
    day: Samples | None
    """The last 24 hours; null in an answer to `after`."""
    backends: dict[str, BackendHistory]
    """Backends without a call in the samples are left out."""


class Cancelled(msgspec.Struct, frozen=True):
    """The call that was cancelled."""

    cancelled: int


class Tools(msgspec.Struct, frozen=True):
    """Public names of tools by server."""

    tools: dict[str, list[str]]


class Added(msgspec.Struct, frozen=True, omit_defaults=True):
    """The servers that were added or replaced."""

    added: list[str]
    not_ready: dict[str, str] = {}
    """Those that did not start in time, and why; their starts continue."""


class Removed(msgspec.Struct, frozen=True):
    """The server that was removed."""

    removed: str


class Done(msgspec.Struct, frozen=True, omit_defaults=True):
    """An action and its server."""

    server: str
    done: str
    not_ready: str | None = None


class Reloaded(msgspec.Struct, frozen=True):
    """Names of the servers that a reload changed."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    unchanged: list[str]
    not_ready: dict[str, str]


class Finding(msgspec.Struct, frozen=True):
    """Something that an operator should know, about one server or the gateway."""

    level: Literal["problem", "warning"]
    """A problem means that a server does not work."""
    code: str
    server: str | None
    text: str
    hint: str | None = None
    """What to do about it."""


class ToolDurations(msgspec.Struct, frozen=True):
    """The durations of one tool's latest calls, by its own name."""

    server: str
    tool: str
    latency: Latency


class ToolSize(msgspec.Struct, frozen=True):
    """The size of one tool in a list, by its public name."""

    server: str
    tool: str
    bytes: int
    tokens_estimate: int
    """A quarter of its bytes."""


class ViewSize(msgspec.Struct, frozen=True):
    """The size of a view's list of tools; null is outside views."""

    view: str | None
    tools: int
    bytes: int
    tokens_estimate: int
    """A quarter of its bytes."""


class Diagnosis(msgspec.Struct, frozen=True):
    """What an operator should know of the running gateway."""

    states: dict[str, str]
    slowest: list[ToolDurations]
    """By p99, at most 10."""
    largest: list[ToolSize]
    """At most 10."""
    views: list[ViewSize]
    findings: list[Finding]
    """Problems first."""


class CallNode(msgspec.Struct, frozen=True):
    """An active call."""

    call: int
    """Its number in this run, as in the logs."""
    method: str
    name: str
    backend: str
    pid: int | None
    age: float
    deadline_in: float
    waits_for: str
    """`queue`, `start`, `backend`, `client` (a user's input), or `delivery`."""


class SessionNode(msgspec.Struct, frozen=True):
    """A client's session, or all modern requests without one."""

    session: str | None
    """Identifies the session; not its id, which is a secret."""
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
    processes: list[int] = []
    """All processes of all its sessions."""


class Tree(msgspec.Struct, frozen=True):
    """Active sessions, calls and processes."""

    pid: int
    sessions: list[SessionNode]
    backends: list[BackendNode]
