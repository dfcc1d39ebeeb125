"""The audit file: private, appended in whole lines, reopened when moved, never blocking."""

from __future__ import annotations

import json
import os
import stat
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.telemetry import line_file as trail_module
from gateway.telemetry.line_file import LineFile
from tests.support.fakes import SOON

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path


def note_lost(count: int) -> bytes:
    return json.dumps({"dropped": count}).encode()


@asynccontextmanager
async def running(path: Path, **limits: Any) -> AsyncGenerator[LineFile]:
    writer = LineFile(str(path), note_lost=note_lost, **limits)
    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(writer.run)
            yield writer  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            nursery.cancel_scope.cancel()


def holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


async def until(path: Path, text: str) -> None:
    with trio.fail_after(SOON):
        while not holds(path, text):  # ruff: ignore[async-busy-wait]
            await trio.sleep(0.01)


async def test_lines_are_appended_to_an_owner_only_file(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text("before\n")
    path.chmod(0o644)
    async with running(path) as writer:
        for number in range(3):
            writer.put(b"%d" % number)
        await until(path, "before\n0\n1\n2\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        writer.put(b"last")  # still queued when the end comes
    assert path.read_text() == "before\n0\n1\n2\nlast\n"


async def test_a_file_moved_away_is_recreated(tmp_path: Path) -> None:
    path, old = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    async with running(path) as writer:
        writer.put(b"first")
        await until(path, "first\n")
        path.rename(old)
        writer.reopen()
        writer.put(b"second")
        await until(path, "second\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert old.read_text() == "first\n"


async def test_an_unwritable_file_keeps_its_lines_queued(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "missing" / "audit.jsonl"
    async with running(path, retry_after=0.01) as writer:
        writer.put(b"kept")
        with trio.fail_after(SOON):
            while "cannot write to the audit file" not in caplog.text:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
        path.parent.mkdir()
        await until(path, "kept\n")
        assert writer.dropped == 0


@pytest.mark.parametrize(("most", "line"), [("max_lines", b"%03d"), ("max_bytes", b"%03d" + b"x" * 17)])
async def test_when_full_the_oldest_are_dropped_and_counted(most: str, line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with running(path, **{most: 10 if most == "max_lines" else 200}) as writer:
        for number in range(25):
            writer.put(line % number)
        assert writer.dropped == 15
    first, *rest = path.read_bytes().splitlines()
    assert json.loads(first) == {"dropped": 15}
    assert rest == [line % number for number in range(15, 25)]


async def test_a_symlink_in_its_place_is_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "target").write_text("precious\n")
    (tmp_path / "audit.jsonl").symlink_to("target")
    async with running(tmp_path / "audit.jsonl") as writer:
        writer.put(b"line")
    assert (tmp_path / "target").read_text() == "precious\n"
    assert "were not written" in caplog.text or "cannot write to the audit file" in caplog.text


async def test_a_hanging_disk_blocks_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = threading.Event()

    def write(_fd: int, data: bytes) -> int:
        hanging.wait(SOON)
        return len(data)

    monkeypatch.setattr(trail_module, "os", _Os(write))
    try:
        async with running(tmp_path / "audit.jsonl", write_timeout=0.05) as writer:
            writer.put(b"line")
    finally:
        hanging.set()
    assert "lines took longer than" in caplog.text


class _Os:
    """`os` with another `write`."""

    def __init__(self, write: object) -> None:
        self.write = write

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("pipe", "No such device"),
        ("read pipe", "not a regular file"),
        ("link", "symbolic links"),
        ("folder", "directory"),
        ("device", "not a regular file"),
    ],
)
def test_only_regular_files_are_opened(kind: str, why: str, tmp_path: Path) -> None:
    """Immediately: an unread pipe would block a thread forever."""
    path, target = tmp_path / "x", tmp_path / "target"
    reader = None
    if "pipe" in kind:
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK) if kind == "read pipe" else None
    elif kind == "link":
        path.symlink_to(target)
    elif kind == "folder":
        path.mkdir()
    else:
        path = type(path)("/dev/null")
    before = path.lstat().st_mode
    try:
        with pytest.raises(OSError, match=why):
            trail_module.open_private(str(path))
    finally:
        if reader is not None:
            os.close(reader)
    assert path.lstat().st_mode == before
    assert not target.exists()


async def test_a_hanging_disk_uses_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on = threading.Event()
    opened: list[str] = []
    first = trail_module.open_private

    def hang(name: str) -> int:
        opened.append(name)
        goes_on.wait(SOON)
        return first(name)

    monkeypatch.setattr(trail_module, "open_private", hang)
    writer = LineFile(str(tmp_path / "x"), note_lost=note_lost, write_timeout=0.05)
    try:
        with trio.fail_after(SOON):
            for line in (b"1", b"2", b"3"):
                writer.put(line)
                with pytest.raises(OSError, match=r"lines (took longer|have not been written)"):
                    await writer._write()
    finally:
        goes_on.set()
    assert len(opened) == 1
    assert list(writer._lines) == [b"2", b"3"]
