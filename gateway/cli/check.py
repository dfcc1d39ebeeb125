"""`mcp-gateway check`: validate a config file and show what it would start."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import CONFIG, FILE, STATE, config_path, state_directory
from gateway.cli.output import counted, error, print_error, print_json, warn
from gateway.cli.places import Places
from gateway.config.access import Rules
from gateway.config.findings import Line, shown
from gateway.config.parse import files_of, parse_config, read_file
from gateway.config.shown import secrets_of_config, shown_config
from gateway.config.text import JSONC, plain_json
from gateway.errors import ConfigError
from gateway.masking import SECRETS, Masker
from gateway.reload.overlay import Base
from gateway.reload.source import ConfigSource, raw_servers
from gateway.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from gateway.config import Config


def run(values: Values) -> int:
    """Report on every server; return 2 for an invalid file, 1 for failed starts."""
    config: Config | None = None
    removed: list[str] = []
    problems: Sequence[str] = ()
    warnings: Sequence[str] = ()
    places, path = Places(""), config_path(values)
    try:
        data = read_file(path)  # once, since it may be a pipe
        text = data.decode("utf-8", errors="replace")
        places = Places(plain_json(text) if path.suffix == JSONC else text)
        files = files_of(path, os.environ)
        config = parse_config(data, environ=os.environ, source=str(path), files=files)
        source = ConfigSource(path, environ=os.environ, store=Store(state_directory(values)))
        source.base = Base(config, raw_servers(data, str(path)), files)
        config, removed = source.compose(), source.overlay.removed
        warnings = [*config.warnings, *_missing_programs(config)]
    except ConfigError as exc:
        problems, warnings = exc.lines, exc.warnings
        if values.debug:
            import traceback

            traceback.print_exception(exc)
    started: dict[str, dict[str, Any]] = {}
    if values.start and config is not None:
        from gateway.cli.doctor import examine

        SECRETS.replace(secrets_of_config(config))
        print_error("starting each server once; a first start that downloads something may take long")
        started = examine(config, values)
    status = 2 if config is None else int(not all(one["ok"] for one in started.values()))
    spell = Masker({} if config is None else config.masked).mask
    if values.json:
        print_json({
            "file": str(path),
            "ok": config is not None,
            "problems": [_located(places, line) for line in problems],
            "warnings": [_located(places, line, key=True) for line in warnings],
            "views": [] if config is None else list(config.views),
            "access": None if config is None else spell(_access(config)),
            "servers": {} if config is None else _summaries(config, removed),
            **({"started": started} if values.start else {}),
        })
        return status
    _show(path, places, problems, error)
    _show(path, places, warnings, warn, key=True)
    if config is None:
        return status
    for name, summary in _summaries(config, removed).items():
        print(f"{name}: {summary}")
    for name, view in config.views.items():
        excluded = f" except {', '.join(view.tools.exclude)}" if view.tools.exclude else ""
        print(spell(f"view {name}: servers {', '.join(view.servers)}; tools {', '.join(view.tools.include)}{excluded}"))
    print(f"access: {spell(_access(config))}")
    if started:
        from gateway.cli.doctor import show

        show(started)
    print(f"{path}: ok, {counted(len(config.servers), 'server')}")
    return status


def _missing_programs(config: Config) -> Iterator[Line]:
    from gateway.backends.stdio import child_environment
    from gateway.processes.spawn import find_program

    for server in config.servers.values():
        if server.command is None or server.disabled:
            continue
        if find_program(server.command, child_environment(server, os.environ), server.cwd) is None:
            text = f"names a program that {'does not exist' if os.sep in server.command else 'is not on PATH'}"
            name = shown_config(server)["command"]
            yield Line.about(f"server {shown(server.name)}", "command", f"{text}: {name}; install it, or give its path")


def _show(path: Path, places: Places, lines: Iterable[str], tell: Callable[[str], None], *, key: bool = False) -> None:
    for line in lines:
        tell(line)
        place = places.find(line, key=key)
        if place is not None:
            print_error(f"  --> {path}:{place.line}:{place.column}\n{places.excerpt(place)}")


def _located(places: Places, line: str, *, key: bool = False) -> dict[str, Any]:
    place = places.find(line, key=key)
    return {"message": str(line), **({} if place is None else place._asdict())}


def _summaries(config: Config, removed: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for server in config.servers.values():
        shown = shown_config(server)
        if server.disabled:
            found[server.name] = server.disabled_by
        elif server.command is None:
            transport = server.transport or "streamable-http or sse (probed)"
            found[server.name] = f"{transport}, connects to {shown['url']}"
        else:
            found[server.name] = "stdio, runs " + " ".join([shown["command"], *shown["args"]])
    gone = dict.fromkeys(removed, "removed over the management API; a change of its entry in the file restores it")
    return found | gone


def _access(config: Config) -> str:
    """Summarize the access settings in one line without hashes."""
    access = config.access
    if access is None or not access.requires_credentials:
        return "open to all clients, so the gateway listens on loopback only"
    found: list[str] = []
    if access.keys:
        limited = sum(key.rules != Rules() for key in access.keys)
        found.append(f"{counted(len(access.keys), 'key')} ({limited} limited)")
    if access.oauth is not None:
        found.append(f"tokens of {access.oauth.issuer} for {access.oauth.resource}")
    if access.allow_origins:
        found.append(f"pages from {', '.join(access.allow_origins)}")
    return "; ".join(found)


COMMANDS = (
    Command(
        "check",
        "check a config file and show what it would start",
        run,
        (
            FILE,
            CONFIG,
            Flag(
                "--start", "start each server once, and save its lists, so that clients get complete ones", switch=True
            ),
            JSON,
            STATE,
        ),
    ),
)
