"""Reading of one server, from the object in the file to a `ServerConfig`.

Keys are normalized first (`type` is `transport`, `timeout` is `call_timeout`); then values are substituted, read field
by field, and checked against one another. All problems are collected before anything is raised.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gateway.config.fields import names_by_spelling, specs_of
from gateway.config.files import read_env_file
from gateway.config.findings import Entry, Findings, Scope, is_object, kind, shown
from gateway.config.model import NOT_WRITTEN, ServerConfig
from gateway.config.offered import gather_tools
from gateway.config.scalars import read_field, read_scalar, warn_unknown
from gateway.config.substitution import resolve
from gateway.config.transport import warn_command_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.config.files import FileReader
    from gateway.config.transport import Transport

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_OF_PROCESS = ("args", "env", "cwd", "encoding", "encoding_error_handler")
# A timeout of hours is probably meant in milliseconds.
_LIKELY_MILLISECONDS = 10_000
# Keys of other clients, and the consequence of ignoring them.
FOREIGN_KEYS = {
    "$schema": "",
    "alwaysAllow": "",
    "auth": "",
    "autoApprove": "",
    "description": "",
    "dev": "",
    "gallery": "",
    "trust": "",
    "version": "",
}
_OTHER_SPELLINGS = {"httpUrl": "url", "serverUrl": "url", "uri": "url", "cmd": "command", "environment": "env"}


def parse_server(
    name: str,
    raw: object,
    *,
    environ: Mapping[str, str],
    files: FileReader | None = None,
) -> ServerConfig:
    """Read one server in the config file's format. Raises ConfigError with all problems.

    Warnings are dropped.
    """
    owner, findings = f"server {shown(name)}", Findings()
    if files is not None:
        files.run_ahead(raw, lambda source: read_server(name, raw, Scope(Findings(), owner, environ, files=source)))
    server = read_server(name, raw, Scope(findings, owner, environ, files=files))
    findings.check()
    return server


def read_server(name: str, raw: object, scope: Scope) -> ServerConfig:
    """Read one server; report problems to the scope and use defaults in their place."""
    if _NAME.fullmatch(name) is None:
        better = re.sub(r"[^A-Za-z0-9_-]+", "-", name[:64]).strip("-") or "server"
        scope.refuse(f"a name is 1 to 64 letters, digits, '_' and '-'; call it {better!r} instead")
    if not is_object(raw):
        scope.refuse(f'must be an object like {{"command": "..."}} or {{"url": "..."}}, not {kind(raw)}')
        return ServerConfig(name=name)
    written = _canonical(scope, gather_tools(raw))
    disabled = _read_disabled(scope, written)
    scope.lenient = disabled
    written.pop("disabled", None)
    entries: dict[str, Entry] = {}
    values: dict[str, Any] = {}
    variables: dict[str, str] = {}
    if "env_file" in written:  # before the other fields, which may use its variables
        label, path = written["env_file"]
        entry = Entry(label, resolve(scope, label, path), path)
        if not scope.unresolved:
            variables = read_env_file(scope, entry)
        scope.environ = {**scope.environ, **variables}
        for variable, value in variables.items():
            scope.note_secret(value, f"${{{variable}}}")
    for key, (label, raw_value) in written.items():
        known = scope.unresolved
        entry = entries[key] = Entry(label, resolve(scope, label, raw_value), raw_value)
        if scope.unresolved == known:
            values[key] = value = read_field(scope, specs_of(ServerConfig)[key], entry)
            if key.endswith("_timeout") and value is not None and value >= _LIKELY_MILLISECONDS:
                scope.warn(label, f"is {value:g} seconds; if milliseconds were meant, write {value / 1000:g}")
        elif key in {"command", "url"}:
            values[key] = entry.value  # the literal text
    values["transport"] = _resolve_transport(scope, entries, values.get("transport"))
    if variables:
        values["env"] = {**variables, **values.get("env", {})}
    server = ServerConfig(name=name, disabled=disabled, masked=scope.secrets, **values)
    if "oauth" in entries and server.oauth is not None:
        if server.command is not None:
            scope.warn("oauth", "is ignored: it applies only to servers with 'url'")
        elif server.url is not None and not server.uses_oauth:
            scope.warn("oauth", "is ignored: 'headers' or 'url' already has credentials")
    return server


def _canonical(scope: Scope, raw: dict[object, object]) -> dict[str, tuple[str, object]]:
    """Return the known fields by name, with their keys in the file; omit nulls."""
    names = names_by_spelling(ServerConfig)
    written: dict[str, tuple[str, object]] = {}
    for label, value in raw.items():
        if not isinstance(label, str):
            scope.refuse(f"has a key that is not a string but {kind(label)}")
            continue
        key = names.get(label, label)
        if key in FOREIGN_KEYS:
            scope.warn(key, f"belongs to another client and is ignored{FOREIGN_KEYS[key]}")
        elif key == "name":
            scope.warn(key, "is ignored: the server's key is its name")
        elif key in _OTHER_SPELLINGS:
            scope.warn(key, f"is unknown and ignored; did you mean {_OTHER_SPELLINGS[key]!r}?")
        elif key.startswith(("_", "//", "#")):
            scope.warn(key, "is ignored as a comment")
        elif key in NOT_WRITTEN or (key not in names and key != "enabled"):
            warn_unknown(scope, label, {name: None for name in names if name not in NOT_WRITTEN})
        elif value is not None:
            if key in written and written[key][1] != value:
                scope.problem(label, f"contradicts {written[key][0]!r}, which has the same meaning; keep one")
            written[key] = (label, value)
    return written


def _read_disabled(scope: Scope, written: dict[str, tuple[str, object]]) -> bool:
    """Return whether the server is disabled, by either `disabled` or `enabled: false`."""
    spec = specs_of(ServerConfig)["disabled"]
    found: dict[str, bool] = {}
    for key in ("disabled", "enabled"):
        if key in written:
            label, raw = written[key]
            found[key] = read_scalar(scope, spec, Entry(label, resolve(scope, label, raw), raw))
    enabled = found.get("enabled", not found.get("disabled"))
    written.pop("enabled", None)
    if "disabled" in found and found["disabled"] == enabled:
        scope.problem("enabled", "contradicts 'disabled'; keep one")
    return not enabled


def _resolve_transport(scope: Scope, entries: dict[str, Entry], transport: Transport | None) -> Transport | None:
    """Check `command`, `url` and `transport` together; return None to probe the URL."""
    command, url = entries.get("command"), entries.get("url")
    if command is not None and url is not None:
        scope.refuse("has both 'command' and 'url'; keep exactly one of them")
        return transport
    if command is None and url is None:
        scope.refuse("needs exactly one of 'command' (a program to start) and 'url' (a server to reach)")
        return transport
    label = entries["transport"].label if "transport" in entries else "transport"
    if command is None:
        if transport == "stdio":
            scope.problem(label, "is 'stdio', which needs 'command' instead of 'url'")
        for key in _OF_PROCESS:
            if key in entries:
                scope.warn(entries[key].label, "is ignored: it applies only to servers with 'command'")
        return transport
    if transport not in {None, "stdio"}:
        scope.problem(label, f"is {transport!r}, which needs 'url' instead of 'command'")
    if "args" not in entries:
        warn_command_line(scope, command)
    if "headers" in entries:
        scope.warn("headers", "is ignored: it applies only to servers with 'url'")
    return "stdio"
