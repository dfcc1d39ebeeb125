"""Tool choices and overrides: read from the config, applied to the listing, changed live."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import Scope
from gateway.catalog.listing import Item, Listing
from gateway.catalog.ownership import Route
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.config import diff_configs, parse_config
from gateway.config.offered import ALL_TOOLS, ToolChoice, ToolOverride
from gateway.eras.methods import Kind
from gateway.errors import ConfigError, UnknownName
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import FakeBackend, backends, make_call, make_listing, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from gateway.config import Config


def config(**servers: Any) -> Config:
    entries = {name: {"command": "x", **kwargs} for name, kwargs in servers.items()}
    return parse_config({"mcpServers": entries}, environ={})


def choice(**kwargs: Any) -> ToolChoice:
    return config(s=kwargs).servers["s"].tools


def listing() -> Listing:
    schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A"}}}
    raws = [{"name": name, "description": "own", "inputSchema": schema} for name in ("get_a", "get_b", "delete")]
    return Listing(items={Kind.TOOLS: tuple(Item(raw["name"], jsonrpc.encode(raw)) for raw in raws)})  # pyright: ignore


def made(**tools: Any) -> Snapshot:
    return Snapshot([make_part("s", "s", listing(), Naming(), choice(tools=tools))], listed=frozenset({"s"}))


def shown(found: Snapshot) -> list[dict[str, Any]]:
    return json.loads(b"[" + found.page(Kind.TOOLS, None, None).joined + b"]")


def names(found: Snapshot) -> list[str]:
    return [tool["name"] for tool in shown(found)]


# -- the config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "include", "exclude"),
    [
        ({}, ("*",), ()),
        ({"tools": {"include": ["get_*"]}}, ("get_*",), ()),
        ({"tools": {"include": "get_*", "exclude": ["x"]}}, ("get_*",), ("x",)),
        ({"tools": ["*"]}, ("*",), ()),
        ({"tools": ["a", "b"]}, ("a", "b"), ()),
        ({"includeTools": ["a"], "excludeTools": ["b"]}, ("a",), ("b",)),
        ({"enabledTools": ["a"]}, ("a",), ()),
        ({"allowedTools": ["a"], "disabledTools": ["b"]}, ("a",), ("b",)),
        ({"disabled_tools": ["b"], "tools": {"exclude": ["c"]}}, ("*",), ("c", "b")),
        ({"enabled_tools": ["a", "b"], "tools": ["b", "c"]}, ("b",), ()),
        ({"tools": None, "disabledTools": None}, ("*",), ()),
    ],
)
def test_the_spellings_of_a_choice(written: dict[str, Any], include: tuple[str, ...], exclude: tuple[str, ...]) -> None:
    found = config(s=written)
    assert found.warnings == ()
    assert found.servers["s"].tools == ToolChoice(include, exclude)


def test_overrides_are_read() -> None:
    schema = {"properties": {"a": {"type": "string"}}}
    found = choice(
        tools={
            "overrides": {
                "a": {"name": "b", "title": "T", "description": "D", "inputSchema": schema, "enabled": True},
                "c": False,
                "d": "e",
            }
        }
    )
    assert found.overrides == {
        "a": ToolOverride("b", "T", "D", {"type": "object", **schema}),
        "c": ToolOverride(enabled=False),
        "d": ToolOverride("e"),
    }


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (3, "field 'tools' must be an object with 'include'"),
        ({"include": 3}, "field 'tools.include' must be a list of globs"),
        ({"exclude": ["a", 3]}, "field 'tools.exclude' must be a list of globs"),
        ({"overrides": []}, "field 'tools.overrides' must be an object of tools"),
        ({"overrides": {"a": 3}}, "field 'tools.overrides.a' must be an object, a new name, or false"),
        ({"overrides": {"a": {"name": "no spaces"}}}, "field 'tools.overrides.a.name' must be 1 to 128 letters"),
        ({"overrides": {"a": {"inputSchema": {"type": "string"}}}}, "must be a JSON Schema of type 'object'"),
        ({"overrides": {"a": {"enabled": "no"}}}, "field 'tools.overrides.a.enabled' must be true or false"),
        ({"overrides": {"a": "c", "b": "c"}}, "field 'tools.overrides.b.name' is also the name of 'a'"),
    ],
)
def test_invalid_choices_are_described(tools: object, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choice(tools=tools)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("server 's': ")


def test_suspicious_choices_cause_warnings() -> None:
    (found,) = config(s={"tools": {"includes": ["a"]}}).warnings
    assert found == "server 's': field 'tools.includes' is unknown and ignored; did you mean 'include'?"


def test_tools_alone_do_not_cause_a_restart() -> None:
    old = config(a={}, b={}, c={})
    new = config(a={"tools": ["x"]}, b={"tools": ["x"], "env": {"E": "1"}}, c={})
    found = diff_configs(old, new)
    assert (found.retouched, found.changed, found.unchanged) == (("a",), ("b",), ("c",))


# -- the catalog -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tools", "expected"),
    [
        ({}, ["s.get_a", "s.get_b", "s.delete"]),
        ({"include": ["get_*"]}, ["s.get_a", "s.get_b"]),
        ({"include": ["get_*"], "exclude": ["*_b"]}, ["s.get_a"]),
        ({"exclude": ["*"]}, []),
        ({"overrides": {"delete": False}}, ["s.get_a", "s.get_b"]),
        ({"overrides": {"delete": "remove"}, "exclude": ["get_*"]}, ["s.remove"]),
    ],
)
def test_only_what_is_chosen_is_offered(tools: dict[str, Any], expected: list[str]) -> None:
    found = made(**tools)
    assert names(found) == expected
    assert {name for name in ("s.get_a", "s.get_b", "s.delete", "s.remove") if found.route(Kind.TOOLS, name)} == {
        *expected
    }


def test_a_renamed_tool_keeps_its_own_backend_name() -> None:
    found = made(overrides={"delete": {"name": "remove"}})
    assert found.route(Kind.TOOLS, "s.remove") == Route("s", "delete")
    assert found.route(Kind.TOOLS, "s.delete") is None


def test_a_tool_is_shown_as_the_config_says() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "B"}}}
    found = made(overrides={"get_a": {"title": "T", "description": "D", "inputSchema": schema}}, include=["get_a"])
    assert shown(found) == [{"name": "s.get_a", "description": "D", "inputSchema": schema, "title": "T"}]
    assert [name for _, name in found.mirrored_params("s.get_a")] == [b"mcp-param-B"]


def test_two_tools_of_one_name_are_disambiguated() -> None:
    found = made(overrides={"get_a": "get_b"})
    first, second, _ = names(found)
    assert first == "s.get_b"
    assert found.route(Kind.TOOLS, first) == Route("s", "get_a")
    assert found.route(Kind.TOOLS, second) == Route("s", "get_b")


def test_scopes_match_old_and_new_tool_names() -> None:
    found = made(overrides={"delete": "remove"})
    for glob in ("s.delete", "s.remove"):
        assert names(found.within(Scope(tools=(glob,)))) == ["s.remove"]
        assert names(found.within(Scope(excluded_tools=(glob,)))) == ["s.get_a", "s.get_b"]


def test_unmatched_choices_are_reported() -> None:
    part = make_part(
        "s", "s", listing(), Naming(), choice(tools={"include": ["get_*", "put_*"], "overrides": {"x": "y"}})
    )
    assert part.loose_ends == (
        "tools.overrides names 'x', which it does not list",
        "tools.include has 'put_*', which matches none of its tools",
    )
    assert make_part("s", "s", Listing(), Naming(), choice(tools=["x"])).loose_ends == ()
    assert make_part("s", "s", listing(), Naming(), ALL_TOOLS).loose_ends == ()


# -- live --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def running(first: Config, fakes: dict[str, FakeBackend]) -> AsyncGenerator[Fleet]:
    fleet = Fleet(first, backends(fakes))
    with trio.fail_after(10_000):  # of the clock that jumps
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await settle()
            yield fleet  # ruff: ignore[fallible-context-manager]
            fleet.stop()


async def test_changed_choices_apply_without_a_restart(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeBackend(make_listing("x", "y"))
    notified: list[frozenset[str]] = []
    async with running(config(a={}), {"a": fake}) as fleet:
        await trio.sleep(1)
        fleet.subscribe(lambda news: notified.append(news.features(None)))
        router = Router(fleet)
        pending = await router.submit(make_call("a.x"))
        await settle()
        applied = await fleet.apply(config(a={"tools": {"exclude": ["x"], "overrides": {"y": "z", "gone": False}}}))
        assert (applied.changed, applied.unchanged) == (("a",), ())
        assert names(fleet.snapshot()) == ["a.z"]
        assert len(fake.starts) == 1
        assert not pending.over  # and continues
        with pytest.raises(UnknownName):
            await router.submit(make_call("a.x"))
        renamed = await router.submit(make_call("a.z"))
        assert (renamed.backend, renamed.own_name) == ("a", "y")
        assert fleet.statuses()["a"].warnings == ("tools.overrides names 'gone', which it does not list",)
        assert [record.getMessage() for record in caplog.records if "gone" in record.getMessage()] == [
            "server 'a': tools.overrides names 'gone', which it does not list"
        ]
        await trio.sleep(1)
        assert notified == [frozenset({"tools"})]
        await fleet.apply(config(a={}))
        assert names(fleet.snapshot()) == ["a.x", "a.y"]
        assert fleet.statuses()["a"].warnings == ()
        for one in (pending, renamed):
            router.release(one)


async def test_changed_choices_do_not_prevent_a_restart(autojump_clock: MockClock) -> None:
    fake = FakeBackend(make_listing("x"))
    async with running(config(a={}), {"a": fake}) as fleet:
        applied = await fleet.apply(config(a={"tools": {"overrides": {"x": "z"}}}), restart=("a",))
        assert applied.changed == ("a",)
        assert names(fleet.snapshot()) == ["a.z"]
        assert len(fake.starts) == 2


async def test_calls_to_excluded_tools_do_not_wait(autojump_clock: MockClock) -> None:
    fake = FakeBackend(make_listing("x", "y"))
    fake.stall()
    async with running(config(a={"tools": {"exclude": ["x"]}}), {"a": fake}) as fleet:
        await fleet.first_starts()  # no later one waits
        began = trio.current_time()
        with pytest.raises(UnknownName):
            await Router(fleet).submit(make_call("a.x"))
        assert trio.current_time() == began
