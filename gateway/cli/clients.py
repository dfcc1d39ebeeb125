"""The configs of MCP clients: where each keeps its own, and its servers in the form of ours.

Claude Desktop, Claude Code, Cursor, VS Code and Windsurf write JSON, some of it with comments; Codex writes TOML. Only
`read_client` reads files.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gateway.cli.output import CommandError
from gateway.config.parse import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

CLIENTS = ("claude", "claude-code", "cursor", "vscode", "windsurf", "codex")
# A string, which may hold what looks like a comment, or a comment, or a comma before a closing bracket.
_JSONC = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/|,(?=(?:\s|//[^\n]*|/\*.*?\*/)*[}\]])', re.DOTALL)
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_KEPT = (
    "type", "command", "args", "env", "cwd", "url", "headers", "disabled", "enabled", "envFile", "oauth",
    "includeTools", "excludeTools", "enabledTools", "disabledTools", "enabled_tools", "disabled_tools",
)  # fmt: skip


def places(client: str, environ: Mapping[str, str], folder: Path, platform: str = sys.platform) -> list[Path]:
    """Where a client keeps its servers, what counts most first; `folder` is the project that somebody works in."""
    home = Path(environ.get("HOME") or environ.get("USERPROFILE") or "~")
    if platform == "win32":
        data = Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "claude": [data / "Claude" / "claude_desktop_config.json"],
        "claude-code": [folder / ".mcp.json", home / ".claude.json"],
        "cursor": [folder / ".cursor" / "mcp.json", home / ".cursor" / "mcp.json"],
        "vscode": [folder / ".vscode" / "mcp.json", data / "Code" / "User" / "mcp.json"],
        "windsurf": [home / ".codeium" / "windsurf" / "mcp_config.json"],
        "codex": [Path(environ.get("CODEX_HOME") or home / ".codex") / "config.toml"],
    }[client]


def read_client(client: str, environ: Mapping[str, str], folder: Path) -> tuple[Path, dict[str, dict[str, Any]]]:
    """The servers of a client, or of a file; returns the file that counts most too.

    Raises:
        CommandError: there is none, or it cannot be understood.
    """
    if client not in CLIENTS:
        return Path(client), read_servers(Path(client), read_file(Path(client)), folder)
    tried = places(client, environ, folder)
    existing = [path for path in tried if path.is_file()]
    if not existing:
        problem = f"{client} has no config here; looked at {', '.join(map(str, tried))}"
        raise CommandError(problem, "name its file: mcp-gateway import FILE")
    found: dict[str, dict[str, Any]] = {}
    for path in existing:
        for name, raw in read_servers(path, read_file(path), folder).items():
            found.setdefault(name, raw)
    return existing[0], found


def read_servers(path: Path, data: bytes, folder: Path) -> dict[str, dict[str, Any]]:
    """The servers in a client's file, in the form of ours. Raises CommandError."""
    try:
        text = data.decode("utf-8-sig")
        root: Any = (
            _toml(text) if path.suffix == ".toml" else json.loads(_JSONC.sub(lambda match: match[1] or "", text))
        )
    except ValueError as exc:
        problem = f"{path} cannot be understood: {exc}"
        raise CommandError(problem) from None
    found = _sections(cast("dict[str, Any]", root), folder) if isinstance(root, dict) else {}
    return {_NOT_A_NAME.sub("-", name).strip("-")[:64] or "server": _converted(raw) for name, raw in found.items()}


def _toml(text: str) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(text)


def _sections(root: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Every section that holds servers; those of one project only where that is the one."""
    inner: Any = root.get("mcp")
    projects: dict[str, Any] = root.get("projects") or {}
    project: dict[str, Any] = projects.get(str(folder)) or {}
    sections: list[Any] = [
        project.get("mcpServers"),
        *(root.get(name) for name in ("mcpServers", "servers", "mcp_servers")),
        cast("dict[str, Any]", inner).get("servers") if isinstance(inner, dict) else None,
    ]
    found: dict[str, dict[str, Any]] = {}
    for section in sections:
        if isinstance(section, dict):
            for name, raw in cast("dict[str, Any]", section).items():
                if isinstance(raw, dict):
                    found.setdefault(name, cast("dict[str, Any]", raw))
    return found


def _converted(raw: dict[str, Any]) -> dict[str, Any]:
    """One server without what only its client understands."""
    made = {key: raw[key] for key in _KEPT if raw.get(key) is not None}
    for other in ("serverUrl", "httpUrl"):
        if other in raw:
            made.setdefault("url", raw[other])
    headers: dict[str, Any] = {**(raw.get("headers") or {}), **(raw.get("http_headers") or {})}
    from_variables: dict[str, str] = raw.get("env_http_headers") or {}
    for header, variable in from_variables.items():
        headers[header] = f"${{{variable}}}"
    if raw.get("bearer_token_env_var"):
        headers["Authorization"] = f"Bearer ${{{raw['bearer_token_env_var']}}}"
    if headers:
        made["headers"] = headers
    forwarded: list[Any] = raw.get("env_vars") or []
    if forwarded:
        made["env"] = {**{name: f"${{{name}}}" for name in forwarded if isinstance(name, str)}, **made.get("env", {})}
    for key, seconds in (("startup_timeout_sec", "connect_timeout"), ("tool_timeout_sec", "call_timeout")):
        if raw.get(key):
            made[seconds] = raw[key]
    return made
