"""`mcp-gateway import CLIENT`: takes over the servers that an MCP client has in its own config.

What would be run is shown first, with the names of variables but never their values, and nothing is written or
started before the user has agreed. A server that the config has already is left as it is, unless `--force`; one that
`serve` would refuse is skipped and reported.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, cast

import msgspec

from gateway.cli.clients import CLIENTS, Found, read_client, variables_in
from gateway.cli.doctor import examine, show
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import STATE, load
from gateway.cli.output import CommandError, counted, print_error, print_json, warn
from gateway.config import parse_config
from gateway.config.parse import files_of, read_file
from gateway.config.shown import shown_config
from gateway.errors import ConfigError

NEW_MODE: Final = 0o600
"""Of a config that is made here: it may hold keys."""


def run(values: Values) -> int:
    """Show, ask, write; 1 if it was not agreed to, or if a server had to be skipped."""
    client = read_client(values.client, os.environ, Path.cwd(), values.config)
    root, section = _read_own(values.config)
    present: dict[str, Any] = root[section]
    left = [name for name in client.servers if name in present and not values.force]
    shown: dict[str, Any] = {}
    for name in [name for name in client.servers if name not in left]:
        try:
            shown[name] = _check(name, client.servers[name], values.config)
        except ConfigError as exc:
            client.skipped[name] = "; ".join(line.removeprefix(f"server {name!r}: ") for line in exc.problems)
    unset = {name: one["variables"] for name, one in shown.items()}
    unset = {
        name: lacking for name, used in unset.items() if (lacking := [each for each in used if each not in os.environ])
    }
    if values.json:
        found = {"from": str(client.path), "to": str(values.config), "servers": shown, "left_alone": left}
        print_json(found | {"skipped": client.skipped, "own": client.own, "unset": unset})
    else:
        _show(client, shown, left, unset)
    failed = 1 if client.skipped else 0
    if not shown:
        return failed
    if not values.yes:
        if not sys.stdin.isatty():
            problem = "nobody is there to ask"
            raise CommandError(problem, "--yes writes without asking")
        sys.stderr.write(f"write these into {values.config}, and start each once? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
            print_error("nothing was written")
            return 1
    present.update({name: client.servers[name] for name in shown})
    _write(values.config, root)
    print_error(f"{values.config}: added {counted(len(shown), 'server')}; each is started once, to learn what it lists")
    try:
        config = load(values.config)
    except ConfigError as exc:
        warn(f"no server was started: {exc}; see mcp-gateway check {values.config}")
        return failed
    found = examine(msgspec.structs.replace(config, servers={name: config.servers[name] for name in shown}), values)
    if not values.json:
        show(found)
    return failed


def _show(client: Found, shown: dict[str, Any], left: list[str], unset: dict[str, list[str]]) -> None:
    print(f"{client.path}:")
    for name, one in shown.items():
        print(f"  {name}: {one['runs']}")
        for what in ("env", "headers"):
            if one[what]:
                print(f"    {what}: {', '.join(f'{key}=***' for key in one[what])}")
        if one["variables"]:
            print(f"    variables: {', '.join(one['variables'])}")
    if not shown:
        print("  nothing new")
    for name in client.own:
        warn(f"{name!r} is this gateway itself and is left out")
    for name in left:
        warn(f"server {name!r} is in the config already and is left as it is (--force replaces it)")
    for name, why in client.skipped.items():
        warn(f"server {name!r} is skipped: {why}")
    for name, lacking in unset.items():
        warn(f"server {name!r} takes {', '.join(lacking)} from the environment, not set here: set them before 'serve'")


def _check(name: str, raw: dict[str, Any], config: Path) -> dict[str, Any]:
    """What a server would run, without secrets. Raises ConfigError if `serve` would refuse it."""
    files = files_of(config, os.environ)
    server = parse_config({"mcpServers": {name: raw}}, environ=os.environ, files=files).servers[name]
    config_shown = shown_config(server)
    runs = (
        f"connects to {config_shown['url']}"
        if server.command is None
        else " ".join([f"runs {config_shown['command']}", *config_shown["args"]])
    )
    return {
        "runs": runs,
        "env": list(raw.get("env") or {}),
        "headers": list(raw.get("headers") or {}),
        "variables": variables_in(raw),
    }


def _read_own(path: Path) -> tuple[dict[str, Any], str]:
    """Our config as it stands, and the section with its servers; an empty one where there is no file."""
    if not path.exists():
        return {"mcpServers": {}}, "mcpServers"
    data = read_file(path)
    try:
        root: Any = json.loads(data.decode("utf-8-sig"))
    except ValueError:
        raise CommandError(f"{path} is not JSON, so nothing is written into it", f"mcp-gateway check {path}") from None
    section = "servers" if isinstance(root, dict) and "servers" in root else "mcpServers"
    if not isinstance(root, dict) or not isinstance(cast("dict[str, Any]", root).setdefault(section, {}), dict):
        raise CommandError(f"{path} is no config, so nothing is written into it", f"mcp-gateway check {path}")
    return cast("dict[str, Any]", root), section


def _write(path: Path, root: dict[str, Any]) -> None:
    """Replace the file as a whole, or not at all; a symlink stays one, and the mode stays as it was."""
    target = path.resolve()
    text = json.dumps(root, indent=2, ensure_ascii=False) + "\n"
    try:
        mode = target.stat().st_mode & 0o777 if target.exists() else NEW_MODE
        fd, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(fd)
            Path(temporary).chmod(mode)
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as exc:
        problem = f"{path} cannot be written: {exc.strerror or exc}"
        raise CommandError(problem) from None


COMMANDS = (
    Command(
        "import",
        "take over the servers of an MCP client's config",
        run,
        (
            Flag(
                "CLIENT",
                f"{', '.join(CLIENTS)}, or the path of a config file",
                required=True,
                complete=lambda _given: tuple(CLIENTS),
            ),
            Flag("--config", "the config file to write into; it may be new", "FILE", parse=Path, required=True),
            Flag("--yes", "write without asking", switch=True),
            Flag("--force", "replace servers of the same name", switch=True),
            JSON,
            STATE,
        ),
    ),
)
