"""Output for users: errors in red with a hint, warnings, and JSON on request.

Colour is used only on a terminal and without NO_COLOR. Errors of stderr itself are ignored, since it may have no
reader.
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
    """A command failed; `hint` says what to try instead.

    `reason` is the code of the underlying error, if any.
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
    """Write lines to stderr in one piece: another thread writes logs there."""
    with suppress(OSError):  # stderr has no reader, but the gateway can still serve
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def error(text: str, hint: str = "") -> None:
    """Print the error in red, followed by the hint."""
    print_error(painted(f"error: {text}", RED))
    if hint:
        print_error(f"hint: {hint}")


def warn(text: str) -> None:
    """Print a warning."""
    print_error(painted(f"warning: {text}", YELLOW))


def painted(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return the text in a colour if the stream (default: stderr) may have one."""
    return f"\x1b[{colour}m{text}\x1b[0m" if has_colour(stream or sys.stderr) else text


def has_colour(stream: TextIO) -> bool:
    """Return whether to use colours on a stream (https://no-color.org)."""
    try:
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    except ValueError:  # it is closed
        return False


def print_json_error(problem: GatewayError) -> None:
    """Print an error as `{"error": {"code", "message", "hint"}}`, for `--json`."""
    hint: str = getattr(problem, "hint", "")
    code = problem.reason if isinstance(problem, CommandError) else problem.code
    print_json({"error": {"code": code, "message": str(problem), **({"hint": hint} if hint else {})}})


def printable(text: str) -> str:
    """Return a line with its control characters escaped, which could hide text."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def counted(count: int, noun: str) -> str:
    """Return "1 server", "2 servers"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def print_json(value: Any) -> None:
    """Print a value as JSON, for `--json`."""
    import json

    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False))
