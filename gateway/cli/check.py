"""`mcp-gateway check`: whether a config file is right, and what it would start."""

from __future__ import annotations

from pathlib import Path

from gateway.cli.flags import Command, Flag, Values
from gateway.cli.options import load
from gateway.config.shown import shown_args


def run(values: Values) -> int:
    """Say it for every server; raises ConfigError."""
    config = load(values.file)
    for server in config.servers.values():
        if server.disabled:
            print(f"{server.name}: disabled")
        elif server.command is not None:
            shown = " ".join([server.command, *shown_args(server.args)])
            print(f"{server.name}: stdio, runs {server.without_secrets(shown)}")
        else:
            how = server.transport or "streamable-http or sse (probed)"
            print(f"{server.name}: {how}, connects to {server.public_url}")
    print(f"{values.file}: ok, {len(config.servers)} servers")
    return 0


COMMANDS = (
    Command(
        "check",
        "check a config file and say what it would start",
        run,
        (Flag("FILE", "the config file", parse=Path, required=True),),
    ),
)
