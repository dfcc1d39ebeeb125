"""The state directory: what was kept comes back, and whatever else lies there counts as absent."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import msgspec
import pytest

from gateway import jsonrpc
from gateway.catalog.kinds import Kind
from gateway.catalog.listing import Item, Listing
from gateway.config import parse_server
from gateway.store import ENVIRONMENT, Store, default_directory

TOOL = b'{"name":"add","inputSchema":{},"unknown":{"big":123456789012345678901234567890,"null":null}}'
LISTING = Listing(
    items={Kind.TOOLS: (Item("add", TOOL), Item("ad\u00e9", b'{"name":"ad\\u00e9"}')), Kind.PROMPTS: ()},
    capabilities={"tools": msgspec.Raw(b'{"listChanged":true,"odd":1e400}')},
    instructions="Add.\nThen stop.",
)


def server(name="calc", **fields):
    return parse_server(name, {"command": "calc", **fields}, environ={})


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "deep" / "state")


def kept(store: Store) -> Path:
    (path,) = (store.directory / "catalogs").iterdir()
    return path


def test_what_is_kept_comes_back_byte_for_byte(store) -> None:
    store.save_catalog(server(), LISTING)
    found = Store(store.directory).load_catalog(server())
    assert found is not None
    assert found.items == LISTING.items
    assert found.items[Kind.TOOLS][0].raw == TOOL
    assert {name: bytes(span) for name, span in found.capabilities.items()} == {
        "tools": b'{"listChanged":true,"odd":1e400}'
    }
    assert found.instructions == LISTING.instructions


def test_nothing_kept_is_absent_without_a_word(store, caplog) -> None:
    assert store.load_catalog(server()) is None
    assert store.sockets() == []
    assert not store.directory.exists()  # reading makes nothing
    assert caplog.records == []


def change(**members):
    plain = {"format": 1, "server": "calc", "items": {}, "capabilities": {}}
    return lambda _data: json.dumps(plain | members).encode()


def put(old: bytes, new: bytes):
    def spoil(data):
        assert old in data
        return data.replace(old, new)

    return spoil


def test_the_plain_file_that_is_spoilt_below_is_a_good_one(store) -> None:
    store.save_catalog(server(), LISTING)
    kept(store).write_bytes(change()(b""))
    assert store.load_catalog(server()) == Listing(items={}, capabilities={}, instructions=None)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: b"", True),
        (lambda data: b"\0" * len(data), True),
        (lambda data: data[: len(data) // 2], True),
        (lambda data: b"[]", True),
        (lambda data: b"null", True),
        (lambda data: data.replace(b'"add"', b'"\xff\xfe"'), True),
        (lambda data: b"[" * 100_000, True),
        (change(items={"TOOLS": [["add"]]}), True),
        (change(items={"TOOLS": {"add": {}}}), True),
        (change(items={"SPELLS": []}), True),
        (change(capabilities=7), True),
        (change(instructions=["a"]), True),
        (change(format="1"), True),
        (put(b'"format":1', b'"format":2'), False),  # of another version of the gateway: nothing is wrong
        (put(b'"server":"calc"', b'"server":"other"'), False),
    ],
)
def test_a_spoilt_file_counts_as_absent_and_is_replaced(store, caplog, spoil, told) -> None:
    store.save_catalog(server(), LISTING)
    path = kept(store)
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "gateway.store"):
        assert store.load_catalog(server()) is None
    assert bool(caplog.records) == told
    store.save_catalog(server(), LISTING)
    assert store.load_catalog(server()) is not None


def test_a_directory_where_the_file_should_be_counts_as_absent(store, caplog) -> None:
    store.save_catalog(server(), LISTING)
    path = kept(store)
    path.unlink()
    path.mkdir()
    assert store.load_catalog(server()) is None
    assert len(caplog.records) == 1


def test_a_huge_file_is_not_read(store, monkeypatch) -> None:
    store.save_catalog(server(), LISTING)
    monkeypatch.setattr("gateway.store.MAX_FILE_BYTES", kept(store).stat().st_size - 1)
    assert store.load_catalog(server()) is None


@pytest.mark.parametrize(
    "other",
    [
        {"args": ["--fast"]},
        {"command": "calc2"},
        {"cwd": "/tmp"},
        {"env": {"MODE": "x"}},
    ],
)
def test_another_configuration_is_another_server(store, other) -> None:
    store.save_catalog(server(), LISTING)
    assert store.load_catalog(server(**other)) is None


def test_how_a_server_is_run_is_not_what_it_is(store) -> None:
    store.save_catalog(server(env={"KEY": "old"}), LISTING)
    assert store.load_catalog(server(env={"KEY": "new"}, start="lazy", idle_timeout=3, call_timeout=9)) is not None


def test_two_servers_do_not_share_a_file(store) -> None:
    store.save_catalog(server("a"), LISTING)
    assert store.load_catalog(server("b")) is None


def test_no_secret_reaches_the_disk(store) -> None:
    store.save_catalog(server(env={"API_KEY": "s3cret"}, args=["--token", "s3cret"]), LISTING)
    path = kept(store)
    assert "s3cret" not in path.name
    assert b"s3cret" not in path.read_bytes()


def test_files_are_for_their_owner_alone_whatever_the_umask(store) -> None:
    before = os.umask(0)
    try:
        store.save_catalog(server(), LISTING)
        store.socket_path()
    finally:
        os.umask(before)
    assert stat.S_IMODE(kept(store).stat().st_mode) == 0o600
    for directory in (store.directory, store.directory / "catalogs"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(store, monkeypatch) -> None:
    store.save_catalog(server(), LISTING)
    before = kept(store).read_bytes()

    def full(_self, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save_catalog(server(), Listing(items={}, capabilities={}, instructions=None))
    assert kept(store).read_bytes() == before  # and `kept` finds one file only


def test_sockets_are_those_of_all_gateways_in_this_directory(store) -> None:
    mine = store.socket_path()
    assert str(os.getpid()) in mine.name
    assert mine.parent == store.directory
    for name in (mine.name, "control-1.sock", "control-2.new", "other.sock"):
        (store.directory / name).touch()
    assert store.sockets() == sorted([store.directory / "control-1.sock", mine])


def test_where_state_is_kept() -> None:
    assert default_directory({ENVIRONMENT: "/a/b", "XDG_STATE_HOME": "/x"}) == Path("/a/b")
    assert default_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/trio-mcp-gateway")
    for unset in ({}, {ENVIRONMENT: "", "XDG_STATE_HOME": ""}):
        assert default_directory(unset) == Path.home() / ".local" / "state" / "trio-mcp-gateway"


def test_the_raw_parts_stay_raw_in_the_file(store) -> None:
    """What a gateway keeps it does not re-model: a number too big for any type is written as it was read."""
    store.save_catalog(server(), LISTING)
    assert jsonrpc.decode_object(kept(store).read_bytes())
    assert b'{"listChanged":true,"odd":1e400}' in kept(store).read_bytes()
    assert TOOL in kept(store).read_bytes()


def test_a_pipe_in_the_place_of_a_file_holds_up_nobody(store) -> None:
    store.save_catalog(server(), LISTING)
    path = kept(store)
    path.unlink()
    os.mkfifo(path)
    assert store.load_catalog(server()) is None
    os.mkfifo(store.directory / "admin-token")
    with pytest.raises(OSError, match="no plain file"):
        store.admin_token()
