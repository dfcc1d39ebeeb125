"""Scopes: snapshots narrowed to what a caller may see; anything else does not exist."""

from __future__ import annotations

import contextlib
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import EVERYTHING, NAME_LENGTHS, SEPARATORS, Call, Era, Identity, NameChoice, Scope, at_endpoint
from gateway.catalog.listing import Item, Listing
from gateway.catalog.offers import Offer
from gateway.catalog.ownership import Links, Route
from gateway.catalog.parts import Naming, make_part, merge_instructions
from gateway.catalog.scopes import NamedView
from gateway.catalog.snapshot import MAX_SCOPED, ListNews, Snapshot
from gateway.config.model import Config, GatewaySettings, ServerConfig
from gateway.eras.caching import Hint
from gateway.eras.methods import Kind
from gateway.errors import BackendUnavailable, GatewayError, UnknownMethod, UnknownName
from gateway.frontends.legacy.sessions import ClientIntroduction, LegacySession, SessionTable
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.subscriptions import Subscription
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.frontends.resource_subscriptions import watch_all
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import LEGACY_CALLER, MODERN_CALLER, FakeBackend, backends, make_call, public_names, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

READER = Scope(servers=("files",), tools=("files.read*",))
HINT = Hint(1000, public=True)


def listing(*names: str, uri: str = "", kwargs: dict[str, Any] | None = None) -> Listing:
    items: dict[Kind, tuple[Item, ...]] = {
        Kind.TOOLS: tuple(Item(name, jsonrpc.encode({"name": name}), HINT) for name in names),
        Kind.PROMPTS: (Item("ask", b'{"name":"ask"}', HINT),),
    }
    if uri:
        items[Kind.RESOURCES] = (Item(uri, jsonrpc.encode({"uri": uri, "name": "r"}), HINT),)
    capabilities = {"tools": {}, "resources": {"subscribe": True}, **(kwargs or {})}
    spans = {name: jsonrpc.raw(value) for name, value in capabilities.items()}
    return Listing(items=items, capabilities=spans, instructions=f"use {names[0]}")


FILES = listing("read", "read_all", "delete", uri="file:///a")
GIT = listing("log", "push", uri="git://a", kwargs={"completions": {}})


def catalog(**kwargs: Any) -> Snapshot:
    parts = [make_part(name, name, one, Naming()) for name, one in (("files", FILES), ("git", GIT))]
    return Snapshot(parts, listed=frozenset({"files", "git"}), **kwargs)


def names(found: Snapshot, kind: Kind = Kind.TOOLS) -> list[str]:
    page = found.page(kind, None, None)
    return [item[kind.key] for item in json.loads(b"[" + page.joined + b"]")]


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_no_scope_is_the_snapshot_itself() -> None:
    whole = catalog()
    assert whole.within(None) is whole
    assert names(whole.within(EVERYTHING)) == names(whole)


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(servers=("git",)), ["git.log", "git.push"]),
        (Scope(servers=("g*", "f*")), ["files.read", "files.read_all", "files.delete", "git.log", "git.push"]),
        (Scope(servers=()), []),
        (Scope(tools=()), []),
        (Scope(tools=("files.read",)), ["files.read"]),
        (Scope(tools=("*.read*", "git.log")), ["files.read", "files.read_all", "git.log"]),
        (Scope(tools=("GIT.*",)), []),
        (Scope(excluded_tools=("*.delete", "git.push")), ["files.read", "files.read_all", "git.log"]),
        (Scope(servers=("git",), tools=("files.*",)), []),
        (READER, ["files.read", "files.read_all"]),
    ],
)
def test_only_items_in_scope_are_listed_and_routed(scope: Scope, expected: list[str]) -> None:
    whole = catalog()
    seen = whole.within(scope)
    assert names(seen) == expected
    routed = [name for name in names(whole) if seen.route(Kind.TOOLS, name) is not None]
    assert routed == expected


def test_a_hidden_servers_prompts_and_resources_are_hidden() -> None:
    seen = catalog().within(READER)
    assert names(seen, Kind.PROMPTS) == ["files.ask"]
    assert names(seen, Kind.RESOURCES) == ["file:///a"]
    assert seen.uris.find("git://a") is None
    assert seen.uris.find("file:///a") == Route("files", "file:///a")
    assert seen.route(Kind.PROMPTS, "git.ask") is None
    assert seen.backends == ("files",)
    assert merge_instructions(seen.parts, limit=99) == "# files\n\nuse read"
    assert public_names(seen, Kind.TOOLS) == {"files": ["files.read", "files.read_all"]}


def test_prompts_and_resources_can_be_left_out() -> None:
    seen = catalog().within(Scope(prompts=("git.*",), resources=False))
    assert names(seen, Kind.PROMPTS) == ["git.ask"]
    assert names(seen, Kind.RESOURCES) == []
    assert not seen.any_resource
    assert all("resources" not in part.listing.capabilities for part in seen.parts)


def test_a_server_out_of_scope_is_invisible() -> None:
    """Although the server itself is not out of scope: its tools are, by their names."""
    seen = catalog().within(Scope(tools=("files.*",), prompts=("files.*",), resources=False))
    assert merge_instructions(seen.parts, limit=99) == "# files\n\nuse read"
    assert not any("completions" in part.listing.capabilities for part in seen.parts)


def test_a_tool_matches_by_its_own_name() -> None:
    parts = [make_part("long", "x", listing("a" * 200), Naming())]
    whole = Snapshot(parts, listed=frozenset({"long"}))
    public = names(whole)[0]
    assert names(whole.within(Scope(tools=("long.a*",)))) == [public]
    assert names(whole.within(Scope(tools=(public,)))) == [public]
    assert names(whole.within(Scope(excluded_tools=("long.*",)))) == []


def test_names_are_the_same_in_every_scope() -> None:
    """The second of two equal names is changed, also for callers who see only it."""
    parts = [make_part(name, "", listing("x"), Naming()) for name in ("a", "b")]
    whole = Snapshot(parts, listed=frozenset({"a", "b"}))
    second = names(whole)[1]
    assert second != "x"
    seen = whole.within(Scope(servers=("b",)))
    assert names(seen) == [second]
    assert seen.route(Kind.TOOLS, second) == Route("b", "x")
    assert seen.route(Kind.TOOLS, "x") is None
    assert names(whole.within(Scope(tools=("x",)))) == ["x"]  # the glob is held against the name that it has


def test_global_choices_apply_within_scopes() -> None:
    offers = {"files.read": Offer("another"), "git.log": Offer()}
    seen = catalog(offers=offers).within(READER)
    assert json.loads(seen.page(Kind.TOOLS, None, None).joined) == {"name": "files.read", "description": "another"}
    assert seen.route(Kind.TOOLS, "files.read_all") is None


def test_backends_that_are_away_stay_routed_in_scope() -> None:
    parts = [make_part("files", "files", FILES, Naming())]
    seen = Snapshot(parts, listed=frozenset()).within(READER)
    assert names(seen) == []
    assert seen.route(Kind.TOOLS, "files.read") == Route("files", "read")
    assert seen.route(Kind.TOOLS, "files.delete") is None


def test_pages_are_those_of_the_scope() -> None:
    seen = catalog().within(READER)
    first = seen.page(Kind.TOOLS, None, 1)
    assert first.next_cursor is not None
    second = seen.page(Kind.TOOLS, first.next_cursor, 1)
    assert (json.loads(second.joined)["name"], second.next_cursor) == ("files.read_all", None)
    assert seen.page(Kind.TOOLS, None, 1) is first


def test_scoped_results_are_private_and_views_are_not() -> None:
    views = {"v": NamedView(Scope(servers=("git",)))}
    whole = catalog(views=views)
    assert whole.hint(Kind.TOOLS) == HINT
    assert whole.within(READER).hint(Kind.TOOLS) == Hint(1000, public=False)
    assert whole.within(Scope(view="v")).hint(Kind.TOOLS) == HINT
    assert whole.within(Scope(view="v", tools=("git.log",))).hint(Kind.TOOLS) == Hint(1000, public=False)


def test_equal_scopes_share_a_bounded_set_of_snapshots() -> None:
    whole = catalog()
    first = whole.within(Scope(servers=("files",)))
    assert whole.within(Scope(servers=("files",))) is first
    for number in range(MAX_SCOPED - 1):
        whole.within(Scope(servers=(str(number),)))
    assert whole.within(Scope(servers=("files",))) is first
    whole.within(Scope(servers=("one more",)))
    assert whole.within(Scope(servers=("files",))) is not first


# -- views -------------------------------------------------------------------------------------------------------------


def test_a_view_has_names_of_its_own() -> None:
    views = {"v": NamedView(Scope(servers=("files",), excluded_tools=("files.delete",)), Naming("__", 20))}
    whole = catalog(views=views)
    seen = whole.within(Scope(view="v"))
    assert names(seen) == ["files__read", "files__read_all"]
    assert seen.route(Kind.TOOLS, "files__read") == Route("files", "read")
    assert seen.route(Kind.TOOLS, "files.read") is None
    assert names(seen, Kind.PROMPTS) == ["files__ask"]
    # What a caller may see is configured with the names outside views.
    assert names(whole.within(Scope(view="v", tools=("files.read",)))) == ["files__read"]
    assert names(whole.within(Scope(view="v", servers=("git",)))) == []
    assert names(whole.within(Scope(view="unknown"))) == []


def test_a_view_shortens_names_and_keeps_them_apart() -> None:
    parts = [make_part("s", "s", listing("a" * 40 + "1", "a" * 40 + "2"), Naming())]
    whole = Snapshot(parts, listed=frozenset({"s"}), views={"v": NamedView(naming=Naming("_", 32))})
    found = names(whole.within(Scope(view="v")))
    assert [len(name) for name in found] == [32, 32]
    assert len(set(found)) == 2
    routes = [whole.within(Scope(view="v")).route(Kind.TOOLS, name) for name in found]
    assert routes == [Route("s", "a" * 40 + "1"), Route("s", "a" * 40 + "2")]


def test_clashes_within_a_view_are_disambiguated_there() -> None:
    parts = [make_part("a", "a", listing("b_c"), Naming()), make_part("a_b", "a_b", listing("c"), Naming())]
    whole = Snapshot(parts, listed=frozenset({"a", "a_b"}), views={"v": NamedView(naming=Naming("_", 64))})
    assert names(whole) == ["a.b_c", "a_b.c"]
    first, second = names(whole.within(Scope(view="v")))
    assert second == "a_b_c"  # the server that is named by more of it
    assert whole.within(Scope(view="v")).route(Kind.TOOLS, first) == Route("a", "b_c")
    assert whole.within(Scope(view="v")).route(Kind.TOOLS, second) == Route("a_b", "c")
    # A key names the tool that it means, whatever the view calls it.
    assert names(whole.within(Scope(view="v", tools=("a_b.c",)))) == [second]


# -- news --------------------------------------------------------------------------------------------------------------


def test_news_are_what_the_scope_sees() -> None:
    notified = catalog()
    parts = [make_part("files", "files", FILES, Naming()), make_part("git", "git", listing("log"), Naming())]
    fresh = Snapshot(parts, listed=frozenset({"files", "git"}))
    news = ListNews(notified, fresh)
    assert news
    assert news.features(None) == {"tools", "resources"}
    assert news.features(Scope(servers=("git",))) == {"tools", "resources"}
    assert news.features(Scope(servers=("git",), resources=False)) == {"tools"}
    assert news.features(Scope(tools=("git.log",), resources=False)) == frozenset()
    assert news.features(READER) == frozenset()
    assert not ListNews(fresh, fresh)


def test_a_changed_view_notifies_its_clients() -> None:
    one, other = (catalog(views={"v": NamedView(Scope(tools=(glob,)))}) for glob in ("git.log", "git.push"))
    news = ListNews(one, other)
    assert news
    assert news.features(None) == frozenset()
    assert news.features(Scope(view="v")) == {"tools"}


# -- in the gateway ----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(fakes: dict[str, FakeBackend], **start: Any) -> AsyncGenerator[RequestHandler]:
    servers = {name: ServerConfig(name=name, start=start.get(name, "eager")) for name in fakes}
    config = Config(servers=servers, gateway=GatewaySettings())
    fleet = Fleet(config, backends(fakes))
    parking = SuspendedCalls(RequestStateCodec())
    with trio.fail_after(10_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await settle()
            yield RequestHandler(Router(fleet), "9", parking)  # ruff: ignore[fallible-context-manager]
            fleet.stop()


def both() -> dict[str, FakeBackend]:
    return {"files": FakeBackend(FILES), "git": FakeBackend(GIT)}


def call_in(scope: Scope | None, name: str, method: str = "tools/call") -> Call:
    return make_call(name, method, caller=msgspec.structs.replace(LEGACY_CALLER, scope=scope))


async def refusal(answers: RequestHandler, call: Call) -> tuple[bytes, int]:
    with pytest.raises(GatewayError) as caught:
        answers.router.release(await answers.router.submit(call))
    return answers.encode_error(1, caught.value, Era.LEGACY, call)


@pytest.mark.parametrize(
    ("method", "hidden", "never"),
    [
        ("tools/call", "git.log", "git.lox"),
        ("tools/call", "files.delete", "files.delexe"),
        ("prompts/get", "git.ask", "git.axk"),
        ("resources/read", "git://a", "gix://a"),
        ("completion/complete", "git.ask", "git.axk"),
    ],
)
async def test_out_of_scope_errors_equal_unknown_ones(
    method: str, hidden: str, never: str, autojump_clock: MockClock
) -> None:
    async with running(both()) as answers:
        scope = msgspec.structs.replace(READER, resources=False)
        calls = [call_in(scope, name, method) for name in (hidden, never)]
        if method == "completion/complete":
            for call in calls:
                call.params["ref"] = jsonrpc.raw({"type": "ref/prompt", "name": call.name})
        began = trio.current_time()
        (found, code), (expected, wanted) = [await refusal(answers, call) for call in calls]
        assert found.replace(hidden.encode(), b"?") == expected.replace(never.encode(), b"?")
        assert code == wanted
        assert trio.current_time() == began


async def test_items_in_scope_are_callable(autojump_clock: MockClock) -> None:
    fakes = both()
    async with running(fakes) as answers:
        pending = await answers.router.submit(call_in(READER, "files.read"))
        assert (pending.backend, pending.own_name) == ("files", "read")
        answers.router.release(pending)
        other = await answers.router.submit(call_in(READER, "file:///a", "resources/read"))
        assert other.backend == "files"
        answers.router.release(other)


@pytest.mark.parametrize(
    ("name", "waits"), [("git.log", False), ("files.delete", False), ("gix.log", False), ("files.read_me", True)]
)
async def test_calls_out_of_scope_do_not_wait(name: str, waits: bool, autojump_clock: MockClock) -> None:
    fakes = both()
    for fake in fakes.values():
        fake.stall()
    async with running(fakes) as answers:
        await answers.fleet.first_starts()  # no later one waits
        began = trio.current_time()
        with pytest.raises(BackendUnavailable if waits else UnknownName):
            await answers.router.submit(call_in(READER, name))
        assert (trio.current_time() > began) is waits


async def test_calls_out_of_scope_start_no_backend(autojump_clock: MockClock) -> None:
    fakes = {"git": FakeBackend(GIT), "files": FakeBackend(FILES)}
    fakes["files"].fail(*range(1, 6))  # marked failed before it was known
    fakes["git"].fail(*range(1, 6))
    async with running(fakes) as answers:
        await trio.sleep(200)  # longer than a caller's wish for another try is put off
        starts = {name: len(fake.starts) for name, fake in fakes.items()}
        for name in ("git.log", "files.delete", "gix.log"):
            with pytest.raises(UnknownName):
                await answers.router.submit(call_in(READER, name))
        await trio.sleep(5)
        assert {name: len(fake.starts) for name, fake in fakes.items()} == starts
        for fake in fakes.values():
            fake.on_start = None
        with contextlib.suppress(BackendUnavailable):  # perhaps it is still being tried
            answers.router.release(await answers.router.submit(call_in(READER, "files.read")))
        await trio.sleep(5)
        answers.router.release(await answers.router.submit(call_in(READER, "files.read")))
        assert len(fakes["git"].starts) == starts["git"]


async def test_lists_wait_only_for_what_is_in_scope(autojump_clock: MockClock) -> None:
    fakes = both()
    fakes["git"].stall()
    async with running(fakes) as answers:
        began = trio.current_time()
        caller = msgspec.structs.replace(MODERN_CALLER, scope=READER)
        found = await answers.modern(Call(method="tools/list", name="", params={}, meta={}, caller=caller))
        assert isinstance(found, bytes)
        body = json.loads(found)
        assert [tool["name"] for tool in body["tools"]] == ["files.read", "files.read_all"]
        assert (body["ttlMs"], body["cacheScope"]) == (1000, "private")  # what is away is not in it
        assert trio.current_time() == began


async def test_a_suspended_call_keeps_its_scope_and_endpoint(autojump_clock: MockClock) -> None:
    async with running(both()) as answers:
        view = Scope(view="v")
        for scope, given, problem in [
            (None, None, "was resumed before"),  # so it has been looked for
            (EVERYTHING, None, "was resumed before"),
            (READER, None, "Unknown tool: git.log"),
            (view, None, "was given for another request"),
            (None, view, "was given for another request"),
        ]:
            first, retry = (
                make_call("git.log", caller=msgspec.structs.replace(MODERN_CALLER, scope=one)) for one in (given, scope)
            )
            retry.params["requestState"] = jsonrpc.raw(answers.parking.sealer.encode(first, parked="key"))
            with pytest.raises(GatewayError, match=problem):
                await answers.modern(retry)


async def test_introductions_describe_only_the_scope(autojump_clock: MockClock) -> None:
    async with running(both()) as answers:
        hello = jsonrpc.decode(
            b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}'
        )
        whole = json.loads(answers.greeting(answers.introduce(hello)))
        seen = json.loads(answers.greeting(answers.introduce(hello, Identity("ada", READER))))
        assert "completions" in whole["capabilities"]
        assert "completions" not in seen["capabilities"]
        assert seen["instructions"] == "# files\n\nuse read"
        caller = msgspec.structs.replace(MODERN_CALLER, scope=READER)
        found = await answers.modern(Call(method="server/discover", name="", params={}, meta={}, caller=caller))
        assert isinstance(found, bytes)
        assert json.loads(found)["instructions"] == "# files\n\nuse read"


async def test_unknown_methods_require_the_whole_server(autojump_clock: MockClock) -> None:
    async with running(both()) as answers:
        pending = await answers.router.submit(call_in(Scope(servers=("git",)), "", "vendor/thing"))
        assert pending.backend == "git"
        answers.router.release(pending)
        for scope in (None, READER, Scope(servers=())):
            with pytest.raises(UnknownMethod):
                await answers.router.submit(call_in(scope, "", "vendor/thing"))


async def test_resources_are_watched_in_scope_and_not_beyond(autojump_clock: MockClock) -> None:
    fakes = both()
    async with running(fakes) as answers:
        params = {
            "notifications": jsonrpc.raw({"toolsListChanged": True, "resourceSubscriptions": ["file:///a", "git://a"]})
        }
        caller = msgspec.structs.replace(MODERN_CALLER, scope=Scope(servers=("git",)))
        call = Call(method="subscriptions/listen", name="", params=params, meta={}, caller=caller)
        subscription = Subscription(answers, 1, call)
        acknowledged = json.loads(await subscription.open())
        # As with any unlisted URI, the only backend with resources decides.
        assert acknowledged["params"]["notifications"]["resourceSubscriptions"] == ["file:///a", "git://a"]
        assert answers.fleet.wish_list.of("git").uris == {"file:///a", "git://a"}
        assert answers.fleet.wish_list.of("files").uris == frozenset()
        subscription.close()


async def test_updates_now_out_of_scope_are_dropped(autojump_clock: MockClock) -> None:
    async with running(both()) as answers:
        session = LegacySession("s", introduction(Identity(None, EVERYTHING)), max_requests=9)
        seen = msgspec.structs.replace(LEGACY_CALLER, scope=Scope(view="gone"))
        assert await watch_all(answers.router, session, ["git://a"], seen, session.changes) == []
        seen = msgspec.structs.replace(LEGACY_CALLER, scope=Scope(servers=("git",)))
        assert await watch_all(answers.router, session, ["git://a"], seen, session.changes) == ["git://a"]
        answers.fleet.resource_updated(answers.fleet.supervisors["git"], "git://a", {"uri": jsonrpc.raw("git://a")})
        assert [json.loads(one)["params"] for one in await session.changes.next_batch()] == [{"uri": "git://a"}]


def test_links_lead_only_to_those_in_scope() -> None:
    links = Links()
    links.learn("a", "u")
    links.learn("b", "u")
    assert links.owner("u") == "b"
    assert links.owner("u", ("a",)) == "a"
    assert links.owner("u", ()) is None


# -- sessions ----------------------------------------------------------------------------------------------------------


def introduction(identity: Identity) -> ClientIntroduction:
    return ClientIntroduction("2025-11-25", msgspec.Raw(b"{}"), msgspec.Raw(b""), identity)


async def test_a_session_is_bound_to_client_and_endpoint() -> None:
    await trio.lowlevel.checkpoint()  # sessions have a clock
    table = SessionTable(most=9, idle_timeout=9, max_requests=9)
    ada = Identity("ada", READER)
    session = table.create(introduction(ada))
    assert session is not None
    assert session.id is not None
    assert session.caller.principal == "ada"
    assert session.caller.scope is READER
    assert table.find(session.id, ada) is session
    for other in (Identity(), Identity("eve", READER), Identity(None, READER), at_endpoint(ada, "v")):
        assert table.find(session.id, other) is None


async def test_a_session_follows_its_clients_current_rules() -> None:
    table = SessionTable(most=9, idle_timeout=9, max_requests=9)
    session = table.create(introduction(Identity("ada", READER)))
    assert session is not None
    assert session.id is not None
    less = Scope(servers=())
    assert table.find(session.id, Identity("ada", less)) is session
    assert session.caller.scope is less
    with trio.fail_after(10):
        notified = [json.loads(one)["method"] for one in await session.changes.next_batch()]
    assert notified == [f"notifications/{feature}/list_changed" for feature in ("prompts", "resources", "tools")]


# -- names that a client has chosen ------------------------------------------------------------------------------------


ODD = listing("read", "file.read", "größe", "r" * 70)
EVERY_CHOICE = [
    NameChoice(separator, length)
    for separator in (None, *SEPARATORS)
    for length in (None, *NAME_LENGTHS)
    if separator is not None or length is not None
]


def odd_catalog(**kwargs: Any) -> Snapshot:
    parts = [make_part(name, name, one, Naming()) for name, one in (("files", ODD), ("git", GIT))]
    return Snapshot(parts, listed=frozenset({"files", "git"}), **kwargs)


@pytest.mark.parametrize("choice", EVERY_CHOICE, ids=lambda choice: choice.query)
def test_chosen_names_are_taken_by_every_model(choice: NameChoice) -> None:
    seen = odd_catalog().within(Scope(names=choice))
    found = names(seen)
    assert len(found) == len(set(found)) == 6
    for name, own in zip(found, ["read", "file.read", "größe", "r" * 70, "log", "push"], strict=True):
        assert len(name) <= (choice.max_length or 128)
        assert choice.separator is None or re.fullmatch(r"[a-zA-Z0-9_-]+", name)
        assert seen.route(Kind.TOOLS, name) == Route("git" if own in {"log", "push"} else "files", own)
    assert found[0] == f"files{choice.separator or '.'}read"


def test_each_of_eight_choices_is_built_once() -> None:
    assert len(EVERY_CHOICE) == 8
    whole = odd_catalog()
    made = {id(whole.within(Scope(names=msgspec.structs.replace(choice)))) for choice in EVERY_CHOICE * 3}
    assert len(made) == 8


def test_rules_and_views_use_config_names() -> None:
    whole = catalog(views={"v": NamedView(Scope(servers=("git",)), Naming("-"))})
    choice = NameChoice("__")
    assert names(whole.within(Scope(tools=("files.read",), names=choice))) == ["files__read"]
    assert names(whole.within(Scope(tools=("files__read",), names=choice))) == []
    assert names(whole.within(Scope(view="v", names=choice))) == ["git__log", "git__push"]
    seen = whole.within(Scope(view="v", tools=("git.log",), names=choice))
    assert (names(seen), seen.known_as["git__log"]) == (["git__log"], "git.log")


def test_a_choice_equal_to_the_config_is_free() -> None:
    whole = catalog()
    assert whole.within(Scope(names=NameChoice())) is whole.within(Scope())
