"""Commands of `${cmd:...}`: run without a shell, concurrently, each within a deadline.

Their output is a secret: no message contains it, nor a command's arguments.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import shlex
import signal
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from gateway.config.findings import shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

COMMAND_TIMEOUT: Final = 30.0
"""Seconds for each command: a password manager may have to ask its user."""
MAX_RUNNING: Final = 16
"""Commands that run at the same time: a config may name hundreds, and one program answers them all."""
MAX_OUTPUT: Final = 64 * 1024
"""Bytes of a command's output: a key or a token is far smaller."""
EXIT_INTERVAL: Final = 0.01
"""Seconds between two checks whether a command with closed stdout has exited."""
READ_BYTES: Final = 65_536

_groups: Final[set[int]] = set()
"""Process groups of running commands, for the end of the program."""


class CommandFailed(ValueError):
    """A command has no usable output; the message names the program and the reason."""


def run_commands(
    commands: Iterable[str],
    folder: Path,
    environ: Mapping[str, str],
    *,
    timeout: float = COMMAND_TIMEOUT,
    max_running: int = MAX_RUNNING,
) -> dict[str, str | CommandFailed]:
    """Run these commands and return the output of each, or its failure.

    Args:
        commands: command lines, split as a shell would.
        folder: the folder to which a program with a slash is relative.
        environ: the environment of the commands.
        timeout: seconds for each command, from its start.
        max_running: commands that run at the same time.
    """
    waiting = deque(dict.fromkeys(commands))
    running: dict[str, _Running] = {}
    found: dict[str, str | CommandFailed] = {}
    try:
        while waiting or running:
            while waiting and len(running) < max_running:
                command = waiting.popleft()
                try:
                    running[command] = _Running(command, folder, environ, timeout)
                except CommandFailed as exc:
                    found[command] = exc
            _wait(running.values())
            for command, one in tuple(running.items()):
                try:
                    text = one.advance()
                except CommandFailed as exc:
                    found[command] = exc
                else:
                    if text is None:
                        continue
                    found[command] = text
                running.pop(command).close()
    finally:
        for one in running.values():
            one.close()
    return found


def _wait(running: Collection[_Running]) -> None:
    """Wait until one of them may have advanced."""
    poll = select.poll()
    pause = min((one.pause for one in running), default=0.0)
    for one in running:
        if one.stdout >= 0:
            poll.register(one.stdout, select.POLLIN)
    poll.poll(max(pause, 0.0) * 1000)


class _Running:
    """A started command: its own process group, no stdin, stderr discarded."""

    def __init__(self, command: str, folder: Path, environ: Mapping[str, str], timeout: float) -> None:
        try:
            words = shlex.split(command)
        except ValueError as exc:
            raise CommandFailed(f"the command {shown(command)} has {str(exc).lower()}") from None
        self._subject = f"the command {shown(words[0] if words else '')}"
        if not words or not hasattr(os, "posix_spawnp"):
            raise CommandFailed(f"{self._subject} cannot be run here" if words else "'cmd:' names no command")
        program = str(folder / words[0]) if "/" in words[0] else words[0]
        self.stdout, write = os.pipe()
        """The read end of its output, -1 after EOF."""
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, write, 1),
            (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
        ]
        try:
            self._pid = os.posix_spawnp(program, words, environ, file_actions=actions, setpgroup=0)
        except OSError as exc:
            os.close(self.stdout)
            raise CommandFailed(f"{self._subject} cannot be run: {(exc.strerror or str(exc)).lower()}") from None
        finally:
            os.close(write)
        _groups.add(self._pid)
        os.set_blocking(self.stdout, False)
        self._timeout = timeout
        self._deadline = time.monotonic() + timeout
        self._output = bytearray()
        self._is_reaped = False

    @property
    def pause(self) -> float:
        """Seconds until `advance` must be called even if there is no more output."""
        return EXIT_INTERVAL if self.stdout < 0 else self._deadline - time.monotonic()

    def advance(self) -> str | None:
        """Read more output; once the command has exited, return it without a final newline.

        Raises:
            CommandFailed: the command has failed, or takes too long, or prints too much.
        """
        while self.stdout >= 0:
            try:
                part = os.read(self.stdout, READ_BYTES)
            except BlockingIOError:
                break
            self._output += part
            if len(self._output) > MAX_OUTPUT:
                raise CommandFailed(f"{self._subject} prints more than {MAX_OUTPUT // 1024} KiB")
            if not part:
                self._close_stdout()
        status = None
        if self.stdout < 0:
            try:
                ended, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:
                ended = self._pid
            self._is_reaped = ended != 0
        if not self._is_reaped:
            if time.monotonic() >= self._deadline:
                raise CommandFailed(f"{self._subject} has not ended within {self._timeout:g} s")
            return None
        if status is None:
            raise CommandFailed(f"{self._subject} was reaped by other code")
        if (code := os.waitstatus_to_exitcode(status)) != 0:
            raise CommandFailed(f"{self._subject} failed with exit status {code}; run it yourself to see why")
        try:
            text = self._output.decode()
        except UnicodeDecodeError:
            raise CommandFailed(f"{self._subject} prints text that is not UTF-8") from None
        return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")

    def close(self) -> None:
        """Kill the command and its children if it has not ended."""
        self._close_stdout()
        if not self._is_reaped:
            with contextlib.suppress(OSError):
                os.killpg(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
        _groups.discard(self._pid)

    def _close_stdout(self) -> None:
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1


@atexit.register
def _kill_all() -> None:
    """Kill what still runs: a stopping gateway does not wait for its config's thread."""
    for group in tuple(_groups):
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)
