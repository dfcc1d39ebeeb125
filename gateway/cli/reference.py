"""`mcp-gateway fields` and `schema`: all config fields, as Markdown and JSON Schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from gateway.cli.flags import JSON, Command
from gateway.cli.output import print_json
from gateway.config import config_reference

if TYPE_CHECKING:
    from gateway.cli.flags import Values

TITLES = {
    "mcpServers.NAME": "A server (`mcpServers.NAME`)",
    "mcpServers.NAME.restart": "Restart policy (`mcpServers.NAME.restart`)",
    "mcpServers.NAME.shutdown_grace": "Shutdown sequence (`mcpServers.NAME.shutdown_grace`)",
    "gateway": "The gateway (`gateway`)",
    "gateway.audit": "Audit of calls (`gateway.audit`)",
    "access": "Access control (`access`)",
    "access.keys[]": "A key (`access.keys[]`)",
    "access.keys[] and access.oauth": "Permissions and limits (of a key, and of `access.oauth`)",
    "access.oauth": "Tokens of an authorization server (`access.oauth`)",
    "access.oauth.introspection": "Token introspection (`access.oauth.introspection`)",
}


def render() -> str:
    """Return one table for each section, as in the documentation."""
    sections: dict[str, list[str]] = {}
    for row in config_reference():
        cells = [text.replace("|", "\\|") for text in (row.type, row.default, row.doc)]
        line = f"| `{row.field}` | {' | '.join(cells)} |"
        sections.setdefault(row.section, []).append(line)
    return "\n\n".join(
        f"**{TITLES.get(section, f'`{section}`')}**\n\n| field | type | default | meaning |\n|---|---|---|---|\n"
        + "\n".join(lines)
        for section, lines in sections.items()
    )


def run_fields(values: Values) -> int:
    """Print the tables."""
    if values.json:
        print_json([row._asdict() for row in config_reference()])
    else:
        print(render())
    return 0


def run_schema(values: Values) -> int:
    """Print the schema, which is always JSON."""
    from gateway.config.schema import config_schema

    print(json.dumps(config_schema(), indent=None if values.json else 2, ensure_ascii=False))
    return 0


COMMANDS = (
    Command("fields", "list every field of the config file, with its default", run_fields, (JSON,)),
    Command("schema", "print the JSON Schema of the config file, for editors", run_schema, (JSON,)),
)
