"""The log file of a gateway without a terminal: renamed at a size, tracebacks included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway_process import ROOT

PROGRAM = """
import faulthandler, logging, os, sys
from gateway.telemetry import open_logging
faulthandler.enable()
with open_logging("info", file=sys.argv[1], max_file_bytes=10_000, max_queued=100_000):
    for number in range(int(sys.argv[2])):
        logging.info("line %04d %s", number, "x" * 80)
print("printed", flush=True)
exec(sys.argv[3])
"""
COUNT = 3_000


def run(log: Path, last: str = "", *, count: int = COUNT, file: Path | None = None) -> int:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-P", "-c", PROGRAM, str(file or log), str(count), last]
    with log.open("ab") as output:
        return subprocess.run(command, stdout=output, stderr=output, env=env, timeout=60, check=False).returncode


def test_a_log_file_is_bounded_with_one_old_file(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert run(log) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "a.log.old"]
    old, new = (tmp_path / "a.log.old").read_text(encoding="utf-8"), log.read_text(encoding="utf-8")
    assert len(old) < 30_000  # the size, and one write of at most a hundred lines
    assert len(new) < 30_000
    assert new.endswith("printed\n")
    numbers = [int(line.partition("line ")[2][:4]) for line in (old + new).splitlines() if "line " in line]
    assert numbers == list(range(numbers[0], COUNT))  # in order, and none lost at the change of files
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("raise RuntimeError('of the interpreter')", "RuntimeError: of the interpreter"),
        ("os.abort()", "Fatal Python error: Aborted"),
        ("os.system('echo of a child >&2')", "of a child"),
    ],
)
def test_the_last_words_of_a_process_go_to_the_new_file(tmp_path: Path, last: str, said: str) -> None:
    log = tmp_path / "a.log"
    run(log, last)
    assert (tmp_path / "a.log.old").exists()
    assert said in log.read_text(encoding="utf-8")


def test_a_small_log_file_is_not_renamed(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    run(log, count=20)
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]


def test_a_file_that_cannot_be_renamed_is_emptied(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    assert run(log, file=tmp_path / "gone" / "a.log") == 0
    assert log.stat().st_size < 30_000
    assert log.read_text(encoding="utf-8").endswith("printed\n")
