"""Backends with a session per era: clients see the lists of their session."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from gateway import jsonrpc
from gateway.calls import EVERYTHING, Era, Scope
from gateway.catalog.listing import Item, Listing
from gateway.config.model import GatewaySettings
from gateway.eras.methods import Kind
from gateway.eras.tools import View
from gateway.errors import UnknownName
from gateway.inflight.pending import PendingCall
from gateway.router import Router
from gateway.store import Store
from gateway.supervisor.per_client import CLIENT_IDLE
from tests.support.fakes import LEGACY_CALLER, MODERN_CALLER, SOON, FakeBackend, make_call, settle
from tests.support.supervision import make_fleet, running_fleet

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from trio.testing import MockClock

    from gateway.catalog.snapshot import ListNews
    from gateway.supervisor.fleet import Fleet
    from tests.support.fakes import FakeSession

HTTP: dict[str, Any] = {"url": "http://localhost/mcp"}
EACH: dict[str, Any] = {"command": "x", "era": "each"}
CALLERS = {Era.LEGACY: LEGACY_CALLER, Era.MODERN: MODERN_CALLER}
VIEWS = {Era.LEGACY: View.LATEST, Era.MODERN: View.MODERN}
METHODS = {
    Kind.TOOLS: "tools/call",
    Kind.PROMPTS: "prompts/get",
    Kind.RESOURCES: "resources/read",
    Kind.TEMPLATES: "resources/read",
}
every_kind = pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.member)
every_way = pytest.mark.parametrize("settings", [HTTP, EACH], ids=["http", "each"])
every_first = pytest.mark.parametrize("first", list(Era))


def items_of(kind: Kind, **entries: str) -> dict[Kind, tuple[Item, ...]]:
    """Items by own name, each with a text that tells who listed it."""
    found: list[Item] = []
    for name, text in entries.items():
        own = name if kind.namespaced else f"memo:{name}"
        found.append(Item(own, jsonrpc.encode({kind.key: own, "description": text})))
    return {kind: tuple(found)}


def listing_of(kind: Kind, **entries: str) -> Listing:
    return Listing(items=items_of(kind, **entries), capabilities={kind.feature: msgspec.Raw(b"{}")})


def dual(kind: Kind, first: Era) -> FakeBackend:
    """A server that lists `same` equally, `odd` differently, and one more per era."""
    fake = FakeBackend()
    fake.eras = (first, first.other)
    fake.listings = {era: listing_of(kind, same="both", odd=era, **{f"only_{era}": era}) for era in Era}
    return fake


def only(kind: Kind, era: Era) -> dict[str, str]:
    return {"same": "both", "odd": era, f"only_{era}": era}


def seen(fleet: Fleet, kind: Kind, era: Era, scope: Scope | None = None) -> dict[str, str]:
    """Return an era's clients' view of a list: each name's end, and text."""
    page = fleet.snapshot(scope).page(kind, None, None, VIEWS[era])
    entries = json.loads(b"[" + page.joined + b"]")
    return {entry[kind.key].removeprefix("a.").removeprefix("memo:"): entry["description"] for entry in entries}


def session_of(fake: FakeBackend, era: Era) -> FakeSession:
    (found,) = [session for session in fake.sessions if session.greeting.era is era]
    return found


class News:
    """Records the features whose lists changed, for clients of each era."""

    def __init__(self, fleet: Fleet) -> None:
        self.features: dict[Era, list[str]] = {era: [] for era in Era}
        fleet.subscribe(self.note)

    def note(self, news: ListNews) -> None:
        for era in Era:
            self.features[era] += sorted(news.features(None, era))

    def take(self) -> dict[Era, list[str]]:
        found, self.features = self.features, {era: [] for era in Era}
        return found


async def list_all(fleet: Fleet, eras: Iterable[Era] = Era) -> None:
    """Have clients of these eras list."""
    for era in eras:
        await fleet.first_starts(era=era)
    await trio.sleep(1)  # the announcement of what changed


@every_kind
@every_way
@every_first
async def test_each_era_lists_its_own_session(
    kind: Kind, settings: dict[str, Any], first: Era, autojump_clock: MockClock
) -> None:
    fake = dual(kind, first)
    async with running_fleet(make_fleet({"a": fake}, **settings)) as fleet:
        await list_all(fleet, [first])
        assert [session.greeting.era for session in fake.sessions] == [first]  # the other one only on demand
        await list_all(fleet, [first.other])
        for era in Era:
            assert seen(fleet, kind, era) == only(kind, era)
        assert fleet.supervisors["a"].status().tools == (4 if kind is Kind.TOOLS else 0)
        await list_all(fleet)
        assert len(fake.sessions) == 2


@every_kind
@every_way
async def test_names_of_either_era_reach_the_callers_session(
    kind: Kind, settings: dict[str, Any], autojump_clock: MockClock
) -> None:
    fake = dual(kind, Era.MODERN)
    async with running_fleet(make_fleet({"a": fake}, **settings)) as fleet:
        router = Router(fleet)
        await settle()
        for caller in CALLERS.values():
            for name in ("same", "only_legacy", "only_modern"):  # the first call of the other era finds its names
                public = f"a.{name}" if kind.namespaced else f"memo:{name}"
                pending = await router.submit(make_call(public, METHODS[kind], caller=caller))
                await settle()
                session = session_of(fake, caller.era)
                assert session.names[-1] == public.removeprefix("a.")
                session.answer()
                router.release(pending)
        if kind.namespaced:
            with pytest.raises(UnknownName):
                await router.submit(make_call("a.none", METHODS[kind]))


@every_kind
@every_way
@pytest.mark.parametrize("changed", list(Era))
@every_first
async def test_a_change_in_one_session_reaches_its_era(
    kind: Kind, settings: dict[str, Any], changed: Era, first: Era, autojump_clock: MockClock
) -> None:
    fake = dual(kind, first)
    async with running_fleet(make_fleet({"a": fake}, **settings)) as fleet:
        await list_all(fleet)
        news = News(fleet)
        session = session_of(fake, changed)
        grown = items_of(kind, **only(kind, changed), new="one")
        session.on_relist = lambda _feature: grown
        session.change(kind.feature)
        await trio.sleep(2)
        assert seen(fleet, kind, changed) == only(kind, changed) | {"new": "one"}
        assert seen(fleet, kind, changed.other) == only(kind, changed.other)
        # A server may tell one session alone of what has changed for all: the other one is read as well.
        assert [feature for feature, _ in session_of(fake, changed.other).relisted] == [kind.feature]
        assert news.take()[changed] == [kind.feature]
        await trio.sleep(10)
        assert news.take() == {Era.LEGACY: [], Era.MODERN: []}  # neither session keeps the other one reading


@every_way
async def test_an_idle_session_follows_what_eras_share(settings: dict[str, Any], autojump_clock: MockClock) -> None:
    fake = dual(Kind.TOOLS, Era.MODERN)
    async with running_fleet(make_fleet({"a": fake}, **settings)) as fleet:
        await list_all(fleet)
        await trio.sleep(2 * CLIENT_IDLE)
        assert fake.open == 1
        session = session_of(fake, Era.MODERN)
        session.on_relist = lambda _feature: items_of(Kind.TOOLS, odd="changed", only_modern="modern", new="one")
        session.change()
        await trio.sleep(2)
        assert seen(fleet, Kind.TOOLS, Era.MODERN) == {"odd": "changed", "only_modern": "modern", "new": "one"}
        assert seen(fleet, Kind.TOOLS, Era.LEGACY) == {"odd": "legacy", "only_legacy": "legacy", "new": "one"}
        await list_all(fleet)
        assert fake.open == 1


async def test_each_scope_sees_what_its_era_lists(autojump_clock: MockClock) -> None:
    fake = dual(Kind.TOOLS, Era.MODERN)
    async with running_fleet(make_fleet({"a": fake}, **HTTP)) as fleet:
        await list_all(fleet)
        scope = msgspec.structs.replace(EVERYTHING, tools=("a.only_*", "a.odd"), excluded_tools=("a.only_modern",))
        assert seen(fleet, Kind.TOOLS, Era.LEGACY, scope) == {"odd": "legacy", "only_legacy": "legacy"}
        assert seen(fleet, Kind.TOOLS, Era.MODERN, scope) == {"odd": "modern"}


@every_way
@every_first
async def test_a_refused_era_leaves_the_lists(settings: dict[str, Any], first: Era, autojump_clock: MockClock) -> None:
    fake = dual(Kind.TOOLS, first)
    fake.refused = first.other
    async with running_fleet(make_fleet({"a": fake}, **settings)) as fleet:
        for _ in range(2):
            await list_all(fleet)
            for era in Era:
                assert seen(fleet, Kind.TOOLS, era) == only(Kind.TOOLS, first)
        assert (fake.open, len(fake.sessions)) == (1, 2)


@pytest.mark.parametrize("how", ["fail", "stall"])
async def test_lists_wait_once_for_a_session_that_fails(how: str, autojump_clock: MockClock) -> None:
    fake = dual(Kind.TOOLS, Era.MODERN)
    async with running_fleet(make_fleet({"a": fake}, settings=GatewaySettings(start_grace=4), **HTTP)) as fleet:
        await settle()
        fake.stall() if how == "stall" else fake.fail(*range(2, 100))
        for longest in (4, 0, 0):
            began = trio.current_time()
            await fleet.first_starts(era=Era.LEGACY)
            assert trio.current_time() - began <= longest
            assert seen(fleet, Kind.TOOLS, Era.LEGACY) == only(Kind.TOOLS, Era.MODERN)
            await trio.sleep(1000)


async def test_no_list_waits_for_a_restarted_session(autojump_clock: MockClock) -> None:
    fake = dual(Kind.TOOLS, Era.MODERN)
    async with running_fleet(make_fleet({"a": fake}, settings=GatewaySettings(start_grace=4), **HTTP)) as fleet:
        await settle()
        fake.fail(*range(2, 100))
        await fleet.first_starts(era=Era.LEGACY)
        await trio.sleep(1000)
        fake.stall()
        call = make_call("a.same", caller=LEGACY_CALLER)
        fleet.supervisors["a"].submit(PendingCall(call, backend="a", own_name="same", timeout=100))
        began = trio.current_time()
        await fleet.first_starts(era=Era.LEGACY)
        assert trio.current_time() == began


@every_kind
@every_way
@every_first
async def test_the_next_run_loads_both_eras_lists(
    kind: Kind, settings: dict[str, Any], first: Era, tmp_path: Path
) -> None:
    store = Store(tmp_path / "state")
    async with running_fleet(make_fleet({"a": dual(kind, first)}, store=store, **settings)) as fleet:
        for era in Era:
            await fleet.first_starts(era=era)
        with trio.fail_after(SOON):
            config = fleet.supervisors["a"].config
            while (kept := store.load_catalog(config)) is None or not kept.has_both_eras:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
    fake = dual(kind, first)
    fake.hold()
    async with running_fleet(make_fleet({"a": fake}, store=store, **settings)) as fleet:
        for _ in range(2):  # before the first session is open, and after
            for era in Era:
                await fleet.first_starts(era=era)
                assert seen(fleet, kind, era) == only(kind, era)
            fake.held.set()
            await fleet.supervisors["a"].settled.wait()
        assert len(fake.sessions) == 1
