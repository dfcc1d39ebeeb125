"""`mcp-gateway reload`, `restart`, `enable` and `disable`: change a running gateway.

They use its management API, or its control socket if it serves stdio. The token is the given one, or the environment's,
or the gateway's in the state directory. The last one belongs to this machine and is only sent to loopback.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, urlsplit

from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import STATE, address, split_address, state_directory
from gateway.cli.output import CommandError, print_json, warn
from gateway.cli.ps import collect_reports, command, find_running, refusal
from gateway.config.hosts import parse_authority
from gateway.errors import ConfigError
from gateway.store import Store

ANSWER_WITHIN: Final = 60.0
"""Seconds: a change is answered when its servers have started or their start has timed out."""
MAX_ANSWER: Final = 16 * 1024 * 1024
"""Limit of a response in bytes."""
ENVIRONMENT: Final = "MCP_GATEWAY_ADMIN_TOKEN"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


class UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def change(values: Values, do: str, name: str = "") -> dict[str, Any]:
    """Have the gateway make a change.

    Raises:
        CommandError: it cannot be reached, or refuses.
    """
    report = find_running(values)
    if not report["urls"]:  # it serves stdio, and has no management API
        return command(report, do, name)
    return fetch(values, report, "POST", f"/servers/{quote(name, safe='')}/{do}" if name else f"/{do}")


def fetch(values: Values, report: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """Send a request to the management API of the gateway in a report.

    Raises:
        CommandError: it cannot be reached, or refuses.
    """
    url, unix_socket = split_address(report["urls"][0])
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    token = _token(values, parts.netloc)
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    if unix_socket is None:
        connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_WITHIN)
    else:
        connection = UnixConnection(unix_socket, ANSWER_WITHIN)
    try:
        connection.request(method, path, b"{}" if method == "POST" else None, headers)
        with connection.getresponse() as response:
            status, body = response.status, response.read(MAX_ANSWER)
    except (OSError, http.client.HTTPException) as exc:
        problem = f"the gateway at {unix_socket or f'{parts.scheme}://{parts.netloc}'} cannot be reached: {exc}"
        raise CommandError(problem, "mcp-gateway ps shows which gateways run here") from None
    finally:
        connection.close()
    try:
        found: Any = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        problem = f"the answer is HTTP {status} without JSON, so this is not a gateway"
        raise CommandError(problem)
    found = cast("dict[str, Any]", found)
    if status != http.client.OK:
        raise refusal(found, f"HTTP {status}")
    return found


def _token(values: Values, netloc: str) -> str | None:
    given = values.admin_token or os.environ.get(ENVIRONMENT)
    authority = parse_authority(netloc)
    if given or (values.url is not None and (authority is None or authority.host not in LOOPBACK)):
        return given
    store = Store(state_directory(values))
    store.check()
    try:
        return store.read_admin_token()
    except OSError:
        return None


def run_reload(values: Values) -> int:
    """Reload the config file; return 1 if a server did not start."""
    found = change(values, "reload")
    if values.json:
        print_json(found)
    else:
        parts = [f"{word} {', '.join(found[word])}" for word in ("added", "removed", "changed") if found.get(word)]
        print("reloaded: " + ("; ".join(parts) or "nothing has changed"))
    return _not_ready(found.get("not_ready") or {})


def run_change(do: str, values: Values) -> int:
    """Change one server; return 1 if it did not start."""
    found = change(values, do, values.name)
    if values.json:
        print_json(found)
    else:
        print(f"{values.name}: {found.get('done', 'done')}")
    return _not_ready({values.name: found["not_ready"]} if found.get("not_ready") else {})


def _not_ready(problems: dict[str, str]) -> int:
    for name, why in problems.items():
        warn(f"server {name!r} is not ready: {why}")
    return 1 if problems else 0


def _running_names(given: dict[str, Any]) -> list[str]:
    directory = given.get("state_dir")
    try:
        reports = collect_reports(state_directory(Values(state_dir=Path(directory) if directory else None)))
    except ConfigError:
        return []
    return [backend["name"] for report in reports for backend in report.get("backends", ())]


WHERE: Final = (
    Flag("--url", "the gateway's URL or process id (default: the running gateway)", "URL", parse=address),
    Flag(
        "--admin-token",
        "the admin token (default $MCP_GATEWAY_ADMIN_TOKEN, else the one in the state directory)",
        "TOKEN",
        variable=ENVIRONMENT,
    ),
)
"""Flags of the gateway to reach."""
_WHERE: Final = (*WHERE, STATE, JSON)
_NAME: Final = Flag("NAME", "the server's name in the config", required=True, complete=_running_names)
COMMANDS = (
    Command("reload", "reload the config file of the running gateway", run_reload, _WHERE),
    *(
        Command(do, text, partial(run_change, do), (_NAME, *_WHERE))
        for do, text in (
            ("restart", "restart a server of the running gateway"),
            ("enable", "enable a server of the running gateway"),
            ("disable", "disable a server of the running gateway"),
        )
    ),
)
