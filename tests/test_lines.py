"""Lines: independent of chunking, and a stalled reader holds back only excessive writers."""

from __future__ import annotations

import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.budget import SMALL_BYTES, Budget, Intake
from gateway.jsonrpc import EDGE_BYTES, LARGE_BYTES
from gateway.lines import BufferedWriter, LineSplitter, OversizedLine, read_some

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SOON = 5.0  # seconds; nothing here waits for anything slow


def split(chunks: list[bytes], most: int) -> list[bytes | OversizedLine]:
    splitter = LineSplitter(most)
    return [line for chunk in chunks for line in splitter.feed(chunk)]


# -- LineSplitter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chunks", "lines", "unfinished"),
    [
        ([b"a\nb\n"], [b"a", b"b"], 0),
        ([b"a", b"", b"b\nc"], [b"ab"], 1),
        ([b"\n\n", b"\n", b"\r\n", b"a\n"], [b"a"], 0),
        ([b"a\r\n"], [b"a\r"], 0),
        ([b"12345\n123456\n12\n"], [b"12345", OversizedLine(b"123456", b"123456", 6), b"12"], 0),
        ([b"123", b"456", b"789", b"\nok\n"], [OversizedLine(b"123456789", b"123456789", 9), b"ok"], 0),
        ([b"1234567"], [], 7),
        ([b"\xef\xbb\xbf\na\n\xef\xbb", b"\xbf\r\n", b"\xef\xbb\xbfb\n"], [b"a", b"\xef\xbb\xbfb"], 0),
    ],
)
def test_lines_are_cut(chunks: list[bytes], lines: list[bytes | OversizedLine], unfinished: int) -> None:
    splitter = LineSplitter(5)
    assert [line for chunk in chunks for line in splitter.feed(chunk)] == lines
    assert splitter.unfinished == unfinished


@settings(deadline=None)  # a busy machine is not a failure
@given(
    st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bc", b"defgh", b"0123456789"]), max_size=20).map(b"".join),
    st.lists(st.integers(0, 80), max_size=8),
    st.integers(1, 12),
)
def test_any_chunking_gives_the_same_lines(data: bytes, cuts: list[int], most: int) -> None:
    edges = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    chunks = [data[start:end] for start, end in pairwise(edges)]
    expected = [
        OversizedLine(line, line, len(line)) if len(line) > most else line
        for line in data.split(b"\n")[:-1]
        if line not in {b"", b"\r"}
    ]
    assert split(chunks, most) == split([data], most) == expected


def test_only_the_ends_of_overlong_lines_are_held() -> None:
    splitter = LineSplitter(EDGE_BYTES)
    line = b"<" + b"x" * (10 * EDGE_BYTES) + b">"
    for start in range(0, len(line), 10_000):
        assert splitter.feed(line[start : start + 10_000]) == []
        held = [value for value in vars(splitter).values() if isinstance(value, bytes)]
        assert sum(map(len, held)) <= 2 * EDGE_BYTES
    assert splitter.unfinished == len(line)
    assert splitter.feed(b"\nnext\n") == [OversizedLine(line[:EDGE_BYTES], line[-EDGE_BYTES:], len(line)), b"next"]
    assert splitter.unfinished == 0


def test_a_fragmented_line_holds_few_objects() -> None:
    splitter, line = LineSplitter(100, max_parts=8), bytes(range(33, 127))
    for _ in range(2):
        for place in range(len(line)):
            splitter.feed(line[place : place + 1])
            assert len(splitter._parts) < 8
        assert splitter.unfinished == len(line)
        assert splitter.feed(b"\n") == [line]
    assert splitter.feed(line) == splitter.feed(b"1234567") == []
    assert splitter.feed(b"\n") == [OversizedLine(line + b"1234567", line + b"1234567", 101)]


def test_a_line_that_fits_no_buffer_is_skipped() -> None:
    budget = Budget(4 * SMALL_BYTES)
    splitter = LineSplitter(2**30, intake=Intake(budget, evict=True))
    line = b"<" + b"x" * (10 * SMALL_BYTES) + b">"
    for start in range(0, len(line), 1_000):
        assert splitter.feed(line[start : start + 1_000]) == []
        assert budget.used <= budget.most
    skipped = OversizedLine(line[:EDGE_BYTES], line[-EDGE_BYTES:], len(line), unbuffered=True)
    assert splitter.feed(b"\nnext\n" + line[:20_000]) == [skipped, b"next"]
    assert splitter.feed(b"\n" + line[: 3 * SMALL_BYTES]) == [line[:20_000]]
    assert budget.used == 3 * SMALL_BYTES
    splitter.release()
    assert budget.used == 0


def test_a_large_line_is_taken_in_parts() -> None:
    budget = Budget(4 * LARGE_BYTES)
    splitter = LineSplitter(2 * LARGE_BYTES, intake=Intake(budget, evict=True))
    part = b"x" * (LARGE_BYTES // 2)
    splitter.feed(b"small\n" + part)
    assert splitter.take_large(b"\n") is None
    splitter.feed(part)
    assert splitter.take_large(part) is None
    assert splitter.take_large(b"y" * (LARGE_BYTES + 1) + b"\n") is None  # too long: `feed` skips it
    assert splitter.take_large(b"y\nnext\nz") == ([part, part, b"y"], b"next\nz")
    assert (splitter.unfinished, budget.used) == (0, LARGE_BYTES)
    splitter.release()
    assert budget.used == 0
    assert splitter.feed(b"next\nz") == [b"next"]


# -- Outbox ------------------------------------------------------------------------------------------------------------


class Pipe:
    """A real pipe whose writing end an outbox gets."""

    def __init__(self) -> None:
        read_fd, write_fd = os.pipe()
        self.reader = trio.lowlevel.FdStream(read_fd)
        self.writer = trio.lowlevel.FdStream(write_fd)

    async def read(self, size: int) -> bytes:
        data = b""
        with trio.fail_after(SOON):
            while len(data) < size:
                part = await self.reader.receive_some(size - len(data))
                assert part, "the pipe was closed"
                data += bytes(part)
        return data


@pytest.fixture
async def pipe() -> AsyncIterator[Pipe]:
    made = Pipe()
    yield made
    await made.reader.aclose()
    await made.writer.aclose()


@pytest.mark.leak_check
@pytest.mark.parametrize("direct", [True, False])
async def test_lines_leave_in_their_order_and_whole(pipe: Pipe, direct: bool) -> None:
    outbox = BufferedWriter(pipe.writer)
    lines = [b"%06d " % n + b"x" * (n % 700) + b"\n" for n in range(600)]  # more than a pipe holds
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        for line in lines:
            outbox.post(line, direct=direct)
        assert await pipe.read(sum(map(len, lines))) == b"".join(lines)
        with trio.fail_after(SOON):
            await outbox.drained()
        assert outbox.size == 0
        nursery.cancel_scope.cancel()


async def test_direct_writes_bypass_the_task_while_space_remains(pipe: Pipe) -> None:
    outbox = BufferedWriter(pipe.writer)
    outbox.post(b"a\n")  # the outbox is not running
    assert await pipe.read(2) == b"a\n"
    outbox.post(b"b\n", direct=False)
    outbox.post(b"c\n")  # must not overtake
    assert outbox.size == 4


async def test_a_stalled_reader_holds_back_posters_only(pipe: Pipe, autojump_clock: trio.testing.MockClock) -> None:
    del autojump_clock  # the pipe is not read, so it plays no part in the waiting
    outbox = BufferedWriter(pipe.writer, limit=100_000)
    line = b"x" * 9_999 + b"\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        while outbox.size < 100_000:
            outbox.post(line)  # never waits
        with trio.move_on_after(1000) as waiting:
            await outbox.wait_writable()
        assert waiting.cancelled_caught
        outbox.post(line)
        nursery.cancel_scope.cancel()


async def test_reading_makes_room_again(pipe: Pipe) -> None:
    outbox = BufferedWriter(pipe.writer, limit=100_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.run)
        posted = 0
        while outbox.size < 100_000:
            outbox.post(b"x" * 9_999 + b"\n")
            posted += 10_000
        await pipe.read(posted)
        with trio.fail_after(SOON):
            await outbox.wait_writable()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("direct", [True, False])
async def test_writers_do_not_wait_for_a_closed_reader(pipe: Pipe, direct: bool) -> None:
    outbox = BufferedWriter(pipe.writer, limit=10)
    await pipe.reader.aclose()
    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)  # returns
            outbox.post(b"a longer line than that\n", direct=direct)
            await outbox.drained()
            await outbox.wait_writable()
    assert outbox.broken
    size = outbox.size
    outbox.post(b"more\n")
    assert outbox.size == size


async def test_a_closed_streams_descriptor_is_not_written(pipe: Pipe) -> None:
    outbox = BufferedWriter(pipe.writer)
    number = pipe.writer.fileno()
    heir, other = os.pipe()
    await pipe.writer.aclose()
    try:
        os.dup2(other, number)  # like the system for the next opened file
        outbox.post(b"secret\n")
        os.set_blocking(heir, False)
        with pytest.raises(BlockingIOError):
            os.read(heir, 100)
        assert outbox.broken
    finally:
        for fd in {heir, other, number}:
            os.close(fd)


# -- read_some ---------------------------------------------------------------------------------------------------------


async def test_available_lines_are_read_to_the_end(pipe: Pipe) -> None:
    with trio.fail_after(SOON):
        for part in (b"a", b"b" * 5_000):
            await pipe.writer.send_all(part)
            assert await read_some(pipe.reader) == part
        await pipe.writer.aclose()
        assert await read_some(pipe.reader) == b""


class CloseAtWakeUp(trio.abc.Instrument):
    """Closes a stream whose reader was just woken, and reuses its number."""

    def __init__(self, stream: trio.lowlevel.FdStream, other: int) -> None:
        self._stream, self._other = stream, other
        self.reader: trio.lowlevel.Task | None = None
        self.number = -1

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.reader and self.number == -1 and self._woken:
            self.number = self._stream.fileno()
            self._stream.close()
            os.dup2(self._other, self.number)

    _woken = False

    def after_io_wait(self, timeout: float) -> None:
        del timeout
        self._woken = self.reader is not None


async def test_a_stream_closed_at_wake_up_reads_nothing(pipe: Pipe) -> None:
    other_end, other = os.pipe()
    os.write(other, b"another file's")
    closing = CloseAtWakeUp(pipe.reader, other_end)

    async def read() -> None:
        closing.reader = trio.lowlevel.current_task()
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await read_some(pipe.reader)

    trio.lowlevel.add_instrument(closing)
    try:
        with trio.fail_after(SOON):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                os.write(pipe.writer.fileno(), b"mine")
        assert closing.number != -1
        assert os.read(other_end, 100) == b"another file's"
    finally:
        trio.lowlevel.remove_instrument(closing)
        for number in (other_end, other, closing.number):
            os.close(number)
