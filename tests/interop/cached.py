"""Public packages that tests run against, installed once into .cache/ below the repository and reused.

Invariant: a folder whose stamp holds its pins is complete. The stamp is written last, and an install begins by removing
the folder, so one that was cut short is never trusted. One process at a time: the others wait for its file lock.
pip's and npm's own configuration decide where packages come from. Tests that need such packages have the mark
`real(PART)`; pytest's option `--real` chooses the parts that run, by default none.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import venv
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".cache"
PARTS = ("clients", "conformance", "servers")
"""What the tests with real peers are divided into; the tests of a part share what they install (ahead.py)."""
INSTALL_WAIT = 300.0  # seconds for one installer; a cold cache on a slow line
LOCK_WAIT = 2 * INSTALL_WAIT  # seconds for another process that installs
LOCK_POLL = 0.1  # seconds between two attempts: flock has no timeout


class InstallError(Exception):
    """A package could not be installed; the message names it and an alternative."""


@dataclass
class Chosen:
    """The parts that run; all of them outside the suite, as in `bin/conformance`."""

    parts: frozenset[str] = frozenset(PARTS)

    def choose(self, real: str) -> None:
        """Choose by the value of the option `--real`: a part, `all` or `none`."""
        self.parts = frozenset({"all": PARTS, "none": ()}.get(real, (real,)))


chosen = Chosen()


def python_venv(name: str, *pins: str) -> Path:
    """Return the interpreter of a venv with these packages."""

    def install(folder: Path) -> None:
        venv.create(folder, with_pip=True, symlinks=True)
        # A user's `pip install --user` default does not work in a venv.
        environment = {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        _run([str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "-q", "--no-input", *pins], environment)

    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return _cached(name, [f"python=={version}", *pins], install) / "bin" / "python"


def node_modules(name: str, *pins: str) -> Path:
    """Return a folder of node modules with these packages; run no install scripts."""

    def install(folder: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise InstallError("npm is not on PATH; install Node.js")
        folder.mkdir(parents=True)
        # Without a manifest npm would look for one in the folders above.
        (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
        flags = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        _run([npm, "install", "--prefix", str(folder), *flags, *pins], {})

    return _cached(name, pins, install) / "node_modules"


def node_binary(name: str, version: str) -> Path:
    """A Node of this version, whatever the machine has."""
    package = f"node-{sys.platform}-{machine()}"
    return node_modules(name, f"{package}@{version}") / package / "bin" / "node"


def machine() -> str:
    """The name that node has for this machine."""
    return {"x86_64": "x64", "amd64": "x64", "aarch64": "arm64"}.get(platform.machine().lower(), platform.machine())


def _cached(name: str, pins: Sequence[str], install: Callable[[Path], None]) -> Path:
    folder, stamp = CACHE / name, CACHE / f"{name}.stamp"
    wanted = json.dumps(list(pins))
    if _holds(folder, stamp, wanted):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(CACHE / f"{name}.lock"):
        if _holds(folder, stamp, wanted):
            return folder
        if not chosen.parts:
            raise InstallError(f"{', '.join(pins)} is for tests with the mark `real`, and no part of those was chosen")
        stamp.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        install(folder)
        part = stamp.with_suffix(".part")
        part.write_text(wanted, encoding="utf-8")
        part.replace(stamp)
    return folder


def _holds(folder: Path, stamp: Path, wanted: str) -> bool:
    try:
        return folder.is_dir() and stamp.read_text(encoding="utf-8") == wanted
    except OSError:
        return False


@contextmanager
def _lock(path: Path) -> Generator[None]:
    deadline = time.monotonic() + LOCK_WAIT
    with path.open("a", encoding="utf-8") as held:
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise InstallError(f"another process has held {path} for {LOCK_WAIT:.0f} s") from None
                time.sleep(LOCK_POLL)
            else:
                break
        yield


def _run(command: list[str], environment: dict[str, str]) -> None:
    hint = "Is a registry in reach? Only tests chosen with --real need one."
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=os.environ | environment,
            timeout=INSTALL_WAIT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(f"{' '.join(command)}: {error}\n{hint}") from error
    if done.returncode != 0:
        raise InstallError(
            f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr[-2000:].rstrip()}\n{hint}"
        )
