"""The gateway with a wall clock that a test sets.

Run it as `python -m tests.support.jumping_clock FILE serve ...`. The file contains the offset in seconds; monotonic
clocks are not changed. libfaketime is no alternative: if it leaves monotonic clocks alone, Python's `time.sleep`, which
the sentinel needs, fails (0.9.10).
"""

from __future__ import annotations

import datetime
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from datetime import tzinfo

NANOSECONDS = 10**9


def install(file: Path) -> None:
    """Replace the wall clock of this process, before any other module is imported."""
    real = time.time_ns

    def time_ns() -> int:
        return real() + int(file.read_text(encoding="utf-8")) * NANOSECONDS

    class Datetime(datetime.datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return cls.fromtimestamp(time.time(), tz)

    time.time_ns = time_ns
    time.time = lambda: time_ns() / NANOSECONDS
    datetime.datetime = Datetime


if __name__ == "__main__":
    install(Path(sys.argv.pop(1)))
    from gateway.__main__ import main

    sys.exit(main())
