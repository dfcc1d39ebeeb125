"""Creation and update of .venv from the locks: `bootstrap.py run|dev`, called by bin/.

Invariant: a copy of a lock in .venv/.locked means that all its pins are installed. The copy is written last, and a
marker exists while an install runs, so that an interrupted install is discarded. One process runs at a time: the others
wait for its file lock, which the installer inherits, so that it is held as long as anything writes to .venv. Standard
library only; progress goes to stderr. The index comes from pip's own configuration.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKED = VENV / ".locked"
INSTALLING = LOCKED / "installing"
RUN_LOCK = ROOT / "requirements.lock"
DEV_LOCK = ROOT / "tests" / "requirements-dev.lock"  # holds all of RUN_LOCK, too

LOCK_WAIT = 900.0  # seconds for another process to finish; longer than any install
LOCK_POLL = 0.1  # seconds between two attempts: flock has no timeout
INSTALL_WAIT = 840.0  # seconds for pip, shorter than the wait for the lock
PROBE_WAIT = 30.0  # seconds for an interpreter to show that it works


def say(message: str) -> None:
    """Write one line on stderr: stdout belongs to the protocol."""
    sys.stderr.write(f"mcp-gateway: {message}\n")
    sys.stderr.flush()


def holds(lock: Path) -> bool:
    """Return whether `lock` was fully installed and packages have not changed since (bootstrap.sh: holds)."""
    copy = LOCKED / lock.name
    try:
        age = copy.stat().st_mtime_ns
        return copy.read_bytes() == lock.read_bytes() and all(
            site.stat().st_mtime_ns <= age for site in VENV.glob("lib/python3*/site-packages")
        )
    except OSError:
        return False


def runs(*arguments: str) -> bool:
    """Return whether the venv's interpreter exits with 0 for `arguments`."""
    try:
        done = subprocess.run(
            [PYTHON, "-I", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_WAIT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def make_empty() -> None:
    """Replace .venv by a new one."""
    if VENV.exists() or VENV.is_symlink():
        # Moved in one step: an interrupted removal would leave a venv that looks usable.
        old = ROOT / f".venv.old-{os.getpid()}"
        VENV.rename(old)
        old.unlink() if old.is_symlink() or old.is_file() else shutil.rmtree(old, ignore_errors=True)
    LOCKED.mkdir(parents=True)
    INSTALLING.touch()
    venv.create(VENV, with_pip=True, symlinks=True)


def make_importable() -> None:
    """Make the clone importable for the venv's interpreter and its children.

    PYTHONPATH is not changed.
    """
    for site in VENV.glob("lib/python3*/site-packages"):
        # Relative, so that a moved or copied clone still works.
        up = os.path.relpath(ROOT, site)
        (site / "trio-mcp-gateway-clone.pth").write_text(f"{up}\n", encoding="utf-8")


def install(lock: Path, held: IO[str]) -> bool:
    """Install `lock` with pip; `held` is the file lock that it inherits."""
    # A user's `pip install --user` default does not work in a venv.
    environment = os.environ | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    command = [PYTHON, "-I", "-m", "pip", "install", "-qq", "--no-input", "--require-hashes", "-r", lock]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            env=environment,
            pass_fds=[held.fileno()],
            timeout=INSTALL_WAIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        say(f"pip did not finish within {INSTALL_WAIT:.0f} s")
        return False
    return done.returncode == 0


def refresh(wanted: list[Path], held: IO[str]) -> bool:
    """Install all of the `wanted` locks into .venv; the last one includes the others."""
    lock = wanted[-1]
    usable = VENV.is_dir() and not INSTALLING.exists() and runs("-m", "pip", "--version")
    if not usable:
        say("preparing .venv, which takes some seconds" if not VENV.exists() else "recreating .venv")
        make_empty()
    else:
        # In place, so that a running gateway keeps the unchanged packages.
        say(f"bringing .venv up to {lock.name}")
        LOCKED.mkdir(exist_ok=True)
        INSTALLING.touch()
    for name in (RUN_LOCK.name, DEV_LOCK.name):
        (LOCKED / name).unlink(missing_ok=True)
    make_importable()
    # Read into memory first, so that the stored copy equals pip's input even if the file changes meanwhile.
    contents = {path.name: path.read_bytes() for path in wanted}
    if not install(lock, held):
        say(f"could not install what {lock.name} pins (pip's reason is above)")
        return False
    for name, content in contents.items():
        part = LOCKED / f"{name}.part"
        part.write_bytes(content)
        part.replace(LOCKED / name)
    INSTALLING.unlink()
    return True


def wait_for_turn(held: IO[str]) -> bool:
    """Acquire the file lock; fail after `LOCK_WAIT` seconds."""
    deadline = time.monotonic() + LOCK_WAIT
    told = False
    while True:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            if not told:
                say("waiting for another process that prepares .venv")
                told = True
            time.sleep(LOCK_POLL)
        else:
            return True


def main(kind: str) -> int:
    """Prepare .venv for `kind`, "run" or "dev"; return the exit code."""
    wanted = [RUN_LOCK, DEV_LOCK] if kind == "dev" else [RUN_LOCK]
    cache = ROOT / ".cache"
    try:
        cache.mkdir(exist_ok=True)
        with (cache / "venv.lock").open("a", encoding="utf-8") as held:
            if not wait_for_turn(held):
                say(f"another process has been preparing .venv for {LOCK_WAIT:.0f} s; giving up")
                return 1
            if all(map(holds, wanted)) and runs("-c", ""):
                return 0
            return 0 if refresh(wanted, held) else 1
    except (OSError, subprocess.CalledProcessError) as error:
        say(f"could not prepare {VENV}: {error}")
        return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)
