"""`mcp-gateway demo`: the guided first run."""

from __future__ import annotations

from gateway.cli.flags import Command, Values
from gateway.cli.options import ADDRESS


def run(values: Values) -> int:
    """Run it; 1 if something did not work."""
    from gateway.demo.tour import run_demo
    from gateway.telemetry import open_logging

    def tell(text: str) -> None:
        print(text, flush=True)

    with open_logging("warning"):
        clean = run_demo(host=values.host, port=values.port, path=values.streamable_http_path, say=tell)
    return 0 if clean else 1


COMMANDS = (Command("demo", "try it: two built-in servers, one real client, one call", run, ADDRESS),)
