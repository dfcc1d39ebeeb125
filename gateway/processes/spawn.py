"""Starting one child program: its pipes, its session, its limits, and errors that say what to do.

`spawn` is synchronous and runs in a worker thread; it either returns a whole `Spawned` or leaves nothing behind.
Nothing in here owns a task. PR_SET_PDEATHSIG is not used: the signal follows the *thread* that forked, and a worker
thread ends when it has been idle for a while, which would kill a healthy child.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
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
"""File descriptors are what the gateway needs most (four a child); more than this many it never needs."""

_branding: Final = threading.Lock()  # held while this process wears a child's brand, so that one child gets it

_children_nofile: tuple[int, int] | None = None  # the limit that children get back; set once by raise_nofile_limit()


class ChildCommand(msgspec.Struct, frozen=True):
    """What to run. `env` is the complete environment (the guard adds its cookie), `cwd` None means the gateway's."""

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str | None = None


class Spawned(NamedTuple):
    """A running child and the gateway's ends of its pipes; `pidfd` is -1 where there is none, `start` 0 likewise."""

    popen: subprocess.Popen[bytes]
    pidfd: int
    start: int
    stdin: int
    stdout: int
    stderr: int


def spawn(command: ChildCommand, env: Mapping[str, str], brand: int, wear_brand: bool) -> Spawned:
    """Start the child as leader of a session and a process group of its own. Raises what `Popen` raises.

    `wear_brand`: the child inherits its brand, so that it has it from birth and cannot fork unbranded; for this
    moment the whole process wears it, so a program that embeds the gateway, and may be forking itself, brands the child
    right after the start instead.

    All six pipe ends are created non-inheritable, so that no other child holds a write end: the end of the gateway must
    be the end of every child's stdin.
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
        with _wearing(brand if wear_brand else 0):
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
            _set_limits(popen.pid, 0 if wear_brand else brand)
            pidfd = open_pidfd(popen.pid)
            row = process_tree.read_row(popen.pid)
        except BaseException:  # no place for a half-started child: nobody would own it
            os.killpg(popen.pid, signal.SIGKILL)
            popen.wait()
            raise
        our_ends.pop_all()
    return Spawned(popen, pidfd, row.start if row else 0, in_write, out_read, err_read)


def open_pidfd(pid: int) -> int:
    """A descriptor that becomes readable when `pid` ends, or -1 where the system has none."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # old kernel, strict sandbox, or no descriptors left: poll instead
            return os.pidfd_open(pid)
    return -1


def describe_spawn_error(command: ChildCommand, env: Mapping[str, str], exc: Exception) -> str:
    """Say what could not be started, why, and what to change."""
    name = command.argv[0] if command.argv else ""
    cwd = command.cwd
    if not name:
        return "cannot start: the command is empty"
    if cwd is not None and isinstance(exc, OSError) and not os.access(cwd, os.X_OK):  # access() follows no PATH
        trouble = "is not a directory" if os.path.exists(cwd) and not os.path.isdir(cwd) else _plight(cwd)  # ruff: ignore[os-path-exists, os-path-isdir]
        return f"cannot start: its working directory {cwd!r} {trouble}; create it or change `cwd`"
    match exc:
        case NotADirectoryError() if cwd is not None and exc.filename == cwd:
            return f"cannot start: its working directory {cwd!r} is not a directory; change `cwd`"
        case FileNotFoundError():
            return f"cannot start: {_not_found(name, env, cwd)}"
        case PermissionError():
            return f"cannot start: command {name!r} may not be executed; check its mode (chmod +x) and its owner"
        case OSError() if exc.errno == errno.ENOEXEC:
            return f"cannot start: command {name!r} is no program for this system (a script needs a first line `#!...`)"
        case OSError() if exc.errno in {errno.EMFILE, errno.ENFILE}:
            return "cannot start: too many open files; raise the limit (`ulimit -n`) or start fewer backends"
        case OSError() if exc.errno in {errno.EAGAIN, errno.ENOMEM}:
            return f"cannot start: the system has no room for another process ({exc.strerror}); check limits and memory"
        case OSError() if exc.errno == errno.E2BIG:
            return "cannot start: its arguments and environment together are too long for this system"
        case _:
            return f"cannot start: command {name!r}: {exc}"


def _plight(cwd: str) -> str:
    return "may not be entered" if os.path.isdir(cwd) else "does not exist"  # ruff: ignore[os-path-isdir] - no Path is needed


def _not_found(name: str, env: Mapping[str, str], cwd: str | None) -> str:
    if os.sep in name:
        there = os.path.join(cwd or ".", name)  # ruff: ignore[os-path-join] - no Path is needed
        if os.path.exists(there):  # ruff: ignore[os-path-exists]
            return f"the interpreter in the first line of {name!r} (`#!...`) was not found"
        return f"command {name!r} not found (a path: it was looked for there, not on PATH)"
    path = os.pathsep.join(os.get_exec_path(dict(env)))
    if found := shutil.which(name, path=path):
        return f"the interpreter in the first line of {found!r} (`#!...`) was not found"
    return f"command {name!r} not found (looked on PATH={path}); install it, or give its full path"


def raise_nofile_limit() -> tuple[int, int] | None:
    """Raise this process's soft RLIMIT_NOFILE to the hard limit, at most 65536; children keep what they would have had.

    `Popen` has no hook that is both safe in a threaded program and quick, so a child gets its limit back by `prlimit`
    right after it was started: for some 0.1 ms it has the raised one, which is seen only by a program that reads its
    limit at once (then it reads a larger one than usual). Where there is no `prlimit` (other systems than Linux), the
    children inherit the raised limit. Returns (before, now), or None when the system has no such limit.
    """
    global _children_nofile
    if sys.platform == "win32":
        return None
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = NOFILE_TARGET if hard == resource.RLIM_INFINITY else min(hard, NOFILE_TARGET)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return soft, soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (OSError, ValueError) as exc:
        logger.warning("the limit of open files stays at %d (4 are needed for each backend): %s", soft, exc)
        return soft, soft
    if _children_nofile is None:
        _children_nofile = (soft, hard)
    return soft, target


def _set_limits(pid: int, brand: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    with contextlib.suppress(OSError):  # it ended already, or changed its user: then its limits are its own affair
        if _children_nofile is not None:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, _children_nofile)
        if brand and resource.prlimit(pid, process_tree.BRAND_LIMIT)[1] == resource.RLIM_INFINITY:
            resource.prlimit(pid, process_tree.BRAND_LIMIT, (brand, resource.RLIM_INFINITY))


@contextlib.contextmanager
def _wearing(brand: int) -> Generator[None]:
    """Have whoever is forked meanwhile inherit the brand. Forks take turns anyway: they hold the interpreter lock."""
    if sys.platform != "linux" or not brand:
        yield
        return
    import resource

    with _branding:
        before = resource.getrlimit(process_tree.BRAND_LIMIT)
        if before[1] == resource.RLIM_INFINITY:
            resource.setrlimit(process_tree.BRAND_LIMIT, (brand, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(process_tree.BRAND_LIMIT, before)
