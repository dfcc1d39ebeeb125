"""`mcp-gateway ps`: reports of this user's running gateways, read over their control sockets."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Final

from gateway.cli.flags import JSON, Command, Flag, Values
from gateway.cli.options import STATE, state_directory
from gateway.cli.output import CommandError, UsageError, counted, print_json
from gateway.store import Store

ANSWER_TIMEOUT: Final = 5.0
"""Seconds for a report: a hung gateway must not delay the others."""
COMMAND_TIMEOUT: Final = 65.0
"""Seconds; the gateway's own limit is 60."""
COLUMNS = ("backend", "state", "pid", "descendants", "age", "restarts", "in flight", "queued")


def collect_reports(directory: Path, *, timeout: float = ANSWER_TIMEOUT) -> list[dict[str, Any]]:
    """Return the reports of all running gateways; remove the sockets of dead ones.

    Raises ConfigError if others can write the directory: the admin token is sent to the address in a report.
    """
    reports: list[dict[str, Any]] = []
    store = Store(directory)
    store.check()
    for path in store.sockets():
        try:
            reports.append(ask(path, b"ps", timeout=timeout) | {"socket": str(path)})
        except (ConnectionRefusedError, FileNotFoundError):  # it is dead, or has just ended
            path.unlink(missing_ok=True)
        except (OSError, ValueError) as exc:
            reports.append({"error": f"{path.name}: {exc}", "socket": str(path)})
    return reports


def ask(path: Path, question: bytes, *, timeout: float = ANSWER_TIMEOUT) -> dict[str, Any]:
    """Send a request to a control socket. Raises OSError and ValueError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(str(path))
        sock.sendall(question + b"\n")
        parts: list[bytes] = []
        while part := sock.recv(65_536):
            parts.append(part)
    return json.loads(b"".join(parts))


def command(report: dict[str, Any], do: str, name: str = "") -> dict[str, Any]:
    """Run a command in a gateway on this machine over its control socket.

    Raises:
        CommandError: it cannot be reached, or refuses.
    """
    question = json.dumps({"do": do, "name": name}).encode()
    try:
        found = ask(Path(report["socket"]), question, timeout=COMMAND_TIMEOUT)
    except (OSError, ValueError) as exc:
        problem = f"the gateway {report['pid']} does not answer: {exc}"
        raise CommandError(problem, "mcp-gateway ps shows which gateways run here") from None
    if "error" in found:
        raise refusal(found)
    return found


def refusal(problem: dict[str, Any], otherwise: str = "") -> CommandError:
    """Return the error for a gateway's refusal."""
    text = "\n  ".join([str(problem.get("error", otherwise)), *(problem.get("details") or [])])
    return CommandError(text, str(problem.get("hint") or ""), reason=str(problem.get("code") or ""))


def find_running(values: Values) -> dict[str, Any]:
    """Return the report of the running gateway, or of the one in `--url`.

    For a URL it has only `urls`. Of several, a single one over HTTP is preferred, since desktop clients have their own
    on stdio.

    Raises:
        CommandError: there is none, or more than one.
    """
    if values.url is not None and not values.url.isdigit():
        return {"urls": [values.url]}
    reports = [report for report in collect_reports(state_directory(values)) if "error" not in report]
    if values.url is not None:
        reports = [report for report in reports if str(report["pid"]) == values.url]
    chosen = [report for report in reports if report["urls"]] or reports
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        ways = " or ".join(f"--url {report['urls'][0] if report['urls'] else report['pid']}" for report in chosen)
        problem = f"{len(chosen)} gateways are running"
        raise CommandError(problem, f"choose one: {ways}")
    problem = (
        "no gateway is running" if values.url is None else f"no gateway with the process id {values.url} is running"
    )
    hint = "start one: mcp-gateway serve FILE --transport http; or name one: --url URL"
    if hasattr(values, "config"):
        hint += "; or start the servers temporarily: --config FILE"
    raise CommandError(problem, hint)


def render(report: dict[str, Any]) -> str:
    """Return one gateway's report as text."""
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
        for text in backend.get("warnings", ())  # missing from gateways of older versions
    )
    disabled = "".join(f"\n{one['name']}: {one['disabled']}" for one in report["backends"] if one.get("disabled"))
    shared = f", {counted(report['clients'], 'client')}, log {report['log']}" if "log" in report else ""
    first = f"gateway {report['pid']} ({report['transport']}), up {_age(report['age'])}{shared}"
    return f"{first}\n{table}{disabled}{warnings}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run(values: Values) -> int:
    """Collect and print the reports, once or at an interval."""
    directory = state_directory(values)
    if values.watch:
        return _watch(directory, values)
    if values.seconds is not None:
        problem = f"{values.seconds:g} s is the interval of --watch, which is missing"
        raise UsageError(problem, "mcp-gateway ps --watch SECONDS")
    reports = collect_reports(directory)
    if values.json:
        print_json(reports)
    else:
        print(_text(reports))
    return 0


def _interval(text: str) -> float:
    """Parse the seconds between two reports."""
    message = f"{text!r} is not a number of seconds from 0.1 to 3600"
    try:
        seconds = float(text)
    except ValueError:
        raise ValueError(message) from None
    if not 0.1 <= seconds <= 3600:
        raise ValueError(message)
    return seconds


def _watch(directory: Path, values: Values) -> int:
    from gateway.cli.watching import INTERVAL, Screen, is_terminal, print_block, wait, watch

    draw = Screen().draw if is_terminal() else print_block

    def show(reports: list[dict[str, Any]], news: list[str]) -> None:
        if values.json:
            print(json.dumps(reports, ensure_ascii=False), flush=True)
        else:
            draw(_text(reports), news)

    with contextlib.suppress(KeyboardInterrupt):  # the usual way to end it
        watch(lambda: collect_reports(directory), show, lambda: wait(values.seconds or INTERVAL))
    return 0


def _text(reports: list[dict[str, Any]]) -> str:
    return "\n\n".join(map(render, reports)) or "no gateway is running"


COMMANDS = (
    Command(
        "ps",
        "show the running gateways, their backends and processes",
        run,
        (
            Flag("SECONDS", "the interval of --watch (default 2)", parse=_interval),
            Flag(
                "--watch",
                "repeat it until Ctrl-C, or until no gateway has run for a minute; --json prints a line each time",
                switch=True,
            ),
            JSON,
            STATE,
        ),
    ),
)
