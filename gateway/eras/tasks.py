"""Tasks in both eras: a call that goes on behind `tasks/get`, which the gateway drives so that no client notices.

Legacy: 2025-11-25 basic/utilities/tasks, where the client asks for a task. Modern: the extension
`io.modelcontextprotocol/tasks` (SEP-2663), where the server decides and the client must have declared it. Nothing of
either is shown to clients. Pure: how tasks are spelled; `gateway.backends.session.tasks` does the driving.
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
"""Seconds; a server that asks for quicker polling must not make us spin."""
LONGEST_POLL: Final = 60.0
"""Seconds; a client waits at the other end, and a server that says hours would never be asked again."""
USUAL_POLL: Final = 1.0
"""Seconds, where the server does not say how often it wants to be asked."""


class State(msgspec.Struct, kw_only=True):
    """What a server says of a task; `result`, `error` and `inputRequests` only in the modern era."""

    taskId: str = ""  # noqa: N815 - the wire's name
    status: str = ""
    pollInterval: float | None = None  # noqa: N815 - the wire's name
    pollIntervalMs: float | None = None  # noqa: N815 - the wire's name
    result: msgspec.Raw = jsonrpc.ABSENT
    error: msgspec.Raw = jsonrpc.ABSENT
    inputRequests: dict[str, InputRequest] | None = None  # noqa: N815 - the wire's name

    @property
    def pause(self) -> float:
        """Seconds until the task should be asked about again."""
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
    """The task that an answer to a call stands for; None if the answer is the call's own result."""
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
    """The answer to `tasks/get`; None if it is none."""
    try:
        state = jsonrpc.read(_states, result)
    except jsonrpc.UNDECODABLE:
        return None
    return state if state.status else None


def modern_outcome(state: State, backend: str) -> Outcome:
    """How a modern task that has ended ends its call."""
    if state.status == "completed" and bytes(state.result).lstrip().startswith(b"{"):
        return Complete(bytes(state.result), Era.MODERN)
    if state.status == "failed" and state.error is not jsonrpc.ABSENT:
        body = jsonrpc.decode_error(state.error)
        return Failure(body.code, body.message, None if body.data is jsonrpc.ABSENT else bytes(body.data), Era.MODERN)
    return BackendProtocol(backend, f"ended the task of this call as {state.status!r}, without a result")


def is_wanted(failure: Outcome) -> bool:
    """Whether a modern server refuses a call because it can only do it as a task."""
    if not isinstance(failure, Failure) or failure.code != MISSING_CAPABILITY or failure.data is None:
        return False
    required = blocks.read(msgspec.Raw(failure.data)) or {}
    capabilities = blocks.read(required.get("requiredCapabilities")) or {}
    return EXTENSION in (blocks.read(capabilities.get("extensions")) or {})


def with_extension(capabilities: msgspec.Raw) -> msgspec.Raw:
    """A client's capabilities, and that the gateway drives tasks for it."""
    members = blocks.read(capabilities) or {}
    extensions = blocks.read(members.get("extensions")) or {}
    return jsonrpc.raw({**members, "extensions": {**extensions, EXTENSION: {}}})


# What belongs to a task says so in its `_meta` ("Associating Task-Related Messages").


def related(params: dict[str, msgspec.Raw]) -> str:
    """The id of the task that a message belongs to; empty if it belongs to none."""
    own = blocks.read(params.get("_meta")) or {}
    return blocks.read_string(blocks.read(own.get(RELATED)) or {}, "taskId")


def unrelated_result(result: bytes) -> bytes:
    """A task's result as the plain call would have given it."""
    members = blocks.read(msgspec.Raw(result)) or {}
    return jsonrpc.encode(members) if meta.drop_key(members, RELATED) else result


def relate(result: bytes, task_id: str) -> bytes:
    """A client's answer with the mark of the task that it belongs to."""
    members = blocks.read(msgspec.Raw(result)) or {}
    own = blocks.read(members.get("_meta")) or {}
    return jsonrpc.encode({**members, "_meta": {**own, RELATED: {"taskId": task_id}}})
