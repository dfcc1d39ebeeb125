"""Declarations of the commands: each module of this package has a `Command` with its `Flag`s.

There are two parsers. `read_plain` parses a plainly valid command line in well under a millisecond, so that a client
which starts the gateway does not wait; `gateway.cli.app` passes all others (help, errors, shell completion) to Typer,
which takes 0.2 s. Both return text, which `convert` turns into values.
"""

from __future__ import annotations

from collections.abc import Callable  # ruff: ignore[typing-only-standard-library-import] - msgspec reads it
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from gateway.cli.output import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PROGRAM = "mcp-gateway"

Values = SimpleNamespace
"""The given values, by the flags' `key`."""


class Flag(Struct, frozen=True):
    """One option (`--port`), or one argument (`FILE`).

    `parse` converts the text and raises ValueError with a whole sentence; `complete` returns shell completions from the
    values given so far, by key, and must be fast.
    """

    name: str
    help: str
    metavar: str = "TEXT"
    default: Any = None
    parse: Callable[[str], Any] | None = None
    choices: tuple[str, ...] = ()
    complete: Callable[[dict[str, Any]], Sequence[str]] | None = None
    required: bool = False
    switch: bool = False
    """It takes no value and is True if given."""
    many: bool = False
    """It may be repeated; the value is a list."""
    variable: str = ""
    """For a secret: the environment variable to use instead, since a command line is visible to other users."""

    @property
    def is_option(self) -> bool:
        """Whether it is an option, not a positional argument."""
        return self.name.startswith("-")

    @property
    def key(self) -> str:
        """Its name as an attribute of the values."""
        return self.name.lstrip("-").replace("-", "_").lower()


class Command(Struct, frozen=True):
    """One command; `run` returns the exit code."""

    name: str
    help: str
    run: Callable[[Values], int]
    flags: tuple[Flag, ...] = ()
    epilog: str = ""


JSON = Flag("--json", "print the result as JSON", switch=True)


def read_plain(command: Command, words: Sequence[str]) -> dict[str, Any] | None:
    """Parse the words into values by key; None if they are invalid or need Typer."""
    options = {flag.name: flag for flag in command.flags if flag.is_option}
    raw: dict[str, Any] = {}
    places: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == "--":
            places += rest
            break
        name, sign, value = word.partition("=")
        if not word.startswith("-"):
            places.append(word)
            continue
        flag = options.get(name)
        if flag is None or (flag.switch and sign):
            return None
        if flag.switch:
            raw[flag.key] = True
            continue
        text = value if sign else next(rest, "-")
        if text.startswith("-"):
            return None
        _put(raw, flag, text)
    for flag in command.flags:
        while places and not flag.is_option:
            _put(raw, flag, places.pop(0))
            if not flag.many:
                break
    if places:
        return None
    return None if any(flag.required and flag.key not in raw for flag in command.flags) else raw


def _put(raw: dict[str, Any], flag: Flag, text: str) -> None:
    if flag.many:
        raw.setdefault(flag.key, []).append(text)
    else:
        raw[flag.key] = text


def convert(command: Command, raw: Mapping[str, Any]) -> Values:
    """Convert the given values, and fill in the defaults.

    Raises:
        UsageError: a text is not a valid value of its flag.
    """
    values = Values()
    for flag in command.flags:
        given = raw.get(flag.key)
        if flag.switch:
            setattr(values, flag.key, bool(given))
        elif flag.many:
            setattr(values, flag.key, [_value(command, flag, text) for text in given or ()])
        else:
            setattr(values, flag.key, flag.default if given is None else _value(command, flag, given))
    return values


def _value(command: Command, flag: Flag, text: str) -> Any:
    hint = f"{PROGRAM} {command.name} --help"
    if flag.choices and text not in flag.choices:
        problem = f"{flag.name}: {text!r} is not one of {', '.join(flag.choices)}"
        raise UsageError(problem, hint)
    if flag.parse is None:
        return text
    try:
        return flag.parse(text)
    except ValueError as exc:
        problem = f"{flag.name}: {exc}"
        raise UsageError(problem, hint) from None
