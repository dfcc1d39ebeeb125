"""`mcp-gateway ps --watch`: the reports at an interval.

They are drawn in place on a terminal, and printed one after another elsewhere.
"""

from __future__ import annotations

import os
import select
import shutil
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

INTERVAL: Final = 2.0
"""Seconds between two reports unless the user chooses others."""
RESTART_GRACE: Final = 60.0
"""Seconds without a gateway until the command ends: a service manager restarts one sooner."""
MAX_NEWS: Final = 5
"""Starts and ends that stay on a terminal."""


class Lives:
    """The running gateways, to notice which have started and ended since the last reports."""

    def __init__(self) -> None:
        self._ages: dict[str, tuple[str, float]] | None = None
        """By socket: the process id and the age. None before the first reports."""

    def compare(self, reports: Iterable[dict[str, Any]]) -> list[str]:
        """Return what has changed, as sentences.

        A gateway that does not answer is neither new nor gone.
        """
        first, known, now = self._ages is None, self._ages or {}, dict[str, tuple[str, float]]()
        news: list[str] = []
        for report in reports:
            socket = report["socket"]
            before = known.get(socket)
            if "error" in report:
                if before is not None:
                    now[socket] = before
                continue
            now[socket] = (str(report["pid"]), report["age"])
            if before is None and not first:
                news.append(f"gateway {report['pid']} has started")
            elif before is not None and report["age"] < before[1]:  # another process under the same id
                news.append(f"gateway {report['pid']} has been restarted")
        news[:0] = [f"gateway {pid} has ended" for socket, (pid, _) in known.items() if socket not in now]
        self._ages = now
        return news


def watch(
    collect: Callable[[], list[dict[str, Any]]],
    show: Callable[[list[dict[str, Any]], list[str]], None],
    pause: Callable[[], bool],
    *,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Show the reports until `pause` returns False, or no gateway has run for `RESTART_GRACE`.

    `show` gets the reports and the starts and ends since the last ones.
    """
    lives, seen_at = Lives(), now()
    while True:
        reports = collect()
        show(reports, lives.compare(reports))
        if reports:
            seen_at = now()
        if now() - seen_at >= RESTART_GRACE or not pause():
            return


class Screen:
    """Draws on a terminal in place."""

    def __init__(self) -> None:
        self._news: deque[str] = deque(maxlen=MAX_NEWS)

    def draw(self, text: str, news: Iterable[str]) -> None:
        """Replace the screen's content, cut to its size."""
        columns, rows = shutil.get_terminal_size()
        self._news.extend(f"{_clock()}  {one}" for one in news)
        lines = [_clock(), *self._news, "", *text.splitlines()]
        if len(lines) >= rows:
            lines[rows - 2 :] = [f"... {len(lines) - rows + 2} more lines"]
        shown = "".join(f"{line[:columns]}\x1b[K\n" for line in lines)
        print(f"\x1b[H{shown}\x1b[J", end="", flush=True)


def print_block(text: str, news: Iterable[str]) -> None:
    """Print the reports below those before."""
    print(_clock(), *news, text, "", sep="\n", flush=True)


def is_terminal() -> bool:
    """Return whether stdout can be drawn on."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def wait(seconds: float) -> bool:
    """Wait; return False at once if a pipe at stdout has lost its reader."""
    if sys.stdout.isatty():
        time.sleep(seconds)
        return True
    poll = select.poll()
    poll.register(sys.stdout, 0)  # errors alone are reported
    return not poll.poll(seconds * 1000)


def _clock() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
