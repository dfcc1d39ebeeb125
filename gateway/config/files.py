"""What a config takes from other files: `${file:PATH}` in a string, and a server's `env_file`.

The reader is handed in, as the environment is: without one (a config that did not come from a file) no file is read.
What it reads are secrets: no line shows them, and `Scope.secrets` notes them, so that nothing else does.
"""

from __future__ import annotations

import os
import re
import stat
from typing import TYPE_CHECKING

from gateway.config.findings import shown
from gateway.config.process import read_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gateway.config.findings import Entry, Scope

    Files = Callable[[str], str]

MAX_FILE_BYTES = 64 * 1024
"""A key, a token or a list of variables is smaller by far; whatever is larger is another file."""
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_VARIABLE = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*
        (?:'(?P<plain>[^']*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<bare>[^'"\r\n][^\r\n]*)?)
        [ \t]*(?:(?<=[\s'"])\#[^\r\n]*)?(?:\r?\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_NOTHING = re.compile(r"[ \t]*(?:\#[^\r\n]*)?(?:\r?\n|\Z)")


class UnreadableFile(ValueError):
    """A file cannot be used; the message says why and names it, but nothing of what it holds."""


def reader(base: Path, home: str | None) -> Files:
    """Make a reader of small text files; relative paths are relative to `base`, `~/` is `home`."""

    def read(name: str) -> str:
        """The text without one newline at its end. Raises UnreadableFile."""
        path = base / (home or "~") / name[2:] if name.startswith("~/") else base / name
        text = _decode(name, _read(name, path))
        return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")

    return read


def _read(name: str, path: Path) -> bytes:
    try:
        # Not blocking: what is no plain file must not hold up the gateway until somebody writes into it.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise UnreadableFile(f"the file {shown(name)} is no plain file")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise UnreadableFile(f"there is no file {shown(name)}; a path is relative to the config file") from None
    except (OSError, ValueError) as exc:
        why = (exc.strerror if isinstance(exc, OSError) else None) or "not a path"
        if isinstance(exc, UnreadableFile):
            raise
        raise UnreadableFile(f"the file {shown(name)} cannot be read: {why.lower()}") from None
    if len(data) > MAX_FILE_BYTES:
        raise UnreadableFile(f"the file {shown(name)} is larger than {MAX_FILE_BYTES // 1024} KiB")
    return data


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnreadableFile(f"the file {shown(name)} is not UTF-8 text") from None


def read_env_file(scope: Scope, entry: Entry) -> dict[str, str]:
    """The variables of an env file; none after noting the problem, which is only a warning if the server is off."""
    name = read_text(scope, entry)
    if name is None:
        return {}
    say = scope.warn if scope.lenient else scope.problem
    if scope.files is None:
        say(entry.label, "works only in a config file")
        return {}
    try:
        return parse_variables(scope.files(name), name)
    except UnreadableFile as exc:
        say(entry.label, f"cannot be used: {exc}")
        return {}


def parse_variables(text: str, name: str = "env file") -> dict[str, str]:
    """Read the dotenv format: NAME=VALUE lines, `export`, comments; 'as it is' or "with escapes", over many lines too.

    `${NAME}` in there means itself.

    Raises:
        UnreadableFile: a line is none of these; it is not repeated, only counted.
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(text):
        match = _NOTHING.match(text, position)
        if match is None or match.end() == position:
            match = _VARIABLE.match(text, position)
            if match is None:
                line = text.count("\n", 0, position) + 1
                raise UnreadableFile(f"line {line} of the file {shown(name)} is not NAME=VALUE")
            found[match["name"]] = _value(match)
        position = match.end()
    return found


def _value(match: re.Match[str]) -> str:
    if match["plain"] is not None:
        return match["plain"]
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", lambda escape: _ESCAPES.get(escape[1], escape[1]), match["quoted"], flags=re.DOTALL)
    return re.split(r"\s#", match["bare"] or "", maxsplit=1)[0].strip()
