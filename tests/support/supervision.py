"""Supervisors, fleets and routers over fake backends, each running for a block."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from gateway import jsonrpc
from gateway.backends.session.session_state import DesiredState
from gateway.catalog.listing import Item, Listing
from gateway.config.lifecycle import RestartPolicy
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.eras.methods import Kind
from gateway.reload.reloader import Reloader
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from gateway.supervisor.lifecycle import State
from gateway.supervisor.supervisor import Supervisor
from tests.support.fakes import FakeBackend, backends, make_pending, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.inflight.pending import PendingCall
    from gateway.store import Store

SUPERVISOR_POLICY = RestartPolicy(
    initial_delay=1.0, max_delay=8.0, jitter=0.5, max_quick_failures=5, healthy_after=30.0
)


class Watcher:
    """Implements `SupervisorEvents`: records the states."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.changes = 0

    def backend_changed(self, supervisor: Supervisor, feature: str | None = None) -> None:
        self.changes += 1
        if self.states[-1:] != [supervisor.state.value]:
            self.states.append(supervisor.state.value)

    def resource_updated(self, supervisor: Supervisor, uri: str, params: object, key: str | None = None) -> None:
        self.changes += 1

    def for_client(self, key: str, method: str, params: object) -> None:
        self.changes += 1

    def desired_state(self, backend: str, key: str | None = None) -> DesiredState:
        return DesiredState()


class Rig:
    def __init__(self, backend: FakeBackend, *, jitter: float = 0.0, last_good: Any = None, **fields: Any) -> None:
        self.backend = backend
        self.watcher = Watcher()
        config = ServerConfig(name="b", **{"restart": SUPERVISOR_POLICY, **fields})
        self.supervisor = Supervisor(config, backend, self.watcher, last_good=last_good, jitter=lambda: jitter)
        self.ended = trio.Event()

    @property
    def state(self) -> State:
        return self.supervisor.state

    def call(self, name: str = "x", **kwargs: Any) -> PendingCall:
        config = self.supervisor.config
        timeout = self.supervisor.gate.timeout(kwargs.get("method", "tools/call"), name)
        pending = make_pending(name, **{"timeout": timeout, "pending": {"max_time": config.max_call_time}, **kwargs})
        self.supervisor.submit(pending)
        return pending

    async def run(self) -> None:
        await self.supervisor.run()
        self.ended.set()


@asynccontextmanager
async def running_supervisor(backend: FakeBackend, **kwargs: Any) -> AsyncGenerator[Rig]:
    """A supervisor that runs for the block; at the end it must stop promptly."""
    rig = Rig(backend, **kwargs)
    with trio.fail_after(100_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.run)
            await settle()
            yield rig  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            rig.supervisor.stop()
            with trio.fail_after(1):
                await rig.ended.wait()
    assert backend.open == 0
    assert rig.state is State.STOPPED


async def outcome(pending: PendingCall) -> Any:
    with trio.fail_after(pending.timeout + 1):
        return await pending.next()


FLEET_POLICY = RestartPolicy(initial_delay=1, max_delay=8, jitter=0, max_quick_failures=3)


def make_fleet(
    fakes: dict[str, FakeBackend],
    *,
    settings: GatewaySettings | None = None,
    store: Store | None = None,
    keep_interval: float = 1.0,
    **fields: Any,
) -> Fleet:
    servers = {name: ServerConfig(name=name, **{"restart": FLEET_POLICY, **fields}) for name in fakes}
    config = Config(servers=servers, gateway=settings or GatewaySettings())
    return Fleet(config, backends(fakes), store, keep_interval=keep_interval)


@asynccontextmanager
async def running_fleet(fleet: Fleet) -> AsyncGenerator[Fleet]:
    with trio.fail_after(100_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            yield fleet  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            fleet.stop()
            with trio.fail_after(5):
                await fleet.ended.wait()


def listed(fleet: Fleet) -> list[str]:
    return [item["name"] for item in json.loads(b"[" + fleet.snapshot().page(Kind.TOOLS, None, None).joined + b"]")]


ROUTER_POLICY = RestartPolicy(initial_delay=1, max_delay=60, jitter=0, max_quick_failures=3)


@asynccontextmanager
async def running_router(fakes: dict[str, FakeBackend], **fields: Any) -> AsyncGenerator[Router]:
    servers = {
        name: ServerConfig(name=name, **{"restart": ROUTER_POLICY, "call_timeout": 100, **fields}) for name in fakes
    }
    fleet = Fleet(Config(servers=servers), backends(fakes))
    with trio.fail_after(100_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await settle()
            yield Router(fleet)  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            fleet.stop()


def offers(kind: Kind, *owns: str, **capabilities: Any) -> FakeBackend:
    items = tuple(Item(own, jsonrpc.encode({kind.key: own})) for own in owns)
    return FakeBackend(
        Listing(items={kind: items}, capabilities={name: jsonrpc.raw(value) for name, value in capabilities.items()})
    )


@asynccontextmanager
async def run_reloader(
    reloader: Reloader, fleet: Fleet, *, within: float, watching: bool = False
) -> AsyncGenerator[None]:
    """Run a fleet and its reloader."""
    with trio.fail_after(within):
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await nursery.start(partial(reloader.run, watching=watching))
            await settle()
            yield  # ruff: ignore[fallible-context-manager] - where the block raised, that is what matters
            fleet.stop()
            await fleet.ended.wait()
            nursery.cancel_scope.cancel()
