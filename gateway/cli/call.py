"""`mcp-gateway call SERVER.TOOL`: one tool call, from the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.cli.arguments import read_object, split_words, typed
from gateway.cli.contents import show_block
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.output import UsageError, print_json
from gateway.cli.target import FLAGS, open_target

if TYPE_CHECKING:
    from gateway.cli.target import Target


def run(values: Values) -> int:
    """Call it and print the result; 1 if that says `isError`."""
    import trio

    texts = split_words(values.argument)
    if texts and values.args is not None:
        problem = "give the arguments as words or as --args, not both"
        raise UsageError(problem)
    result = trio.run(_call, values, texts)
    if values.json:
        print_json(result)
    else:
        _show(result)
    return 1 if result.get("isError") else 0


async def _call(values: Values, texts: dict[str, str]) -> dict[str, Any]:
    from gateway.cli.terminal import Terminal

    async with open_target(values, values.tool) as target:
        arguments = values.args or typed(texts, await _schema(target, values.tool) if texts else {})
        with Terminal(values.tool) as desk:
            params = {"name": values.tool, "arguments": arguments}
            return await target.request("tools/call", values.tool, params, desk)


async def _schema(target: Target, tool: str) -> dict[str, Any]:
    from gateway.catalog.kinds import Kind

    found = [one for one in await target.list(Kind.TOOLS) if one["name"] == tool]
    return found[0].get("inputSchema") or {} if found else {}


def _show(result: dict[str, Any]) -> None:
    blocks: list[dict[str, Any]] = result.get("content") or []
    for block in blocks:
        print(show_block(block))
    if not blocks and "structuredContent" in result:
        print_json(result["structuredContent"])


COMMANDS = (
    Command(
        "call",
        "call a tool",
        run,
        (
            Flag("TOOL", "its public name, as `list` shows it: SERVER.TOOL", required=True),
            Flag("ARGUMENT", "KEY=VALUE; what the tool's schema says is made of VALUE", many=True),
            Flag("--args", "all arguments as one JSON object", "JSON", parse=read_object),
            *FLAGS,
            JSON,
        ),
    ),
)
