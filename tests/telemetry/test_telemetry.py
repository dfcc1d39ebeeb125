"""Logging to stderr: immediate, and a stalled reader costs lines, never time."""

from __future__ import annotations

import json
import logging
import os
import re
import select
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.telemetry import SECRETS, logs, now_iso, works_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.leak_check
log = logging.getLogger("gateway.test")


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The reading end of what is stderr for the time of a test."""
    read_fd, write_fd = os.pipe()
    monkeypatch.setattr(logs, "sys", SimpleNamespace(stderr=SimpleNamespace(fileno=lambda: write_fd)))
    yield read_fd
    for fd in (read_fd, write_fd):
        os.close(fd)


def test_lines_come_out_in_order(pipe: int) -> None:
    before = logging.getLogger().handlers[:], logging.getLogger().level
    with logs.open_logging("info"):
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


def test_a_stalled_reader_costs_only_lines(pipe: int) -> None:
    started = time.monotonic()
    with logs.open_logging("info", max_queued=50, flush_timeout=0.05):
        for number in range(3000):  # far more than a pipe and the queue hold
            log.info("%05d %s", number, "x" * 100)
        took = time.monotonic() - started
        assert logs.dropped_lines() > 1000
    assert took < 5
    found = b""
    while not re.search(rb"02999 x{100}\n$", found):  # the last queued line is written once the pipe is read
        assert select.select([pipe], [], [], 5)[0], "no more output"
        found += os.read(pipe, 65_536)
    assert re.search(rb" WARNING gateway.log: \d+ log lines dropped: stderr was not read\n", found)
    for thread in threading.enumerate():
        if thread.name == "log writer":
            thread.join(5)


def test_the_time_is_utc_to_the_millisecond() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", now_iso())


def test_a_full_nonblocking_stderr_loses_nothing(pipe: int) -> None:
    os.set_blocking(logs.sys.stderr.fileno(), False)
    found = b""
    with logs.open_logging("info"):
        for number in range(1000):  # more than a pipe holds
            log.info("%05d %s", number, "x" * 200)
        while b" 00999 " not in found:
            assert select.select([pipe], [], [], 5)[0]
            found += os.read(pipe, 65_536)
    assert found.count(b"\n") >= 1000
    assert [int(line.split()[3]) for line in found.splitlines()] == list(range(1000))


def read_lines(pipe: int) -> list[str]:
    return os.read(pipe, 65_536).decode().splitlines()


FORGED = "first\n12:00:00 ERROR gateway: forged\x1b[2J\u2028\x00"


def test_console_events_take_one_line_with_their_subject(pipe: int) -> None:
    with logs.open_logging("info"):
        log.info("%s", FORGED)
        log.warning("backend 'a' is away", extra={"backend": "a", "call": 7})
        log.info("said", extra={"session": "0123", "principal": "me\nyou"})
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in read_lines(pipe)]
    assert lines == [
        "INFO    gateway.test: first\\n12:00:00 ERROR gateway: forged\\x1b[2J\\u2028\\x00",
        "WARNING gateway.test: backend 'a' is away [call=7]",
        "INFO    gateway.test: said [session=0123 principal=me\\nyou]",
    ]


def test_json_lines_hold_the_fields_that_are_known(pipe: int) -> None:
    with logs.open_logging("info", "json"):
        log.info("%s", FORGED, extra={"call": 7, "session": "0123", "backend": "a", "principal": "me"})
        try:
            raise ValueError("two\nlines")
        except ValueError:
            log.exception("failed \u2029")
        odd = log.makeRecord(log.name, logging.WARNING, __file__, 1, "\ud800 odd", (), None)
        logging.getLogger().handlers[-1].handle(odd)
    raw = read_lines(pipe)
    assert all(line.isprintable() for line in raw)
    first, second, third = map(json.loads, raw)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "gateway.test",
        "message": FORGED.replace("\u2028", "\u2028"),
        "call": 7,
        "session": "0123",
        "backend": "a",
        "principal": "me",
    }
    assert (second["level"], "ValueError: two\nlines" in second["traceback"]) == ("error", True)
    assert third["message"] == "\\ud800 odd"


async def test_tasks_inherit_the_name_of_their_subject(pipe: int) -> None:
    async def inner() -> None:
        log.info("inner")
        log.info("another", extra={"backend": "b"})
        await trio.lowlevel.checkpoint()

    async def owner() -> None:
        works_for(backend="a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner)

    with logs.open_logging("info", "json"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner)
        log.info("outer")
    found = [(line["message"], line.get("backend")) for line in map(json.loads, read_lines(pipe))]
    assert found == [("inner", "a"), ("another", "b"), ("outer", None)]


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_are_masked_in_every_form(pipe: int, form: Any) -> None:
    SECRETS.replace({"hush-hush-1", "hush-hush", "a.b|c(d", "x"})
    try:
        with logs.open_logging("info", form):
            log.info("%s", "k=hush-hush-1, hush-hush; a.b|c(d x")
            log.info("Authorization: Bearer abcdef.123 to https://me:word@host/")
            try:
                raise ValueError("hush-hush")
            except ValueError:
                log.exception("failed")
        text = os.read(pipe, 65_536).decode()
    finally:
        SECRETS.replace(())
    assert not {"hush", "a.b|c", "abcdef", "me:word"} & set(re.findall(r"hush|a\.b\|c|abcdef|me:word", text))
    assert "k=***, ***; *** x" in text
    assert "Bearer *** to https://***@host/" in text
