"""Tasks in both eras: calls polled with `tasks/get`, invisibly to clients.

Legacy: 2025-11-25 basic/utilities/tasks, where the client requests a task. Modern: the extension
`io.modelcontextprotocol/tasks` (SEP-2663), where the server decides and the client must have declared it. Pure: the
encoding of tasks; `gateway.backends.session.tasks` drives them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from gateway import jsonrpc
from gateway.calls import Complete, Era, Failure
from gateway.eras import blocks, meta
from gateway.eras.asks import InputRequest  # noqa: TC001 - msgspec reads it at run time
from gateway.eras.errors import MISSING_CAPABILITY
from gateway.errors import BackendProtocol

if TYPE_CHECKING:
    from gateway.calls import Outcome

EXTENSION: Final = "io.modelcontextprotocol/tasks"
RELATED: Final = "io.modelcontextprotocol/related-task"
ENDED: Final = frozenset({"completed", "failed", "cancelled"})
LEAST_POLL: Final = 0.02
"""Seconds; a server that requests faster polling must not make the gateway spin."""
LONGEST_POLL: Final = 60.0
"""Seconds; a client is waiting, and an interval of hours would in effect stop the polling."""
USUAL_POLL: Final = 1.0
"""Seconds, if the server requests no interval."""


class State(msgspec.Struct, kw_only=True):
    """The state of a task; `result`, `error` and `inputRequests` only in the modern era."""

    taskId: str = ""  # noqa: N815 - the wire's name
    status: str = ""
    pollInterval: float | None = None  # noqa: N815 - the wire's name
    pollIntervalMs: float | None = None  # noqa: N815 - the wire's name
    result: msgspec.Raw = jsonrpc.ABSENT
    error: msgspec.Raw = jsonrpc.ABSENT
    inputRequests: dict[str, InputRequest] | None = None  # noqa: N815 - the wire's name

    @property
    def pause(self) -> float:
        """Seconds until the next poll."""
        asked = self.pollInterval if self.pollIntervalMs is None else self.pollIntervalMs
        return USUAL_POLL if asked is None else min(max(asked / 1000, LEAST_POLL), LONGEST_POLL)


class _LegacyCreated(msgspec.Struct):
    task: State


class _ModernCreated(msgspec.Struct):
    resultType: str  # noqa: N815 - the wire's name


_states = msgspec.json.Decoder(State)
_legacy_created = msgspec.json.Decoder(_LegacyCreated)
_modern_created = msgspec.json.Decoder(_ModernCreated)


def read_created(result: msgspec.Raw | bytes, era: Era) -> State | None:
    """Return the task in the response to a call; None for an ordinary result."""
    try:
        if era is Era.LEGACY:
            state = jsonrpc.read(_legacy_created, result).task
        elif jsonrpc.read(_modern_created, result).resultType == "task":
            state = jsonrpc.read(_states, result)
        else:
            return None
    except jsonrpc.UNDECODABLE:
        return None
    return state if state.taskId else None


def read_state(result: bytes) -> State | None:
    """Return the response to `tasks/get`; None if it is not valid."""
    try:
        state = jsonrpc.read(_states, result)
    except jsonrpc.UNDECODABLE:
        return None
    return state if state.status else None


def modern_outcome(state: State, backend: str) -> Outcome:
    """Return the outcome of the call whose modern task has ended."""
    if state.status == "completed" and bytes(state.result).lstrip().startswith(b"{"):
        return Complete(bytes(state.result), Era.MODERN)
    if state.status == "failed" and state.error is not jsonrpc.ABSENT:
        body = jsonrpc.decode_error(state.error)
        return Failure(body.code, body.message, None if body.data is jsonrpc.ABSENT else bytes(body.data), Era.MODERN)
    return BackendProtocol(backend, f"ended the task of this call as {state.status!r}, without a result")


def is_wanted(failure: Outcome) -> bool:
    """Return whether a modern server refuses a call for not being a task."""
    if not isinstance(failure, Failure) or failure.code != MISSING_CAPABILITY or failure.data is None:
        return False
    required = blocks.read(msgspec.Raw(failure.data)) or {}
    capabilities = blocks.read(required.get("requiredCapabilities")) or {}
    return EXTENSION in (blocks.read(capabilities.get("extensions")) or {})


def with_extension(capabilities: msgspec.Raw) -> msgspec.Raw:
    """Return a client's capabilities with the extension for tasks, which the gateway drives for it."""
    members = blocks.read(capabilities) or {}
    extensions = blocks.read(members.get("extensions")) or {}
    return jsonrpc.raw({**members, "extensions": {**extensions, EXTENSION: {}}})


# A message of a task names it in its `_meta` ("Associating Task-Related Messages").


def related(params: dict[str, msgspec.Raw]) -> str:
    """Return the id of the task that a message belongs to, or empty."""
    own = blocks.read(params.get("_meta")) or {}
    return blocks.read_string(blocks.read(own.get(RELATED)) or {}, "taskId")


def unrelated_result(result: bytes) -> bytes:
    """Return a task's result as the plain call would have returned it."""
    members = blocks.read(msgspec.Raw(result)) or {}
    return jsonrpc.encode(members) if meta.drop_key(members, RELATED) else result


def relate(result: bytes, task_id: str) -> bytes:
    """Return a client's response with the mark of its task."""
    members = blocks.read(msgspec.Raw(result)) or {}
    own = blocks.read(members.get("_meta")) or {}
    return jsonrpc.encode({**members, "_meta": {**own, RELATED: {"taskId": task_id}}})
