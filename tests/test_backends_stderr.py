"""A child's stderr in the log: under its name, bounded, and never in anybody's way."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock, memory_stream_one_way_pair

from gateway.backends.log_rate import BURST, LINES_PER_SECOND
from gateway.backends.stderr import MAX_LINE, SHOWN, StderrLog
from gateway.lines import Overlong


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Broken(trio.abc.ReceiveStream):
    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        raise trio.BrokenResourceError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, logger="gateway.backend.time")
    return caplog


async def test_lines_are_logged_under_the_backends_name(
    logged: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    sender, receiver = memory_stream_one_way_pair()
    stderr = StderrLog("time")
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stderr.run, receiver)
            for data in (b"one\r\ntw", b"o\n\n \n\xff\n", b"Traceback: no newline at the end"):
                await sender.send_all(data)
            await sender.aclose()
    assert logged.messages == ["one", "two", "\ufffd", "Traceback: no newline at the end"]
    assert {record.name for record in logged.records} == {"gateway.backend.time"}
    assert {getattr(record, "backend", None) for record in logged.records} == {"time"}
    assert stderr.last_line == "Traceback: no newline at the end"  # the most important words are the last ones


def test_a_flood_costs_the_flooder_its_lines(logged: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    stderr = StderrLog("time", clock=clock)
    for number in range(BURST + 30):
        stderr.take(b"line %d" % number)
    assert logged.messages == [f"line {number}" for number in range(BURST)]
    assert stderr.suppressed == 30
    assert stderr.last_line == f"line {BURST + 29}"
    clock.now = 1.0
    logged.clear()
    for number in range(LINES_PER_SECOND + 5):
        stderr.take(b"more %d" % number)
    assert logged.messages[0] == "30 lines of stderr not logged: too many"
    assert len(logged.messages) == 1 + LINES_PER_SECOND
    assert stderr.suppressed == 35
    clock.now = 1000.0
    logged.clear()
    for _ in range(BURST + 5):
        stderr.take(b"x")
    assert len(logged.messages) == 1 + BURST  # quiet times are not saved up


def test_long_lines_are_cut(logged: pytest.LogCaptureFixture) -> None:
    stderr = StderrLog("time", clock=Clock())
    stderr.take(b"x" * MAX_LINE)
    stderr.take(Overlong(b"y" * MAX_LINE, b"z", 10**9))
    assert [len(message) for message in logged.messages] == [MAX_LINE, SHOWN]
    assert stderr.last_line == "y" * SHOWN


async def test_a_broken_pipe_ends_it(logged: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    with trio.fail_after(5):
        await StderrLog("time").run(Broken())
    assert logged.messages == ["reading stderr failed"]
