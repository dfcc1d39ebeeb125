"""`mcp-gateway read URI`: what a resource holds."""

from __future__ import annotations

import base64
import sys
from functools import partial
from typing import Any

from gateway.cli.contents import show_resource
from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.output import print_json
from gateway.cli.target import FLAGS, open_target


def run(values: Values) -> int:
    """Read and print it; what is not text goes to stdout as it is, unless that is a terminal."""
    import trio

    result = trio.run(partial(_read, values))
    if values.json:
        print_json(result)
        return 0
    contents: list[dict[str, Any]] = result.get("contents") or []
    for each in contents:
        if "blob" in each and not sys.stdout.isatty():
            sys.stdout.flush()
            sys.stdout.buffer.write(base64.b64decode(each["blob"]))
        else:
            print(show_resource(each))
    return 0


async def _read(values: Values) -> dict[str, Any]:
    from gateway.catalog.kinds import Kind
    from gateway.cli.terminal import Terminal

    async with open_target(values) as target:
        await target.list(Kind.RESOURCES)  # until then nobody owns the URI
        with Terminal(values.uri) as desk:
            return await target.request("resources/read", values.uri, {"uri": values.uri}, desk)


COMMANDS = (
    Command(
        "read", "read a resource", run, (Flag("URI", "the resource, as `list` shows it", required=True), *FLAGS, JSON)
    ),
)
