"""The guarantees of the gateway and their tests; the documentation has the table.

A test belongs to a row when its name begins with `test_guarantee_ROW_`.
"""

from __future__ import annotations

import re

from tests.support.gateway_process import ROOT

ROWS = {
    "G1": "Several backends of one config file are merged into one MCP server",
    "G2": "A backend is reached over `stdio`, `sse` or `streamable-http` (also spelled `type`, and `http`); without a"
          " `transport`, `command` means stdio and a `url` is probed",
    "G3": "The gateway serves `stdio` (default), `sse` or `streamable-http`, or both of the latter, on 127.0.0.1:8080"
          " by default, on configurable paths",
    "G4": "The config has the format of MCP clients; a missing file, bad JSON or a wrong field is one clear line that"
          " names the server and the field",
    "G5": "A tool or prompt is offered as `SERVER.NAME`, and equal names of two backends never clash",
    "G6": "A call reaches its backend under the tool's own name, `_meta` included, and the result comes back unchanged",
    "G7": "Prompts, resources, templates, completion, subscriptions, log level and progress pass through",
    "G8": "Management over HTTP: `/health`, `/servers` (GET, POST, DELETE) and `/tools`",
    "G9": "`POST /servers` answers 400 to bad JSON and 422 to a bad or empty config, and changes nothing",
    "G10": "One command sets up the environment, one runs the gateway, one tests it; uv works too",
    "P1": "`initialize_connections(mcp_config)` checks the config and records every server without starting any",
    "P2": "A server has either `command` or `url`; any other combination is an error that names the server",
    "P3": "An `Authorization` header is used as given; for a remote server without one, OAuth is discovered",
    "P4": "`get_client(server_name)`: `KeyError` if unknown, `RuntimeError` with the reason if it failed to initialize",
    "P5": "`test_connection(server_name)` tries several times, with growing pauses, and updates the status;"
          " `KeyError` if unknown",
    "P6": "`call_tool` opens a session for each call, raises `TimeoutError` or a `RuntimeError` that names tool and"
          " server, and returns results with `isError`",
    "P7": "`list_tools(server_name)` lists a server's tools under their own names",
    "P8": "`get_server_status`, `get_all_servers` and `get_servers_config` return states, names and configs",
    "P9": "`reload(new_mcp_config)` returns `(True, None)` or `(False, message)`: it checks everything, changes nothing"
          " if anything is wrong, and does not disturb unchanged servers",
    "P10": "`close_all_connections()` runs the shutdown sequence; one connection that fails to close does not keep the"
           " others open",
    "M1": "The manager takes `name`, `auth_enabled` and `api_key`, and a configuration in memory, without a file",
    "M2": "`initialize()`, `mount_to_app(app)` and `shutdown()` work with a FastAPI or Starlette application",
    "M3": "`update_tools(tools)` offers exactly these tools, with these descriptions, and refuses unknown ones",
    "M4": "`update_and_remount` takes effect immediately: clients are notified, calls in flight finish",
    "M5": "Without the right key a request gets 401 and nothing else; CORS follows `allow_origins`",
    "M6": "A failure is logged and raised as one of the project's own errors, and leaves nothing half mounted",
}  # fmt: skip
_TEST = re.compile(r"^(?:async )?def (test_guarantee_([a-z]\d+)_\w+)\(", re.MULTILINE)


def find_tests() -> dict[str, list[str]]:
    """The tests of each row, as `FILE::NAME`; an unknown row is included."""
    found: dict[str, list[str]] = {row: [] for row in ROWS}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name, row in _TEST.findall(path.read_text(encoding="utf-8")):
            found.setdefault(row.upper(), []).append(f"{path.relative_to(ROOT)}::{name}")
    return found


def render() -> str:
    """The table."""
    lines = ["| row | what | shown by |", "|---|---|---|"]
    found = find_tests()
    for row, what in ROWS.items():
        first, *others = found[row]
        more = f" and {len(others)} more" if others else ""
        lines.append(f"| {row} | {what} | `{first.removeprefix('tests/')}`{more} |")
    return "\n".join(lines)
