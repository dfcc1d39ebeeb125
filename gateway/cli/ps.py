"""`mcp-gateway ps`: what the running gateways of this user are doing, asked over their control sockets."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

from gateway.cli.flags import JSON, Command, Values
from gateway.cli.options import STATE, state_directory
from gateway.cli.output import CommandError
from gateway.store import Store

if TYPE_CHECKING:
    from pathlib import Path

ANSWER_WITHIN = 5.0
COLUMNS = ("backend", "state", "pid", "descendants", "age", "restarts", "in flight", "queued")


def collect_reports(directory: Path) -> list[dict[str, Any]]:
    """Return the reports of all living gateways; sockets that dead ones left behind are removed.

    Raises ConfigError if others can write the directory: a report names the address that the admin token is sent to.
    """
    reports: list[dict[str, Any]] = []
    store = Store(directory)
    store.check()
    for path in store.sockets():
        try:
            reports.append(_request_report(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
        except (OSError, ValueError) as exc:
            reports.append({"error": f"{path.name}: {exc}"})
    return reports


def _request_report(path: Path) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(ANSWER_WITHIN)
        sock.connect(str(path))
        sock.sendall(b"ps\n")
        parts: list[bytes] = []
        while part := sock.recv(65_536):
            parts.append(part)
    return json.loads(b"".join(parts))


def running_url(directory: Path) -> str:
    """The MCP endpoint of the gateway that runs.

    Raises:
        CommandError: there is none over HTTP, or more than one.
    """
    reports = [report for report in collect_reports(directory) if "error" not in report]
    urls = [report["urls"][0] for report in reports if report.get("urls")]
    if len(urls) == 1:
        return urls[0]
    if urls:
        problem = f"{len(urls)} gateways are running"
        raise CommandError(problem, f"choose one: --url {' or --url '.join(urls)}")
    problem = "the gateway that runs serves stdio only" if reports else "no gateway is running"
    raise CommandError(problem, "start one: mcp-gateway serve --config FILE --transport http; or name one: --url URL")


def render(report: dict[str, Any]) -> str:
    """One gateway's report for people."""
    if "error" in report:
        return report["error"]
    rows: list[tuple[str, ...]] = [COLUMNS]
    for backend in report["backends"]:
        descendants = " ".join(map(str, backend["descendants"])) or "-"
        counts = (str(backend[key]) for key in ("restarts", "in_flight", "queued"))
        pid = str(backend["pid"] or "-")
        rows.append((backend["name"], backend["state"], pid, descendants, _age(backend["age"]), *counts))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    table = "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    warnings = "".join(
        f"\nwarning: {backend['name']}: {text}"
        for backend in report["backends"]
        for text in backend.get("warnings", ())  # a gateway of an older version has none
    )
    disabled = "".join(f"\n{one['name']}: {one['disabled']}" for one in report["backends"] if one.get("disabled"))
    return f"gateway {report['pid']} ({report['transport']}), up {_age(report['age'])}\n{table}{disabled}{warnings}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run(values: Values) -> int:
    """Ask them all, and print it."""
    reports = collect_reports(state_directory(values))
    if values.json:
        print(json.dumps(reports))
    else:
        print("\n\n".join(render(report) for report in reports) or "no gateway is running")
    return 0


COMMANDS = (Command("ps", "show the running gateways' backends and their processes", run, (JSON, STATE)),)
