"""Parsing of a whole config, from text or a dict, with every problem reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from gateway.config.access import AccessSettings, read_access
from gateway.config.files import FileReader, SpecialFile, read_at_most
from gateway.config.findings import Findings, Scope, did_you_mean, edit_distance, is_list, is_object, kind, shown
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.config.scalars import read_section
from gateway.config.servers import read_server
from gateway.config.substitution import home_of
from gateway.config.text import SHAPE, check_surrogates, decode, is_toml
from gateway.config.views import read_views
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gateway.config.findings import FileSource

# A config of a thousand servers is 0.3 MB; a larger file is certainly the wrong one.
MAX_CONFIG_BYTES = 16 * 1024 * 1024
_SECTIONS = ("mcpServers", "servers", "gateway", "access", "views")
_LIMITING = ("access", "views")
SLIPS = 2
"""Edit distance within which an unknown section counts as a misspelling of one that restricts clients."""
MISPLACED = "has no effect here; put 'access' and 'views' beside 'mcpServers', and keys into 'access'"
# Sections of other clients in the same file.
_FOREIGN_SECTIONS = frozenset({"globalShortcut", "inputs", "preferences", "sandbox"})


def parse_config(
    data: bytes | str | dict[str, object],
    *,
    environ: Mapping[str, str],
    source: str = "config",
    home: str | None = None,
    files: FileSource | None = None,
) -> Config:
    """Parse a config: MCP clients' `{"mcpServers": {NAME: {...}}}` with this gateway's sections.

    Args:
        data: The text of a file, or its decoded value.
        environ: The variables for `${VAR}`.
        source: The name for messages.
        home: The directory for `~/`; None is `HOME` of `environ`.
        files: Reads the files and runs the commands that the config names; with None it must not name any.

    Returns:
        The configuration, with its `warnings`.

    Raises:
        ConfigError: The configuration is wrong; `problems` has a line for each problem.
    """
    findings = Findings()
    root = data if isinstance(data, dict) else decode(data, findings, source)
    if not is_object(root):
        raise ConfigError([f"{source}: the top level must be an object like {SHAPE}, not {kind(root)}"])
    if isinstance(files, FileReader):
        files.run_ahead(data, lambda collector: _read(root, Findings(), environ, source, home, collector))
    config = _read(root, findings, environ, source, home, files)
    findings.check()
    if not isinstance(data, dict) and not is_toml(source):
        check_surrogates(data, source)
    return structs.replace(config, warnings=tuple(findings.warnings))


def _read(
    root: dict[object, object],
    findings: Findings,
    environ: Mapping[str, str],
    source: str,
    home: str | None,
    files: FileSource | None,
) -> Config:
    _note_sections(root, findings, source)
    servers = _read_servers(root, Scope(findings, "", environ, home, files=files), source)
    section, scope = root.get("gateway"), Scope(findings, "gateway", environ, home, files=files)
    if section is not None and not is_object(section):
        scope.refuse(f"must be an object, not {kind(section)}")
    for key in section if is_object(section) else ():
        if isinstance(key, str) and (key in AccessSettings.__struct_fields__ or _find_meant(key) is not None):
            scope.problem(key, MISPLACED)
    gateway = GatewaySettings(**read_section(scope, GatewaySettings, section if is_object(section) else {}))
    access = read_access(root.get("access"), Scope(findings, "access", environ, home, files=files))
    views = read_views(root.get("views"), findings, environ, servers)
    _note_shared_namespaces(servers, findings)
    return Config(servers, gateway, (), source, access, views, findings.secrets)


def load_config(path: Path, *, environ: Mapping[str, str], home: str | None = None) -> Config:
    """Read and parse one file.

    Args:
        path: The file.
        environ: The variables for `${VAR}`; programs pass `os.environ`.
        home: The directory for `~/`; None is `HOME` of `environ`.

    Returns:
        The configuration, with its `warnings`.

    Raises:
        ConfigError: The file cannot be read, or is wrong; `problems` has a line for each problem.
    """
    return parse_config(
        read_file(path), environ=environ, source=str(path), home=home, files=files_of(path, environ, home)
    )


def files_of(path: Path, environ: Mapping[str, str], home: str | None = None) -> FileReader:
    """Return a reader of the files and commands that a config file names."""
    return FileReader(path.absolute().parent, home or home_of(environ), environ)


def read_file(path: Path) -> bytes:
    """Read the bytes of a config file. Raises ConfigError."""
    try:
        data, _ = read_at_most(path, MAX_CONFIG_BYTES)
    except SpecialFile as error:
        hint = "write the config into it, or name a file" if error.is_pipe else "name a file"
        hint = "name the file in it" if path.is_dir() else hint
        raise ConfigError([f"{path}: {error.reason}; {hint}"]) from None
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file; check its path"]) from None
    except PermissionError:
        raise ConfigError([f"{path}: permission denied; make it readable for this user"]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = (error.strerror if isinstance(error, OSError) else None) or "not a path"
        raise ConfigError([f"{shown(str(path))}: cannot be read: {reason.lower()}"]) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError([f"{path}: is larger than {MAX_CONFIG_BYTES // 2**20} MiB, too large for a config"])
    return data


def _note_sections(root: dict[object, object], findings: Findings, source: str) -> None:
    for key, value in root.items():
        if key in _LIMITING:
            findings.problems.extend(
                f"{source}: {shown(label)} is null, which restricts nothing; give its restrictions, or omit it"
                for label in _find_nulls(value, str(key))
            )
        if key in _SECTIONS or key == "$schema":
            continue
        if key in _FOREIGN_SECTIONS:
            findings.warnings.append(f"{source}: section {shown(key)} belongs to another client and is ignored")
            continue
        meant = _find_meant(key)
        if meant is not None:
            findings.problems.append(
                f"{source}: section {shown(key)} is unknown; write {meant!r} if that is meant, else choose a name less"
                " similar to it: without that section more is open to clients"
            )
        elif key in AccessSettings.__struct_fields__:
            findings.problems.append(f"{source}: section {shown(key)} is unknown; put it into the section 'access'")
        else:
            hint = did_you_mean(key, _SECTIONS) if isinstance(key, str) else ""
            findings.warnings.append(f"{source}: section {shown(key)} is unknown and ignored{hint}")


def _find_meant(key: object) -> str | None:
    """Return the section restricting clients of which this key may be a misspelling."""
    plain = key.casefold() if isinstance(key, str) else ""
    near = (name for name in _LIMITING if abs(len(plain) - len(name)) <= SLIPS)
    return next((name for name in near if edit_distance(plain, name) <= SLIPS), None)


def _find_nulls(value: object, label: str) -> Iterator[str]:
    """Find every null in a section, which must not grant access.

    A template without a value writes null.
    """
    waiting = [(label, value)]
    while waiting:
        label, value = waiting.pop()
        if value is None:
            yield label
        elif is_object(value):
            waiting += [(f"{label}.{key}", member) for key, member in value.items()]
        elif is_list(value):
            waiting += [(f"{label}[{index}]", member) for index, member in enumerate(value)]


def _read_servers(root: dict[object, object], scope: Scope, source: str) -> dict[str, ServerConfig]:
    findings = scope.findings
    sections = [key for key in ("mcpServers", "servers") if key in root]
    if len(sections) != 1:
        near = (key for key in root if isinstance(key, str) and "mcpServers" in did_you_mean(key, _SECTIONS))
        if sections:
            problem = "has both 'mcpServers' and 'servers', which mean the same; keep one"
        elif any(is_object(value) and ("command" in value or "url" in value) for value in root.values()):
            problem = 'the servers must be in a section: {"mcpServers": {...}}'
        elif (slip := next(near, None)) is not None:
            problem = f"has no section 'mcpServers'; is {shown(slip)} a misspelling of it?"
        else:
            problem = f"has no section 'mcpServers'; expected {SHAPE}"
        findings.problems.append(f"{source}: {problem}")
        return {}
    section = root[sections[0]]
    if not is_object(section):
        findings.problems.append(f"{source}: {sections[0]!r} must be an object of servers by name, not {kind(section)}")
        return {}
    servers: dict[str, ServerConfig] = {}
    for name, raw in section.items():
        if isinstance(name, str):
            own = Scope(findings, f"server {shown(name)}", scope.environ, scope.home, files=scope.files)
            servers[name] = read_server(name, raw, own)
            for key in set(_LIMITING).intersection(raw if is_object(raw) else ()):
                own.problem(key, MISPLACED)
        else:
            findings.problems.append(f"{source}: {sections[0]!r} has a name that is not a string but {kind(name)}")
    return servers


def _note_shared_namespaces(servers: dict[str, ServerConfig], findings: Findings) -> None:
    """Warn of shared namespaces, which are valid but make tools of equal names clash."""
    owners: dict[str, str] = {}
    for name, server in servers.items():
        if server.disabled:
            continue
        namespace = server.effective_namespace
        first = owners.setdefault(namespace, name)
        if first != name:
            findings.warnings.append(
                f"server {shown(name)}: field 'namespace' gives {shown(namespace)}, the same as server {shown(first)}; "
                "tools of equal names will clash"
            )
