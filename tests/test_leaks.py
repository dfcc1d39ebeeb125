"""The leak check: it names leftovers, and ignores those that end in time."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.support import leaks

ROOT = Path(__file__).parent.parent
SLEEPER = [sys.executable, "-c", "import sys; sys.stdin.read()"]
needs_proc = pytest.mark.skipif(not leaks.PROC.is_dir(), reason="children are found through /proc")


@needs_proc
def test_a_child_is_named_until_reaped() -> None:
    before = leaks.take()
    with subprocess.Popen(SLEEPER, stdin=subprocess.PIPE) as child:
        found = leaks.leaked(before, grace=0)
        assert any(line.startswith(f"child process {child.pid}: ") and "sys.stdin.read" in line for line in found)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert any("not reaped" in line for line in leaks.leaked(before, grace=0))
    assert leaks.leaked(before) == []


def test_an_open_file_is_named() -> None:
    before = leaks.take()
    reader, writer = os.pipe()
    assert len(leaks.leaked(before, grace=0)) == 2
    os.close(writer)
    assert [line.split(":")[0] for line in leaks.leaked(before, grace=0)] == [f"open file {reader}"]
    os.close(reader)
    assert leaks.leaked(before, grace=0) == []


def test_only_threads_that_stay_are_named() -> None:
    before = leaks.take()
    end = threading.Event()
    thread = threading.Thread(target=end.wait, args=(30,), name="forgotten")
    thread.start()
    assert leaks.leaked(before, grace=0) == ["thread: forgotten"]
    timer = threading.Timer(0.05, end.set)
    timer.start()
    assert leaks.leaked(before, grace=10) == []
    thread.join(10)


def test_a_whole_run_of_trio_leaves_nothing() -> None:
    async def main() -> None:
        with trio.fail_after(20):
            await trio.to_thread.run_sync(lambda: None)
            await trio.run_process(SLEEPER, stdin=b"")
            listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
            async with await trio.testing.open_stream_to_socket_listener(listeners[0]):
                await listeners[0].aclose()

    before = leaks.take()
    trio.run(main)
    assert leaks.leaked(before) == []


LEAKY = """
import os, pytest

def test_unmarked():
    os.pipe()

@pytest.mark.leak_check
async def test_marked():
    os.pipe()

@pytest.mark.leak_check
def test_tidy():
    pass
"""


def test_the_fixture_fails_a_leaky_test(tmp_path: Path) -> None:
    for folder in ("children", "interop", "support"):
        (tmp_path / "tests" / folder).mkdir(parents=True)
    for name in ("pyproject.toml", "tests/conftest.py", "tests/interop/cached.py", "tests/support/leaks.py"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("GRACE = 10.0", "GRACE = 0.05")
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("tests/test_asking.py", "tests/children/test_always.py"):
        (tmp_path / name).write_text(LEAKY, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-rE"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    errors = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ERROR tests/")}
    assert errors == {
        "tests/test_asking.py::test_marked",
        "tests/children/test_always.py::test_unmarked",
        "tests/children/test_always.py::test_marked",
    }, done.stdout + done.stderr
    assert "6 passed, 3 errors" in done.stdout
    assert "left behind" in done.stdout
