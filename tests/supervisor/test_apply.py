"""A new config at run time: replacements start beside the old, and nothing else changes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway.calls import Complete
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.eras.methods import Kind
from gateway.errors import BackendExited, BackendUnavailable, ShuttingDown
from gateway.router import Router
from gateway.supervisor.fleet import MAX_RETIRING, NEW_BACKEND_TIMEOUT, Applied, Fleet
from gateway.supervisor.lifecycle import State
from tests.support.fakes import LEGACY_CALLER, FakeBackend, backends, make_call, make_listing, make_pending, settle
from tests.support.supervision import FLEET_POLICY, listed, running_fleet

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.inflight.pending import PendingCall
    from tests.support.fakes import FakeSession

CLIENT = msgspec.structs.replace(LEGACY_CALLER, session="one")


class Rig:
    """A running fleet whose backends are fakes by name, and the config that holds."""

    def __init__(self, *names: str, settings: GatewaySettings | None = None, **fields: Any) -> None:
        self.fields = fields
        self.fakes = {name: FakeBackend(make_listing("x")) for name in "abcd"}
        self.config = Config({name: self.server(name) for name in names}, settings or GatewaySettings())
        self.fleet = Fleet(self.config, backends(self.fakes))
        self.router = Router(self.fleet)

    def server(self, name: str, **fields: Any) -> ServerConfig:
        return ServerConfig(name=name, **{"restart": FLEET_POLICY, "command": "old", **self.fields, **fields})

    def session(self, name: str) -> FakeSession:
        return self.fakes[name].session

    async def apply(self, *names: str, settings: GatewaySettings | None = None, **kwargs: Any) -> Applied:
        """Apply a config of these servers; "a2" is `a` with another command."""
        servers = [self.server(name[0], **({"command": name} if len(name) > 1 else {})) for name in names]
        config = Config({one.name: one for one in servers}, settings or self.config.gateway)
        return await self.fleet.apply(config, **kwargs)


@asynccontextmanager
async def rigged(*names: str, **kwargs: Any) -> AsyncGenerator[Rig]:
    rig = Rig(*names, **kwargs)
    async with running_fleet(rig.fleet):
        await settle()
        yield rig


async def test_changes_spare_unchanged_servers(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        before = rig.fleet.supervisors["a"]
        applied = await rig.apply("a", "c")
        assert applied == Applied(added=("c",), removed=("b",), unchanged=("a",))
        assert listed(rig.fleet) == ["a.x", "c.x"]
        assert rig.fleet.supervisors["a"] is before
        assert [len(rig.fakes[name].starts) for name in "abc"] == [1, 1, 1]
        await settle()
        assert (rig.fakes["b"].open, rig.fakes["a"].open, rig.fakes["c"].open) == (0, 1, 1)


async def test_secrets_stay_masked_until_their_last_process_ends(autojump_clock: MockClock) -> None:
    async with rigged("a", "b", masked={"old-secret": "${KEY}"}) as rig:
        rig.fields = {"masked": {"new-secret": "${KEY}"}, "env": {"KEY": "new-secret"}}
        pending = await rig.router.submit(make_call("a.x"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.apply, "a")
            await settle()
            assert BackendUnavailable("a", "old-secret new-secret").reason == "*** ***"  # the old one drains
            rig.router.release(pending)
        await settle()
        assert BackendUnavailable("a", "old-secret new-secret").reason == "old-secret ***"
    assert BackendUnavailable("a", "new-secret").reason == "new-secret"


async def test_the_order_is_that_of_the_new_config(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        await rig.apply("c", "b", "a")
        assert listed(rig.fleet) == ["c.x", "b.x", "a.x"]


async def test_the_old_server_serves_until_its_replacement_starts(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        old = rig.session("a")

        async def slow(_number: int) -> None:
            await trio.sleep(3)

        rig.fakes["a"].on_start = slow
        done: list[Applied] = []
        async with trio.open_nursery() as nursery:

            async def apply() -> None:
                done.append(await rig.apply("a2"))

            nursery.start_soon(apply)
            await trio.sleep(2)
            pending = await rig.router.submit(make_call("a.x"))
            await settle()
            assert old.names == ["x"]  # still the old one
            old.answer()
            await pending.next()
            rig.router.release(pending)
        assert done[0].changed == ("a",)
        assert rig.session("a") is not old
        assert rig.fleet.supervisors["a"].config.command == "a2"
        await settle()
        assert rig.fakes["a"].open == 1


async def test_calls_in_flight_finish_on_the_old_one(autojump_clock: MockClock) -> None:
    async with rigged("a", settings=GatewaySettings(drain_grace=10)) as rig:
        old = rig.session("a")
        pending = await rig.router.submit(make_call("a.x"))
        await settle()
        await rig.apply("a2")
        later = await rig.router.submit(make_call("a.x"))
        await settle()
        assert (old.names, rig.session("a").names, rig.fakes["a"].open) == (["x"], ["x"], 2)
        await trio.sleep(5)
        old.answer()
        rig.session("a").answer()
        for each in (pending, later):
            assert not isinstance(await each.next(), Exception)
            rig.router.release(each)
        await settle()
        assert rig.fakes["a"].open == 1


async def test_waiting_calls_move_to_the_replacement(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:

        async def second_hangs(number: int) -> None:
            await trio.sleep(1000 if number == 2 else 1)

        for fake in (rig.fakes["a"], rig.fakes["b"]):
            fake.on_start = second_hangs
            fake.session.crash(BackendExited("a", "exited with status 1"))
        await trio.sleep(10)
        moved, lost = [await rig.router.submit(make_call(name)) for name in ("a.x", "b.x")]
        await rig.apply("a2")
        assert isinstance(await lost.next(), BackendUnavailable)  # it has no replacement
        await settle()
        assert rig.session("a").names == ["x"]
        rig.session("a").answer()
        assert not isinstance(await moved.next(), Exception)
        for pending in (moved, lost):
            rig.router.release(pending)


@pytest.mark.parametrize("session", ["shared", "client"])
async def test_waiting_calls_move_to_the_newest_replacement(session: str, autojump_clock: MockClock) -> None:
    settings = GatewaySettings(drain_grace=10)
    async with rigged("a", settings=settings, session=session, max_concurrency=1) as rig:
        pending_calls: list[PendingCall] = []
        for _ in range(2):  # the first is under way longer than the drain takes, the second waits behind it
            pending_calls.append(await rig.router.submit(make_call("a.x", caller=CLIENT)))
            await settle()
        await rig.apply("a2")
        await rig.apply("a3")
        lasting = rig.fleet.supervisors["a"]
        assert isinstance(await pending_calls[0].next(), BackendExited)
        await settle()
        assert (lasting.in_flight, rig.session("a").names, rig.fakes["a"].open) == (1, ["x"], 1 + lasting.sessions)
        rig.session("a").answer()
        assert isinstance(await pending_calls[1].next(), Complete)


async def test_waiting_calls_fail_when_the_server_is_removed(autojump_clock: MockClock) -> None:
    async with rigged("a", settings=GatewaySettings(drain_grace=10), session="client", max_concurrency=1) as rig:
        pending_calls = [await rig.router.submit(make_call("a.x", caller=CLIENT)) for _ in range(2)]
        await settle()
        await rig.apply("a2")
        await rig.apply()
        assert [type(await one.next()) for one in pending_calls] == [BackendExited, BackendUnavailable]
        await settle()
        assert rig.fakes["a"].open == 0


async def test_calls_beyond_the_grace_get_an_error(autojump_clock: MockClock) -> None:
    async with rigged("a", "b", settings=GatewaySettings(drain_grace=10)) as rig:
        pending = await rig.router.submit(make_call("a.x"))
        await settle()
        began = trio.current_time()
        await rig.apply("b")
        assert isinstance(await pending.next(), BackendExited)
        assert trio.current_time() - began == pytest.approx(10)
        rig.router.release(pending)


async def test_a_failed_start_is_reported_and_spares_others(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        rig.fakes["b"].fail(1, 2, 3, 4)
        rig.fakes["c"].stall()
        began = trio.current_time()
        applied = await rig.apply("a", "b", "c", "d")
        assert trio.current_time() - began == pytest.approx(NEW_BACKEND_TIMEOUT)
        assert applied.not_ready == {"b": "exited with status 1", "c": "is still starting"}
        assert listed(rig.fleet) == ["a.x", "d.x"]
        assert len(rig.fakes["a"].starts) == 1


async def test_the_wait_ends_with_a_short_connect_timeout(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        rig.fakes["b"].stall()
        began = trio.current_time()
        servers = {"a": rig.server("a"), "b": rig.server("b", connect_timeout=2.0)}
        applied = await rig.fleet.apply(Config(servers, rig.config.gateway))
        assert trio.current_time() - began == pytest.approx(2)
        assert list(applied.not_ready) == ["b"]


async def test_a_changed_server_that_fails_stays_known(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        rig.fakes["a"].fail(2)
        applied = await rig.apply("a2")
        assert applied.not_ready == {"a": "exited with status 1"}
        assert listed(rig.fleet) == ["a.x"]  # as last known
        pending = await rig.router.submit(make_call("a.x"))
        await trio.sleep(2)
        assert rig.session("a").names == ["x"]  # the next start was a better one
        rig.router.release(pending)


async def test_a_removed_name_is_unknown_immediately(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        await rig.apply("b")
        assert rig.fleet.snapshot().route(Kind.TOOLS, "a.x") is None
        assert listed(rig.fleet) == ["b.x"]


async def test_a_disabled_server_is_stopped_but_known(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        config = Config({"a": rig.server("a", disabled=True), "b": rig.server("b")}, rig.config.gateway)
        assert (await rig.fleet.apply(config)).changed == ("a",)
        await settle()
        assert (list(rig.fleet.supervisors), rig.fakes["a"].open, list(rig.fleet.config.servers)) == (
            ["b"], 0, ["a", "b"],
        )  # fmt: skip
        assert (await rig.fleet.apply(rig.config)).changed == ("a",)
        assert list(rig.fleet.supervisors) == ["a", "b"]


async def test_another_separator_renames_all_and_restarts_none(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        notified: list[frozenset[str]] = []
        await trio.sleep(1)
        rig.fleet.subscribe(lambda news: notified.append(news.features(None)))
        await rig.apply("a", "b", settings=GatewaySettings(separator="__"))
        assert listed(rig.fleet) == ["a__x", "b__x"]
        assert rig.fleet.settings.separator == "__"
        await trio.sleep(1)
        assert notified == [frozenset({"tools"})]
        assert [len(rig.fakes[name].starts) for name in "ab"] == [1, 1]


async def test_a_restart_replaces_an_unchanged_server(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        applied = await rig.apply("a", "b", restart={"a"})
        assert (applied.changed, applied.unchanged) == (("a",), ("b",))
        await settle()
        assert [len(rig.fakes[name].starts) for name in "ab"] == [2, 1]
        assert rig.fakes["a"].open == 1


async def test_configs_are_applied_one_at_a_time(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:

        async def slow(_number: int) -> None:
            await trio.sleep(3)

        for fake in rig.fakes.values():
            fake.on_start = slow
        began = trio.current_time()
        ended: list[tuple[str, float]] = []

        async def apply(*names: str) -> None:
            await rig.apply(*names)
            ended.append((names[-1], trio.current_time() - began))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(apply, "a", "b")
            await settle()
            nursery.start_soon(apply, "a", "c")
        assert ended == [("b", pytest.approx(3)), ("c", pytest.approx(6))]
        await settle()
        assert (listed(rig.fleet), rig.fakes["b"].open) == (["a.x", "c.x"], 0)


async def test_cancelled_before_the_swap_nothing_has_changed(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        rig.fakes["b"].stall()
        with trio.move_on_after(1):
            await rig.apply("b")
        await settle()
        assert (listed(rig.fleet), rig.fleet.config, rig.fakes["a"].open) == (["a.x"], rig.config, 1)
        assert (await rig.apply("a", "c")).added == ("c",)  # and the next one can come


async def test_stopping_ends_an_ongoing_reload(autojump_clock: MockClock) -> None:
    rig = Rig("a")
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.fleet.run)
            await settle()
            rig.fakes["b"].stall()

            async def apply() -> None:
                with pytest.raises(ShuttingDown):
                    await rig.apply("a", "b")

            nursery.start_soon(apply)
            await settle()
            rig.fleet.stop()
            await rig.fleet.ended.wait()
        with pytest.raises(ShuttingDown):
            await rig.apply("a")


async def test_replaced_servers_that_drain_are_bounded_in_number(autojump_clock: MockClock) -> None:
    settings = GatewaySettings(drain_grace=50)
    async with rigged("a", settings=settings) as rig:
        began = trio.current_time()
        pending_calls = []
        for _ in range(MAX_RETIRING + 1):  # each leaves one behind that has a call to finish
            pending_calls.append(await rig.router.submit(make_call("a.x")))
            await settle()
            await rig.apply("a", restart={"a"})
        assert trio.current_time() - began == pytest.approx(50)  # the last one waited for a place
        for pending in pending_calls:
            rig.router.release(pending)


async def test_doubly_subscribed_updates_come_once(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        old = rig.fleet.supervisors["a"]
        notified: list[str] = []
        rig.fleet.wish_list.watch("client", "a", "file:///x", lambda uri, _params: notified.append(uri))
        await rig.apply("a2")
        for supervisor in (old, rig.fleet.supervisors["a"]):
            supervisor.resource_updated("file:///x", {})
        assert notified == ["file:///x"]
        await rig.apply("b")
        rig.fleet.apply_subscriptions(["a"])  # of a removed backend: no effect


async def test_observers_receive_calls_and_changes(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        received: list[tuple[str, str | None, float]] = []

        def observe(supervisor: Any, pending: Any, seconds: float) -> None:
            received.append((supervisor.state.value, pending and pending.own_name, seconds))

        rig.fleet.observe(observe)
        pending = await rig.router.submit(make_call("a.x"))
        await trio.sleep(2)
        rig.session("a").answer()
        assert received == [("ready", "x", pytest.approx(2))]
        rig.router.release(pending)
        rig.session("a").crash(BackendExited("a", "exited"))
        await settle()
        assert received[1:] == [("backoff", None, 0.0)]
        rig.fleet.unobserve(observe)
        await trio.sleep(5)
        assert len(received) == 2


async def test_a_removed_server_refuses_late_calls(autojump_clock: MockClock) -> None:
    async with rigged("a", "b") as rig:
        old = rig.fleet.supervisors["a"]
        await rig.apply("b")
        await settle()
        assert old.state is State.STOPPED
        with pytest.raises(BackendUnavailable):
            old.submit(make_pending())


async def test_an_ended_replaced_supervisor_is_not_kept_alive(autojump_clock: MockClock) -> None:
    async with rigged("a") as rig:
        replaced = []
        for name in ("a2", "a", "a2"):
            replaced.append(rig.fleet.supervisors["a"])
            await rig.apply(name)
            await settle()
        assert all(one.ended for one in replaced)
        assert [one.heir for one in replaced] == replaced
        assert [one.listing for one in replaced] == [None] * 3
        assert listed(rig.fleet) == ["a.x"]
