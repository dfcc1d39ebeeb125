"""Starting one child program: pipes, session, limits, and errors with a remedy.

`spawn` is synchronous and runs in a worker thread; it either returns a whole `Spawned` or leaves nothing behind. It
owns no task. PR_SET_PDEATHSIG is not used: the signal follows the *thread* that forked, and a worker thread ends when
it has been idle for a while, which would kill a healthy child.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from gateway.processes import process_tree

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

logger: Final = logging.getLogger("gateway.children")

NOFILE_TARGET: Final = 65536
"""Upper limit of open files: the gateway needs four for each child."""
NOFILE_FALLBACK: Final = 10240
"""OPEN_MAX of macOS, where a higher limit may be refused although the hard limit is infinite."""

INSTALL_PLACES: Final = (
    "~/.local/bin", "~/.cargo/bin", "/usr/local/bin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin",
    "~/.volta/bin", "~/.local/share/mise/shims", "~/.asdf/shims", "~/.local/share/fnm/aliases/default/bin",
    "~/.nvm/versions/node/*/bin", "~/.bun/bin", "~/.deno/bin", "~/.nix-profile/bin", "/snap/bin", "~/.docker/bin",
    "~/.rd/bin", "/Applications/Docker.app/Contents/Resources/bin",
)  # fmt: skip
"""Install locations of uv, Node, Docker and their version managers, often missing from a desktop client's PATH."""

_mark_lock: Final = threading.Lock()  # held while this process has a child's limit mark, so that one child inherits it

_children_nofile: tuple[int, int] | None = None  # the limit that children get back; set once by raise_nofile_limit()


class ChildCommand(msgspec.Struct, frozen=True):
    """The program to run. `env` lacks only the tree id; `cwd` None: the gateway's."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None = None


class Spawned(NamedTuple):
    """A running child and the gateway's ends of its pipes.

    Where unavailable, `pidfd` is -1 and `start` is 0.
    """

    popen: subprocess.Popen[bytes]
    pidfd: int
    start: int
    stdin: int
    stdout: int
    stderr: int


def search_path(command: str, env: Mapping[str, str]) -> str:
    """Return the PATH of `env`, extended by `INSTALL_PLACES` if only they have the command."""
    path = os.pathsep.join(os.get_exec_path(dict(env)))
    if os.sep in command or shutil.which(command, path=path):
        return path
    found: list[str] = []
    for place in INSTALL_PLACES:
        there = glob.glob(place.replace("~", glob.escape(env.get("HOME", "~")), 1))  # ruff: ignore[glob]
        found += sorted(there, key=lambda one: [int(part) for part in re.findall(r"\d+", one)], reverse=True)
    longer = os.pathsep.join([path, *found])
    return longer if shutil.which(command, path=longer) else path


def find_program(command: str, env: Mapping[str, str], cwd: str | None) -> str | None:
    """Return the program that a command starts, None if there is none."""
    is_path = os.sep in command
    place = os.path.join(cwd or "", command) if is_path else command  # ruff: ignore[os-path-join] - no Path is needed
    return shutil.which(place, path=search_path(command, env))


def spawn(command: ChildCommand, env: Mapping[str, str], limit_mark: int, inherit_mark: bool) -> Spawned:
    """Start the child as leader of its own session. Raises what `Popen` raises.

    `inherit_mark`: the child inherits its limit mark, so that it never runs and forks without it. Meanwhile this whole
    process has the mark; a program that embeds the gateway may fork by itself, so it has the child marked right after
    the start instead.

    All six pipe ends are non-inheritable, so that no other child holds a write end: when the gateway ends, every
    child's stdin must end.
    """
    with contextlib.ExitStack() as child_ends, contextlib.ExitStack() as our_ends:
        in_read, in_write = os.pipe()
        child_ends.callback(os.close, in_read)
        our_ends.callback(os.close, in_write)
        out_read, out_write = os.pipe()
        child_ends.callback(os.close, out_write)
        our_ends.callback(os.close, out_read)
        err_read, err_write = os.pipe()
        child_ends.callback(os.close, err_write)
        our_ends.callback(os.close, err_read)
        with _inheriting_mark(limit_mark if inherit_mark else 0):
            popen = subprocess.Popen(
                command.argv,
                stdin=in_read,
                stdout=out_write,
                stderr=err_write,
                cwd=command.cwd,
                env=env,
                start_new_session=True,
                close_fds=True,
            )
        try:
            if sys.platform == "linux":
                import resource

                infinity, mark_limit = resource.RLIM_INFINITY, process_tree.MARK_LIMIT
                with contextlib.suppress(OSError):  # it ended already, or changed its user
                    if _children_nofile is not None:
                        resource.prlimit(popen.pid, resource.RLIMIT_NOFILE, _children_nofile)
                    if limit_mark and not inherit_mark and resource.prlimit(popen.pid, mark_limit)[1] == infinity:
                        resource.prlimit(popen.pid, mark_limit, (limit_mark, infinity))
            pidfd = open_pidfd(popen.pid)
            row = process_tree.read_row(popen.pid)
        except BaseException:  # a half-started child would have no owner
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            raise
        our_ends.pop_all()
    return Spawned(popen, pidfd, row.start if row else 0, in_write, out_read, err_read)


def open_pidfd(pid: int) -> int:
    """Return a descriptor that is readable once `pid` has ended, else -1."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # old kernel, strict sandbox, or no descriptors left: poll instead
            return os.pidfd_open(pid)
    return -1


def describe_spawn_error(command: ChildCommand, env: Mapping[str, str], exc: Exception) -> str:
    """Describe what could not be started, why, and what to change."""
    name = command.argv[0] if command.argv else ""
    cwd = command.cwd
    if not name:
        return "cannot start: the command is empty"
    if cwd is not None and isinstance(exc, OSError) and not os.access(cwd, os.X_OK):  # access() follows no PATH
        problem = "does not exist"
        if os.path.exists(cwd):  # ruff: ignore[os-path-exists] - no Path is needed
            problem = "may not be entered" if os.path.isdir(cwd) else "is not a directory"  # ruff: ignore[os-path-isdir]
        return f"cannot start: its working directory {cwd!r} {problem}; create it or change `cwd`"
    match exc:
        case NotADirectoryError() if cwd is not None and exc.filename == cwd:
            return f"cannot start: its working directory {cwd!r} is not a directory; change `cwd`"
        case FileNotFoundError() if os.sep in name:
            there = os.path.join(cwd or ".", name)  # ruff: ignore[os-path-join] - no Path is needed
            if os.path.exists(there):  # ruff: ignore[os-path-exists]
                return f"cannot start: the interpreter in the first line of {name!r} (`#!...`) was not found"
            return f"cannot start: command {name!r} not found (a path: it was not searched on PATH)"
        case FileNotFoundError():
            path = os.pathsep.join(os.get_exec_path(dict(env)))
            if found := shutil.which(name, path=path):
                return f"cannot start: the interpreter in the first line of {found!r} (`#!...`) was not found"
            return f"cannot start: command {name!r} not found (PATH={path}); install it, or give its full path"
        case PermissionError():
            return f"cannot start: command {name!r} may not be executed; check its mode (chmod +x) and its owner"
        case OSError() if exc.errno == errno.ENOEXEC:
            return (
                f"cannot start: command {name!r} is not a program for this system (a script needs a first line `#!...`)"
            )
        case OSError() if exc.errno in {errno.EMFILE, errno.ENFILE}:
            return "cannot start: too many open files; raise the limit (`ulimit -n`) or start fewer backends"
        case OSError() if exc.errno in {errno.EAGAIN, errno.ENOMEM}:
            return f"cannot start: the system cannot create another process ({exc.strerror}); check limits and memory"
        case OSError() if exc.errno == errno.E2BIG:
            return "cannot start: its arguments and environment together are too long for this system"
        case _:
            return f"cannot start: command {name!r}: {exc}"


def raise_nofile_limit() -> tuple[int, int]:
    """Raise the soft RLIMIT_NOFILE to the hard limit, at most 65536.

    Children keep the old one.

    `Popen` has no hook that is both quick and safe in a threaded program, so a child gets its limit back by `prlimit`
    right after its start: for some 0.1 ms it has the raised one, visible only to a program that reads its limit
    immediately. Without `prlimit` (systems other than Linux), children inherit the raised limit. Returns (before, now).
    """
    global _children_nofile
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = NOFILE_TARGET if hard == resource.RLIM_INFINITY else min(hard, NOFILE_TARGET)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return soft, soft
    try:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (OSError, ValueError):
            if target <= NOFILE_FALLBACK or soft >= NOFILE_FALLBACK:
                raise
            target = NOFILE_FALLBACK
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as exc:
        logger.warning("the limit of open files stays at %d (4 are needed for each backend): %s", soft, exc)
        return soft, soft
    if _children_nofile is None:
        _children_nofile = (soft, hard)
    return soft, target


@contextlib.contextmanager
def _inheriting_mark(limit_mark: int) -> Generator[None]:
    """Have children forked in this block inherit the mark.

    Forks take turns anyway: they hold the interpreter lock.
    """
    if sys.platform != "linux" or not limit_mark:
        yield
        return
    import resource

    with _mark_lock:
        before = resource.getrlimit(process_tree.MARK_LIMIT)
        if before[1] == resource.RLIM_INFINITY:
            resource.setrlimit(process_tree.MARK_LIMIT, (limit_mark, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(process_tree.MARK_LIMIT, before)
