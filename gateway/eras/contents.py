"""Downgrades of results for clients of older protocol versions.

Content blocks are closed unions in the SDKs, so a kind that is newer than the negotiated version becomes text
(2025-11-25 basic/lifecycle, "Version Negotiation": both sides must respect it). `structuredContent` must be an object
in the legacy era; any other value is given as text instead. Merely unknown members pass. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway import jsonrpc
from gateway.eras import blocks
from gateway.eras.methods import CONTENT

if TYPE_CHECKING:
    import msgspec

    from gateway.eras.blocks import Members

FIRST_IN: Final = {"audio": "2025-03-26", "resource_link": "2025-06-18"}
"""Kinds of content blocks that the first revision lacks, and the revision that added them. Revisions sort as text."""
NEWEST: Final = max(FIRST_IN.values())
"""The first version whose clients can read all kinds."""


def for_version(method: str, result: bytes, version: str) -> bytes:
    """Convert a result for a legacy client of this version, byte-exact if possible."""
    if version >= NEWEST or CONTENT.get(method) != "blocks":
        return result
    if not any(since > version and b'"%b"' % kind.encode() in result for kind, since in FIRST_IN.items()):
        return result
    try:
        members = jsonrpc.decode_object(result)
    except ValueError:
        return result
    return jsonrpc.encode(members) if downgrade_blocks(members, version) else result


def downgrade_blocks(members: Members, version: str) -> bool:
    """Turn content blocks that this version lacks into text; return whether there were any."""

    def change(block: Members) -> bool:
        kind = blocks.read_string(block, "type")
        if FIRST_IN.get(kind, version) <= version:
            return False
        if kind == "audio":
            media_type = blocks.read_string(block, "mimeType") or "audio"
            size = len(bytes(block.get("data", b""))) * 3 // 4
            text = f"[{media_type}, about {size} bytes, which this client's protocol version cannot carry]"
        else:
            uri, description = blocks.read_string(block, "uri"), blocks.read_string(block, "description")
            title = blocks.read_string(block, "title") or blocks.read_string(block, "name")
            text = f"[{title}]({uri})" if title else f"<{uri}>"
            text = f"{text}: {description}" if description else text
        kept = {name: block[name] for name in ("annotations", "_meta") if name in block}
        block.clear()
        block.update({"type": jsonrpc.raw("text"), "text": jsonrpc.raw(text), **kept})
        return True

    return version < NEWEST and blocks.change_blocks(members, change)


def without_odd_structure(members: Members) -> None:
    """Remove a `structuredContent` that is not an object; ensure that the text contains it."""
    span = members.get("structuredContent")
    if span is None or bytes(span).lstrip().startswith(b"{"):
        return
    del members["structuredContent"]
    try:
        content = jsonrpc.decode_array(members.get("content", b"[]"))
    except ValueError:
        return
    value = _value(span)
    # Servers should serialize it into a text block, perhaps a string verbatim.
    texts = [blocks.read_string(blocks.read(block) or {}, "text") for block in content]
    if not any(text and (text == value or _value(text.encode(errors="replace")) == value) for text in texts):
        text = jsonrpc.one_line(span).decode(errors="replace").strip()
        content.append(jsonrpc.raw({"type": "text", "text": text}))
    members["content"] = jsonrpc.raw(content)


def _value(span: msgspec.Raw | bytes) -> object:
    try:
        return jsonrpc.decode_any(span)
    except jsonrpc.UNDECODABLE:
        return object()  # equals nothing
