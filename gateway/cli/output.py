"""What people read: one line an error in red, a hint under it, warnings, and JSON where it was asked for.

Colour only where a terminal shows it and NO_COLOR is not set. What goes wrong with stderr itself is no reason to stop:
nobody may be reading it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from gateway.errors import GatewayError

if TYPE_CHECKING:
    from typing import TextIO

BOLD = "1"
RED = "31"
YELLOW = "33"


class CommandError(GatewayError):
    """A command cannot do what it was asked; `hint` says what to try instead.

    `reason` is the code of the error behind it, where there is one.
    """

    code: ClassVar[str] = "command_failed"

    def __init__(self, message: str, hint: str = "", *, reason: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        self.reason = reason or self.code


class UsageError(CommandError):
    """The command line is wrong."""

    code: ClassVar[str] = "invalid_usage"


def print_error(text: str) -> None:
    """Write one line, or several, to stderr; in one piece, since the logs are written there by their own thread."""
    with suppress(OSError):  # nobody reads stderr any more, which is no reason not to serve
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def error(text: str, hint: str = "") -> None:
    """Say what is wrong, in one red line, and then what to do about it."""
    print_error(painted(f"error: {text}", RED))
    if hint:
        print_error(f"hint: {hint}")


def warn(text: str) -> None:
    """Say what is odd."""
    print_error(painted(f"warning: {text}", YELLOW))


def painted(text: str, colour: str, stream: TextIO | None = None) -> str:
    """The text in a colour, where the stream (stderr, if none is named) shows colours and people want them."""
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour(stream or sys.stderr) else text


def has_colour(stream: TextIO) -> bool:
    """Whether to write colours there (https://no-color.org)."""
    try:
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def print_json_error(problem: GatewayError) -> None:
    """Print an error as `{"error": {"code", "message", "hint"}}`: what `--json` promises where a command fails."""
    hint: str = getattr(problem, "hint", "")
    code = problem.reason if isinstance(problem, CommandError) else problem.code
    print_json({"error": {"code": code, "message": str(problem), **({"hint": hint} if hint else {})}})


def counted(count: int, noun: str) -> str:
    """Return "1 server", "2 servers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_json(value: Any) -> None:
    """Print a value as JSON: what `--json` promises."""
    import json

    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))
