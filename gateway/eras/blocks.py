"""Content blocks in results and requests, some of which are changed in place.

Tools answer with `content`, prompts and sampling requests carry `messages`. Anything not in MCP's form is ignored, and
unchanged parts keep their bytes. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    Members = dict[str, msgspec.Raw]
    Change = Callable[[Members], bool]
    """Changes an object in place; returns whether it did."""


def change_blocks(members: Members, change: Change) -> bool:
    """Pass every content block among the members through `change`; return whether any changed."""

    def change_message(message: Members) -> bool:
        if bytes(message.get("content", b"")).lstrip().startswith(b"["):
            return change_each(message, "content", change)
        return change_one(message, "content", change)

    changed = change_each(members, "content", change) if "content" in members else False
    return (change_each(members, "messages", change_message) if "messages" in members else False) or changed


def change_each(members: Members, name: str, change: Change) -> bool:
    """Pass every object in the array `members[name]` through `change`."""
    try:
        spans = jsonrpc.decode_array(members.get(name, jsonrpc.ABSENT))
    except ValueError:
        return False
    changed = False
    for index, span in enumerate(spans):
        inner = read(span)
        if inner is not None and change(inner):
            spans[index] = jsonrpc.raw(inner)
            changed = True
    if changed:
        members[name] = jsonrpc.raw(spans)
    return changed


def change_one(members: Members, name: str, change: Change) -> bool:
    """Pass the object `members[name]` through `change`."""
    inner = read(members.get(name))
    if inner is None or not change(inner):
        return False
    members[name] = jsonrpc.raw(inner)
    return True


def read(span: msgspec.Raw | None) -> Members | None:
    """Return the members of an object; None for anything else."""
    try:
        return None if span is None else jsonrpc.decode_object(span)
    except ValueError:
        return None


def read_string(members: Members, name: str) -> str:
    """Return a string member; empty if there is none."""
    try:
        return jsonrpc.decode_string(members[name])
    except (KeyError, ValueError):
        return ""
