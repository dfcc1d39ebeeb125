"""URIs that two backends list: how one is told apart, where URIs stand in results, and how they are changed there.

A URI is a resource's identity, so it is changed only in a clash, to `mcp+<server>:<URI>`, which says everything that is
needed to change it back. The server's name is escaped to what RFC 3986 section 3.1 allows in a scheme, in lower case,
since URI libraries change the case of schemes. Invariant: `split(public(s, u)) == (s, u)`. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway import jsonrpc

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    Change = Callable[[str], str]
    Members = dict[str, msgspec.Raw]

PREFIX: Final = "mcp+"
_PUBLIC = re.compile(r"mcp\+((?:[a-z0-9-]|\.[0-9a-f]{2})+):(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\.([0-9a-f]{2})")
_UI_KEY: Final = "ui/resourceUri"
"""How MCP Apps spelled `_meta.ui.resourceUri` at first."""


def public(backend: str, uri: str) -> str:
    """The URI (or URI template) under which a backend's resource is offered when another one has its own."""
    return f"{PREFIX}{_token(backend)}:{uri}"


def split(uri: str) -> tuple[str, str] | None:
    """The backend and its own URI, if this is a URI that `public` may have made."""
    match = _PUBLIC.fullmatch(uri)
    if match is None:
        return None
    try:
        name = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), match[1]).encode("latin-1").decode()
    except UnicodeDecodeError:
        return None
    return (name, match[2]) if _token(name) == match[1] else None


def _token(backend: str) -> str:
    return "".join(
        chr(byte) if chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789-" else f".{byte:02x}"
        for byte in backend.encode(errors="replace")
    )


def may_link(result: bytes) -> bool:
    """Whether a result can hold a URI at all: a cheap test that spares nearly all results the decoding."""
    return b'"uri"' in result or b'esourceUri"' in result


def change_result(method: str, result: bytes, change: Change) -> bytes:
    """Pass every URI of a result through `change`: contents, links, embedded resources, `_meta.ui.resourceUri`.

    Returns the very same bytes if nothing changes; what is not of MCP's form stays as it is.
    """
    try:
        members = jsonrpc.decode_object(result)
        changed = _change_meta(members, change)
        match method:
            case "tools/call":
                changed |= _change_each(members, "content", change, _change_block)
            case "prompts/get":
                changed |= _change_each(members, "messages", change, _change_message)
            case "resources/read":
                changed |= _change_each(members, "contents", change, _change_uri)
            case _:
                pass
    except ValueError:
        return result
    return jsonrpc.encode(members) if changed else result


def change_item(raw: bytes, change: Change) -> bytes:
    """Pass the URI that a listed tool links to (MCP Apps) through `change`."""
    try:
        members = jsonrpc.decode_object(raw)
        return jsonrpc.encode(members) if _change_meta(members, change) else raw
    except ValueError:
        return raw


def ui_link(raw: bytes) -> str:
    """The URI of the page that a listed tool links to; empty if it links to none."""
    found: list[str] = []
    if b'esourceUri"' in raw:
        change_item(raw, lambda uri: (found.append(uri), uri)[1])
    return found[0] if found else ""


def _change_each(members: Members, name: str, change: Change, one: Callable[[Members, Change], bool]) -> bool:
    if name not in members:
        return False
    spans: list[object] = []
    changed = False
    for span in jsonrpc.decode_array(members[name]):
        inner = _object(span)
        if inner is not None and one(inner, change):
            spans.append(inner)
            changed = True
        else:
            spans.append(span)
    if changed:
        members[name] = jsonrpc.raw(spans)
    return changed


def _object(span: msgspec.Raw) -> Members | None:
    try:
        return jsonrpc.decode_object(span)
    except ValueError:
        return None


def _change_message(message: Members, change: Change) -> bool:
    content = message.get("content", jsonrpc.ABSENT)
    if bytes(content).lstrip().startswith(b"["):
        return _change_each(message, "content", change, _change_block)
    block = _object(content)
    if block is None or not _change_block(block, change):
        return False
    message["content"] = jsonrpc.raw(block)
    return True


def _change_block(block: Members, change: Change) -> bool:
    """A content block: only links and embedded resources hold URIs that are resources."""
    match bytes(block.get("type", b"")):
        case b'"resource_link"':
            return _change_uri(block, change)
        case b'"resource"':
            inner = _object(block.get("resource", jsonrpc.ABSENT))
            if inner is None or not _change_uri(inner, change):
                return False
            block["resource"] = jsonrpc.raw(inner)
            return True
        case _:
            return False


def _change_uri(members: Members, change: Change, name: str = "uri") -> bool:
    try:
        uri = jsonrpc.decode_string(members[name])
    except (KeyError, ValueError):
        return False
    other = change(uri)
    if other == uri:
        return False
    members[name] = jsonrpc.raw(other)
    return True


def _change_meta(members: Members, change: Change) -> bool:
    own = _object(members.get("_meta", jsonrpc.ABSENT))
    if not own:
        return False
    changed = _change_uri(own, change, _UI_KEY)
    ui = _object(own.get("ui", jsonrpc.ABSENT))
    if ui and _change_uri(ui, change, "resourceUri"):
        own["ui"] = jsonrpc.raw(ui)
        changed = True
    if changed:
        members["_meta"] = jsonrpc.raw(own)
    return changed
