"""Secrets from files: `${file:PATH}` and `env_file`, never shown."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.cli import main
from gateway.config import diff_configs, load_config, parse_config
from gateway.config.files import UnreadableFile, parse_variables
from gateway.config.shown import shown_config
from gateway.errors import ConfigError
from gateway.reload.source import ConfigSource

SECRET = "s3cr3t-of-a-file"


def write(folder, server, **files):
    for name, text in {"token": SECRET + "\n", **files}.items():
        (folder / name).write_text(text, encoding="utf-8")
    path = folder / "config.json"
    path.write_text(json.dumps({"mcpServers": {"one": server}}), encoding="utf-8")
    return path


def load(path, **environ):
    return load_config(path, environ={"HOME": str(path.parent), **environ})


def test_a_value_from_a_file_is_never_shown(tmp_path, capsys):
    server = {
        "command": "x",
        "args": ["--plain", "${file:token}", "--url=http://h/${file:~/token}"],
        "env": {"KEY": "a${file:" + str(tmp_path / "token") + "}b"},
        "cwd": "/${file:token}",
    }
    path = write(tmp_path, server)
    one = load(path).servers["one"]
    assert one.args == ("--plain", SECRET, f"--url=http://h/{SECRET}")
    assert one.env == {"KEY": f"a{SECRET}b"}
    assert main(["check", str(path)]) in {0, 2}  # 2 where HOME is another
    shown = json.dumps(shown_config(one)) + repr(one) + "".join(capsys.readouterr())
    assert SECRET not in shown
    assert "--plain" in shown


def test_a_url_and_a_header_from_a_file(tmp_path):
    server = {"url": "https://h/${file:token}/mcp", "headers": {"Authorization": "Bearer ${file:token}"}}
    one = load(write(tmp_path, server)).servers["one"]
    assert one.url == f"https://h/{SECRET}/mcp"
    assert one.headers == {"Authorization": f"Bearer {SECRET}"}
    assert one.public_url == "https://h/***/mcp"
    assert SECRET not in json.dumps(shown_config(one)) + repr(one)


def test_env_file_variables_reach_the_child_and_config(tmp_path):
    server = {
        "command": "x",
        "envFile": ".env",
        "args": ["--key", "${KEY}", "${OUTER}"],
        "env": {"OTHER": "mine", "COPY": "${KEY}"},
    }
    path = write(tmp_path, server, **{".env": f"KEY={SECRET}\nOTHER=theirs\n"})
    one = load(path, KEY="outer", OUTER="out").servers["one"]
    assert one.env == {"KEY": SECRET, "OTHER": "mine", "COPY": SECRET}
    assert one.args == ("--key", SECRET, "out")
    assert one.env_file == ".env"
    assert SECRET not in json.dumps(shown_config(one)) + repr(one)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("A=1\nB = two words # note\n\n# c\nexport C=3", {"A": "1", "B": "two words", "C": "3"}),
        ("A='it is $X \\n # so'\r\nB=\"a\\n\\\"b\\\"\" # note\r\n", {"A": "it is $X \\n # so", "B": 'a\n"b"'}),
        ('KEY="-----BEGIN\nabc\n-----END"\nB=', {"KEY": "-----BEGIN\nabc\n-----END", "B": ""}),
        ("A=x#y\nA=z=1", {"A": "z=1"}),
        ("A=${B}", {"A": "${B}"}),
        ("", {}),
    ],
)  # fmt: skip
def test_the_format_of_an_env_file(text, found):
    assert parse_variables(text) == found


@pytest.mark.parametrize(("text", "line"), [("A=1\nnonsense", 2), ("A='x", 1), ("1A=2", 1), ('\nA="x" y\n', 2)])
def test_malformed_lines_are_counted_and_not_repeated(text, line):
    with pytest.raises(UnreadableFile) as caught:
        parse_variables(text)
    assert str(caught.value) == f"line {line} of the file 'env file' is not NAME=VALUE"


@pytest.mark.parametrize(
    ("server", "parts"),
    [
        ({"command": "x", "env_file": "nowhere"}, ["'env_file'", "there is no file 'nowhere'"]),
        ({"command": "x", "env": {"A": "${file:nowhere}"}}, ["'env.A'", "there is no file 'nowhere'"]),
        ({"command": "x", "args": ["${file:.}"]}, ["'args[0]'", "'.'"]),
        ({"command": "x", "args": ["${file:/dev/null}"]}, ["'args[0]'", "the file '/dev/null' is a device"]),
        ({"command": "x", "args": ["${file:folder}"]}, ["'args[0]'", "the file 'folder' is a directory"]),
        ({"command": "x", "env_file": "socket"}, ["'env_file'", "the file 'socket' is a socket"]),
        ({"command": "x", "args": ["${file:large}"]}, ["'args[0]'", "larger than 64 KiB"]),
        ({"command": "x", "args": ["${file:binary}"]}, ["'args[0]'", "not UTF-8"]),
        ({"command": "x", "env_file": "token"}, ["'env_file'", "line 1 of the file 'token' is not NAME=VALUE"]),
        ({"url": "http://h/", "headers": {"A": "${file:two}"}}, ["'headers.A'", "line break"]),
    ],
)
def test_an_unreadable_file_is_named_in_one_line(tmp_path, server, parts):
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as unix, contextlib.chdir(tmp_path):
        unix.bind("socket")  # by a short path: a socket's may be no longer than 107 characters
    (tmp_path / "binary").write_bytes(b"\xff\x00")
    path = write(tmp_path, server, large="x" * 70_000, two="a\nb\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    (line,) = caught.value.problems
    for part in parts:
        assert part in line
    assert SECRET not in line


def test_a_named_pipe_is_read_once_per_load(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    server = {"command": "x", "env": {"A": "${file:fifo}", "B": "${file:fifo}"}, "args": ["${file:fifo}"]}
    path = write(tmp_path, server)
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit((tmp_path / "fifo").write_bytes, b"\xef\xbb\xbfs3cret\n")
        found = load(path).servers["one"]
        assert written.result(10) == 10
    assert (found.env, found.args) == ({"A": "s3cret", "B": "s3cret"}, ("s3cret",))


def test_a_disabled_server_may_miss_its_files(tmp_path):
    server = {"command": "x", "disabled": True, "env_file": "nowhere", "args": ["${file:nowhere}"]}
    config = load(write(tmp_path, server))
    assert config.servers["one"].disabled
    assert len(config.warnings) == 2


def test_only_a_config_file_may_name_files():
    for server in ({"command": "x", "args": ["${file:/etc/hostname}"]}, {"command": "x", "env_file": "/etc/hostname"}):
        with pytest.raises(ConfigError, match="works only in a config file"):
            parse_config({"mcpServers": {"one": server}}, environ={})


def test_file_changes_are_seen_at_next_read(tmp_path):
    path = write(tmp_path, {"command": "x", "env": {"A": "${file:token}"}})
    source = ConfigSource(path, environ={})
    before = source.open()
    (tmp_path / "token").write_text("another", encoding="utf-8")
    after = source.read()
    assert diff_configs(before, after.config).changed == ("one",)
    switched = source.overlay.switch(after, "one", disabled=True).compose(after, {})
    assert switched.servers["one"].env == {"A": "another"}


def test_a_config_may_name_its_schema():
    config = parse_config({"$schema": "./schema.json", "mcpServers": {}}, environ={})
    assert config.warnings == ()
