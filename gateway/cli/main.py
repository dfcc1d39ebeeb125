"""Entry point: find the command, run it, and report errors."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, cast

from gateway.cli.flags import PROGRAM, Command, convert, read_plain
from gateway.cli.output import UsageError, error, print_json_error, warn
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from collections.abc import Sequence

OK, FAILED, USAGE = 0, 1, 2
COMMANDS = {
    "serve": "serve",
    "connect": "connect",
    "list": "listing",
    "call": "call",
    "read": "call",
    "prompt": "call",
    "check": "check",
    "doctor": "doctor",
    "import": "importing",
    "install": "installing",
    "uninstall": "installing",
    "service": "service",
    "add": "adding",
    "remove": "adding",
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
"""The module of each command, imported on use."""
COMPLETION = "_" + PROGRAM.upper().replace("-", "_") + "_COMPLETE"
"""The variable with which a shell requests completions."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    _open_missing_stdio()
    # Unencodable characters, such as lone surrogates, are printed as escapes, which are equivalent in JSON.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a replacement of the stream may lack it
        reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _run(words)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has stopped reading; flushing the rest of the buffer must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    return status


def _run(words: list[str]) -> int:
    # Before the command or right after it, where the word cannot be a value.
    debug = "--debug" in words[:2] and len(words) > 1
    if debug:
        words.remove("--debug")
    try:
        command, raw = None, None
        if words and words[0] in COMMANDS and COMPLETION not in os.environ:
            command = find_command(words[0])
            raw = read_plain(command, words[1:])
        if command is None or raw is None:
            from gateway.cli.app import read_with_typer

            read = read_with_typer([find_command(name) for name in COMMANDS], words)
            if isinstance(read, int):
                return read
            command, raw = read
        values = convert(command, raw)
        values.debug = debug
        for flag in command.flags:
            if flag.variable and raw.get(flag.key) is not None:
                warn(f"{flag.name} is visible to other users of this machine (ps); set {flag.variable} instead")
        return command.run(values)
    except (GatewayError, KeyboardInterrupt, BaseExceptionGroup) as exc:
        if debug:
            import traceback

            traceback.print_exception(exc)
        problems = _leaves(exc)
        if not all(isinstance(each, (GatewayError, KeyboardInterrupt)) for each in problems):
            raise  # a bug: show the traceback
        expected = [each for each in problems if isinstance(each, GatewayError)]
        if "--json" in words and expected:
            print_json_error(expected[0])
        for problem in expected:
            if isinstance(problem, ConfigError):
                for line in problem.problems:
                    error(line)
                for line in problem.warnings:
                    warn(line)
            else:
                error(str(problem), getattr(problem, "hint", ""))
        return USAGE if isinstance(exc, (ConfigError, UsageError)) else FAILED


def find_command(name: str) -> Command:
    """Return a command from the `COMMANDS` of its module."""
    module = import_module(f"gateway.cli.{COMMANDS[name]}")
    found: tuple[Command, ...] = module.COMMANDS
    return next(command for command in found if command.name == name)


def _leaves(problem: BaseException) -> list[BaseException]:
    if not isinstance(problem, BaseExceptionGroup):
        return [problem]
    members = cast("BaseExceptionGroup[BaseException]", problem).exceptions
    return [leaf for member in members for leaf in _leaves(member)]


def _open_missing_stdio() -> None:
    """Put /dev/null where the caller left stdin, stdout or stderr closed.

    Otherwise the next opened descriptor, such as a socket or a child's pipe, would get the number, and logs would be
    written to it.
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
