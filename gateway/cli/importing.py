"""`mcp-gateway import CLIENT`: takes over the servers that an MCP client has in its own config.

What would be run is shown first, with the names of variables but never their values, and nothing is written before
somebody has said yes. A server that the config has already is left as it is, unless `--force`.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, cast

from gateway.cli.clients import CLIENTS, read_client
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.output import CommandError, print_error, print_json, warn
from gateway.config import parse_config
from gateway.config.parse import read_file
from gateway.config.shown import shown_config
from gateway.errors import ConfigError
from gateway.masking import MASK

NEW_MODE: Final = 0o600
"""Of a config that is made here: it may hold keys."""


def run(values: Values) -> int:
    """Show, ask, write; 1 if it was not agreed to."""
    source, found = read_client(values.client, os.environ, Path.cwd())
    root, section = _read_own(values.config)
    present: dict[str, Any] = root[section]
    fresh = {name: raw for name, raw in found.items() if values.force or name not in present}
    left = [name for name in found if name not in fresh]
    shown = {name: _shown(name, raw) for name, raw in fresh.items()}
    if values.json:
        print_json({"from": str(source), "to": str(values.config), "servers": shown, "left_alone": left})
    else:
        _show(source, shown, left)
    if not fresh:
        return 0
    if not (values.yes or _agreed(values.config)):
        print_error("nothing was written")
        return 1
    present.update(fresh)
    _write(values.config, root)
    print_error(f"{values.config}: {len(fresh)} servers were added")
    return 0


def _show(source: Path, shown: dict[str, Any], left: list[str]) -> None:
    print(f"{source}:")
    for name, one in shown.items():
        print(f"  {name}: {one['runs']}")
        for what in ("env", "headers"):
            if one[what]:
                print(f"    {what}: {', '.join(f'{key}=***' for key in one[what])}")
    if not shown:
        print("  nothing new")
    for name in left:
        warn(f"server {name!r} is in the config already and is left as it is (--force replaces it)")


def _shown(name: str, raw: dict[str, Any]) -> dict[str, Any]:
    """What a server would run, without secrets; one that is not valid is taken over all the same, and said to be so."""
    env, headers = list(raw.get("env") or {}), list(raw.get("headers") or {})
    variables = re.findall(r"\$\{(?:env:)?(\w+)\}", json.dumps(raw))
    given = {**os.environ, **dict.fromkeys(variables, MASK)}
    try:
        server = parse_config({"mcpServers": {name: raw}}, environ=given, files=lambda _: "").servers[name]
    except ConfigError as exc:
        return {"runs": f"not valid: {'; '.join(exc.problems)}", "env": env, "headers": headers}
    config = shown_config(server)
    runs = (
        f"connects to {config['url']}"
        if server.command is None
        else " ".join([f"runs {config['command']}", *config["args"]])
    )
    return {"runs": runs, "env": env, "headers": headers}


def _agreed(config: Path) -> bool:
    if not sys.stdin.isatty():
        problem = "nobody is there to ask"
        raise CommandError(problem, "--yes writes without asking")
    sys.stderr.write(f"write these into {config}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


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
        ),
    ),
)
