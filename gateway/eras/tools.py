"""A tool's entry in the list, for clients of each class of versions.

Two members differ: `outputSchema`, which must be the schema of an object in the legacy era (SDK clients refuse the
whole list otherwise), and `execution`, which only 2025-11-25 has. The gateway drives tasks itself, so it lists no tool
as a task. Everything else passes (2026-07-28 and 2025-11-25 server/tools). Pure.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from gateway import jsonrpc
from gateway.calls import Era
from gateway.eras import blocks
from gateway.eras.versions import LATEST_LEGACY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.calls import Caller


class View(enum.Enum):
    """Classes of clients that see the same list."""

    MODERN = "modern"
    LATEST = "latest legacy"
    OLDER = "older legacy"

    @property
    def era(self) -> Era:
        """The era of these clients."""
        return Era.MODERN if self is View.MODERN else Era.LEGACY


class _Execution(msgspec.Struct, gc=False):
    taskSupport: str = ""  # noqa: N815 - the wire's name


class _Tool(msgspec.Struct, gc=False):
    execution: _Execution = msgspec.field(default_factory=_Execution)


class _Schema(msgspec.Struct, gc=False):
    type: str = ""


_tools = msgspec.json.Decoder(_Tool)
_schemas = msgspec.json.Decoder(_Schema)


def view_of(caller: Caller) -> View:
    """Return the class that a client belongs to."""
    if caller.era is Era.MODERN:
        return View.MODERN
    return View.LATEST if caller.version == LATEST_LEGACY else View.OLDER


def needs_task(raw: bytes) -> bool:
    """Return whether a tool must be called as a task (2025-11-25 basic/utilities/tasks, "Tool-Level Negotiation")."""
    if b'"taskSupport"' not in raw:
        return False
    try:
        return _tools.decode(raw).execution.taskSupport == "required"
    except jsonrpc.UNDECODABLE:
        return False


def is_for_apps(raw: bytes) -> bool:
    """Return whether a tool's page may call this one (MCP Apps, "Visibility"); by default yes."""
    meta = blocks.read((blocks.read(msgspec.Raw(raw)) or {}).get("_meta")) or {}
    try:
        visibility = jsonrpc.decode_array((blocks.read(meta.get("ui")) or {})["visibility"])
        return "app" in [jsonrpc.decode_string(span) for span in visibility]
    except (KeyError, ValueError):
        return True


def shown(raw: bytes, view: View) -> bytes:
    """Return the entry for clients of this class, byte-exact if nothing must be removed."""
    try:
        if b'"execution"' in raw:
            raw = _without_tasks(raw, view)
        if view is not View.MODERN and b'"outputSchema"' in raw:
            raw = _without_odd_schema(raw)
    except ValueError:
        pass
    return raw


def join_shown(raws: Sequence[bytes], view: View) -> bytes:
    """Return `shown` of many, joined.

    Nearly all pass unchanged: inspecting each would take most of a list's time.
    """
    joined = b",".join(raws)
    if b'"execution"' not in joined and (view is View.MODERN or b'"outputSchema"' not in joined):
        return joined
    return b",".join([shown(raw, view) for raw in raws])


def _without_tasks(raw: bytes, view: View) -> bytes:
    members: dict[str, object] = dict(jsonrpc.decode_object(raw))
    span = members.get("execution")
    if not isinstance(span, msgspec.Raw):
        return raw
    if view is View.LATEST:
        execution = jsonrpc.decode_object(span)
        if bytes(execution.pop("taskSupport", b'"forbidden"')) == b'"forbidden"':
            return raw
        members["execution"] = execution
        if execution:
            return jsonrpc.encode(members)
    del members["execution"]
    return jsonrpc.encode(members)


def _without_odd_schema(raw: bytes) -> bytes:
    members = jsonrpc.decode_object(raw)
    if "outputSchema" not in members:
        return raw
    try:
        kind = _schemas.decode(members["outputSchema"]).type
    except jsonrpc.UNDECODABLE:
        kind = ""
    if kind == "object":
        return raw
    del members["outputSchema"]
    return jsonrpc.encode(members)
