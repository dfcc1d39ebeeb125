"""`mcp-gateway schema`: the JSON Schema of the config file, for editors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.cli.flags import JSON, Command

if TYPE_CHECKING:
    from gateway.cli.flags import Values


def run(values: Values) -> int:
    """Print it; it is JSON either way."""
    import json

    from gateway.config.schema import config_schema

    print(json.dumps(config_schema(), indent=None if values.json else 2, ensure_ascii=False))
    return 0


COMMANDS = (Command("schema", "print the JSON Schema of the config file, to be named in its $schema", run, (JSON,)),)
