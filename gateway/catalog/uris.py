"""URIs that two backends list: making them distinct, and rewriting URIs in results.

A URI is a resource's identity, so it changes only in a clash, to `mcp+<server>:<URI>`, which can be converted back
without further data. A page of MCP Apps must keep its scheme: `ui://<rest>` becomes `ui://mcp+<server>/<rest>`. The
server's name is escaped to what RFC 3986 section 3.1 allows in a scheme, in lower case, since URI libraries change the
case of schemes and hosts. Invariant: `split(public(s, u)) == (s, u)`. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.eras import blocks
from gateway.eras.methods import CONTENT

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    Change = Callable[[str], str]
    Members = dict[str, msgspec.Raw]

PAGE: Final = "ui://"
"""Prefix of the URIs of MCP Apps pages."""
PREFIXES: Final = ("mcp+", f"{PAGE}mcp+")
_NAME: Final = r"(?:[a-z0-9-]|\.[0-9a-f]{2})+"
_PUBLIC: Final = re.compile(rf"(?:mcp\+({_NAME}):|{PAGE}mcp\+({_NAME})/)(.*)", re.DOTALL)
_ESCAPED = re.compile(r"\.([0-9a-f]{2})")
_UI_KEY: Final = "ui/resourceUri"
"""The original spelling of `_meta.ui.resourceUri` in MCP Apps."""


def public(backend: str, uri: str) -> str:
    """Return the public URI (or template) of a resource whose own URI is taken."""
    if uri.startswith(PAGE):
        return f"{PAGE}mcp+{_token(backend)}/{uri.removeprefix(PAGE)}"
    return f"mcp+{_token(backend)}:{uri}"


def split(uri: str) -> tuple[str, str] | None:
    """Return the backend and its own URI, if `public` may have made this URI."""
    match = _PUBLIC.fullmatch(uri)
    if match is None:
        return None
    token = match[1] or match[2]
    try:
        name = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), token).encode("latin-1").decode()
    except UnicodeDecodeError:
        return None
    own = match[3] if match[1] else f"{PAGE}{match[3]}"
    return (name, own) if _token(name) == token else None


def split_any_case(uri: str) -> tuple[str, str] | None:
    """Split a URI with scheme and host in any letter case (RFC 3986, 3.1, 3.2.2)."""
    folded = uri[: len(PREFIXES[1])].lower()
    if not folded.startswith(PREFIXES):  # nearly always
        return None
    end = uri.find("/", len(PAGE)) if folded.startswith(PAGE) else uri.find(":")
    return split(uri[:end].lower() + uri[end:]) if end > 0 else None


def _token(backend: str) -> str:
    return "".join(
        chr(byte) if chr(byte) in "abcdefghijklmnopqrstuvwxyz0123456789-" else f".{byte:02x}"
        for byte in backend.encode(errors="replace")
    )


def may_link(result: bytes) -> bool:
    """Return whether a result may contain a URI: cheap, to avoid decoding most results."""
    return b'"uri"' in result or b'esourceUri"' in result


def change_result(method: str, result: bytes, change: Change) -> bytes:
    """Pass every URI of a result through `change`: contents, links, embedded resources, `_meta.ui.resourceUri`.

    Returns the same object if nothing changes; members not in MCP's form stay unchanged.
    """
    try:
        members = jsonrpc.decode_object(result)
    except ValueError:
        return result
    changed = _change_meta(members, change)
    content = CONTENT.get(method)
    if content == "contents":
        changed |= blocks.change_each(members, "contents", lambda inner: _change_uri(inner, change))
    elif content == "blocks":
        changed |= blocks.change_blocks(members, lambda block: _change_block(block, change))
    return jsonrpc.encode(members) if changed else result


def change_item(raw: bytes, change: Change) -> bytes:
    """Pass the URI that a listed tool links to (MCP Apps) through `change`."""
    try:
        members = jsonrpc.decode_object(raw)
        return jsonrpc.encode(members) if _change_meta(members, change) else raw
    except ValueError:
        return raw


def ui_link(raw: bytes) -> str:
    """Return the URI of the page that a listed tool links to, or empty."""
    found: list[str] = []
    if b'esourceUri"' in raw:
        change_item(raw, lambda uri: (found.append(uri), uri)[1])
    return found[0] if found else ""


def _change_block(block: Members, change: Change) -> bool:
    """Change the URI of a content block; only links and embedded resources have one."""
    match bytes(block.get("type", b"")):
        case b'"resource_link"':
            return _change_uri(block, change)
        case b'"resource"':
            return blocks.change_one(block, "resource", lambda inner: _change_uri(inner, change))
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
    def change_meta(own: Members) -> bool:
        changed = _change_uri(own, change, _UI_KEY)
        return blocks.change_one(own, "ui", lambda ui: _change_uri(ui, change, "resourceUri")) or changed

    return blocks.change_one(members, "_meta", change_meta)
