"""A simulation of macOS on Linux, for what the gateway asks of the system.

`python -m tests.support.darwin [ARGUMENTS]` runs pytest with these arguments in it, by default with `TESTS`. Processes
started as `sys.executable` are in it too: `sys.platform` is "darwin"; the gateway gets no `/proc`, `waitid`, pidfds and
SO_ACCEPTCONN, a short path for sockets, the peer of one by LOCAL_PEERCRED, and a `ps` with the options of macOS. Tests
may read `/proc`.
"""

from __future__ import annotations

import os
import signal
import sys

FIRST = ("trio", "ssl", "urllib.request", "webbrowser", "zoneinfo")
"""Modules that choose what they use of the system when they are imported; they see Linux."""
MISSING = ((os, "waitid"), (os, "pidfd_open"), (signal, "pidfd_send_signal"), (os, "pipe2"))
REAL = {name: getattr(module, name) for module, name in MISSING}
PYTEST = ("-P", "-m", "pytest", "-q", "-n0", "-rfEs", "-p", "no:hypothesispytest")
TESTS = (
    "tests/children", "tests/backends/test_stdio.py", "tests/faults/test_lifetimes.py", "tests/cli/test_lifetime.py",
    "tests/relay/test_connect.py",
)  # fmt: skip
MAX_SOCKET_PATH = 103
MAX_SCRIPT = 1 << 20
PYTHON = """#!/bin/sh
flags=
while :; do
    case $1 in
    -[IESPBu]) flags="$flags $1" && shift ;;
    -[WX]) flags="$flags $1 $2" && shift 2 ;;
    *) break ;;
    esac
done
exec '{python}' $flags '{file}' '{folder}' "$@"
"""
PS = """#!/bin/sh
for word; do
    case $word in
    -E) word=e ;;
    -ww) word=ww ;;
    esac
    set -- "$@" "$word"
    shift
done
exec /bin/ps "$@"
"""


def main(arguments: list[str]) -> int:
    """Run pytest in the simulation; return its exit status."""
    import subprocess
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        python = PYTHON.format(python=sys.executable, file=os.path.abspath(__file__), folder=folder)
        for name, text in (("python", python), ("ps", PS)):
            Path(folder, name).write_text(text, encoding="utf-8")
            Path(folder, name).chmod(0o755)
        return subprocess.run([f"{folder}/python", *PYTEST, *(arguments or TESTS)], check=False).returncode


def change_platform(folder: str) -> None:
    """Make this process one of the simulation, with the programs in this folder."""
    if not sys.flags.no_site:
        change_sockets()
        sys.meta_path.insert(0, LinuxImport())
    sys.platform = "darwin"
    sys.executable = f"{folder}/python"
    os.environ["PATH"] = f"{folder}:{os.environ.get('PATH', os.defpath)}"
    for module, name in MISSING:
        delattr(module, name)
    real_open = os.open

    def open_outside_proc(path, *args, **options):
        if str(path).startswith("/proc/"):
            raise FileNotFoundError(2, "there is no /proc", path)
        return real_open(path, *args, **options)

    os.open = open_outside_proc


class LinuxImport:
    """Imports some modules as on Linux; a meta path finder."""

    def find_spec(self, name, path, target=None):
        if name not in FIRST:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        if sys.platform == "linux":  # imported by another one of them
            return None

        def execute_on_linux(module) -> None:
            sys.platform = "linux"
            for owner, each in MISSING:
                setattr(owner, each, REAL[each])
            try:
                execute(module)
            finally:
                sys.platform = "darwin"
                for owner, each in MISSING:
                    delattr(owner, each)

        spec.loader.exec_module = execute_on_linux
        return spec


def change_sockets() -> None:
    import errno
    import socket
    import struct

    real = socket.socket.getsockopt, socket.socket.bind, socket.socket.connect

    def getsockopt(self, level, option, *size):
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.ENOPROTOOPT, "Protocol not available")
        if level == 0 and option == 1 and self.family == socket.AF_UNIX:  # LOCAL_PEERCRED: struct xucred
            _, uid, gid = struct.unpack("3i", real[0](self, socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            return struct.pack("IIhxx16I", 0, uid, 1, gid, *[0] * 15)
        return real[0](self, level, option, *size)

    def check(address) -> None:
        if isinstance(address, (str, bytes)) and len(os.fsencode(address)) > MAX_SOCKET_PATH:
            raise OSError("AF_UNIX path too long")

    def bind(self, address):
        check(address)
        return real[1](self, address)

    def connect(self, address):
        check(address)
        return real[2](self, address)

    socket.socket.getsockopt, socket.socket.bind, socket.socket.connect = getsockopt, bind, connect


def run_as_python(words: list[str]) -> None:
    """Run a module (`-m`), code (`-c`) or a script as the interpreter does."""
    kind, *rest = words
    if kind == "-m":
        import runpy

        sys.argv = rest
        if not sys.flags.safe_path:
            sys.path[0] = os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    if kind == "-c":
        code, sys.argv, place = compile(rest[0], "<string>", "exec"), ["-c", *rest[1:]], ""
    else:
        with open(kind, "rb") as file:
            text = file.read(MAX_SCRIPT)
        code, sys.argv, place = compile(text, kind, "exec"), words, os.path.dirname(os.path.abspath(kind))
    if not sys.flags.safe_path:
        sys.path[0] = place
    module = sys.modules["__main__"] = type(sys)("__main__")
    module.__file__ = kind
    exec(code, module.__dict__)


if __name__ == "__main__":
    if __package__:
        sys.exit(main(sys.argv[1:]))
    change_platform(sys.argv[1])
    run_as_python(sys.argv[2:])
