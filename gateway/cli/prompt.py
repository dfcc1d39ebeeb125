"""`mcp-gateway prompt NAME key=value`: what a prompt becomes."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from gateway.cli.arguments import split_words
from gateway.cli.contents import show_block
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.output import print_json
from gateway.cli.target import FLAGS, open_target


def run(values: Values) -> int:
    """Get and print it."""
    import trio

    result = trio.run(partial(_get, values, split_words(values.argument)))
    if values.json:
        print_json(result)
        return 0
    messages: list[dict[str, Any]] = result.get("messages") or []
    for message in messages:
        content: Any = message.get("content")
        blocks = cast("list[dict[str, Any]]", content if isinstance(content, list) else [content])
        for block in blocks:
            print(f"{message.get('role')}: {show_block(block)}")
    return 0


async def _get(values: Values, arguments: dict[str, str]) -> dict[str, Any]:
    from gateway.cli.terminal import Terminal

    async with open_target(values, values.name) as target:
        with Terminal(values.name) as desk:
            params = {"name": values.name, "arguments": arguments}
            return await target.request("prompts/get", values.name, params, desk)


COMMANDS = (
    Command(
        "prompt",
        "fill in a prompt",
        run,
        (
            Flag("NAME", "its public name, as `list` shows it: SERVER.PROMPT", required=True),
            Flag("ARGUMENT", "KEY=VALUE; prompts take only texts", many=True),
            *FLAGS,
            JSON,
        ),
    ),
)
