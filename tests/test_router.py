"""One call: its backend, its errors, and bounded waits when the gateway stops."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.budget import SMALL_BYTES
from gateway.calls import Call, Caller, Complete, Era, Failure, Notification, Scope
from gateway.catalog.listing import Item, Listing
from gateway.config import ServerConfig
from gateway.config.offered import ToolChoice
from gateway.eras.methods import Kind
from gateway.errors import (
    BackendExited,
    BackendUnavailable,
    Busy,
    GatewayError,
    InvalidParams,
    ServerDisabled,
    ShuttingDown,
    UnknownMethod,
    UnknownName,
)
from gateway.supervisor.lifecycle import State
from tests.support.fakes import LEGACY_CALLER, RESULT, FakeBackend, make_call, make_listing, settle
from tests.support.supervision import offers, running_router

if TYPE_CHECKING:
    from gateway.router import Router

CRASH = BackendExited("b", "exited with status 3")


def completion(ref: object) -> Call:
    params = {} if ref is None else {"ref": jsonrpc.raw(ref), "argument": msgspec.Raw(b'{"name":"a","value":"b"}')}
    return Call(method="completion/complete", name="", params=params, meta={}, caller=LEGACY_CALLER)


async def test_guarantee_g6_calls_reach_owners_under_own_names(autojump_clock: MockClock) -> None:
    fakes = {"a": FakeBackend(make_listing("x")), "b": FakeBackend(make_listing("x"))}
    async with running_router(fakes) as router:
        ticket = await router.submit(make_call("b.x"))
        assert (ticket.backend, ticket.own_name, ticket.timeout) == ("b", "x", 100)
        assert router.under_way == 1
        await settle()
        assert [fake.session.names for fake in fakes.values()] == [[], ["x"]]
        fakes["b"].session.answer()
        assert await ticket.next() is RESULT
        router.release(ticket)
        router.release(ticket)
        assert router.under_way == 0


@pytest.mark.parametrize(
    ("scope", "problem"),
    [
        (None, ServerDisabled),
        (Scope(servers=("m*",)), ServerDisabled),
        (Scope(servers=("a",)), UnknownName),
        (Scope(tools=("memory.other",)), UnknownName),
        (Scope(view="gone"), UnknownName),
    ],
    ids=["all", "its server", "another server", "another tool", "a view that is gone"],
)
async def test_only_permitted_callers_see_disabled_servers(
    autojump_clock: MockClock, scope: Scope | None, problem: type[GatewayError]
) -> None:
    async with running_router({"a": FakeBackend()}) as router:
        off = ServerConfig(name="memory", command="x", disabled=True)
        router.fleet.config = msgspec.structs.replace(router.fleet.config, servers={"memory": off})
        for name in ("memory.x", "memoryx", "other.x"):
            expected = problem if name == "memory.x" else UnknownName
            with pytest.raises(expected):
                await router.submit(make_call(name, caller=msgspec.structs.replace(LEGACY_CALLER, scope=scope)))


async def test_releasing_early_cancels_at_the_backend(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    async with running_router({"a": fake}) as router:
        ticket = await router.submit(make_call("a.x"))
        await settle()
        router.release(ticket, "the client hung up")
        assert fake.session.withdrawn == [("x", "the client hung up")]


@pytest.mark.parametrize(
    ("call", "problem", "said"),
    [
        (make_call("a.y"), UnknownName, "Unknown tool: a.y"),
        (make_call("x"), UnknownName, "Unknown tool: x"),
        (make_call(""), UnknownName, "Unknown tool: "),
        (make_call("a.x", "prompts/get"), UnknownName, "Unknown prompt: a.x"),
        (make_call("file:///x", "resources/read"), UnknownName, "Unknown resource: file:///x"),
        (make_call("a.x", "tools/run"), UnknownMethod, "method 'tools/run' is not served"),
        (completion(None), InvalidParams, "needs params.ref"),
        (completion([]), InvalidParams, "needs params.ref"),
        (completion({"type": "ref/prompt"}), InvalidParams, "needs params.ref"),
        (completion({"type": 3, "name": "x"}), InvalidParams, "needs params.ref"),
        (completion({"type": "ref/prompt", "name": "no"}), UnknownName, "Unknown prompt: no"),
    ],
)
async def test_unknown_names_are_refused(
    call: Call, problem: type[GatewayError], said: str, autojump_clock: MockClock
) -> None:
    async with running_router({"a": FakeBackend(make_listing("x"))}) as router:
        began = trio.current_time()
        with pytest.raises(problem) as caught:
            await router.submit(call)
        assert said in str(caught.value)
        assert trio.current_time() == began
        assert router.under_way == 0


async def test_resources_find_their_owner(autojump_clock: MockClock) -> None:
    fakes = {
        "a": offers(Kind.RESOURCES, "file:///a", resources={}),
        "b": offers(Kind.TEMPLATES, "log://{day}", resources={}),
    }
    async with running_router(fakes) as router:
        # The last one is unlisted, but only one backend has files: it decides.
        for uri, owner in {"file:///a": "a", "log://today": "b", "file:///other": "a"}.items():
            ticket = await router.submit(make_call(uri, "resources/read"))
            assert (ticket.backend, ticket.own_name) == (owner, uri)
            router.release(ticket)
        with pytest.raises(UnknownName):
            await router.submit(make_call("other:x", "resources/read"))


async def test_shared_uris_are_rewritten_in_both_directions(autojump_clock: MockClock) -> None:
    fakes = {name: offers(Kind.RESOURCES, "file:///a", resources={}) for name in ("a", "b")}
    async with running_router(fakes) as router:
        for public, owner in {"file:///a": "a", "mcp+b:file:///a": "b", "mcp+a:file:///a": "a"}.items():
            ticket = await router.submit(make_call(public, "resources/read"))
            assert (ticket.backend, ticket.own_name) == (owner, "file:///a")
            ticket.finish(Complete(b'{"contents":[{"uri":"file:///a","text":"file:///a"}]}', Era.LEGACY))
            assert await ticket.next() == Complete(
                b'{"contents":[{"uri":"%b","text":"file:///a"}]}' % public.encode(), Era.LEGACY
            )
            router.release(ticket)
        ticket = await router.submit(make_call("mcp+b:file:///a", "resources/read"))
        ticket.finish(Failure(-32002, "gone", b'{"uri":"file:///a"}', Era.LEGACY))
        assert await ticket.next() == Failure(-32002, "gone", b'{"uri":"mcp+b:file:///a"}', Era.LEGACY)
        router.release(ticket)


async def test_a_linked_uri_leads_to_its_backend(autojump_clock: MockClock) -> None:
    async with running_router({name: offers(Kind.TOOLS, "x", resources={}) for name in ("a", "b")}) as router:
        with pytest.raises(UnknownName):
            await router.submit(make_call("file:///a", "resources/read"))
        for backend in ("a", "b"):
            ticket = await router.submit(make_call(f"{backend}.x"))
            result = b'{"content":[{"type":"resource_link","uri":"file:///a","name":"a"}]}'
            ticket.finish(Complete(result, Era.LEGACY))
            outcome = await ticket.next()
            assert isinstance(outcome, Complete)
            assert outcome.result is result
            router.release(ticket)
            ticket = await router.submit(make_call("file:///a", "resources/read"))
            assert (ticket.backend, ticket.own_name) == (backend, "file:///a")
            router.release(ticket)


async def test_links_of_removed_servers_are_forgotten(autojump_clock: MockClock) -> None:
    async with running_router({name: offers(Kind.TOOLS, "x", resources={}) for name in ("a", "b", "c")}) as router:
        fleet = router.fleet
        whole = fleet.config

        async def call(name: str, uri: str) -> None:
            ticket = await router.submit(make_call(name))
            result = jsonrpc.encode({"content": [{"type": "resource_link", "uri": uri, "name": uri}]})
            ticket.finish(Complete(result, Era.LEGACY))
            await ticket.next()
            router.release(ticket)

        await call("a.x", "file:///a")
        await call("b.x", "file:///b")
        await fleet.apply(msgspec.structs.replace(whole, servers={name: whole.servers[name] for name in ("b", "c")}))
        await call("c.x", "file:///c")
        await fleet.apply(whole)
        with pytest.raises(UnknownName):
            await router.submit(make_call("file:///a", "resources/read"))
        ticket = await router.submit(make_call("file:///b", "resources/read"))
        assert ticket.backend == "b"
        router.release(ticket)


async def test_a_sole_resource_backend_decides_unlisted_uris(autojump_clock: MockClock) -> None:
    fakes = {"a": FakeBackend(make_listing("x")), "b": offers(Kind.RESOURCES, resources={})}
    async with running_router(fakes) as router:
        ticket = await router.submit(make_call("any:thing", "resources/read"))
        assert ticket.backend == "b"
        router.release(ticket)


async def test_a_qualified_uri_reaches_only_that_server(autojump_clock: MockClock) -> None:
    fakes = {"a": offers(Kind.RESOURCES, "mcp+b:x:1", resources={}), "b": FakeBackend(make_listing("x"))}
    only_a = msgspec.structs.replace(LEGACY_CALLER, scope=Scope(servers=("a",)))
    async with running_router(fakes) as router:
        for uri, expected in {
            "mcp+b:x:1": ("b", "x:1"),
            "MCP+b:x:2": ("b", "x:2"),
            "mcp+a:mcp+b:x:1": ("a", "mcp+b:x:1"),
        }.items():
            ticket = await router.submit(make_call(uri, "resources/read"))
            assert (ticket.backend, ticket.own_name) == expected
            router.release(ticket)
        for uri in ("mcp+b:x:1", "MCP+b:x:2"):
            with pytest.raises(UnknownName):
                await router.submit(make_call(uri, "resources/read", caller=only_a))


HOST = msgspec.Raw(b'{"extensions":{"io.modelcontextprotocol/ui":{}}}')


def app_backend(*tools: str, **visibility: list[str]) -> FakeBackend:
    """A backend with a page, and tools of which some say for whom they are."""
    metas = {name: {"ui": {"visibility": visibility[name]}} if name in visibility else {} for name in tools}
    items = tuple(Item(name, jsonrpc.encode({"name": name, "_meta": meta})) for name, meta in metas.items())
    page = Item("ui://page", b'{"uri":"ui://page"}')
    return FakeBackend(Listing(items={Kind.TOOLS: items, Kind.RESOURCES: (page,)}, capabilities={}))


async def read_page(router: Router, uri: str, caller: Caller, outcome: Complete | Failure | None = None) -> None:
    ticket = await router.submit(make_call(uri, "resources/read", caller=caller))
    ticket.finish(outcome or Complete(b'{"contents":[]}', Era.LEGACY))
    router.release(ticket)


async def called(router: Router, name: str, caller: Caller) -> tuple[str, str, str]:
    """Return a call's backend, its name there, and its name for rules and audit."""
    ticket = await router.submit(make_call(name, caller=caller))
    try:
        return ticket.backend, ticket.own_name, ticket.call.name
    finally:
        router.release(ticket)


async def test_an_app_finds_tools_by_own_names(autojump_clock: MockClock) -> None:
    fakes = {
        "a": app_backend("x", "both", "model", "app", model=["model"], app=["app"]),
        "b": app_backend("y", "both", "a.x"),
    }
    host = Caller(era=Era.LEGACY, version="2025-11-25", session="s", capabilities=HOST)
    async with running_router(fakes) as router:
        await read_page(router, "ui://page", host)
        assert await called(router, "x", host) == ("a", "x", "a.x")
        assert await called(router, "app", host) == ("a", "app", "a.app")
        assert await called(router, "both", host) == ("a", "both", "a.both")
        assert await called(router, "a.x", host) == ("a", "x", "a.x")  # a public name always means its owner
        for name in ("y", "model", "z", "a.y"):
            with pytest.raises(UnknownName, match=f"Unknown tool: {name}"):
                await router.submit(make_call(name, caller=host))
        with pytest.raises(UnknownName):
            await router.submit(make_call("x", "prompts/get", caller=host))
        await read_page(router, "ui://mcp+b/page", host)
        assert await called(router, "y", host) == ("b", "y", "b.y")
        with pytest.raises(UnknownName, match=r"'both' is ambiguous; call a\.both or b\.both"):
            await router.submit(make_call("both", caller=host))


@pytest.mark.parametrize(
    ("scope", "changes"),
    [
        (Scope(excluded_tools=("a.x",)), []),
        (Scope(tools=("b.*",)), []),
        (None, [{"tools": ToolChoice(exclude=("x",))}]),
        (None, [{"disabled": True}, {"disabled": False}]),
    ],
)
async def test_hidden_tools_lead_apps_to_no_other_server(
    scope: Scope | None, changes: list[dict[str, Any]], autojump_clock: MockClock
) -> None:
    host = Caller(era=Era.LEGACY, version="2025-11-25", session="s", capabilities=HOST, scope=scope)
    async with running_router({"a": app_backend("x"), "b": app_backend("x")}) as router:
        await read_page(router, "ui://mcp+b/page", host)
        assert await called(router, "x", host) == ("b", "x", "b.x")
        await read_page(router, "ui://page", host)
        for change in changes:
            servers = router.fleet.config.servers
            changed = servers | {"a": msgspec.structs.replace(servers["a"], **change)}
            await router.fleet.apply(msgspec.structs.replace(router.fleet.config, servers=changed))
            await read_page(router, "ui://mcp+b/page", host)
        with pytest.raises(UnknownName, match="'x' is ambiguous; call "):
            await router.submit(make_call("x", caller=host))


async def test_single_server_views_make_apps_unambiguous(autojump_clock: MockClock) -> None:
    """A principal's reads count at every endpoint; views without a server separate its pages."""
    host = Caller(era=Era.MODERN, version="2026-07-28", principal="ada", capabilities=HOST)
    async with running_router({"a": app_backend("x"), "b": app_backend("x")}) as router:
        await read_page(router, "ui://page", host)
        await read_page(router, "ui://mcp+b/page", host)
        for name in "ab":
            seen = msgspec.structs.replace(host, scope=Scope(servers=(name,)))
            assert await called(router, "x", seen) == (name, "x", f"{name}.x")


@pytest.mark.parametrize(
    "change",
    [{"session": "t"}, {"session": None}, {"capabilities": jsonrpc.EMPTY_OBJECT}, {"scope": Scope(tools=("a.y",))}],
)
async def test_own_names_require_a_permitted_page_read(change: dict[str, Any], autojump_clock: MockClock) -> None:
    host = Caller(era=Era.LEGACY, version="2025-11-25", session="s", capabilities=HOST)
    async with running_router({"a": app_backend("x", "y")}) as router:  # a single backend is not an exception
        await read_page(router, "ui://page", host)
        assert await called(router, "x", host) == ("a", "x", "a.x")
        with pytest.raises(UnknownName, match="Unknown tool: x"):
            await router.submit(make_call("x", caller=msgspec.structs.replace(host, **change)))


@pytest.mark.parametrize(
    ("uri", "capabilities", "outcome"),
    [
        ("ui://page", HOST, Failure(-32002, "gone", None, Era.LEGACY)),
        ("ui://page", msgspec.Raw(b'{"extensions":{"x.example/y":{}}}'), None),
        ("file:///page", HOST, None),
    ],
)
async def test_only_a_page_read_by_a_host_counts(
    uri: str, capabilities: msgspec.Raw, outcome: Failure | None, autojump_clock: MockClock
) -> None:
    host = Caller(era=Era.MODERN, version="2026-07-28", principal="ada", capabilities=HOST)
    fake = app_backend("x")
    fake.listing = msgspec.structs.replace(fake.listing, capabilities={"resources": msgspec.Raw(b"{}")})
    async with running_router({"a": fake}) as router:
        await read_page(router, uri, msgspec.structs.replace(host, capabilities=capabilities), outcome)
        with pytest.raises(UnknownName, match="Unknown tool: x"):
            await router.submit(make_call("x", caller=host))
        await read_page(router, "ui://page", host)
        assert await called(router, "x", host) == ("a", "x", "a.x")


async def test_completions_find_their_owner(autojump_clock: MockClock) -> None:
    fakes = {"a": offers(Kind.PROMPTS, "p"), "b": offers(Kind.TEMPLATES, "log://{day}")}
    async with running_router(fakes) as router:
        ticket = await router.submit(completion({"type": "ref/prompt", "name": "a.p", "title": None}))
        assert ticket.backend == "a"
        assert json.loads(bytes(ticket.call.params["ref"])) == {"type": "ref/prompt", "name": "p", "title": None}
        router.release(ticket)
        for uri in ("log://{day}", "log://today"):
            ticket = await router.submit(completion({"type": "ref/resource", "uri": uri}))
            assert ticket.backend == "b"
            assert json.loads(bytes(ticket.call.params["ref"]))["uri"] == uri
            router.release(ticket)


# -- backends that are not there yet, or no more -----------------------------------------------------------------------


async def test_a_possible_name_waits_for_its_starting_backend(autojump_clock: MockClock) -> None:
    fake = FakeBackend()

    async def late(_number: int) -> None:
        await trio.sleep(50)

    fake.on_start = late
    async with running_router({"a": fake}) as router:
        began = trio.current_time()
        ticket = await router.submit(make_call("a.x"))
        assert trio.current_time() - began == pytest.approx(50)
        router.release(ticket)
        with pytest.raises(UnknownName):
            await router.submit(make_call("a.other"))


async def test_the_wait_for_a_starting_backend_ends(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.stall()
    async with running_router({"a": fake}) as router:
        began = trio.current_time()
        with pytest.raises(BackendUnavailable, match=r"is not available \(starting\): it has not started yet"):
            await router.submit(make_call("a.x"))
        assert trio.current_time() - began <= 104  # the grace of first starts, and its own time
        with pytest.raises(UnknownName):  # no absent backend could own it
            await router.submit(make_call("b.x"))


async def test_an_unlisted_backend_delays_no_misspelled_name(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.stall()
    async with running_router({"a": fake}, namespace="") as router:
        began = trio.current_time()
        with pytest.raises(UnknownName):
            await router.submit(make_call("x"))
        assert trio.current_time() - began == pytest.approx(4)  # the grace of first starts, and no more


async def test_a_known_name_never_becomes_unknown(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    async with running_router({"a": fake}) as router:
        fake.fail(2, 3, 4)
        fake.session.crash(CRASH)
        await trio.sleep(20)
        assert router.fleet.statuses()["a"].state is State.FAILED
        began = trio.current_time()
        with pytest.raises(BackendUnavailable, match=r"\(failed\): exited with status 1"):
            await router.submit(make_call("a.x"))
        assert trio.current_time() == began


async def test_calls_do_not_wake_failed_backends_early(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    fake.fail(*range(1, 100))
    began = trio.current_time()
    async with running_router({"a": fake}) as router:
        for _ in range(100):  # it has never listed anything, so any "a." name may be its own
            with pytest.raises(BackendUnavailable):
                await router.submit(make_call("a.x"))
            await trio.sleep(0.5)
        assert len(fake.starts) == 3
        while trio.current_time() - began < 70:
            await trio.sleep(0.5)
            with pytest.raises(BackendUnavailable):
                await router.submit(make_call("a.x"))
        assert len(fake.starts) > 3  # but later they do


async def test_a_full_queue_is_refused_and_not_counted(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    async with running_router({"a": fake}, max_concurrency=1, queue_size=1) as router:
        tickets = []
        for _ in range(2):
            tickets.append(await router.submit(make_call("a.x")))
            await settle()
        with pytest.raises(Busy):
            await router.submit(make_call("a.x"))
        assert router.under_way == 2
        for ticket in tickets:
            router.release(ticket)


async def test_large_calls_count_until_released(autojump_clock: MockClock) -> None:
    large = msgspec.structs.replace(make_call("a.x"), size=3 * SMALL_BYTES)
    async with running_router({"a": FakeBackend()}) as router:
        router.buffers.most = 4 * SMALL_BYTES
        ticket = await router.submit(large)
        ticket.notify(Notification("notifications/progress", {"progress": jsonrpc.raw(1)}))
        with pytest.raises(Busy, match="max_buffered_bytes"):
            await router.submit(large)
        small = await router.submit(make_call("a.x"))
        assert (router.under_way, router.buffers.used) == (2, 3 * SMALL_BYTES + 1)
        router.release(ticket)
        router.release(small)
        assert router.buffers.used == 0


# -- the end -----------------------------------------------------------------------------------------------------------


async def test_drain_waits_for_calls_and_refuses_new_ones(autojump_clock: MockClock) -> None:
    fake = FakeBackend()
    async with running_router({"a": fake}) as router:
        ticket = await router.submit(make_call("a.x"))
        drained: list[bool] = []

        async def drain() -> None:
            drained.append(await router.drain(10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain)
            await trio.sleep(3)
            with pytest.raises(ShuttingDown):
                await router.submit(make_call("a.x"))
            fake.session.answer()
            await settle()
            assert drained == []  # answered, but not yet delivered to the client
            assert await ticket.next() is RESULT
            router.release(ticket)
            await settle()
            assert drained == [True]


@pytest.mark.parametrize(("hurry_after", "took"), [(None, 10), (4, 4), (0, 0)])
async def test_a_drain_cuts_off_what_does_not_end(
    hurry_after: float | None, took: float, autojump_clock: MockClock
) -> None:
    fake = FakeBackend()
    async with running_router({"a": fake}) as router:
        ticket = await router.submit(make_call("a.x"))
        await settle()
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def hurry() -> None:
                if hurry_after is not None:
                    await trio.sleep(hurry_after)
                    router.stop_draining()

            if hurry_after == 0:
                router.stop_draining()
            else:
                nursery.start_soon(hurry)
            assert await router.drain(10) is False
        assert trio.current_time() - began == pytest.approx(took)
        outcome = await ticket.next()
        assert isinstance(outcome, BackendUnavailable)
        assert "was cut off: the gateway is shutting down" in str(outcome)
        assert fake.session.withdrawn == [("x", "the gateway is shutting down")]


async def test_calls_awaiting_their_owner_are_refused_during_drain(autojump_clock: MockClock) -> None:
    fake = FakeBackend()

    async def late(_number: int) -> None:
        await trio.sleep(50)

    fake.on_start = late
    async with running_router({"a": fake}) as router:
        async with trio.open_nursery() as nursery:

            async def submit() -> None:
                with pytest.raises(ShuttingDown):
                    await router.submit(make_call("a.x"))

            nursery.start_soon(submit)
            await trio.sleep(10)
            assert await router.drain(1) is True
        assert router.under_way == 0


async def test_client_notifications_reach_the_only_backend(autojump_clock: MockClock) -> None:
    params = jsonrpc.raw({"x": None})
    async with running_router({"a": FakeBackend()} | {"b": (other := FakeBackend())}) as router:
        router.pass_on("vendor/note", params, LEGACY_CALLER)  # its target is ambiguous
        assert other.session.upkeep.passed_on == []
    alone = FakeBackend()
    async with running_router({"a": alone}) as router:
        for said in (params, jsonrpc.ABSENT, msgspec.Raw(b"[1]")):
            router.pass_on("vendor/note", said, LEGACY_CALLER)
        assert alone.session.upkeep.passed_on == [("vendor/note", bytes(params)), ("vendor/note", b"")]
        alone.fail(2)
        alone.session.crash(CRASH)
        await settle()
        router.pass_on("vendor/note", params, LEGACY_CALLER)  # no backend is there to receive it
