"""`mcp-gateway list`: the tools, prompts and resources that clients see."""

from __future__ import annotations

from functools import partial
from typing import Any

from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.output import error, print_json, warn
from gateway.cli.target import FLAGS, REMOTE, open_target
from gateway.eras.methods import FEATURES, Kind

KINDS = {feature: tuple(kind for kind in Kind if kind.feature == feature) for feature in FEATURES}


def run(values: Values) -> int:
    """Print them; 1 if not all servers came up."""
    import trio

    kinds = KINDS[values.kind] if values.kind else tuple(kind for several in KINDS.values() for kind in several)
    found, problems, warnings = trio.run(partial(_list, values, kinds))
    if values.json:
        print_json({kind.member: items for kind, items in found.items()})
    else:
        _show(found)
    for name, texts in warnings.items():
        for text in texts:
            warn(text if name == REMOTE else f"server {name!r}: {text}")
    for name, why in problems.items():
        if name == REMOTE:
            error(why)
        else:
            warn(f"server {name!r}: {why}")
    return 1 if problems else 0


async def _list(
    values: Values, kinds: tuple[Kind, ...]
) -> tuple[dict[Kind, list[dict[str, Any]]], dict[str, str], dict[str, tuple[str, ...]]]:
    async with open_target(values) as target:
        return {kind: await target.list(kind) for kind in kinds}, target.problems(), target.warnings()


def _show(found: dict[Kind, list[dict[str, Any]]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for kind, items in found.items():
        if not items and len(found) > 1:
            continue
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title_justify="left")
        table.add_column(no_wrap=not items or console.width > 100, overflow="fold")
        table.add_column(overflow="fold")
        for item in items:
            table.add_row(Text(str(item[kind.key]), "bold"), Text(_summary(item)))
        title = "resource templates" if kind is Kind.TEMPLATES else kind.member
        console.print(Text(f"{title} ({len(items)})"))
        console.print(table)


def _summary(item: dict[str, Any]) -> str:
    """The first line of what is said of it, with the arguments of a tool or prompt before it."""
    schema: dict[str, Any] = item.get("inputSchema") or {}
    properties: dict[str, Any] = schema.get("properties") or {}
    required: list[str] = schema.get("required") or []
    arguments: list[dict[str, Any]] = item.get("arguments") or []
    names = [name if name in required else f"[{name}]" for name in properties]
    names += [one["name"] if one.get("required") else f"[{one['name']}]" for one in arguments]
    lines = str(item.get("description") or item.get("title") or "").strip().splitlines()
    return "  ".join(part for part in (" ".join(names), lines[0] if lines else "") if part)


COMMANDS = (
    Command(
        "list",
        "list the tools, prompts and resources that clients see",
        run,
        (
            Flag("KIND", "only these: tools, prompts or resources", choices=tuple(KINDS)),
            *FLAGS,
            JSON,
        ),
    ),
)
