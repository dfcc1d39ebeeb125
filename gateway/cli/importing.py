"""`mcp-gateway import CLIENT`: import the servers of an MCP client's config.

The commands to be run are shown first, with the names of variables but never their values, and nothing is written or
started before the user has agreed. A server that the config already has is left unchanged, unless `--force`; one that
`serve` would refuse is skipped and reported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from gateway.cli.clients import CLIENTS, Found, read_client, variables_in
from gateway.cli.doctor import examine, show
from gateway.cli.editing import Document
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import STATE, load
from gateway.cli.output import CommandError, counted, print_error, print_json, printable, warn
from gateway.cli.stateful import reason_for
from gateway.config import parse_config
from gateway.config.files import CommandCollector
from gateway.config.parse import files_of
from gateway.config.shown import shown_config
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Container


class Plan(NamedTuple):
    """The servers of a client: new ones, and those the config has."""

    client: Found
    new: dict[str, dict[str, Any]]
    """What each runs, without secrets."""
    present: list[str]
    unset: dict[str, list[str]]
    """The variables that new servers use and that are not set here."""


def make_plan(client: Found, present: Container[str], config: Path) -> Plan:
    """Sort the servers of a client.

    Those that `serve` would refuse are added to the skipped ones.
    """
    plan = Plan(client, {}, [], {})
    for name, entry in client.servers.items():
        if name in present:
            plan.present.append(name)
            continue
        try:
            described = describe(name, entry, config)
        except ConfigError as exc:
            client.skipped[name] = "; ".join(line.removeprefix(f"server {name!r}: ") for line in exc.problems)
            continue
        plan.new[name] = described
        if lacking := [each for each in described["variables"] if each not in os.environ]:
            plan.unset[name] = lacking
    return plan


def run(values: Values) -> int:
    """Show, ask, and write; return 1 if the user declined or a server was skipped."""
    client = read_client(values.client, os.environ, Path.cwd(), values.config)
    document = Document(values.config)
    section = section_of(document)
    plan = make_plan(client, () if values.force else document.member([section]) or {}, values.config)
    if values.json:
        found = {"from": str(client.path), "to": str(values.config), "servers": plan.new, "left_alone": plan.present}
        print_json(found | {"skipped": client.skipped, "own": client.own, "unset": plan.unset})
    else:
        _show(plan)
    failed = 1 if client.skipped else 0
    if not plan.new:
        return failed
    if not (values.yes or agreed(f"write these into {values.config}, and start each once?")):
        print_error("nothing was written")
        return 1
    for name in plan.new:
        document.edit((section, name), client.servers[name])
    document.save()
    print_error(f"{values.config}: added {counted(len(plan.new), 'server')}; starting each once to learn its lists")
    learn(list(plan.new), values)
    return failed


def learn(names: list[str], values: Values) -> None:
    """Start each of these servers of the written config once, and save its lists."""
    try:
        config = load(values.config)
    except ConfigError as exc:
        warn(f"no server was started: {exc}; see mcp-gateway check {values.config}")
        return
    found = examine(msgspec.structs.replace(config, servers={name: config.servers[name] for name in names}), values)
    if not getattr(values, "json", False):
        show(found)


def _show(plan: Plan) -> None:
    print(f"{plan.client.path}:")
    print("\n".join(lines_of(plan.new)) or "  nothing new")
    for name in plan.client.own:
        warn(f"{name!r} is this gateway itself and is skipped")
    for name in plan.present:
        warn(f"server {name!r} is already in the config and is left unchanged (--force replaces it)")
    for name, why in plan.client.skipped.items():
        warn(f"server {name!r} is skipped: {why}")
    for name, lacking in plan.unset.items():
        warn(f"server {name!r} needs {', '.join(lacking)} from the environment, not set here; set before 'serve'")


def lines_of(servers: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines that show servers, without secrets."""
    lines: list[str] = []
    for name, one in servers.items():
        lines.append(f"  {name}: {one['runs']}")
        lines += [
            f"    {what}: {', '.join(f'{key}=***' for key in one[what])}" for what in ("env", "headers") if one[what]
        ]
        if one["variables"]:
            lines.append(f"    variables: {', '.join(one['variables'])}")
        lines += [f"    runs for a value: {command}" for command in one["commands"]]
        if one["session"]:
            lines.append(f"    session: {one['session']}, since {one['reason']}")
    return [printable(line) for line in lines]


def describe(name: str, raw: dict[str, Any], config: Path) -> dict[str, Any]:
    """Describe what a server runs, without secrets. Raises ConfigError if `serve` would refuse it."""
    files = CommandCollector(files_of(config, os.environ))  # nothing is run before the user has agreed
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
        "commands": list(files.commands),
        "session": raw.get("session"),
        "reason": reason_for(raw),
    }


def agreed(question: str) -> bool:
    """Ask at the terminal. Raises CommandError without a terminal."""
    if not sys.stdin.isatty():
        problem = "cannot ask before writing: standard input is not a terminal"
        raise CommandError(problem, "--yes writes without asking")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def section_of(document: Document) -> str:
    """Return the key of our config's servers. Raises CommandError for an invalid section."""
    section = "servers" if "servers" in document.root else "mcpServers"
    if not isinstance(document.root.get(section, {}), dict):
        problem = f"{document.path} is not a config; nothing was written"
        raise CommandError(problem, f"mcp-gateway check {document.path}")
    return section


COMMANDS = (
    Command(
        "import",
        "import the servers of an MCP client's config",
        run,
        (
            Flag(
                "CLIENT",
                f"one of {', '.join(CLIENTS)}, or the path of a config file",
                required=True,
                complete=lambda _given: tuple(CLIENTS),
            ),
            Flag("--config", "the config file to write to, created if missing", "FILE", parse=Path, required=True),
            Flag("--yes", "write without asking", switch=True),
            Flag("--force", "replace servers of the same name", switch=True),
            JSON,
            STATE,
        ),
    ),
)
