"""Configs of MCP clients: the location of each client's config, and conversion of its servers.

All use JSON, some with comments; Codex uses TOML. Variables and placeholders of every client become `${NAME:-}`, which
is empty if unset, so that a missing variable never prevents the start of the gateway. Only `read_client` reads files.
"""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from gateway.cli.output import CommandError
from gateway.cli.stateful import with_session
from gateway.config.parse import read_file
from gateway.config.substitution import KNOWN_TO_ALL, home_of
from gateway.config.text import plain_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CLIENTS = ("claude", "claude-code", "cursor", "vscode", "windsurf", "codex", "gemini", "opencode", "copilot")
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_-]+")
_KEPT = (
    "type", "command", "args", "env", "cwd", "url", "headers", "disabled", "enabled", "envFile", "oauth", "tools",
    "includeTools", "excludeTools", "enabledTools", "disabledTools", "enabled_tools", "disabled_tools",
)  # fmt: skip
_VARIABLE = re.compile(r"\$\{(env:|input:|)([A-Za-z_][\w. -]*)\}", re.ASCII)
_OPENCODE = re.compile(r"\{(env|file):([^}]+)\}")
_GEMINI = re.compile(r"\$([A-Za-z_]\w*)", re.ASCII)
_REFERENCE = re.compile(r"\$\{(\w+):-\}", re.ASCII)


class Found(NamedTuple):
    """A client's converted servers, the reasons for skipping others, and the entries of this gateway."""

    path: Path
    servers: dict[str, dict[str, Any]]
    skipped: dict[str, str]
    own: list[str]
    names: dict[str, str]
    """The client's own name of each."""


def places(client: str, environ: Mapping[str, str], folder: Path, platform: str = sys.platform) -> list[Path]:
    """Return a client's config files in order of precedence; `folder` is the project."""
    home = Path(home_of(environ) or "~")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    if platform == "win32":
        data = Path(environ.get("APPDATA") or home / "AppData" / "Roaming")
    elif platform == "darwin":
        data = home / "Library" / "Application Support"
    else:
        data = config
    opencode = [base / f"opencode.{end}" for base in (folder, config / "opencode") for end in ("json", "jsonc")]
    return {
        "claude": [data / "Claude" / "claude_desktop_config.json"],
        "claude-code": [folder / ".mcp.json", Path(environ.get("CLAUDE_CONFIG_DIR") or home) / ".claude.json"],
        "cursor": [folder / ".cursor" / "mcp.json", home / ".cursor" / "mcp.json"],
        "vscode": [folder / ".vscode" / "mcp.json", data / "Code" / "User" / "mcp.json"],
        "windsurf": [home / ".codeium" / "windsurf" / "mcp_config.json"],
        "codex": [Path(environ.get("CODEX_HOME") or home / ".codex") / "config.toml"],
        "gemini": [base / ".gemini" / "settings.json" for base in (folder, home)],
        "opencode": opencode,
        "copilot": [folder / ".mcp.json", Path(environ.get("COPILOT_HOME") or home / ".copilot") / "mcp-config.json"],
    }[client]


def read_client(client: str, environ: Mapping[str, str], folder: Path, target: Path | None) -> Found:
    """Read the servers of a client or file for the config `target`.

    Return them with the first file's path. Entries that run a gateway with this config are its own; without a `target`
    all that run a gateway are.

    Raises:
        CommandError: there is none, or it is invalid.
    """
    existing = [Path(client)]
    if client in CLIENTS:
        tried = places(client, environ, folder)
        existing = [path for path in tried if path.is_file()]
        if not existing:
            problem = f"{client} has no config here; looked at {', '.join(map(str, tried))}"
            raise CommandError(problem, "name its file: mcp-gateway import FILE")
    found = Found(existing[0], {}, {}, [], {})
    for path in existing:
        for name, raw in _read_entries(path, folder).items():
            ours = _NOT_A_NAME.sub("-", name).strip("-")[:64] or "server"
            first = found.names.setdefault(ours, name)
            if first != name:
                found.skipped[name] = f"its name would be {ours!r} here, like that of {first!r}"
            if first != name or ours in found.servers or ours in found.skipped or ours in found.own:
                continue  # in a file of lower precedence
            try:
                if runs_gateway(raw, target, folder):
                    found.own.append(ours)
                else:
                    spell = partial(_spell, raw=raw, path=path, environ=environ, folder=folder)
                    found.servers[ours] = _change_texts(_converted(raw), spell)
            except (AttributeError, TypeError, ValueError):  # a member of the wrong type
                found.skipped[ours] = "its entry is not a valid server"
    return found


def _read_entries(path: Path, folder: Path) -> dict[str, Any]:
    """Return the servers in all sections of a client's file, except other projects'."""
    if path.suffix in {".yaml", ".yml"}:
        problem = f"{path}: YAML is not supported yet"
        raise CommandError(problem, "write its servers as JSON, and import that file")
    data = read_file(path)
    try:
        text = data.decode("utf-8-sig")
        if path.suffix == ".toml":
            import tomllib

            parsed: Any = tomllib.loads(text)
        else:
            parsed = json.loads(plain_json(text))
    except ValueError as exc:
        problem = f"{path} is invalid: {exc}"
        raise CommandError(problem) from None
    root = cast("dict[str, Any]", parsed if isinstance(parsed, dict) else {})
    inner: dict[str, Any] = root["mcp"] if isinstance(root.get("mcp"), dict) else {}
    projects: dict[str, Any] = root.get("projects") or {}
    project: dict[str, Any] = projects.get(str(folder)) or {}
    sections: list[Any] = [
        project.get("mcpServers"),
        *(root.get(name) for name in ("mcpServers", "servers", "mcp_servers")),
        inner.get("servers"),  # the settings of VS Code
        {name: raw for name, raw in inner.items() if isinstance(raw, dict) and "type" in raw},  # opencode
    ]
    found: dict[str, Any] = {}
    for section in sections:
        if isinstance(section, dict):
            for name, raw in cast("dict[str, Any]", section).items():
                found.setdefault(name, raw)
    # Gemini CLI disables servers here.
    allowed: list[str] = inner.get("allowed") or list(found)
    excluded: list[str] = inner.get("excluded") or []
    off = [name for name in found if name in excluded or name not in allowed]
    return found | {name: {**found[name], "disabled": True} for name in off if isinstance(found[name], dict)}


def runs_gateway(raw: dict[str, Any], target: Path | None = None, folder: Path | None = None) -> bool:
    """Return whether an entry starts a gateway.

    With `target`, only one with that config or without any counts.
    """
    command: Any = raw.get("command")
    parts: list[str] = [*(command if isinstance(command, list) else [command or ""]), *raw.get("args", ())]
    words = [word for part in parts for word in str(part).split("=", 1)]
    is_module = any(pair == ("-m", "gateway") for pair in pairwise(words))
    if not is_module and not any(Path(word).stem == "mcp-gateway" for word in words):
        return False
    config = next((value for word, value in pairwise(words) if word == "--config"), None)
    if config is None or target is None:
        return True
    return ((folder or Path()) / Path(config).expanduser()).resolve() == target.resolve()


def _converted(raw: dict[str, Any]) -> dict[str, Any]:
    """Convert one server and drop settings specific to its client."""
    made = {key: raw[key] for key in _KEPT if raw.get(key) is not None}
    for other in ("serverUrl", "httpUrl"):
        if other in raw:
            made["url"] = raw[other]
    if made.get("type") in {"local", "remote"}:  # the other keys determine the transport
        del made["type"]
    if isinstance(made.get("command"), list):  # opencode
        made["command"], *made["args"] = made["command"] or [""]
    if raw.get("environment"):
        made.setdefault("env", raw["environment"])
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
    return with_session(made)


def _change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with each of its strings changed, except keys."""
    if isinstance(value, dict):
        return {key: _change_texts(item, change) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_change_texts(item, change) for item in cast("list[Any]", value)]
    return change(value) if isinstance(value, str) else value


def _spell(text: str, *, raw: dict[str, Any], path: Path, environ: Mapping[str, str], folder: Path) -> str:
    """Convert variables and placeholders in a client's text to our spelling."""
    if path.stem == "opencode" or isinstance(raw.get("command"), list):
        base = path.absolute().parent
        text = _OPENCODE.sub(
            lambda match: f"${{{match[2]}}}" if match[1] == "env" else f"${{file:{base / match[2]}}}", text
        )
    if path.parent.name == ".gemini":
        text = _GEMINI.sub(r"${\1}", text)
    home = home_of(environ) or "~"
    meanings = {"userHome": home, "workspaceFolder": str(folder), "workspaceFolderBasename": folder.name}
    for name, meaning in (meanings | {"/": "/", "pathSeparator": "/"}).items():
        text = text.replace(f"${{{name}}}", meaning)
    return _VARIABLE.sub(_variable, text)


def _variable(match: re.Match[str]) -> str:
    kind, name = match[1], match[2]
    if kind == "input:":
        name = re.sub(r"\W", "_", name, flags=re.ASCII).upper()
    return match[0] if re.search(r"\W", name, re.ASCII) or name in KNOWN_TO_ALL else f"${{{name}:-}}"


def variables_in(raw: dict[str, Any]) -> list[str]:
    """Return the environment variables that a converted server uses."""
    return list(dict.fromkeys(_REFERENCE.findall(json.dumps(raw))))
