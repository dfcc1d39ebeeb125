"""A child's stderr: logged under its name, bounded, with the line that explains a failure."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_one_way_pair

from gateway.backends.causes import informative
from gateway.backends.stderr import (
    HELD_LINES,
    HOLD_TIME,
    MAX_LINE,
    MAX_SPREAD,
    NO_CALL,
    SEARCHED_LINES,
    SHOWN,
    StderrLog,
    StrayLines,
    shown,
)
from gateway.jsonrpc import EDGE_BYTES
from gateway.lines import OversizedLine
from gateway.masking import MASK, SECRETS
from gateway.rates import BURST, LINES_PER_SECOND


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
    assert list(stderr.tail) == ["one", "two", "\ufffd", "Traceback: no newline at the end"]
    assert stderr.ended.is_set()


def test_a_flood_drops_only_the_flooders_lines(logged: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    stderr = StderrLog("time", clock=clock)
    for number in range(BURST + 30):
        stderr.handle_line(b"line %d" % number)
    assert logged.messages == [f"line {number}" for number in range(BURST)]
    assert stderr.suppressed == 30
    assert list(stderr.tail) == [f"line {BURST + 30 - back}" for back in range(SEARCHED_LINES, 0, -1)]
    clock.now = 1.0
    logged.clear()
    for number in range(LINES_PER_SECOND + 5):
        stderr.handle_line(b"more %d" % number)
    assert logged.messages[0] == "30 lines of stderr not logged: too many"
    assert len(logged.messages) == 1 + LINES_PER_SECOND
    assert stderr.suppressed == 35
    clock.now = 1000.0
    logged.clear()
    for _ in range(BURST + 5):
        stderr.handle_line(b"x")
    assert len(logged.messages) == 1 + BURST  # quiet times are not saved up


def test_long_lines_are_cut(logged: pytest.LogCaptureFixture) -> None:
    stderr = StderrLog("time", clock=Clock())
    stderr.handle_line(b"x" * MAX_LINE)
    stderr.handle_line(OversizedLine(b"y" * MAX_LINE, b"z", 10**9))
    assert [len(message) for message in logged.messages] == [MAX_LINE, SHOWN]
    assert list(stderr.tail) == ["x" * SHOWN, "y" * SHOWN]


def test_only_lines_that_are_shown_are_masked(
    logged: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masking takes time: a flood of lines must not delay others' calls."""
    masked: list[int] = []

    class Counting:
        def mask(self, text: str) -> str:
            masked.append(len(text))
            return SECRETS.mask(text)

    monkeypatch.setattr("gateway.backends.stderr.SECRETS", Counting())
    stderr = StderrLog("time", clock=Clock())
    SECRETS.hold(stderr, ["00001-secret"])
    try:
        for _ in range(5_000):
            stderr.handle_line(b"x" * MAX_LINE)
            stderr.handle_line(OversizedLine(b"y" * EDGE_BYTES, b"z", 10**9))
        assert len(masked) == len(logged.messages) == BURST
        assert max(masked) == MAX_LINE
        stderr.handle_line(b"z" * (SHOWN - 5) + b"00001-secret")
        assert stderr.tail[-1] == "z" * (SHOWN - 5) + MASK
    finally:
        SECRETS.release(stderr)


async def test_a_broken_pipe_ends_the_log(logged: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    stderr = StderrLog("time")
    with trio.fail_after(5):
        await stderr.run(Broken())
    assert stderr.ended.is_set()
    assert logged.messages == ["reading stderr failed"]


def test_each_line_is_passed_on_once() -> None:
    received: list[bytes] = []
    stderr = StderrLog("time", on_line=received.append, clock=Clock())
    for number in range(BURST + 30):  # more than are logged
        stderr.handle_line(b"line %d\r" % number)
    stderr.handle_line(b" \t")
    stderr.handle_line(b"z" * MAX_LINE)
    assert [shown(line) for line in received] == [*(f"line {number}" for number in range(BURST + 30)), "z" * SHOWN]


# -- the informative line ----------------------------------------------------------------------------------------------

TRANSCRIPTS = Path(__file__).parent.parent / "faults" / "corpus" / "transcripts.txt"


def read_transcripts() -> dict[str, tuple[str, list[str]]]:
    """Return the expected line of each transcript, and its lines as `StderrLog` keeps them."""
    _, *blocks = TRANSCRIPTS.read_text(encoding="utf-8").replace("\u241b", "\x1b").split("\n=== ")
    found: dict[str, tuple[str, list[str]]] = {}
    for block in blocks:
        name, shown, *lines = block.split("\n")
        found[name] = shown.removeprefix("-> "), [line for line in lines if line.strip()]
    return found


@pytest.mark.parametrize("name", read_transcripts())
def test_the_informative_line_of_a_transcript_is_shown(name: str) -> None:
    shown, lines = read_transcripts()[name]
    assert len(shown) > 10
    assert informative(lines) == shown
    assert informative(["Starting server...", "Listening for clients", *lines]) == shown
    assert informative(["Error: an earlier one", *lines][-len(lines) :]) == shown


@pytest.mark.parametrize(
    ("lines", "shown"),
    [
        ([], ""),
        (["", "  "], ""),
        (["Node.js v20.20.2"], "Node.js v20.20.2"),  # nothing better
        (["the port is taken", "}", "Node.js v20.20.2"], "the port is taken"),
        (["cannot open the database", "shutting down", "bye"], "cannot open the database"),
        (["all is well", "bye"], "bye"),
        (["0 errors found", "bye"], "bye"),
        (["Error: first", "Error: second", "bye"], "Error: second"),
        (["error: no solution", "  cause: offline", "", "hint: try --offline"], "error: no solution; cause: offline"),
        (["  cause: of nothing"], "cause: of nothing"),
        (["npm ERR! code E404", "npm ERR! 404 Not Found - x", "npm ERR! 404", "npm ERR!     /var/0.log"],
         "npm ERR! 404 Not Found - x"),
        (["TypeError: x is not a function", "    at f (x.js:1:1)", "npm error Lifecycle script `start` failed"],
         "TypeError: x is not a function"),
        (["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "KeyError: 'API_KEY'", "",
          "ERROR:    Application startup failed. Exiting."], "KeyError: 'API_KEY'"),
        (["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "    f()", "mylib.NotConfigured"],
         "mylib.NotConfigured"),  # no name that ends in Error, no message
        (["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "ValueError: a", "b", "c", "d"],
         "ValueError: a; b; c"),
        (["panic: open x: no such file", "goroutine 1 [running]:", "main.main()", "exit status 2"],
         "panic: open x: no such file"),
        (["Error: one of a | b + c is missing"], "Error: one of a | b + c is missing"),
        (["\x1b[31mError:\x1b[0m red"], "Error: red"),
        (["x" * 600], "x" * SHOWN),
    ],
)  # fmt: skip
def test_the_informative_line(lines: list[str], shown: str) -> None:
    assert informative(lines) == shown


def test_lines_that_are_hard_to_match_cost_little() -> None:
    hard = [" " * SHOWN + "!", "a." * (SHOWN // 2), "\x1b[" * (SHOWN // 2), "| " * (SHOWN // 2), "-" * SHOWN + "x"]
    assert informative(hard * (SEARCHED_LINES // len(hard)))


# -- stray lines on stdout ---------------------------------------------------------------------------------------------

MESSAGE = {"jsonrpc": "2.0", "id": 7, "result": {"text": 'a "{[" \\', "list": [1, {"x": []}, {}], "none": {}}}
PRETTY = json.dumps(MESSAGE, indent=2)


@pytest.mark.parametrize(
    "text",
    [
        PRETTY,
        json.dumps(MESSAGE, indent="\t"),
        json.dumps(MESSAGE, indent=0),
        PRETTY.replace("\n", "\r\n"),
        PRETTY.replace("\n", " \n"),
        "  " + PRETTY.replace("\n", "\n  "),
        '{"jsonrpc": "2.0", "id": 7,\n"result": {}}',
        '{"jsonrpc": "2.0", "id": 7, "result": {\n}\n}',
        json.dumps([MESSAGE, MESSAGE], indent=1),
        "Starting {...}\nlisting [\n" + PRETTY,
        "{\n  not the end\n" + PRETTY,
        PRETTY + "\n" + PRETTY,
    ],
)
def test_an_object_spread_over_lines_is_put_together(text: str) -> None:
    stray = StrayLines()
    joined = [whole for line in text.split("\n") if (whole := stray.join(line.encode())) is not None]
    assert joined
    assert all(json.loads(whole) in (MESSAGE, [MESSAGE] * 2, MESSAGE | {"result": {}}) for whole in joined)
    assert not stray.is_open


@pytest.mark.parametrize(
    "lines",
    [
        ["Starting server...", "{}", "[]", "[INFO] ready", '{"level": "info"}', "}", "]", '"x"', "null"],
        ["function f() {", "  return 1;", "}"],
        ["{", "x" * MAX_SPREAD, "}"],
        ["[", "]]", "}"],
    ],
)
def test_unrelated_lines_form_no_object(lines: list[str]) -> None:
    stray = StrayLines()
    assert [stray.join(line.encode()) for line in lines] == [None] * len(lines)
    assert not stray.is_open


def test_stray_lines_are_described() -> None:
    stray = StrayLines()
    assert not stray.describe()
    stray.note(b"Starting\r")
    assert stray.describe() == "it wrote a line to stdout that is not an MCP message: 'Starting'"
    stray.note(b"\xff" + b"x" * MAX_LINE)
    assert stray.describe().startswith("it wrote 2 lines to stdout that are not MCP messages, the last: '\ufffdxxx")
    assert len(stray.describe()) < 2 * SHOWN


def levels(logged: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    return [(record.message, record.levelno) for record in logged.records]


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO])
def test_held_lines_are_logged_at_their_release_level(logged: pytest.LogCaptureFixture, level: int) -> None:
    stderr = StderrLog("time", clock=Clock())
    stderr.hold()
    stderr.handle_line(b"one")
    assert levels(logged) == []
    assert stderr.tail == ["one"]  # an error may need it meanwhile
    stderr.release(level)
    stderr.handle_line(b"two")
    assert levels(logged) == [("one", level), ("two", logging.INFO)]


async def test_held_lines_are_logged_after_a_silence(
    logged: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    sender, receiver = memory_stream_one_way_pair()
    stderr = StderrLog("time")
    stderr.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stderr.run, receiver)
        await sender.send_all(b"visit https://login.example\n")
        await trio.sleep(HOLD_TIME * 1.5)
        await sender.send_all(b"thank you\n")
        await trio.testing.wait_all_tasks_blocked()
        assert levels(logged) == [("visit https://login.example", logging.INFO)]
        stderr.release(logging.DEBUG)
        await sender.aclose()
    assert levels(logged)[1:] == [("thank you", logging.DEBUG)]


def test_no_more_lines_are_held_than_the_limit(logged: pytest.LogCaptureFixture) -> None:
    stderr = StderrLog("time", clock=Clock())
    stderr.hold()
    for _ in range(HELD_LINES):
        stderr.handle_line(b"x")
    assert levels(logged)[0] == ("x", logging.INFO)


def test_stderr_about_a_refused_probe_is_debug(logged: pytest.LogCaptureFixture) -> None:
    stderr = StderrLog("time", clock=Clock())
    stderr.handle_line(f"MCP error -32603: roots/list {NO_CALL}".encode())
    stderr.handle_line(b"MCP error -32603: something else")
    assert [level for _, level in levels(logged)] == [logging.DEBUG, logging.INFO]
