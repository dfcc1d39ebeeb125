"""From a command line to an exit code: finds the command, runs it, and says what went wrong."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from gateway.cli.flags import PROGRAM, Command, convert, read_plain
from gateway.cli.output import UsageError, error, print_json_error, warn
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, FAILED, USAGE = 0, 1, 2
COMMANDS = {
    "serve": "serve",
    "list": "listing",
    "call": "call",
    "read": "call",
    "prompt": "call",
    "check": "check",
    "doctor": "doctor",
    "import": "importing",
    "ps": "ps",
    "reload": "management",
    "restart": "management",
    "enable": "management",
    "disable": "management",
    "login": "login",
    "logout": "login",
    "fields": "reference",
    "schema": "reference",
    "hash-key": "hash_key",
    "demo": "serve",
}
"""Each command with its module, which is imported when the command is used."""
COMPLETION = "_" + PROGRAM.upper().replace("-", "_") + "_COMPLETE"
"""The variable by which a shell asks for completions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _open_missing_stdio()
    _print_what_cannot_be_encoded()
    words = list(sys.argv[1:] if argv is None else argv)
    # Before the command or right after it, where no other thing of this name can stand.
    debug = "--debug" in words[:2] and len(words) > 1
    if debug:
        words.remove("--debug")
    try:
        return _run(words, debug=debug)
    except (GatewayError, KeyboardInterrupt, BaseExceptionGroup) as exc:
        if debug:
            import traceback

            traceback.print_exception(exc)
        return _explain(exc)


def _run(words: list[str], *, debug: bool) -> int:
    if words and words[0] in COMMANDS and COMPLETION not in os.environ:
        command = find_command(words[0])
        raw = read_plain(command, words[1:])
        if raw is not None:
            return _start(command, raw, debug=debug)
    from gateway.cli.app import read_with_typer

    read = read_with_typer([find_command(name) for name in COMMANDS], words)
    if isinstance(read, int):
        return read
    return _start(*read, debug=debug)


def _start(command: Command, raw: dict[str, Any], *, debug: bool) -> int:
    values = convert(command, raw)
    values.debug = debug
    for flag in command.flags:
        if flag.variable and raw.get(flag.key) is not None:
            warn(f"{flag.name} is visible to other users of this machine (ps); set {flag.variable} instead")
    try:
        return command.run(values)
    except (GatewayError, BaseExceptionGroup) as exc:
        if getattr(values, "json", False):
            for problem in _leaves(exc):
                if isinstance(problem, GatewayError):
                    print_json_error(problem)
                    break
        raise


def find_command(name: str) -> Command:
    """One command, from its module: `COMMANDS` there holds all that the module has."""
    module = import_module(f"gateway.cli.{COMMANDS[name]}")
    found: tuple[Command, ...] = module.COMMANDS
    return next(command for command in found if command.name == name)


def _explain(problem: BaseException) -> int:
    """Say it in one line, with a hint; a bug keeps its traceback. Returns the exit code."""
    match problem:
        case ConfigError():
            for line in problem.problems:
                error(line)
            for line in problem.warnings:
                warn(line)
            return USAGE
        case GatewayError():
            error(str(problem), getattr(problem, "hint", ""))
            return USAGE if isinstance(problem, UsageError) else FAILED
        case BaseExceptionGroup():
            expected, bugs = problem.split((GatewayError, KeyboardInterrupt))
            if bugs is not None or expected is None:
                raise problem  # a bug: the traceback is what helps
            for leaf in _leaves(expected):
                if not isinstance(leaf, KeyboardInterrupt):  # whoever has pressed the keys knows
                    error(str(leaf), getattr(leaf, "hint", ""))
            return FAILED
        case _:
            return FAILED


def _leaves(problem: BaseException) -> list[BaseException]:
    if not isinstance(problem, BaseExceptionGroup):
        return [problem]
    members = cast("BaseExceptionGroup[BaseException]", problem).exceptions
    return [leaf for member in members for leaf in _leaves(member)]


def _print_what_cannot_be_encoded() -> None:
    """Print a lone surrogate, or what the terminal's encoding lacks, as its escape, which in JSON means the same."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # nothing that stands in its place has this
        reconfigure(errors="backslashreplace")


def _open_missing_stdio() -> None:
    """Put /dev/null where the caller left stdin, stdout or stderr closed.

    Else the next thing that is opened, a socket or a child's pipe, gets the number, and logs are written into it.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(fd, True)
    if sys.stderr is None:  # pyright: ignore[reportUnnecessaryComparison] - the interpreter found it closed
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the whole process
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
