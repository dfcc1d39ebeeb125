"""What servers answer with, as people read it: text as it is, all else named. Pure."""

from __future__ import annotations

import json
from typing import Any


def show_block(block: dict[str, Any]) -> str:
    """One content block (2025-11-25 server/tools, "Tool Result")."""
    match block.get("type"):
        case "text":
            return str(block.get("text", ""))
        case "image" | "audio":
            return f"[{block['type']}: {block.get('mimeType', '?')}, {_size(block.get('data'))}]"
        case "resource_link":
            return f"[resource: {block.get('uri')}]" + (f" {block['name']}" if block.get("name") else "")
        case "resource":
            return show_resource(block.get("resource") or {})
        case _:
            return json.dumps(block, ensure_ascii=False)


def show_resource(resource: dict[str, Any]) -> str:
    """What a resource holds."""
    if "text" in resource:
        return str(resource["text"])
    return f"[{resource.get('uri')}: {resource.get('mimeType', '?')}, {_size(resource.get('blob'))}]"


def _size(encoded: Any) -> str:
    return f"{len(encoded) * 3 // 4} bytes" if isinstance(encoded, str) else "no data"
