"""One audit line per call with its true outcome; arguments only where configured."""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway.audit import Audit
from gateway.calls import Caller, Complete, Era, Failure, InputRequired
from gateway.config.audit import AuditSettings
from gateway.config.model import Config, ServerConfig
from gateway.errors import BackendExited, Busy, CancelledByAdmin, Denied, GatewayError, UnknownName
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from gateway.telemetry import line_file
from tests.support.fakes import RESULT, FakeBackend, backends, make_call, make_listing, settle
from tests.support.leaks import traced_growth

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

CALLER = Caller(
    era=Era.LEGACY,
    version="2025-11-25",
    client_info=msgspec.Raw(b'{"name":"desk","version":"1"}'),
    session="the-id-is-a-secret",
    principal="anna",
)


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps would not wait for a thread."""

    async def at_once(work: Callable[..., None], *arguments: object, limiter: object = None) -> None:
        await trio.lowlevel.checkpoint()
        work(*arguments)

    monkeypatch.setattr(line_file, "in_thread", at_once)


class FakeAdmission:
    """Admits every caller until it is shut."""

    is_shut = False

    def begin(self, caller: Caller, *, again: bool = False) -> None:
        if self.is_shut:
            raise Denied("the key was revoked")

    def takes_note(self, caller: Caller) -> bool:
        return not self.is_shut


class Harness:
    """A fleet of one fake, noted in a file."""

    def __init__(self, path: Path | None, **fields: Any) -> None:
        self.path = path
        self.fake = FakeBackend(make_listing("x"))
        server = ServerConfig(name="a", call_timeout=100, **fields)
        self.fleet = Fleet(Config(servers={"a": server}), backends({"a": self.fake}))
        self.audit = Audit(self.fleet)
        self.turnstile = FakeAdmission()
        self.router = Router(self.fleet, self.turnstile, note_refused=self.audit.note_refused)

    @property
    def lines(self) -> list[dict[str, Any]]:
        assert self.path is not None
        return [json.loads(line) for line in self.path.read_text().splitlines()]


@asynccontextmanager
async def open_harness(path: Path | None, *, arguments: bool = False, **fields: Any) -> AsyncGenerator[Harness]:
    harness = Harness(path, **fields)
    harness.audit.apply(AuditSettings(None if path is None else str(path), arguments))
    with trio.fail_after(100_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(harness.audit.run)
            await nursery.start(harness.fleet.run)
            await settle()
            yield harness  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            harness.fleet.stop()
            await harness.fleet.ended.wait()
            nursery.cancel_scope.cancel()
    harness.audit.apply(None)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (Complete(b'{"content":[]}', Era.LEGACY), {"outcome": "answered", "bytes_out": 14}),
        (Complete(b'{"content":[],"isError":true}', Era.LEGACY), {"outcome": "tool_error", "bytes_out": 29}),
        (Complete(b'{"content":[{"isError":true}]}', Era.LEGACY), {"outcome": "answered", "bytes_out": 30}),
        (InputRequired(b"{}"), {"outcome": "input_required", "bytes_out": 2}),
        (Failure(-32001, "mine", b"[1]", Era.LEGACY), {"outcome": "error", "code": -32001, "bytes_out": 3}),
        (
            BackendExited("a", "exited"),
            {"outcome": "failed", "code": -32603, "reason": "backend_exited", "bytes_out": 0},
        ),
    ],
)
async def test_a_call_is_one_line_with_its_end(
    outcome: Any, said: dict[str, Any], tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "audit.jsonl"
    async with open_harness(path) as harness:
        pending = await harness.router.submit(make_call("a.x", caller=CALLER))
        await trio.sleep(1.5)
        harness.fake.session.answer(outcome=outcome)
        harness.router.release(pending)
    (line,) = harness.lines
    assert line.pop("time").endswith("Z")
    assert line == {
        "call": pending.number,
        "session": CALLER.label,
        "principal": "anna",
        "client": "desk",
        "method": "tools/call",
        "name": "a.x",
        "backend": "a",
        "ms": 1500.0,
        "bytes_in": 5,
        **said,
    }
    assert "secret" not in path.read_text()


async def test_a_call_cancelled_by_the_admin_has_two_lines(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path / "audit.jsonl") as harness:
        pending = await harness.router.submit(make_call("a.x", caller=CALLER))
        await trio.sleep(2)
        assert harness.router.find(pending.number) is pending
        harness.audit.note_cancelled(pending)
        pending.abandon(CancelledByAdmin("the call was cancelled"), "cancelled")
        assert harness.router.find(pending.number) is None
        harness.router.release(pending)
    by_admin, ended = harness.lines
    assert (by_admin["principal"], by_admin["method"], by_admin["ms"]) == ("admin", "calls/cancel", 2000.0)
    assert (ended["principal"], ended["outcome"], ended["reason"]) == ("anna", "failed", "cancelled_by_admin")
    assert by_admin["call"] == ended["call"] == pending.number
    assert by_admin["name"] == ended["name"] == "a.x"


async def test_long_client_infos_are_not_cached(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path / "audit.jsonl") as harness:
        with traced_growth() as kept:
            for number in range(100):
                info = b'{"name":"desk","x":"%d%b"}' % (number, b"a" * 15_000)
                caller = msgspec.structs.replace(CALLER, client_info=msgspec.Raw(info))
                pending = await harness.router.submit(make_call("a.x", caller=caller))
                harness.fake.session.answer()
                harness.router.release(pending)
                del pending, caller, info
            await settle()
        assert kept() < 500_000
    assert [line["client"] for line in harness.lines] == ["desk"] * 100


async def test_a_call_that_killed_its_server_is_marked(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path / "audit.jsonl") as harness:
        pending_calls = [await harness.router.submit(make_call("a.x", caller=CALLER)) for _ in range(2)]
        await settle()
        suspects = [one.as_suspect() for one in reversed(pending_calls)]
        harness.fake.session.crash(BackendExited("a", "exited with status 3", suspects))
        await settle()
        for pending in pending_calls:
            harness.router.release(pending)
    said = {line["call"]: (line["outcome"], line["reason"], line["crash"]) for line in harness.lines}
    assert said == {
        pending_calls[0].number: ("failed", "backend_exited", "in flight"),
        pending_calls[1].number: ("failed", "backend_exited", "suspect"),
    }


async def test_calls_that_end_otherwise_are_one_line_each(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with open_harness(tmp_path / "audit.jsonl", max_concurrency=1, queue_size=1) as harness:
        router = harness.router
        cancelled = await router.submit(make_call("a.x"))
        await settle()
        waiting = await router.submit(make_call("a.x"))
        with pytest.raises(Busy):
            await router.submit(make_call("a.x"))
        with pytest.raises(UnknownName):
            await router.submit(make_call("nobody's"))
        harness.turnstile.is_shut = True
        with pytest.raises(Denied):
            await router.submit(make_call("a.x"))
        harness.turnstile.is_shut = False
        router.release(cancelled)
        router.release(cancelled)
        await settle()
        harness.fake.session.answer()
        router.release(waiting)
        late = await router.submit(make_call("a.x"))
        assert isinstance(await late.next(), GatewayError)  # its time is over
        router.release(late)
    found = [(line["name"], line["outcome"], line.get("reason"), line.get("code")) for line in harness.lines]
    assert found == [
        ("a.x", "refused", "busy", -32603),
        ("nobody's", "refused", "unknown_name", -32602),
        ("a.x", "refused", "denied", -32602),
        ("a.x", "cancelled", None, None),
        ("a.x", "answered", None, None),
        ("a.x", "failed", "backend_timeout", -32603),
    ]
    assert harness.router.refused == {("a", "busy"): 1, ("", "unknown_name"): 1, ("", "denied"): 1}


async def test_a_call_cancelled_before_its_owner_was_known(tmp_path: Path, autojump_clock: MockClock) -> None:
    harness = Harness(tmp_path / "audit.jsonl")
    harness.fake.listing = make_listing()
    harness.fake.stall()
    harness.audit.apply(AuditSettings(str(harness.path)))
    async with trio.open_nursery() as nursery:
        await nursery.start(harness.audit.run)
        await nursery.start(harness.fleet.run)
        with trio.move_on_after(1):
            await harness.router.submit(make_call("a.x"))
        harness.fleet.stop()
        await harness.fleet.ended.wait()
        nursery.cancel_scope.cancel()
    harness.audit.apply(None)
    (line,) = harness.lines
    assert (line["outcome"], line["ms"]) == ("cancelled", 1000.0)


@pytest.mark.parametrize("asked_for", [False, True])
async def test_arguments_are_recorded_only_where_configured(
    asked_for: bool, tmp_path: Path, autojump_clock: MockClock
) -> None:
    path = tmp_path / "audit.jsonl"
    async with open_harness(path, arguments=asked_for) as harness:
        for arguments in (b'{"a":\n "confidential"}', b'{"a":"' + b"x" * 70_000 + b'"}'):
            call = make_call("a.x")
            call.params["arguments"] = msgspec.Raw(arguments)
            pending = await harness.router.submit(call)
            await settle()
            harness.fake.session.answer()
            harness.router.release(pending)
    small, large = harness.lines
    assert small.get("arguments") == ({"a": "confidential"} if asked_for else None)
    assert large.get("arguments") == ("(70008 bytes)" if asked_for else None)
    assert small["bytes_in"] == len(b'{"a":\n "confidential"}') + len(b'"a.x"')
    assert ("confidential" in path.read_text()) == asked_for


async def test_without_a_file_lines_go_to_logging(caplog: pytest.LogCaptureFixture, autojump_clock: MockClock) -> None:
    async with open_harness(None) as harness:
        pending = await harness.router.submit(make_call("a.x"))
        await settle()
        harness.fake.session.answer()
        harness.router.release(pending)
        harness.audit.apply(None)
        pending = await harness.router.submit(make_call("a.x"))
        await settle()
        harness.fake.session.answer()
        harness.router.release(pending)
    (record,) = [record for record in caplog.records if record.name == "gateway.audit"]
    assert (record.levelno, record.getMessage()) == (logging.INFO, "a.x answered")
    assert record.__dict__["fields"]["bytes_out"] == len(RESULT.result)


async def test_settings_may_change_while_calls_come(tmp_path: Path, autojump_clock: MockClock) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    async with open_harness(first) as harness:
        for path in (first, second, None):
            harness.audit.apply(None if path is None else AuditSettings(str(path)))
            pending = await harness.router.submit(make_call("a.x"))
            await settle()
            harness.fake.session.answer()
            harness.router.release(pending)
        assert not harness.fleet._observers
    assert [len(path.read_text().splitlines()) for path in (first, second)] == [1, 1]
