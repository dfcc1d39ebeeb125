"""Logs: out on stderr as they are made, and a reader that stalls costs lines, never time."""

from __future__ import annotations

import logging
import os
import re
import select
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from gateway import telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.leak_check
log = logging.getLogger("gateway.test")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of what is stderr for the time of a test."""
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(telemetry, "sys", SimpleNamespace(stderr=SimpleNamespace(fileno=lambda: write_fd)))
    yield read_fd
    for fd in (read_fd, write_fd):
        os.close(fd)


def test_lines_come_out_in_order(pipe: int) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    with telemetry.open_logging("info"):
        log.debug("not shown")
        log.info("one %d", 1)
        # Past pytest's own handlers: a report with a lone surrogate cannot be sent on as UTF-8.
        odd = log.makeRecord(log.name, logging.WARNING, __file__, 1, "two\rthree \ud800", (), None)
        logging.getLogger().handlers[-1].handle(odd)
    lines = os.read(pipe, 65_536).decode().splitlines()
    assert [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines] == [
        "INFO    gateway.test: one 1",
        "WARNING gateway.test: two\\rthree \\ud800",
    ]
    assert (logging.getLogger().handlers, logging.getLogger().level) == before


def test_a_reader_that_stalls_costs_lines_and_no_time(pipe: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "MAX_QUEUED", 50)
    monkeypatch.setattr(telemetry, "FLUSH_WAIT", 0.05)
    started = time.monotonic()
    with telemetry.open_logging("info"):
        for number in range(3000):  # far more than a pipe and the queue hold
            log.info("%05d %s", number, "x" * 100)
        took = time.monotonic() - started
    assert took < 5
    found = b""
    while not re.search(rb"02999 x{100}\n$", found):  # what was queued last is written once somebody reads
        assert select.select([pipe], [], [], 5)[0], "nothing comes any more"
        found += os.read(pipe, 65_536)
    assert re.search(rb"\(\d+ log lines dropped: stderr was not read\)\n", found)
    for thread in threading.enumerate():
        if thread.name == "log writer":
            thread.join(5)


def test_the_time_is_utc_to_the_millisecond() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", telemetry.now_iso())


def test_a_stderr_that_does_not_block_loses_nothing_when_it_is_full(pipe: int) -> None:
    os.set_blocking(telemetry.sys.stderr.fileno(), False)
    found = b""
    with telemetry.open_logging("info"):
        for number in range(1000):  # more than a pipe holds
            log.info("%05d %s", number, "x" * 200)
        while b" 00999 " not in found:
            assert select.select([pipe], [], [], 5)[0]
            found += os.read(pipe, 65_536)
    assert found.count(b"\n") >= 1000
    assert [int(line.split()[3]) for line in found.splitlines()] == list(range(1000))
