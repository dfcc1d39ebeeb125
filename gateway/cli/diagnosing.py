"""`mcp-gateway doctor --running`: what is slow, failing, large or insecure in a running gateway."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from gateway.cli.management import fetch
from gateway.cli.output import BOLD, RED, YELLOW, UsageError, counted, painted, print_json
from gateway.cli.ps import command, find_running

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gateway.cli.flags import Values


def run_running(values: Values) -> int:
    """Print the diagnosis of the running gateway; return 1 if a server does not work."""
    if values.file is not None or values.config is not None:
        problem = "--running examines a running gateway, not a config file"
        raise UsageError(problem, "keep one: FILE, which starts its servers, or --running")
    report = find_running(values)
    # The control socket of a gateway on this machine needs no token.
    found = command(report, "diagnose") if "socket" in report else fetch(values, report, "GET", "/diagnosis")
    if values.json:
        print_json(found)
    else:
        show(found)
    return 1 if any(one["level"] == "problem" for one in found["findings"]) else 0


def show(found: dict[str, Any]) -> None:
    """Print the tables and findings."""
    states = list(found["states"].values())
    print(", ".join([counted(len(states), "server"), *(f"{states.count(one)} {one}" for one in dict.fromkeys(states))]))
    _table(
        ("slowest tools", "calls", "p50", "p99"),
        (
            (f"{one['server']}: {one['tool']}", str(last["calls"]), _time(last["p50"]), _time(last["p99"]))
            for one in found["slowest"]
            for last in [one["latency"]]
        ),
    )
    _table(
        ("largest tools", "bytes", "tokens (estimate)"),
        ((one["tool"], f"{one['bytes']:,}", f"{one['tokens_estimate']:,}") for one in found["largest"]),
    )
    _table(
        ("views", "tools", "bytes", "tokens (estimate)"),
        (
            (one["view"] or "(no view)", f"{one['tools']:,}", f"{one['bytes']:,}", f"{one['tokens_estimate']:,}")
            for one in found["views"]
        ),
    )
    print()
    for one in found["findings"]:
        about = "" if one["server"] is None else f"{one['server']}: "
        colour = RED if one["level"] == "problem" else YELLOW
        print(f"{painted(one['level'], colour, sys.stdout)}: {about}{one['text']}")
        if one["hint"]:
            print(f"  hint: {one['hint']}")
    if not found["findings"]:
        print("no problems found")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with numbers on the right; nothing without rows."""
    lines = [head, *rows]
    if len(lines) == 1:
        return
    first, *widths = (max(len(line[column]) for line in lines) for column in range(len(head)))
    print()
    for line in lines:
        numbers = "".join(f"  {cell:>{width}}" for cell, width in zip(line[1:], widths, strict=True))
        text = f"{line[0]:<{first}}{numbers}"
        print(painted(text, BOLD, sys.stdout) if line is head else text)


def _time(milliseconds: float) -> str:
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"
