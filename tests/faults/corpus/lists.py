"""Servers with faulty lists, as rules of `player.py`: a report becomes a row.

The rows are in `ROWS`. Each row's `rules` are played by a server that lists the tool `t` and the prompt `p` besides.
`tools` and `prompts` are the names that the gateway must list of it, `warnings` parts of the warnings that it must
show, in their order. A row with `declares` gives other capabilities than tools, prompts and resources.
"""

from __future__ import annotations

from typing import Any

SCHEMA = {"type": "object"}


def result(**members: Any) -> dict[str, Any]:
    """A result that fits both eras."""
    return {"jsonrpc": "2.0", "id": "$id", "result": {"resultType": "complete", **members}}


def error(code: int, message: str) -> dict[str, Any]:
    """An error response."""
    return {"jsonrpc": "2.0", "id": "$id", "error": {"code": code, "message": message}}


def rule(method: str, *say: Any, **kwargs: Any) -> dict[str, Any]:
    """Say this in reply to a method; nothing: give no answer."""
    return {"method": method, "say": list(say), **kwargs} if say else {"method": method, "then": "hang"}


def tool(name: str, schema: Any = None) -> dict[str, Any]:
    """A tool's entry."""
    return {"name": name, "inputSchema": SCHEMA if schema is None else schema}


CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
FIRST_PAGE = rule("tools/list", result(tools=[tool("a")], nextCursor="2"), times=1)

ROWS: dict[str, dict[str, Any]] = {
    # modelcontextprotocol/go-sdk#56: capabilities declared by default, and no handler
    "unknown": {
        "rules": [rule("tools/list", error(-32601, "Method not found"))],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["answered tools/list with error -32601: Method not found; no tools are served"],
    },
    "prompts": {
        "rules": [rule("prompts/list", error(-32000, "later"))],
        "tools": ["t"],
        "prompts": [],
        "warnings": ["answered prompts/list with error -32000: later; no prompts are served"],
    },
    # modelcontextprotocol/go-sdk#1119, smart-mcp-proxy/mcpproxy-go#953: an empty slice becomes null
    "null": {
        "rules": [rule("tools/list", result(tools=None))],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["answered tools/list without 'tools'; it counts as an empty list"],
    },
    "missing": {
        "rules": [rule("tools/list", result())],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["answered tools/list without 'tools'; it counts as an empty list"],
    },
    "wrong_type": {
        "rules": [rule("tools/list", result(tools={"t": {}}))],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["answered tools/list without a valid 'tools' array; no tools are served"],
    },
    "cursor": {
        "rules": [rule("tools/list", result(tools=[tool("t")], nextCursor=8))],
        "tools": ["t"],
        "prompts": ["p"],
        "warnings": ["answered tools/list with a nextCursor that is not a string; the list ends there"],
    },
    "second_page": {
        "rules": [FIRST_PAGE, rule("tools/list", error(-32603, "no page 2"))],
        "tools": ["a"],
        "prompts": ["p"],
        "warnings": ["no page 2; the 1 tools before that are served"],
    },
    "silent": {
        "rules": [rule("tools/list")],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["did not answer tools/list in time; no tools are served"],
    },
    # modelcontextprotocol/servers#3051, anthropics/claude-code#88049 #95504, anomalyco/opencode#49464
    "schema": {
        "rules": [rule("tools/list", result(tools=[tool("t"), tool("now", {}), tool("ref", {"$ref": "#/$defs/A"})]))],
        "tools": ["t"],
        "prompts": ["p"],
        "warnings": ["tools[1] left out: tool 'now' has no inputSchema", "tools[2] left out: tool 'ref' has no"],
    },
    # charmbracelet/crush#1447, DeusData/codebase-memory-mcp#1185, esengine/DeepSeek-Reasonix#5918
    "undeclared": {
        "declares": {},
        "rules": [rule("prompts/list", error(-32601, "Method not found"))],
        "tools": ["t"],
        "prompts": [],
        "warnings": [],
    },
    "null_capabilities": {"declares": None, "rules": [], "tools": ["t"], "prompts": ["p"], "warnings": []},
    "other_capabilities": {"declares": {"logging": {}}, "rules": [], "tools": ["t"], "prompts": ["p"], "warnings": []},
}

HTTP_ROWS: dict[str, dict[str, Any]] = {
    "cut": {
        "rules": [{"method": "tools/list", "then": "cut"}],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["broke the connection"],
    },
    "status": {
        "rules": [{"method": "tools/list", "status": 500, "body": "oops", "type": "text/html"}],
        "tools": [],
        "prompts": ["p"],
        "warnings": ["answered tools/list with HTTP 500 and text/html"],
    },
}
"""What only a server over streamable HTTP can do."""


def rules(row: dict[str, Any], era: str) -> list[dict[str, Any]]:
    """The rules of a whole server of this era that plays a row."""
    declared = row.get("declares", {"tools": {}, "prompts": {}, "resources": {}})
    info = {"name": "player", "version": "1"}
    hello = result(supportedVersions=["2026-07-28"], capabilities=declared, ttlMs=0, cacheScope="private")
    if era == "legacy":
        hello = result(protocolVersion="2025-06-18", capabilities=declared, serverInfo=info)
    return [
        rule("server/discover" if era == "modern" else "initialize", hello),
        *row["rules"],
        rule("tools/list", result(tools=[tool("t")])),
        rule("prompts/list", result(prompts=[{"name": "p"}])),
        rule("resources/list", result(resources=[])),
    ]
