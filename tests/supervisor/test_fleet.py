"""All backends together: lists while some are unavailable, change notifications, and waiting."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from gateway.calls import Scope
from gateway.catalog.listing import Item
from gateway.catalog.ownership import Route
from gateway.catalog.snapshot import ListNews
from gateway.config.model import GatewaySettings
from gateway.eras.methods import Kind
from gateway.errors import BackendExited
from gateway.store import OVERDUE, Store
from gateway.supervisor.lifecycle import State
from tests.support.fakes import SOON, FakeBackend, make_listing, settle
from tests.support.supervision import listed, make_fleet, running_fleet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

CRASH = BackendExited("b", "exited with status 3")


async def test_nothing_waits_for_the_slowest(autojump_clock: MockClock) -> None:
    slow, quick = FakeBackend(make_listing("s")), FakeBackend(make_listing("q"))
    slow.stall()
    async with running_fleet(make_fleet({"slow": slow, "quick": quick})) as fleet:
        await settle()
        assert listed(fleet) == ["quick.q"]
        assert {name: status.state for name, status in fleet.statuses().items()} == {
            "slow": State.STARTING,
            "quick": State.READY,
        }


async def test_guarantee_g1_lists_keep_the_order_of_the_config(autojump_clock: MockClock) -> None:
    fakes = {name: FakeBackend(make_listing("x")) for name in "cab"}

    async def late(_number: int) -> None:
        await trio.sleep(1)

    fakes["c"].on_start = late
    async with running_fleet(make_fleet(fakes)) as fleet:
        await trio.sleep(2)
        assert listed(fleet) == ["c.x", "a.x", "b.x"]


async def test_the_snapshot_is_rebuilt_only_after_a_change(autojump_clock: MockClock) -> None:
    fakes = {"a": FakeBackend(), "b": FakeBackend()}
    async with running_fleet(make_fleet(fakes)) as fleet:
        await settle()
        before = fleet.snapshot()
        assert fleet.snapshot() is before
        part = before.parts[1]
        fakes["a"].session.change()
        await settle()
        assert fleet.snapshot() is not before
        assert fleet.snapshot().parts[1] is part  # nothing of the other was rebuilt


@pytest.mark.parametrize(("failures", "state", "names"), [(1, "backoff", ["a.x", "b.x"]), (3, "failed", ["b.x"])])
async def test_last_good_entries_are_listed_while_briefly_away(
    failures: int, state: str, names: list[str], autojump_clock: MockClock
) -> None:
    fakes = {"a": FakeBackend(), "b": FakeBackend()}
    async with running_fleet(make_fleet(fakes)) as fleet:
        await settle()
        fakes["a"].fail(2, 3, 4)
        fakes["a"].session.crash(CRASH)
        await settle()
        if failures > 1:
            await trio.sleep(20)
        assert fleet.statuses()["a"].state == state
        assert listed(fleet) == names
        assert fleet.snapshot().route(Kind.TOOLS, "a.x") == Route("a", "x")  # a known name stays known


async def test_changes_are_notified_once(autojump_clock: MockClock) -> None:
    fakes = {str(number): FakeBackend() for number in range(20)}
    notified: list[tuple[float, frozenset[str]]] = []
    settings = GatewaySettings(list_change_delay=0.5)
    fleet = make_fleet(fakes, settings=settings)
    began = trio.current_time()
    fleet.subscribe(lambda news: notified.append((trio.current_time() - began, news.features(None))))
    async with running_fleet(fleet):
        await trio.sleep(10)
        assert notified == [(0.5, frozenset({"tools"}))]  # twenty starts
        for fake in fakes.values():
            fake.session.on_relist = lambda _feature: {Kind.PROMPTS: (Item("p", b'{"name":"p"}'),)}
            fake.session.change("prompts")
        await trio.sleep(10)
        assert notified[1:] == [(10.5, frozenset({"prompts"}))]


async def test_an_announced_change_is_passed_on(autojump_clock: MockClock) -> None:
    fakes = {"a": FakeBackend(), "b": FakeBackend()}
    notified: list[tuple[frozenset[str], frozenset[str]]] = []
    async with running_fleet(make_fleet(fakes)) as fleet:
        await trio.sleep(1)
        fleet.subscribe(lambda news: notified.append((news.features(None), news.features(Scope(servers=("b",))))))
        for _ in range(10):  # lists the same afterwards
            fakes["a"].session.change()
        await trio.sleep(1)
        assert notified == [(frozenset({"tools"}), frozenset())]


async def test_shutdown_is_not_a_change(autojump_clock: MockClock) -> None:
    """A client that hangs up reads no more: what is written then breaks some."""
    fakes = {"a": FakeBackend(), "slow": FakeBackend()}
    notified: list[object] = []
    fleet = make_fleet(fakes, settings=GatewaySettings(list_change_delay=0.5))
    async with running_fleet(fleet):
        await trio.sleep(1)

        async def on_close() -> None:
            await trio.sleep(3)

        fakes["slow"].on_close = on_close
        fleet.subscribe(notified.append)
    assert listed(fleet) == []
    assert notified == []


async def test_invisible_changes_are_not_notified(autojump_clock: MockClock) -> None:
    fakes = {"a": FakeBackend()}
    notified: list[frozenset[str]] = []
    async with running_fleet(make_fleet(fakes)) as fleet:
        await trio.sleep(1)

        def listener(news: ListNews) -> None:
            notified.append(news.features(None))

        fleet.subscribe(listener)
        fakes["a"].session.crash(CRASH)  # away and back, with the same list
        await trio.sleep(5)
        assert notified == []
        fakes["a"].fail(3, 4, 5, 6)
        fakes["a"].session.crash(CRASH)
        await trio.sleep(20)
        assert notified == [frozenset({"tools"})]  # marked failed: now they are gone
        fleet.unsubscribe(listener)
        fleet.unsubscribe(listener)
        fakes["a"].on_start = None
        fleet.supervisors["a"].wake()
        await trio.sleep(5)
        assert notified == [frozenset({"tools"})]
        assert listed(fleet) == ["a.x"]


async def waited(wait: Callable[[], Awaitable[None]]) -> float:
    """Return the seconds that it takes."""
    began = trio.current_time()
    await wait()
    return trio.current_time() - began


@pytest.mark.parametrize("asked_at", [0.0, 10.0])
@pytest.mark.parametrize(
    ("start_after", "patience", "expected"),
    [(0.5, None, 0.5), (3.9, None, 3.9), (1000, None, 4.0), (1000, 18.0, 18.0), (5, 18.0, 5.0)],
)
async def test_lists_wait_from_their_request_on(
    start_after: float, patience: float | None, expected: float, asked_at: float, autojump_clock: MockClock
) -> None:
    fake = FakeBackend()

    async def late(_number: int) -> None:
        await trio.sleep(asked_at + start_after)

    fake.on_start = late
    async with running_fleet(make_fleet({"a": fake, "b": FakeBackend()})) as fleet:
        await trio.sleep(asked_at)
        assert await waited(partial(fleet.first_starts, patience=patience)) == pytest.approx(expected)
        assert await waited(fleet.first_starts) == 0  # what was late once is not waited for again


async def test_initialize_waits_a_second_and_leaves_lists_theirs(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.stall()
    async with running_fleet(make_fleet({"a": fake})) as fleet:
        assert await waited(fleet.before_initialize) == 1
        assert await waited(fleet.first_starts) == 4
        assert await waited(fleet.before_initialize) == 0


async def test_no_list_waits_after_a_client_stopped_waiting(autojump_clock: MockClock) -> None:
    """A client with less patience than the grace would never get a list."""
    fake = FakeBackend()
    fake.stall()
    async with running_fleet(make_fleet({"a": fake})) as fleet:
        with trio.move_on_after(2):
            await fleet.first_starts()
        assert await waited(fleet.first_starts) == 0


@pytest.mark.parametrize(
    ("command", "is_seen", "is_awaited"), [("same", False, False), ("same", True, False), ("other", True, True)]
)
async def test_later_runs_wait_only_for_timely_backends(
    command: str, is_seen: bool, is_awaited: bool, tmp_path: Path
) -> None:
    """On the real clock: another one would not wait for the thread that writes."""
    store, settings = Store(tmp_path / "state"), GatewaySettings(start_grace=0.01)
    hung, quick = FakeBackend(), FakeBackend()
    hung.stall()
    for fake in (hung, quick) if is_seen else (hung,):
        async with running_fleet(make_fleet({"a": fake}, settings=settings, store=store, command="same")) as fleet:
            await fleet.first_starts()
            if fake is quick:
                await fleet.supervisors["a"].settled.wait()
    async with running_fleet(make_fleet({"a": hung}, settings=settings, store=store, command=command)) as fleet:
        assert bool(fleet.awaited()) == is_awaited
        assert listed(fleet) == (["a.x"] if command == "same" and is_seen else [])


async def test_learned_catalogs_are_stored_immediately(tmp_path: Path) -> None:
    """Some clients kill the gateway after a second or two."""
    store = Store(tmp_path / "state")
    hung, quick = FakeBackend(), FakeBackend()
    hung.stall()
    fleet = make_fleet({"hung": hung, "quick": quick}, store=store, settings=GatewaySettings(start_grace=0.1))
    async with running_fleet(fleet):
        await fleet.before_initialize()
        with trio.fail_after(SOON):
            for name, is_late in {"quick": False, "hung": True}.items():
                config = fleet.supervisors[name].config
                while (kept := store.load_catalog(config)) is None:  # ruff: ignore[async-busy-wait]
                    await trio.sleep(0.01)
                assert (kept is OVERDUE) == is_late


async def test_lists_are_kept_before_the_backends_end(tmp_path: Path) -> None:
    """A client that closed stdin kills the gateway soon; backends may end late."""
    store, fakes = Store(tmp_path / "state"), {"first": FakeBackend(), "second": FakeBackend()}
    go, kept = trio.Event(), trio.Event()

    async def on_start(_number: int) -> None:
        await go.wait()

    async def on_close() -> None:
        with trio.move_on_after(SOON):
            while store.load_catalog(fleet.supervisors["second"].config) is None:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
            kept.set()

    fakes["second"].on_start, fakes["second"].on_close = on_start, on_close
    fleet = make_fleet(fakes, store=store, keep_interval=math.inf)
    async with running_fleet(fleet):
        with trio.fail_after(SOON):
            while store.load_catalog(fleet.supervisors["first"].config) is None:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
        go.set()  # after the only write that there is room for
        await fleet.supervisors["second"].settled.wait()
    assert kept.is_set()


async def test_a_failed_first_start_is_not_waited_for(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.fail(1, 2, 3)
    async with running_fleet(make_fleet({"a": fake})) as fleet:
        began = trio.current_time()
        await fleet.first_starts()
        assert trio.current_time() == began


async def test_restarts_are_not_waited_for(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    async with running_fleet(make_fleet({"a": fake})) as fleet:
        await settle()
        fake.stall()
        fake.session.crash(CRASH)
        began = trio.current_time()
        await fleet.first_starts()
        assert trio.current_time() == began
        assert listed(fleet) == ["a.x"]


async def test_unknown_names_may_belong_to_starting_backends(autojump_clock: MockClock) -> None:
    fakes = {name: FakeBackend() for name in ("time", "ti", "known")}
    for name in ("time", "ti"):
        fakes[name].stall()
    async with running_fleet(make_fleet(fakes)) as fleet:
        await settle()
        for name, expected in {
            "time.now": ["time"],
            "ti.now": ["ti"],
            "timer.now": [],
            "time": [],
            "known.now": [],
        }.items():
            assert [one.name for one in fleet.strangers(name)] == expected


async def test_disabled_backends_are_not_there(autojump_clock: MockClock) -> None:
    async with running_fleet(make_fleet({"a": FakeBackend()}, disabled=True)) as fleet:
        assert fleet.supervisors == {}
