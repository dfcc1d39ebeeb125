"""`mcp-gateway check`: findings with their location and a caret, without secrets."""

from __future__ import annotations

import json

import pytest

from gateway.cli import main
from gateway.cli.places import Place, Places
from gateway.config import parse_config
from gateway.errors import ConfigError

SECRET = "s3cr3t"


@pytest.fixture
def check(capsys, tmp_path):
    def run(text, *args):
        path = tmp_path / "c.json"
        path.write_text(text, encoding="utf-8")
        status = main(["check", str(path), *args])
        out, err = capsys.readouterr()
        assert SECRET not in out + err
        return status, out, err.replace(str(tmp_path) + "/", "")

    return run


BAD = """{
  "mcpServers": {
    "slow": {"command": "s3cr3t", "env": {"TOKEN": "s3cr3t"}, "call_timeout": -1}
  }
}"""


def test_a_wrong_value_has_a_caret_under_it(check):
    status, out, err = check(BAD)
    assert (status, out) == (2, "")
    assert err.splitlines()[:2] == [
        "error: server 'slow': field 'call_timeout' must be a number of seconds above 0",
        "  --> c.json:3:79",
    ]
    shown, caret = err.splitlines()[2:]
    assert shown[caret.index("^") :].startswith("-1")


def test_debug_shows_where_a_finding_comes_from(check):
    for words in (["--debug", "check"], ["check", "--debug"]):
        assert main([*words, "/no/such/file"]) == 2
    status, _, err = check(BAD)
    assert err.count("Traceback") == 2
    assert err.count("ConfigError") >= 2
    assert status == 2


def test_invalid_json_shows_a_location_too(check):
    status, _, err = check('{"mcpServers": {"a": {"command": "s3cr3t" "args": []}}}')
    assert status == 2
    place, shown, caret = err.splitlines()[1:]
    assert place == "  --> c.json:1:43"
    assert shown[caret.index("^") :].startswith('"args"')


def test_only_fields_of_a_problem_give_its_place() -> None:
    text = '{"mcpServers": {}}'
    assert Places(text).find("c.json: line 1, column 2: a name that a person chose") is None
    with pytest.raises(ConfigError) as caught:
        parse_config('{"mcpServers": {]}', environ={})
    assert [Places(text).find(line) for line in caught.value.lines] == [Place(1, 17)]


def test_a_warning_points_at_its_key(check):
    status, out, err = check('{"mcpServers": {"a": {"command": "sh", "comand": "s3cr3t"}}}')
    assert status == 0
    assert out.endswith("ok, 1 server\n")
    shown, caret = err.splitlines()[2:]
    assert shown[caret.index("^") :].startswith('"comand"')


def test_a_misspelled_key_is_reported_beside_its_error(check):
    text = '{"mcpServers": {"a": {"comand": "s3cr3t"}}}'
    status, _, err = check(text)
    assert status == 2
    assert [line for line in err.splitlines() if not line.startswith(" ")] == [
        "error: server 'a': needs exactly one of 'command' (a program to start) and 'url' (a server to reach)",
        "warning: server 'a': field 'comand' is unknown and ignored; did you mean 'command'?",
    ]
    assert len(json.loads(check(text, "--json")[1])["warnings"]) == 1


@pytest.mark.parametrize(("key", "meant"), [("acess", "access"), ("Access", "access"), ("veiws", "views")])
def test_a_misspelled_section_that_limits_is_an_error(check, key, meant):
    status, _, err = check(json.dumps({"mcpServers": {"a": {"command": "x"}}, key: {}}))
    assert status == 2
    assert f"error: c.json: section {key!r} is unknown; write {meant!r}" in err


def test_as_json(check):
    status, out, err = check(BAD, "--json")
    assert (status, err) == (2, "")
    found = json.loads(out)
    assert found["ok"] is False
    assert [(one["line"], one["column"]) for one in found["problems"]] == [(3, 79)]
    status, out, _ = check('{"mcpServers": {"a": {"command": "x", "args": ["--token", "s3cr3t"]}}}', "--json")
    assert status == 0
    assert json.loads(out)["servers"] == {"a": "stdio, runs x --token ***"}


def test_it_reports_access_and_views(check):
    config = {"mcpServers": {"a": {"command": "x"}}}
    assert "\naccess: open to all clients" in check(json.dumps(config))[1]
    hashed = "sha256:" + 64 * "0"
    key = {"name": "alice", "hash": hashed, "servers": ["a"]}
    oauth = {"resource": "https://gw.example/mcp", "issuer": "https://login.example"}
    views = {"small": {"tools": ["a.*"]}, "most": {"tools": {"exclude": ["a.rm", "a.mv"]}}}
    config |= {"views": views, "access": {"keys": [key], "oauth": oauth}}
    _, out, _ = check(json.dumps(config))
    assert "\nview small: servers *; tools a.*\n" in out
    assert "\nview most: servers *; tools * except a.rm, a.mv\n" in out
    assert "access: 1 key (1 limited); tokens of https://login.example" in out
    assert hashed not in out
    assert json.loads(check(json.dumps(config), "--json")[1])["views"] == ["small", "most"]


@pytest.mark.parametrize(
    ("config", "at"),
    [
        ('{"mcpServers": {"a": ^{"command": "x", "args": [1, ^[]]}}}', 1),
        ('{"mcpServers": {^"a": {}}}', 0),
        ('{"servers": {}, "gateway": {"separator": ^"/"}}', 0),
        ('{"servers": {"a": {"command": "x", "restart": {"jitter": ^2}}}}', 0),
        ('\\ufeff{"servers": {"a": {"command": "x", "env": {"a.b": ^[]}}}}', 0),
        ('{"servers": {"a": {"command": "x", "shutdown_grace": [1, ^0, 1]}}}', 0),
    ],
)
def test_places_are_found(config, at):
    config = config.encode().decode("unicode_escape")
    text = config.replace("^", "")
    expected = [index - count for count, index in enumerate(i for i, char in enumerate(config) if char == "^")][at]
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ={})
    assert Places(text).find(caught.value.lines[0]) == Place(1, expected + 1)


@pytest.mark.parametrize(
    "line",
    [
        '"KEY": "s3cr3t"',
        "'KEY': 's3cr3t'",
        "KEY: s3cr3t,",
        '"KEY: "s3cr3t", "x": 1',
        '"KEY": "s3cr3t',
        '"KEY": "a\\\\"s3cr3t"',
        '"KEY" "s3cr3t" s3cr3t',
        '["s3cr3t", "s3cr3t" ]',
    ],
)
def test_no_line_shows_a_secret(line):
    for column in range(1, len(line) + 2):
        excerpt = Places(line).excerpt(Place(1, column))
        assert SECRET not in excerpt
        assert excerpt.splitlines()[1].index("^") >= 6


def test_a_very_long_line_is_cut_short():
    text = '{"servers": {' + ", ".join(f'"s{i}": {{"command": "x"}}' for i in range(999)) + ', "a": {"command": []}}}'
    with pytest.raises(ConfigError) as caught:
        parse_config(text, environ={})
    places = Places(text)
    found = places.find(caught.value.lines[0])
    shown, caret = places.excerpt(found).splitlines()
    assert len(shown) < 140
    assert shown[caret.index("^") :].startswith("[]")


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ({"command": "no-such-program"}, "is not on PATH: no-such-program"),
        ({"command": "/no/such/program"}, "does not exist: /no/such/program"),
        ({"command": "./program", "cwd": "/"}, "does not exist: ./program"),
        ({"command": "sh", "env": {"PATH": "/nowhere"}}, "is not on PATH: sh"),
        ({"command": "sh"}, None),
        ({"command": "no-such-program", "disabled": True}, None),
        ({"url": "http://127.0.0.1:9/mcp"}, None),
    ],
)
def test_a_missing_program_is_a_warning(check, server, problem):
    status, out, err = check(json.dumps({"mcpServers": {"a": server}}))
    assert (status, out.endswith(": ok, 1 server\n")) == (0, True)
    if problem is None:
        assert not err
    else:
        assert err.startswith(f"warning: server 'a': field 'command' names a program that {problem}; install it")
        assert "^" in err
