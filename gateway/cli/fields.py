"""`mcp-gateway fields`: every field of the config, as Markdown tables; README shows the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cli.flags import JSON, Command
from gateway.config import config_reference

if TYPE_CHECKING:
    from gateway.cli.flags import Values

TITLES = {
    "mcpServers.NAME": "A server (`mcpServers.NAME`)",
    "mcpServers.NAME.restart": "Its restarts (`restart`)",
    "mcpServers.NAME.shutdown_grace": "Its stop ladder (`shutdown_grace`)",
    "gateway": "The gateway (`gateway`)",
    "gateway.audit": "What is noted of calls (`gateway.audit`)",
    "access": "Who may use it (`access`)",
    "access.keys[]": "A key (`access.keys[]`)",
    "access.keys[] and access.oauth": "What it opens (in a key, and in `access.oauth`)",
    "access.oauth": "Tokens of an authorization server (`access.oauth`)",
    "access.oauth.introspection": "Asking about them (`access.oauth.introspection`)",
}


def render() -> str:
    """One table a section."""
    sections: dict[str, list[str]] = {}
    for row in config_reference():
        line = f"| `{row.field}` | {_cell(row.type)} | {_cell(row.default)} | {_cell(row.doc)} |"
        sections.setdefault(row.section, []).append(line)
    return "\n\n".join(
        f"**{TITLES.get(section, f'`{section}`')}**\n\n| field | type | default | meaning |\n|---|---|---|---|\n"
        + "\n".join(lines)
        for section, lines in sections.items()
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def run(values: Values) -> int:
    """Print them."""
    if values.json:
        from gateway.cli.output import print_json

        print_json([row._asdict() for row in config_reference()])
    else:
        print(render())
    return 0


COMMANDS = (Command("fields", "list every field of the config file, with its default", run, (JSON,)),)
