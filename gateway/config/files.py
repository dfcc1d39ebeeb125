"""External values of a config: `${file:PATH}` and `${cmd:COMMAND}` in strings, and a server's `env_file`.

The reader is passed in, as the environment is: without one (a config that is not from a file) no file is read. The
values are secrets: no line shows them, and `Scope.secrets` records them for masking.
"""

from __future__ import annotations

import os
import re
import select
import stat
import time
from typing import TYPE_CHECKING

from gateway.config.findings import shown
from gateway.config.transport import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from gateway.config.commands import CommandFailed
    from gateway.config.findings import Entry, FileSource, Scope

MAX_FILE_BYTES = 64 * 1024
"""Keys, tokens and lists of variables are far smaller; a larger file is certainly the wrong one."""
PIPE_TIMEOUT = 5.0
"""Seconds for the writer of a named pipe to write and close it; bounds the start."""
FAILURE_KEPT = 60.0
"""Seconds before waiting again for a pipe whose writer failed to write."""
READ_BYTES = 65_536
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_VARIABLE = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*
        (?:'(?P<plain>[^']*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<bare>[^'"\r\n][^\r\n]*)?)
        [ \t]*(?:(?<=[\s'"])\#[^\r\n]*)?(?:\r?\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_NOTHING = re.compile(r"[ \t]*(?:\#[^\r\n]*)?(?:\r?\n|\Z)")


class UnreadableFile(ValueError):
    """A file cannot be used; the message gives name and reason, never the content."""


class SpecialFile(OSError):
    """A path that is not readable to an end; `reason` describes it."""

    def __init__(self, reason: str, *, is_pipe: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_pipe = is_pipe


def read_at_most(path: Path, most: int, *, timeout: float = PIPE_TIMEOUT) -> tuple[bytes, bool]:
    """Read a file or named pipe; also return whether it is a pipe.

    At most `most` + 1 bytes are read.

    Raises:
        SpecialFile: it is a directory, a device or a socket, or a pipe that is not closed within `timeout`.
        OSError: it cannot be read.
    """
    kind = _special(os.stat(path).st_mode)  # noqa: PTH116 - before opening it, which may have side effects on a device
    if kind:
        raise SpecialFile(f"is {kind}")
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(fd).st_mode
        if kind := _special(mode):
            raise SpecialFile(f"is {kind}")
        if stat.S_ISFIFO(mode):
            return _read_pipe(fd, most, timeout), True
        parts = bytearray()
        while len(parts) <= most and (part := os.read(fd, most + 1 - len(parts))):
            parts += part
        return bytes(parts), False
    finally:
        os.close(fd)


def _special(mode: int) -> str:
    """Return the kind of a special file; empty for regular files and pipes."""
    kinds = {stat.S_IFDIR: "a directory", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "")


def _read_pipe(fd: int, most: int, timeout: float) -> bytes:
    """Read until the last writer has closed it. Raises SpecialFile."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + timeout
    parts = bytearray()
    while len(parts) <= most:
        events = poll.poll(max(deadline - time.monotonic(), 0) * 1000)
        if not events:
            done = "has not closed it" if parts else "has written nothing"
            raise SpecialFile(f"is a pipe whose writer {done} within {timeout:g} s", is_pipe=True)
        part = os.read(fd, min(READ_BYTES, most + 1 - len(parts)))
        parts += part
        if not part and events[0][1] & select.POLLHUP:
            break
        if not part:  # no writer yet, which some systems report as EOF
            time.sleep(0.01)
    return bytes(parts)


class FileReader:
    """Reader of small text files and command output for one config file.

    Relative paths are relative to `base`, `~/` is `home`; commands get the variables of `environ`. The content of a
    pipe is cached, since a pipe can be read only once; a failure is cached for a while, so that a config that names the
    pipe often does not wait each time. A command's output or failure is cached until `forget`.
    """

    def __init__(self, base: Path, home: str | None, environ: Mapping[str, str]) -> None:
        self._base = base
        self._home = home
        self._environ = environ
        self._pipes: dict[Path, bytes] = {}
        self._failed: dict[Path, tuple[float, str]] = {}
        self._printed: dict[str, str | CommandFailed] = {}

    def __call__(self, name: str) -> str:
        """Return the text without one newline at its end. Raises UnreadableFile."""
        path = self._base / (self._home or "~") / name[2:] if name.startswith("~/") else self._base / name
        until, problem = self._failed.get(path, (0.0, ""))
        if time.monotonic() < until:
            raise UnreadableFile(problem)
        data = self._pipes.get(path)
        try:
            if data is None:
                data, is_pipe = read_at_most(path, MAX_FILE_BYTES)
                if is_pipe:
                    self._pipes[path] = data
        except SpecialFile as exc:
            problem = f"the file {shown(name)} {exc.reason}"
            if exc.is_pipe:
                self._failed[path] = (time.monotonic() + FAILURE_KEPT, problem)
            raise UnreadableFile(problem) from None
        except FileNotFoundError:
            raise UnreadableFile(f"there is no file {shown(name)}; a path is relative to the config file") from None
        except (OSError, ValueError) as exc:
            why = (exc.strerror if isinstance(exc, OSError) else None) or "not a path"
            raise UnreadableFile(f"the file {shown(name)} cannot be read: {why.lower()}") from None
        if len(data) > MAX_FILE_BYTES:
            raise UnreadableFile(f"the file {shown(name)} is larger than {MAX_FILE_BYTES // 1024} KiB")
        try:
            text = data.decode("utf-8-sig")
            return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")
        except UnicodeDecodeError:
            raise UnreadableFile(f"the file {shown(name)} is not UTF-8 text") from None

    def run(self, command: str) -> str:
        """Return a command's output. Raises ValueError."""
        self.run_all([command])
        found = self._printed[command]
        if isinstance(found, ValueError):
            raise found.with_traceback(None)
        return found

    def run_all(self, commands: Iterable[str]) -> None:
        """Run those of these commands that have not been run yet, concurrently."""
        fresh = [command for command in commands if command not in self._printed]
        if fresh:
            from gateway.config.commands import run_commands

            self._printed |= run_commands(fresh, self._base, self._environ)

    def run_ahead(self, text: object, read: Callable[[FileSource], object]) -> None:
        """Run all commands that `read` asks for, concurrently.

        Afterwards they are in the cache. `text` is what it reads; it is not called if that names no command. Its result
        and findings do not count.
        """
        if "${cmd:" in str(text):
            collector = CommandCollector(self)
            read(collector)
            self.run_all(collector.commands)

    def forget(self) -> None:
        """Forget the cached output of commands."""
        self._printed.clear()


class CommandCollector:
    """A source of files that records commands instead of running them."""

    def __init__(self, files: FileSource) -> None:
        self._files = files
        self.commands: dict[str, None] = {}
        """The commands that were asked for, in that order."""

    def __call__(self, name: str) -> str:
        """Return the text of a file. Raises UnreadableFile."""
        return self._files(name)

    def run(self, command: str) -> str:
        """Record a command."""
        self.commands[command] = None
        return ""


def read_env_file(scope: Scope, entry: Entry) -> dict[str, str]:
    """Read an env file; report a problem as a warning for a disabled server."""
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
    """Read the dotenv format: NAME=VALUE lines, `export`, comments; values in single or double quotes.

    Single quotes are verbatim, double quotes allow escapes, and both may span lines. `${NAME}` is literal.

    Raises:
        UnreadableFile: a line is invalid; the message has its number, not its content.
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
            if match["plain"] is not None:
                value = match["plain"]
            elif match["quoted"] is not None:
                value = _ESCAPE.sub(lambda escape: _ESCAPES.get(escape[1], escape[1]), match["quoted"])
            else:
                value = re.split(r"\s#", match["bare"] or "", maxsplit=1)[0].strip()
            found[match["name"]] = value
        position = match.end()
    return found
