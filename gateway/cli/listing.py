"""`mcp-gateway list`: the tools, prompts and resources that clients see."""

from __future__ import annotations

import shutil
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import config_path
from gateway.cli.output import BOLD, UsageError, painted, print_json, warn
from gateway.cli.ps import command, find_running
from gateway.cli.target import FLAGS, REMOTE, open_target
from gateway.config.findings import did_you_mean
from gateway.eras.methods import FEATURES, Kind

KINDS = {feature: tuple(kind for kind in Kind if kind.feature == feature) for feature in FEATURES}
MAX_COLUMN: Final = 60
"""Maximum width of the column of names."""


def run(values: Values) -> int:
    """Print the lists; return 1 if a server did not start."""
    files = [Path(word) for word in values.kind if word not in KINDS]
    values.file = files[0] if files else None
    if values.file or values.config:
        values.config = config_path(values)
    for path in files:
        if path != values.file or not path.exists():
            problem = f"{path}: no such file, and not one of {', '.join(KINDS)}"
            raise UsageError(problem, did_you_mean(str(path), KINDS).removeprefix("; "))
    chosen = [word for word in values.kind if word in KINDS] or KINDS
    kinds = [kind for word, several in KINDS.items() if word in chosen for kind in several]
    report = {"urls": [values.url]} if values.config else find_running(values)
    if report["urls"]:
        found, problems, warnings = trio.run(partial(_list, values, kinds))
    else:
        answer = command(report, "list")
        found = {kind: answer["items"][kind.member] for kind in kinds}
        problems, warnings = answer["problems"], answer["warnings"]
    if values.json:
        print_json({kind.member: items for kind, items in found.items()} | ({"problems": problems} if problems else {}))
    else:
        _show(found)
    for name, texts in warnings.items():
        for text in texts:
            warn(text if name == REMOTE else f"server {name!r}: {text}")
    for name, why in problems.items():
        warn(f"server {name!r}: {why}")
    return 1 if problems else 0


async def _list(
    values: Values, kinds: list[Kind]
) -> tuple[dict[Kind, list[dict[str, Any]]], dict[str, str], dict[str, tuple[str, ...]]]:
    async with open_target(values) as target:
        found = {kind: await target.list(kind) for kind in kinds}
        await target.check_peer()
        return found, target.problems(), target.warnings()


def _show(found: dict[Kind, list[dict[str, Any]]]) -> None:
    """Print tables of names, arguments and first lines, wrapped within their column on a terminal."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for kind, items in found.items():
        if not items and len(found) > 1:
            continue
        print(f"{'resource templates' if kind is Kind.TEMPLATES else kind.member} ({len(items)})")
        column = min(MAX_COLUMN, max((len(str(item[kind.key])) for item in items), default=0)) + 2
        for item in items:
            schema: dict[str, Any] = item.get("inputSchema") or {}
            properties: dict[str, Any] = schema.get("properties") or {}
            required: list[str] = schema.get("required") or []
            arguments: list[dict[str, Any]] = item.get("arguments") or []
            names = [name if name in required else f"[{name}]" for name in properties]
            names += [one["name"] if one.get("required") else f"[{one['name']}]" for one in arguments]
            lines = str(item.get("description") or item.get("title") or "").strip().splitlines()
            text = "  ".join(part for part in (" ".join(names), *lines[:1]) if part)
            if 2 * column < width:
                text = textwrap.fill(text, width - column, subsequent_indent=" " * column)
            name = str(item[kind.key])
            print(f"{painted(name, BOLD, sys.stdout)}{' ' * max(2, column - len(name))}{text}".rstrip())


COMMANDS = (
    Command(
        "list",
        "list the tools, prompts and resources that clients see",
        run,
        (
            Flag(
                "KIND",
                "list only tools, prompts or resources; or the config file",
                many=True,
                complete=lambda _: [*KINDS],
            ),
            *FLAGS,
            JSON,
        ),
    ),
)
