"""API changes over a config file, detection of file changes, one change a time."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.config import parse_config
from gateway.errors import Busy, ConfigError, ShuttingDown
from gateway.reload import watch as watch_module
from gateway.reload.overlay import Base, Overlay, read_overlay
from gateway.reload.reloader import MAX_WAITING, Reloader
from gateway.reload.source import ConfigSource
from gateway.reload.watch import mark_of, watch
from gateway.store import Store
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import SOON, FakeBackend, backends, make_listing, settle
from tests.support.log_events import logged_events
from tests.support.supervision import run_reloader

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from pathlib import Path

    from gateway.config import Config
    from gateway.supervisor.fleet import Applied


def base_of(**servers: Any) -> Base:
    return Base(parse_config({"mcpServers": servers}, environ={}), servers)


A, B = {"command": "a"}, {"command": "b"}


# -- the overlay, pure -------------------------------------------------------------------------------------------------


def test_changes_override_the_file() -> None:
    base = base_of(a=A, b=B, off={"command": "o", "disabled": True})
    overlay = Overlay().put(base, "c", {"command": "c"}).put(base, "a", {"command": "other"}).remove(base, "b")
    overlay = overlay.switch(base, "off", disabled=False).switch(base, "c", disabled=True)
    config = overlay.compose(base, {})
    assert {name: (one.command, one.disabled) for name, one in config.servers.items()} == {
        "a": ("other", False), "off": ("o", False), "c": ("c", True),
    }  # fmt: skip
    assert read_overlay(json.dumps(json.loads(encoded(overlay))).encode()) == overlay


def encoded(overlay: Overlay) -> bytes:
    import msgspec

    return msgspec.json.encode(overlay)


def test_removing_api_additions_leaves_no_trace() -> None:
    base = base_of(a=A)
    overlay = Overlay().put(base, "c", B).remove(base, "c")
    assert overlay == Overlay()
    assert overlay.compose(base, {}) is base.config


@pytest.mark.parametrize(
    ("change", "after", "void"),
    [
        (lambda o, b: o.put(b, "a", B), {"a": {"command": "edited"}}, ["a"]),
        (lambda o, b: o.put(b, "a", B), {"a": A, "b": B}, []),  # another server was edited
        (lambda o, b: o.put(b, "a", B), {}, ["a"]),
        (lambda o, b: o.put(b, "c", B), {"a": A, "c": A}, ["c"]),  # now the file has one of that name
        (lambda o, b: o.remove(b, "a"), {"a": {"command": "edited"}}, ["a"]),
        (lambda o, b: o.remove(b, "a"), {"a": dict(A)}, []),
        (lambda o, b: o.switch(b, "a", disabled=True), {"a": {**A, "retry": True}}, ["a"]),
    ],
)
def test_the_latest_file_edit_wins(change: Any, after: Any, void: list[str]) -> None:
    overlay = change(Overlay(), base_of(a=A))
    left, found = overlay.without_void(base_of(**after))
    assert found == void
    assert bool(left.changes) is not bool(void)


def test_a_change_that_became_invalid_is_named() -> None:
    base = base_of(a=A)
    overlay = Overlay().put(base, "c", {"command": "${GONE}"})
    assert overlay.compose(base, {"GONE": "x"}).servers["c"].command == "x"
    with pytest.raises(ConfigError, match="GONE"):
        overlay.compose(base, {})


def test_a_server_switched_back_matches_the_file() -> None:
    base = base_of(a=A, b=B)
    switched = Overlay().switch(base, "a", disabled=True)
    assert list(switched.changes) == ["a"]
    assert switched.switch(base, "a", disabled=False) == Overlay()
    put = Overlay().put(base, "a", B).switch(base, "a", disabled=True)
    assert put.switch(base, "a", disabled=False).changes["a"].raw == B


def test_program_servers_can_be_switched_and_removed() -> None:
    base = Base(base_of(a=A, b=B).config)
    overlay = Overlay().switch(base, "a", disabled=True).remove(base, "b")
    assert {name: one.disabled for name, one in overlay.compose(base, {}).servers.items()} == {"a": True}


@pytest.mark.parametrize("data", [b"", b"[]", b'{"changes":{"a":5}}', b'{"format":2,"changes":{}}'])
def test_an_invalid_overlay_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_overlay(data)


# -- the file and what is kept -----------------------------------------------------------------------------------------


class Place:
    """A config file and a state directory."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "config.json"
        self.store = Store(folder / "state")
        self.write(a=A)

    def write(self, **servers: Any) -> None:
        self.path.write_text(json.dumps({"mcpServers": servers}))

    def source(self, **kwargs: Any) -> ConfigSource:
        return ConfigSource(self.path, environ={}, store=self.store, **kwargs)


def test_changes_survive_a_restart_with_mode_0600(tmp_path: Path) -> None:
    place = Place(tmp_path)
    first = place.source()
    first.open()
    first.save_overlay(Overlay().put(first.base, "c", {"command": "c", "env": {"KEY": "s3cret"}}))
    kept = place.store.overlay_path(place.path)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert list(place.source().open().servers) == ["a", "c"]
    assert list(ConfigSource(place.path, environ={}).open().servers) == ["a"]  # --ephemeral
    other = tmp_path / "other.json"
    other.write_text(place.path.read_text())
    assert list(ConfigSource(other, environ={}, store=place.store).open().servers) == ["a"]  # another file's gateway


@pytest.mark.parametrize("kept", [b"\xff", b'{"format":1,"changes":{"c":{"over":null,"raw":{"command":"${GONE}"}}}}'])
def test_unusable_changes_are_dropped_and_reported(kept: bytes, tmp_path: Path, caplog: Any) -> None:
    place = Place(tmp_path)
    place.store.write(place.store.overlay_path(place.path), kept)
    assert list(place.source().open().servers) == ["a"]
    assert len(logged_events(caplog, "api_changes_dropped")) == 1


@pytest.mark.parametrize("content", ['{"format":2,"changes":{}}', '{"changes":{"c":', "\0\0\0"])
def test_changes_of_a_later_version_are_kept(content: str, tmp_path: Path, caplog: Any) -> None:
    place = Place(tmp_path)
    first = place.source()
    first.open()
    first.save_overlay(Overlay().put(first.base, "c", B))
    path = place.store.overlay_path(place.path)
    path.write_text(content)
    source = place.source()
    assert list(source.open().servers) == ["a"]
    assert len(logged_events(caplog, "api_changes_dropped")) == 1
    assert path.read_text() == content
    for name in ("d", "e"):
        source.save_overlay(Overlay().put(source.base, name, B))
    assert list(place.source().open().servers) == ["a", "e"]
    assert path.with_name(f"{path.name}.unused").read_text() == content


def test_edits_made_while_stopped_count_too(tmp_path: Path, caplog: Any) -> None:
    place = Place(tmp_path)
    first = place.source()
    first.open()
    first.save_overlay(Overlay().put(first.base, "a", B))
    place.write(a={"command": "edited"})
    assert place.source().open().servers["a"].command == "edited"
    assert [one["backend"] for one in logged_events(caplog, "api_changes_dropped")] == ["a"]


def test_the_name_given_on_the_command_line_stays(tmp_path: Path) -> None:
    source = Place(tmp_path).source(name="mine")
    assert source.open().gateway.name == "mine"
    assert source.read().config.gateway.name == "mine"


# -- watching ----------------------------------------------------------------------------------------------------------


def rewrite(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def replace(path: Path, text: str) -> None:
    """Replace the file as most editors do."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)


def make_anew(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")


def swap(path: Path, text: str) -> None:
    """As config maps do: `config.json -> data/config.json`, `data -> data-1`, and then `data` leads elsewhere."""
    folder = path.parent
    fresh = folder / f"data-{len(text)}"
    fresh.mkdir()
    (fresh / path.name).write_text(text)
    (folder / "new-data").symlink_to(fresh.name)
    (folder / "new-data").rename(folder / "data")


@pytest.mark.parametrize("edit", [rewrite, replace, make_anew, swap])
async def test_a_change_of_the_file_is_seen(edit: Callable[[Path, str], None], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    if edit is swap:
        (tmp_path / "data-0").mkdir()
        (tmp_path / "data-0" / path.name).write_text("before")
        (tmp_path / "data").symlink_to("data-0")
        path.symlink_to("data/config.json")
    else:
        path.write_text("before")
    seen: list[str] = []
    received = trio.Event()

    async def changed() -> None:
        await trio.lowlevel.checkpoint()
        seen.append(path.read_text())
        received.set()

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(watch, path, changed, since=mark_of(path)))
            for text in ("first", "the second"):
                received = trio.Event()
                edit(path, text)
                while not seen or seen[-1] != text:
                    await received.wait()
                    received = trio.Event()
            nursery.cancel_scope.cancel()
    assert set(seen) <= {"", "first", "the second"}


@pytest.mark.parametrize("problem", [ImportError("No module named 'watchfiles'"), OSError("no inotify")])
async def test_without_directory_watches_the_file_is_polled(
    problem: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Any:
        raise problem

    monkeypatch.setattr(watch_module, "_events", fail)
    path, seen = tmp_path / "config.json", trio.Event()
    path.write_text("before")

    async def changed() -> None:
        await trio.lowlevel.checkpoint()
        seen.set()

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(watch, path, changed, since=mark_of(path), retry_interval=0.01))
            while "cannot be watched" not in caplog.text:  # ruff: ignore[async-busy-wait]
                await trio.sleep(0.01)
            replace(path, "after")
            await seen.wait()
            nursery.cancel_scope.cancel()


async def test_changes_before_the_watch_began_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("before")
    mark = mark_of(path)
    path.write_text("after, and longer")
    received = trio.Event()

    async def changed() -> None:
        await trio.lowlevel.checkpoint()
        received.set()

    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(watch, path, changed, since=mark))
            (tmp_path / "neighbour").write_text("x")
            await received.wait()
            nursery.cancel_scope.cancel()


# -- one at a time -----------------------------------------------------------------------------------------------------


class Rig:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.fakes = {name: FakeBackend(make_listing("x")) for name in "abc"}
        self.source = place.source()
        self.fleet = Fleet(self.source.open(), backends(self.fakes))
        self.held: list[Any] = []
        self.reloader = Reloader(self.source, self.fleet, apply=self.apply)

    async def apply(self, config: Config, *, restart: Any = ()) -> Applied:
        applied = await self.fleet.apply(config, restart=restart)
        self.held.append(config)
        return applied

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(SOON):
            while not condition():  # noqa: ASYNC110 - there is no event for all of them
                await trio.sleep(0.01)


@asynccontextmanager
async def rigged(folder: Path, *, watching: bool = False) -> AsyncGenerator[Rig]:
    rig = Rig(Place(folder))
    async with run_reloader(rig.reloader, rig.fleet, within=3 * SOON, watching=watching):
        yield rig


async def test_an_edit_of_the_file_takes_effect(tmp_path: Path) -> None:
    async with rigged(tmp_path, watching=True) as rig:
        rig.place.write(a=A, b=B)
        await rig.until(lambda: list(rig.fleet.supervisors) == ["a", "b"])
        assert rig.reloader.last.by == "file"
        assert rig.held[-1] is rig.fleet.config
        rig.place.path.write_text('{"mcpServers": {"a": ')  # an editor is writing
        rig.place.write(b=B)
        await rig.until(lambda: list(rig.fleet.supervisors) == ["b"])
        rig.place.path.write_text("{")
        await rig.until(lambda: not rig.reloader.last.ok)
        assert list(rig.fleet.supervisors) == ["b"]
        rig.place.write(a=A)
        await rig.until(lambda: rig.reloader.last.ok)
        await rig.until(lambda: list(rig.fleet.supervisors) == ["a"])
        assert [len(rig.fakes[name].starts) for name in "ab"] == [2, 1]


async def test_editing_a_server_discards_its_api_changes(tmp_path: Path, caplog: Any) -> None:
    async with rigged(tmp_path) as rig:
        await rig.reloader.put({"a": {"command": "by-api"}, "c": {"command": "c"}})
        assert (rig.reloader.origin("a"), rig.reloader.origin("c")) == ("file, changed by api", "api")
        rig.place.write(a={"command": "edited"})
        await rig.reloader.reload("test")
        assert {name: one.config.command for name, one in rig.fleet.supervisors.items()} == {"a": "edited", "c": "c"}
        assert rig.reloader.origin("a") == "file"
        assert [one["backend"] for one in logged_events(caplog, "api_changes_dropped")] == ["a"]
        assert list(rig.place.source().open().servers) == ["a", "c"]  # and so it is kept


async def test_changes_are_kept_as_they_come(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        await rig.reloader.put({"b": B})
        assert list(rig.place.source().open().servers) == ["a", "b"]
        await rig.reloader.remove("a")
        assert list(rig.place.source().open().servers) == ["b"]
        await rig.reloader.remove("b")
        assert list(rig.place.source().open().servers) == []


async def test_an_unwritable_state_directory_is_reported(tmp_path: Path, caplog: Any) -> None:
    async with rigged(tmp_path) as rig:
        (tmp_path / "state").write_text("no directory")
        await rig.reloader.put({"b": B})
        assert list(rig.fleet.supervisors) == ["a", "b"]
        assert len(logged_events(caplog, "api_changes_not_saved")) == 1


async def test_pending_changes_are_bounded(tmp_path: Path) -> None:
    async with rigged(tmp_path) as rig:
        go = trio.Event()

        async def wait(_number: int) -> None:
            await go.wait()

        rig.fakes["b"].on_start = wait
        refused: list[str] = []

        async def put(number: int) -> None:
            try:
                await rig.reloader.put({"b": {"command": str(number)}})
            except Busy:
                refused.append(str(number))

        async with trio.open_nursery() as nursery:
            for number in range(MAX_WAITING + 3):
                nursery.start_soon(put, number)
            await settle()
            assert len(refused) == 3
            go.set()
        assert len(rig.fakes["b"].starts) == MAX_WAITING
        assert rig.fakes["b"].open == 1


async def test_stopping_ends_waiting_changes(tmp_path: Path) -> None:
    rig = Rig(Place(tmp_path))
    with pytest.raises(ShuttingDown):
        await rig.reloader.reload("too early")
    with trio.fail_after(SOON):
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.fleet.run)
            await nursery.start(partial(rig.reloader.run, watching=False))
            rig.fakes["b"].stall()

            async def put() -> None:
                with pytest.raises(ShuttingDown):
                    await rig.reloader.put({"b": B})

            nursery.start_soon(put)
            await settle()
            rig.fleet.stop()
            await rig.fleet.ended.wait()
            await settle()
            nursery.cancel_scope.cancel()


def test_marks_distinguish_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    assert mark_of(path) == ()
    path.write_text("x")
    first = mark_of(path)
    assert first == mark_of(path)
    os.utime(path, ns=(0, 0))
    assert mark_of(path) != first
