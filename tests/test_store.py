"""The state directory: stored data is returned, any other content counts as absent."""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from gateway import jsonrpc
from gateway.catalog.listing import Item, Listing
from gateway.config import parse_server
from gateway.eras.methods import Kind
from gateway.errors import ConfigError
from gateway.store import ENVIRONMENT, MAX_FILE_BYTES, OVERDUE, Store, default_directory, read_plain

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


def test_stored_bytes_are_returned_unchanged(store) -> None:
    store.save_catalog(server(), LISTING)
    found = Store(store.directory).load_catalog(server())
    assert found is not None
    assert found.items == LISTING.items
    assert found.items[Kind.TOOLS][0].raw == TOOL
    assert {name: bytes(span) for name, span in found.capabilities.items()} == {
        "tools": b'{"listChanged":true,"odd":1e400}'
    }
    assert found.instructions == LISTING.instructions


def test_absent_state_causes_no_warning(store, caplog) -> None:
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


def test_the_undamaged_sample_file_is_valid(store) -> None:
    store.save_catalog(server(), LISTING)
    kept(store).write_bytes(change()(b""))
    assert store.load_catalog(server()) == Listing(items={}, capabilities={}, instructions=None)


@pytest.mark.parametrize(
    ("spoil", "notified"),
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
        (change(items={"TOOLS": [["add", 7]]}), True),
        (change(items={"TOOLS": [["add", "{}"]]}), True),
        (change(items={"SPELLS": []}), True),
        (change(capabilities=7), True),
        (change(instructions=["a"]), True),
        (change(format="1"), True),
        (put(b'"format":1', b'"format":2'), False),  # of another version of the gateway: nothing is wrong
        (put(b'"server":"calc"', b'"server":"other"'), False),
    ],
)
def test_a_damaged_file_is_replaced(store, caplog, spoil, notified) -> None:
    store.save_catalog(server(), LISTING)
    path = kept(store)
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.WARNING, "gateway.store"):
        assert store.load_catalog(server()) is None
    assert bool(caplog.records) == notified
    store.save_catalog(server(), LISTING)
    assert store.load_catalog(server()) is not None


def test_a_directory_instead_of_a_file_is_absent(store, caplog) -> None:
    store.save_catalog(server(), LISTING)
    path = kept(store)
    path.unlink()
    path.mkdir()
    assert store.load_catalog(server()) is None
    assert len(caplog.records) == 1


def test_a_huge_file_is_not_read(store) -> None:
    store.save_catalog(server(), LISTING)
    data = kept(store).read_bytes()
    kept(store).write_bytes(data + b" " * (MAX_FILE_BYTES - len(data)))
    assert store.load_catalog(server()) is not None
    with kept(store).open("ab") as file:
        file.write(b" ")
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


def test_run_settings_do_not_change_a_servers_identity(store) -> None:
    store.save_catalog(server(env={"KEY": "old"}), LISTING)
    assert store.load_catalog(server(env={"KEY": "new"}, start="lazy", idle_timeout=3, call_timeout=9)) is not None


def test_a_server_that_never_listed_is_recorded(store):
    store.save_catalog(server(), OVERDUE)
    assert store.load_catalog(server()) is OVERDUE
    assert store.load_catalog(server(command="other")) is None
    store.save_catalog(server(), LISTING)
    assert store.load_catalog(server()) == LISTING


def test_two_servers_do_not_share_a_file(store) -> None:
    store.save_catalog(server("a"), LISTING)
    assert store.load_catalog(server("b")) is None


def test_no_secret_reaches_the_disk(store) -> None:
    store.save_catalog(server(env={"API_KEY": "s3cret"}, args=["--token", "s3cret"]), LISTING)
    path = kept(store)
    assert "s3cret" not in path.name
    assert b"s3cret" not in path.read_bytes()


def test_files_are_private_whatever_the_umask(store) -> None:
    before = os.umask(0)
    try:
        store.save_catalog(server(), LISTING)
        store.socket_path()
    finally:
        os.umask(before)
    assert stat.S_IMODE(kept(store).stat().st_mode) == 0o600
    for directory in (store.directory, store.directory / "catalogs"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_failed_write_leaves_the_old_file(store, monkeypatch) -> None:
    store.save_catalog(server(), LISTING)
    before = kept(store).read_bytes()

    def full(_self, _target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save_catalog(server(), Listing(items={}, capabilities={}, instructions=None))
    assert kept(store).read_bytes() == before  # and `kept` finds one file only


def test_sockets_lists_this_directorys_gateways(store) -> None:
    mine = store.socket_path()
    assert str(os.getpid()) in mine.name
    assert mine.parent == store.directory
    for name in (mine.name, "control-1.sock", "control-2.new", "other.sock"):
        (store.directory / name).touch()
    assert store.sockets() == sorted([store.directory / "control-1.sock", mine])


def test_the_state_directory_follows_the_environment() -> None:
    assert default_directory({ENVIRONMENT: "/a/b", "XDG_STATE_HOME": "/x"}) == Path("/a/b")
    assert default_directory({"XDG_STATE_HOME": "/x"}) == Path("/x/trio-mcp-gateway")
    for unset in ({}, {ENVIRONMENT: "", "XDG_STATE_HOME": ""}):
        assert default_directory(unset) == Path.home() / ".local" / "state" / "trio-mcp-gateway"


def test_the_raw_parts_stay_raw_in_the_file(store) -> None:
    """Stored data is not re-modelled: even a number too big for any type is unchanged."""
    store.save_catalog(server(), LISTING)
    assert jsonrpc.decode_object(kept(store).read_bytes())
    assert b'{"listChanged":true,"odd":1e400}' in kept(store).read_bytes()
    assert TOOL in kept(store).read_bytes()


def test_a_pipe_instead_of_a_file_blocks_nothing(store) -> None:
    store.save_catalog(server(), LISTING)
    path = kept(store)
    path.unlink()
    os.mkfifo(path)
    assert store.load_catalog(server()) is None
    os.mkfifo(store.directory / "admin-token")
    with pytest.raises(OSError, match="not a regular file"):
        store.admin_token()


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have it belong to another user, for root and for others."""
    if os.geteuid() == 0:
        os.chown(path, 4242, -1, follow_symlinks=False)
    else:
        mine = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: mine)


def open_to(mode: int) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda path, _: path.chmod(mode)


EXPOSURES = {
    "written by all": (open_to(0o777), "0777", "chmod go-w"),
    "written by its group": (open_to(0o770), "0770", "chmod go-w"),
    "written by its group alone": (open_to(0o720), "0720", "chmod go-w"),
    "written by others alone": (open_to(0o702), "0702", "chmod go-w"),
    "sticky": (open_to(0o1777), "1777", "chmod go-w"),
    "of another user": (give_away, "uid", "chown"),
}
exposures = pytest.mark.parametrize(("expose", "problem", "fix"), EXPOSURES.values(), ids=EXPOSURES)


@exposures
@pytest.mark.parametrize("part", [".", "catalogs", "changes", "tokens"])
def test_a_directory_others_can_write_is_not_used(part, expose, problem, fix, store, monkeypatch) -> None:
    token = store.admin_token()
    store.write(store.directory / part / "kept.json", b"{}")
    path = (store.directory / part).resolve()
    expose(path, monkeypatch)
    with pytest.raises(ConfigError, match=rf"{path} .*{problem}.*`{fix} .*{re.escape(str(path))}`"):
        store.check()
    for use in (
        store.admin_token,
        store.read_admin_token,
        store.socket_path,
        lambda: store.write(store.directory / part / "new.json", b""),
        lambda: store.save_catalog(server(), LISTING),
    ):
        with pytest.raises(PermissionError, match=problem):
            use()
    assert token not in {path.name for path in store.directory.rglob("*")}


@exposures
def test_a_file_others_can_write_is_not_read(expose, problem, fix, store, monkeypatch) -> None:
    store.admin_token()
    store.save_catalog(server(), LISTING)
    for path in (store.directory / "admin-token", kept(store)):
        expose(path, monkeypatch)
        with pytest.raises(PermissionError, match=rf"{problem}.*`{fix}"):
            read_plain(path)
    with pytest.raises(PermissionError, match=problem):
        store.admin_token()
    assert store.load_catalog(server()) is None


def test_directories_readable_by_others_are_used(store) -> None:
    token = store.admin_token()
    store.directory.chmod(0o755)
    (store.directory / "admin-token").chmod(0o644)
    store.check()
    assert store.admin_token() == token


def test_a_link_instead_of_a_file_is_refused(store, tmp_path) -> None:
    secret = tmp_path / "elsewhere"
    secret.write_text("a-token-of-somewhere-else\n")
    secret.chmod(0o600)
    store.make(store.directory)
    (store.directory / "admin-token").symlink_to(secret)
    with pytest.raises(OSError, match="symbolic link"):
        store.admin_token()
    (store.directory / "admin-token").unlink()
    for name in (f".new-token-{os.getpid()}", ".new-"):  # where an attacker could guess that a file will be made
        (store.directory / name).symlink_to(secret)
    assert store.admin_token()
    assert secret.read_text() == "a-token-of-somewhere-else\n"


def test_only_ones_own_directory_link_is_followed(tmp_path, monkeypatch) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.mkdir(mode=0o700)
    link.symlink_to(target)
    token = Store(link).admin_token()
    Store(link).check()
    target.chmod(0o777)
    with pytest.raises(ConfigError, match=f"{target} can be written"):
        Store(link).check()
    target.chmod(0o700)
    assert Store(link).admin_token() == token
    (tmp_path / "changes").mkdir()
    (target / "changes").symlink_to(tmp_path / "changes")
    Store(link).check()
    (tmp_path / "changes").chmod(0o777)
    with pytest.raises(ConfigError, match="changes can be written"):
        Store(link).check()
    (target / "changes").unlink()
    give_away(link, monkeypatch)
    with pytest.raises(ConfigError, match="belongs to another user"):
        Store(link).check()


def test_a_directory_swapped_by_another_user_is_unused(tmp_path, monkeypatch) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    store = Store(shared / "state")
    store.admin_token()
    store.check()  # as in a volume of a container
    store.directory.rename(shared / "gone")
    store.directory.mkdir(mode=0o755)
    (store.directory / "admin-token").write_text("planted-token-0123456789")
    give_away(store.directory, monkeypatch)
    for use in (store.admin_token, store.read_admin_token, store.socket_path):
        with pytest.raises(PermissionError, match="belongs to another user"):
            use()


def test_a_directory_created_meanwhile_by_others_is_refused(store, monkeypatch) -> None:
    store.check()
    before = Path.mkdir

    def make(path, *args, **kwargs):
        before(path, *args, **kwargs)
        if path == store.directory:
            path.chmod(0o777)

    monkeypatch.setattr(Path, "mkdir", make)
    with pytest.raises(PermissionError, match="can be written by other users"):
        store.admin_token()
    assert list(store.directory.iterdir()) == []
