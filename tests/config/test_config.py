"""Valid configs, and the exact message for each invalid one."""

# ruff: file-ignore[line-too-long]  (one row of a table, one line)

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.config import NEVER_RESTART, Config, RestartPolicy, ShutdownGrace, parse_config, parse_server
from gateway.config.access import Rules
from gateway.config.findings import edit_distance
from gateway.config.views import ViewConfig
from gateway.errors import ConfigError

SECRET = "s3cr3t-value"
ENVIRON = {"HOME": "/home/u", "TOKEN": SECRET, "BROKEN": f"{SECRET}\n", "EMPTY": "", "N": "7", "ON": "true"}


def parse(data: Any) -> Config:
    text = data if isinstance(data, str | bytes) else json.dumps(data)
    return parse_config(text, environ=ENVIRON)


def server(**fields: Any) -> Any:
    """Parse one server with these fields; 'command' has a default without 'url'."""
    if "url" not in fields:
        fields = {"command": "run"} | fields
    return parse({"mcpServers": {"s": fields}}).servers["s"]


def problems_of(data: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(data)
    lines = list(caught.value.problems)
    assert not any("\n" in line or SECRET in line for line in lines)
    return lines


BAD_FIELDS = [
    ({"args": "x"}, "field 'args' must be a list of strings, not a string"),
    ({"args": [True]}, "field 'args[0]' must be a string, not a boolean"),
    ({"args": ["a", 1.5]}, "field 'args[1]' must be a string, not a number"),
    ({"args": [10**30]}, "field 'args[0]' must be a string, not a number"),
    ({"args": ["a\0"]}, "field 'args[0]' must not contain a NUL character"),
    ({"args": ["\ud800"]}, "field 'args[0]' contains a lone surrogate; write the character itself"),
    ({"command": 5}, "field 'command' must be a string, not a number"),
    ({"command": " "}, "field 'command' must not be empty"),
    ({"command": "${EMPTY}"}, "field 'command' must not be empty"),
    ({"command": "a\0b"}, "field 'command' must not contain a NUL character"),
    ({"env": ["A=1"]}, "field 'env' must be an object of strings, not a list"),
    ({"env": {"A": None}}, "field 'env.A' must be a string, not null"),
    ({"env": {"A": {}}}, "field 'env.A' must be a string, not an object"),
    ({"env": {"A=B": "x"}}, "field 'env' has the name 'A=B'; a name must not be empty or contain '=' or NUL"),
    ({"env": {"": "x"}}, "field 'env' has the name ''; a name must not be empty or contain '=' or NUL"),
    ({"env": {"A": "x\0"}}, "field 'env.A' must not contain a NUL character"),
    ({"env": {"A": "${NOPE}"}}, "field 'env.A' needs the variable 'NOPE', which is not set; set it or write ${NOPE:-default}"),
    ({"env": {"A": "${TOKEN"}}, "field 'env.A' has a '${' that is never closed; write ${NAME} or ${NAME:-default}, or $${ for a literal ${"),
    ({"env": {"A": "${1X}"}}, "field 'env.A' has an invalid ${...}; write ${NAME} or ${NAME:-default}, or $${ for a literal ${"),
    ({"env": {"A": "${X:-${Y}}"}}, "field 'env.A' has an invalid ${...}; write ${NAME} or ${NAME:-default}, or $${ for a literal ${"),
    ({"env": {"A": "${input:key}"}}, "field 'env.A' uses an input prompt of another client; set a variable and write ${NAME}"),
    ({"cwd": "${userHome}/x"}, "field 'cwd' names another client's ${userHome}; write '~/' at the beginning of a path instead"),
    ({"cwd": ""}, "field 'cwd' must not be empty"),
    ({"encoding": "utf-99"}, "field 'encoding' must be an encoding known to Python, such as 'utf-8', not 'utf-99'"),
    ({"encoding": "base64"}, "field 'encoding' must be an encoding known to Python, such as 'utf-8', not 'base64'"),
    ({"encoding": "${TOKEN}"}, "field 'encoding' must be an encoding known to Python, such as 'utf-8', not the variable's value"),
    ({"encoding": "utf-16"}, "field 'encoding' cannot be 'utf-16': JSON lines need a superset of ASCII, such as 'utf-8'"),
    ({"encoding_error_handler": "loose"}, "field 'encoding_error_handler' must be one of 'strict', 'ignore', 'replace', not 'loose'"),
    ({"disabled": "yes"}, "field 'disabled' must be true or false, not a string"),
    ({"disabled": True, "enabled": True}, "field 'enabled' contradicts 'disabled'; keep one"),
    ({"transport": "pigeon"}, "field 'transport' must be one of 'stdio', 'sse', 'streamable-http' (or 'http'), not 'pigeon'"),
    ({"type": 3}, "field 'type' must be one of 'stdio', 'sse', 'streamable-http' (or 'http'), not a number"),
    ({"transport": "${TOKEN}"}, "field 'transport' must be one of 'stdio', 'sse', 'streamable-http' (or 'http'), not the variable's value"),
    ({"transport": "sse"}, "field 'transport' is 'sse', which needs 'url' instead of 'command'"),
    ({"type": "stdio", "url": "http://h"}, "field 'type' is 'stdio', which needs 'command' instead of 'url'"),
    ({"url": "http://h", "type": "http", "transport": "sse"}, "field 'transport' contradicts 'type', which has the same meaning; keep one"),
    ({"timeout": 1, "call_timeout": 2}, "field 'call_timeout' contradicts 'timeout', which has the same meaning; keep one"),
    ({"timeout": 0}, "field 'timeout' must be a number of seconds above 0"),
    ({"call_timeout": -1}, "field 'call_timeout' must be a number of seconds above 0"),
    ({"call_timeout": True}, "field 'call_timeout' must be a number of seconds above 0, not a boolean"),
    ({"call_timeout": "30"}, "field 'call_timeout' must be a number of seconds above 0, not a string (write it without quotes)"),
    ({"call_timeout": "soon"}, "field 'call_timeout' must be a number of seconds above 0, not a string"),
    ({"call_timeout": "${TOKEN}"}, "field 'call_timeout' must be a number of seconds above 0, not a string"),
    ({"call_timeout": 10**400}, "field 'call_timeout' must be a number of seconds above 0, and at most 1e+09"),
    ({"connect_timeout": []}, "field 'connect_timeout' must be a number of seconds above 0, not a list"),
    ({"max_concurrency": 0}, "field 'max_concurrency' must be a whole number of at least 1"),
    ({"max_concurrency": 1.5}, "field 'max_concurrency' must be a whole number of at least 1, not one with a fraction"),
    ({"queue_size": -1}, "field 'queue_size' must be a whole number of at least 0"),
    ({"restart": "no"}, "field 'restart' must be an object, true or false, not a string"),
    ({"restart": {"jitter": 2}}, "field 'restart.jitter' must be a number from 0 to 1, and at most 1"),
    ({"restart": {"initial_delay": 9, "max_delay": 3}}, "field 'restart.max_delay' must not be less than 'initial_delay'"),
    ({"shutdown_grace": True}, "field 'shutdown_grace' must be a number, a list of three or an object, not a boolean"),
    ({"shutdown_grace": [1, 2]}, "field 'shutdown_grace' must have three waits (close stdin, terminate, kill), not 2"),
    ({"shutdown_grace": [1, 0, 1]}, "field 'shutdown_grace[1]' must be a number of seconds above 0"),
    ({"shutdown_grace": {"kill": "x"}}, "field 'shutdown_grace.kill' must be a number of seconds above 0, not a string"),
    ({"namespace": "a b"}, "field 'namespace' must be at most 64 letters, digits, '_', '-' and '.'"),
    ({"namespace": "a\n"}, "field 'namespace' must be at most 64 letters, digits, '_', '-' and '.'"),
    ({"era": "stone"}, "field 'era' must be one of 'auto', 'each', 'legacy', 'modern', not 'stone'"),
    ({"start": 1}, "field 'start' must be one of 'eager', 'lazy', not a number"),
    ({"idle_timeout": 0}, "field 'idle_timeout' must be a number of seconds above 0"),
    ({"url": 5}, "field 'url' must be a string, not a number"),
    ({"url": "localhost:80/mcp"}, "field 'url' must begin with http:// or https://"),
    ({"url": "ftp://h/x"}, "field 'url' must begin with http:// or https://"),
    ({"url": "http:///mcp"}, "field 'url' has no host; write it as https://HOST/PATH"),
    ({"url": "http://h:99999/"}, "field 'url' is not a valid address; check its host and port"),
    ({"url": "http://h:0/"}, "field 'url' has port 0; leave the port out or name one"),
    ({"url": "http://[::1/"}, "field 'url' is not a valid address; check its host and port"),
    ({"url": "http://h/a b"}, "field 'url' must not contain spaces, line breaks or control characters"),
    ({"url": "http://h/${BROKEN}"}, "field 'url' must not contain spaces, line breaks or control characters"),
    ({"url": "http://h", "headers": []}, "field 'headers' must be an object of strings, not a list"),
    ({"url": "http://h", "headers": {"A b": "x"}}, "field 'headers' has the name 'A b'; use only letters, digits and '-'"),
    ({"url": "http://h", "headers": {"A": "${BROKEN}"}}, "field 'headers.A' must not contain a line break; check the end of the text or variable"),
    ({"url": "http://h", "headers": {"A": "\u00e4"}}, "field 'headers.A' must be plain ASCII without control characters"),
    ({"url": "http://h", "headers": {"a": "1", "A": "2"}}, "field 'headers.A' appears twice, in different case; keep one"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "line"), BAD_FIELDS, ids=[line[7:60] for _, line in BAD_FIELDS])
def test_guarantee_g4_bad_field(fields: dict[str, Any], line: str) -> None:
    whole = fields if "url" in fields else {"command": "run"} | fields
    assert problems_of({"mcpServers": {"weather": whole}}) == [f"server 'weather': {line}"]


BAD_GATEWAY = [
    ([], "gateway: must be an object, not a list"),
    ({"separator": "/"}, "gateway: field 'separator' must be 1 to 8 letters, digits, '_', '-' and '.'"),
    ({"separator": ""}, "gateway: field 'separator' must be 1 to 8 letters, digits, '_', '-' and '.'"),
    ({"name": "a\nb"}, "gateway: field 'name' must be 1 to 128 characters in one line"),
    ({"name": 1}, "gateway: field 'name' must be 1 to 128 characters in one line, not a number"),
    ({"max_name_length": 8}, "gateway: field 'max_name_length' must be a whole number of at least 16"),
    ({"page_size": 0}, "gateway: field 'page_size' must be a whole number of at least 1"),
    ({"drain_grace": 0}, "gateway: field 'drain_grace' must be a number of seconds above 0"),
    ({"sse_after": "${NOPE}"}, "gateway: field 'sse_after' needs the variable 'NOPE', which is not set; set it or write ${NOPE:-default}"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "line"), BAD_GATEWAY)
def test_bad_gateway_section(section: Any, line: str) -> None:
    found = problems_of({"mcpServers": {}, "gateway": section})
    assert found[0] == line


SHAPE = '{"mcpServers": {"NAME": {"command": "..."}}}'
BAD_SHAPES = [
    ("[]", f"config: the top level must be an object like {SHAPE}, not a list"),
    ("3", f"config: the top level must be an object like {SHAPE}, not a number"),
    ("{}", f"config: has no section 'mcpServers'; expected {SHAPE}"),
    ('{"mcpservers": {}}', "config: has no section 'mcpServers'; is 'mcpservers' a misspelling of it?"),
    ('{"time": {"command": "x"}}', 'config: the servers must be in a section: {"mcpServers": {...}}'),
    ('{"mcpServers": {}, "servers": {}}', "config: has both 'mcpServers' and 'servers', which mean the same; keep one"),
    ('{"mcpServers": []}', "config: 'mcpServers' must be an object of servers by name, not a list"),
    ('{"servers": null}', "config: 'servers' must be an object of servers by name, not null"),
    ('{"mcpServers": {"s": "run"}}', "server 's': must be an object like {\"command\": \"...\"} or {\"url\": \"...\"}, not a string"),
    ('{"mcpServers": {"s": {}}}', "server 's': needs exactly one of 'command' (a program to start) and 'url' (a server to reach)"),
    ('{"mcpServers": {"s": {"command": "x", "url": "http://h"}}}', "server 's': has both 'command' and 'url'; keep exactly one of them"),
    ('{"mcpServers": {"my server": {"command": "x"}}}', "server 'my server': a name is 1 to 64 letters, digits, '_' and '-'; call it 'my-server' instead"),
    ('{"mcpServers": {"": {"command": "x"}}}', "server '': a name is 1 to 64 letters, digits, '_' and '-'; call it 'server' instead"),
    ('{"mcpServers": {"s": {"command": "x"}, "s": {"command": "y"}}}', "config: 'mcpServers' has the key 's' more than once; keep one"),
    ('{"mcpServers": {"s": {"command": "x", "command": "y"}}}', "config: server 's' has the key 'command' more than once; keep one"),
    ('{"mcpServers": {"s": {"command": "x", "env": {"A": "1", "A": "2"}}}}', "config: server 's': field 'env' has the key 'A' more than once; keep one"),
    ('{"mcpServers": {}, "mcpServers": {}}', "config: the top level has the key 'mcpServers' more than once; keep one"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), BAD_SHAPES)
def test_bad_shape(text: str, line: str) -> None:
    assert problems_of(text) == [line]


BAD_TEXT = [
    ("", f"config: is empty; expected {SHAPE}"),
    ("\ufeff \n", f"config: is empty; expected {SHAPE}"),
    ('{"mcpServers": {},}', "config: line 1, column 18: expected no ',' before '}'; JSON has no trailing commas"),
    ('{"a": [1,\n]}', "config: line 1, column 9: expected no ',' before ']'; JSON has no trailing commas"),
    ('{"mcpServers": {}', "config: line 1, column 18: expected ',' or the end of the list or object, but the text ends"),
    ("{\n  'mcpServers': {}}", "config: line 2, column 3: expected double quotes; JSON has no single quotes"),
    ('{\n "a" 1}', "config: line 2, column 6: expected ':' after the key, but found '1'"),
    ('{"a": 1 "b": 2}', "config: line 1, column 9: expected ',' or the end of the list or object, but found '\"'"),
    ("{a: 1}", "config: line 1, column 2: expected a key in double quotes, but found 'a'"),
    ('{"a": True}', "config: line 1, column 7: expected a value, but found 'T'"),
    ('{"a": "x}', "config: line 1, column 7: expected the closing '\"' of this string"),
    ('{"a": "x\n"}', "config: line 1, column 9: expected valid JSON: Invalid control character"),
    ('{"a": "\\q"}', "config: line 1, column 8: expected valid JSON: Invalid \\escape"),
    ("{} {}", "config: line 1, column 4: expected nothing more after the end of the config, but found '{'"),
    ('{\n // mine\n "a": "http://h"}', "config: line 2, column 2: expected a key in double quotes, but found '/'; comments (// and /* */) are not JSON, remove them"),
    ('{"a": 1, /* mine */ "b": 2}', "config: line 1, column 10: expected a key in double quotes, but found '/'; comments (// and /* */) are not JSON, remove them"),
    ('{"u": "http://h", }', "config: line 1, column 17: expected no ',' before '}'; JSON has no trailing commas"),
    ('{"a": NaN}', "config: contains NaN or Infinity, which are not JSON; write a number"),
    ('{"a": -Infinity}', "config: contains NaN or Infinity, which are not JSON; write a number"),
    ("[" * 100_000, f"config: is nested too deeply; expected {SHAPE}"),
    ('{"a": ' + "9" * 5000 + "}", "config: contains a number of thousands of digits"),
    (b'{\n"a": "\xff"}', "config: line 2: is not UTF-8 text; save it as UTF-8"),
    ('{"a": 1}'.encode("utf-16"), "config: is UTF-16 text; save it as UTF-8"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), BAD_TEXT, ids=[line[:60] for _, line in BAD_TEXT])
def test_bad_text(text: str | bytes, line: str) -> None:
    assert problems_of(text) == [line]


def test_all_problems_of_a_file_are_reported_together() -> None:
    lines = problems_of({
        "mcpServers": {"a": {"command": 1, "args": "x"}, "b": {}},
        "gateway": {"drain_grace": 0},
    })
    assert [line.split(" ", 3)[:3] for line in lines] == [
        ["server", "'a':", "field"],
        ["server", "'a':", "field"],
        ["server", "'b':", "needs"],
        ["gateway:", "field", "'drain_grace'"],
    ]


WARNED_FIELDS = [
    ({"comand": "x", "command": "y"}, "field 'comand' is unknown and ignored; did you mean 'command'?"),
    ({"callTimeout": 3}, "field 'callTimeout' is unknown and ignored; did you mean 'call_timeout'?"),
    ({"serverUrl": "x"}, "field 'serverUrl' is unknown and ignored; did you mean 'url'?"),
    ({"zzz": 1}, "field 'zzz' is unknown and ignored"),
    ({"zzz": "${NOPE}"}, "field 'zzz' is unknown and ignored"),
    ({"name": "x"}, "field 'name' is ignored: the server's key is its name"),
    ({"_comment": "x"}, "field '_comment' is ignored as a comment"),
    ({"alwaysAllow": []}, "field 'alwaysAllow' belongs to another client and is ignored"),
    ({"args": [8080]}, "field 'args[0]' is a number and was taken as a string; write it in quotes"),
    ({"env": {"A": 1}}, "field 'env.A' is a number and was taken as a string; write it in quotes"),
    ({"env": {"A": False}}, "field 'env.A' is a boolean and was taken as a string; write it in quotes"),
    ({"timeout": 60000}, "field 'timeout' is 60000 seconds; if milliseconds were meant, write 60"),
    ({"command": "npx -y thing"}, "field 'command' contains spaces and is not split by a shell; put the arguments into 'args'"),
    ({"headers": {}}, "field 'headers' is ignored: it applies only to servers with 'url'"),
    ({"url": "http://h", "cwd": "/"}, "field 'cwd' is ignored: it applies only to servers with 'command'"),
    ({"url": "http://u:p@h/x"}, "field 'url' contains a user name or password; an 'Authorization' entry in 'headers' is safer"),
    ({"url": "http://h", "headers": {"Accept": "x"}}, "field 'headers.Accept' is ignored: the gateway sets this header itself"),
    ({"restart": {"jiter": 0.1}}, "field 'restart.jiter' is unknown and ignored; did you mean 'jitter'?"),
    ({"disabled": True, "args": ["${NOPE}"]}, "field 'args[0]' needs the variable 'NOPE', which is not set; set it or write ${NOPE:-default}"),
    ({"disabled": True, "url": "${NOPE}"}, "field 'url' needs the variable 'NOPE', which is not set; set it or write ${NOPE:-default}"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "line"), WARNED_FIELDS, ids=[line[7:60] for _, line in WARNED_FIELDS])
def test_warned_field(fields: dict[str, Any], line: str) -> None:
    whole = fields if "url" in fields else {"command": "run"} | fields
    assert parse({"mcpServers": {"s": whole}}).warnings == (f"server 's': {line}",)


WARNED_SECTIONS = [
    ({"inputs": []}, "config: section 'inputs' belongs to another client and is ignored"),
    ({"gatway": {}}, "config: section 'gatway' is unknown and ignored; did you mean 'gateway'?"),
    ({"gateway": {"seperator": "_"}}, "gateway: field 'seperator' is unknown and ignored; did you mean 'separator'?"),
]


@pytest.mark.parametrize(("sections", "line"), WARNED_SECTIONS)
def test_warned_section(sections: dict[str, Any], line: str) -> None:
    assert parse({"mcpServers": {}} | sections).warnings == (line,)


def edits(word: str) -> set[str]:
    """Every word that is one edit away."""
    cuts = [(word[:index], word[index:]) for index in range(len(word) + 1)]
    return {
        *(a + b[1:] for a, b in cuts if b),
        *(a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1),
        *(a + letter + b[skip:] for a, b in cuts for skip in (0, 1) for letter in "asvxS-_ "),
    }


@pytest.mark.parametrize("name", ["access", "views"])
def test_a_misspelled_limiting_section_is_refused(name: str) -> None:
    near = edits(name)
    far = {twice for once in near for twice in edits(once)}
    assert far > near
    for key in {name.upper(), name.capitalize(), *far} - {name, "access", "views"}:
        with pytest.raises(ConfigError) as caught:
            parse({"mcpServers": {}, key: {}})
        assert f"section {key!r} is unknown; write" in str(caught.value)


KEY = {"name": "a", "hash": "sha256:" + "0" * 64}
SECTIONS = {
    "access": {"keys": [KEY], "oauth": {}, "allow_origins": ["https://a"], "allow_hosts": ["a"]},
    "access.keys[0]": {**dict.fromkeys(Rules.__struct_fields__), **KEY},
    "access.oauth": dict.fromkeys(("issuer", "resource", "audiences", "scopes", "introspection", "tools")),
    "views": {"v": {}},
    "views.v": dict.fromkeys(ViewConfig.__struct_fields__),
    "views.v.tools": {"include": ["*"], "exclude": []},
}
NULLS = [*SECTIONS, *(f"{owner}.{name}" for owner, members in SECTIONS.items() for name in members)]


@pytest.mark.parametrize("path", NULLS)
def test_null_in_a_section_that_limits_is_refused(path: str) -> None:
    root: dict[str, Any] = {"access": {"keys": [dict(KEY)], "oauth": {}}, "views": {"v": {"tools": {}}}}
    *owners, name = path.replace("[0]", ".0").split(".")
    place: Any = root
    for owner in owners:
        place = place[int(owner) if owner.isdigit() else owner]
    place[int(name) if name.isdigit() else name] = None
    with pytest.raises(ConfigError, match=f"{re.escape(repr(path))} is null, which restricts nothing"):
        parse({"mcpServers": {}} | root)


NAMES = ["access", "views", "keys", "oauth", "allow_origins", "allow_hosts"]
MISPLACED = [
    *((name, {"mcpServers": {}, name: {}}) for name in NAMES[2:]),
    *((name, {"mcpServers": {}, "gateway": {name: {}}}) for name in [*NAMES, "Acess", "VIEW", "acces_"]),
    *((name, {"mcpServers": {"a": {"command": "x", name: {}}}}) for name in NAMES[:2]),
]


@pytest.mark.parametrize(("name", "root"), MISPLACED)
def test_a_section_that_limits_is_refused_elsewhere(name: str, root: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"(section|field) '{name}' (has no effect here|.* the section 'access')"):
        parse(root)


@pytest.mark.parametrize(
    ("key", "distance"),
    [("acss", 2), ("ca", 5), ("acecss", 1), ("caces", 2), ("accessed", 2), ("axxxss", 3), ("xxaccess", 2), ("", 6)],
)
def test_the_distance_of_a_misspelling(key: str, distance: int) -> None:
    assert edit_distance(key, "access") == edit_distance("access", key) == distance
    assert edit_distance("ca", "abc") == 2  # letters between those that were swapped


@pytest.mark.parametrize(
    "key", ["accounts", "process", "axxess1", "reviews1", "items", "plugins", "v", "acc", "xaxcxcess"]
)
def test_other_sections_are_warned_of_only(key: str) -> None:
    (warning,) = parse({"mcpServers": {}, key: {}}).warnings
    assert repr(key) in warning


def test_shared_namespaces_are_warned_of_unless_disabled() -> None:
    one = {"command": "run", "namespace": ""}
    config = parse({"mcpServers": {"a": one, "b": one, "c": one | {"disabled": True}}})
    assert config.warnings == (
        "server 'b': field 'namespace' gives '', the same as server 'a'; tools of equal names will clash",
    )


TRANSPORTS = [
    ({}, "stdio"),
    ({"type": "STDIO"}, "stdio"),
    ({"type": "stdio", "transport": "stdio"}, "stdio"),
    ({"url": "http://h"}, None),
    ({"url": "http://h", "transport": "sse"}, "sse"),
    ({"url": "http://h", "type": "http"}, "streamable-http"),
    ({"url": "http://h", "transport": "streamableHttp"}, "streamable-http"),
    ({"url": "http://h", "transport": "streamable_http"}, "streamable-http"),
    ({"url": "https://h", "transport": "streamable-http"}, "streamable-http"),
]


@pytest.mark.parametrize(("fields", "transport"), TRANSPORTS)
def test_guarantee_g2_transport(fields: dict[str, Any], transport: str | None) -> None:
    assert server(**fields).transport == transport


VALUES = [
    ({"timeout": 5}, "call_timeout", 5.0),
    ({"call_timeout": None}, "call_timeout", 300.0),
    ({"call_timeout": "${N}"}, "call_timeout", 7.0),
    ({"max_concurrency": "${N}"}, "max_concurrency", 7),
    ({"queue_size": 0}, "queue_size", 0),
    ({"disabled": "${ON}"}, "disabled", True),
    ({"enabled": False}, "disabled", True),
    ({"enabled": True}, "disabled", False),
    ({"command": "~/bin/x"}, "command", "/home/u/bin/x"),
    ({"command": "a~/x"}, "command", "a~/x"),
    ({"cwd": "~"}, "cwd", "/home/u"),
    ({"args": ["~/a", "~", "x~/b", "${TOKEN}", 3]}, "args", ("/home/u/a", "~", "x~/b", SECRET, "3")),
    ({"env": {"A": "${TOKEN}!", "B": "$HOME", "C": True, "D": 1.5, "E": "~/x"}}, "env",
     {"A": f"{SECRET}!", "B": "$HOME", "C": "true", "D": "1.5", "E": "~/x"}),
    ({"url": "http://h", "headers": {"X": " ${TOKEN} "}}, "headers", {"X": SECRET}),
    ({"restart": True}, "restart", RestartPolicy()),
    ({"restart": False}, "restart", NEVER_RESTART),
    ({"restart": {"jitter": 0, "max_delay": None}}, "restart", RestartPolicy(jitter=0.0)),
    ({"shutdown_grace": 9}, "shutdown_grace", ShutdownGrace(close_stdin=9.0)),
    ({"shutdown_grace": "${N}"}, "shutdown_grace", ShutdownGrace(close_stdin=7.0)),
    ({"shutdown_grace": [1, "${N}", 3]}, "shutdown_grace", ShutdownGrace(1.0, 7.0, 3.0)),
    ({"shutdown_grace": {"kill": 4}}, "shutdown_grace", ShutdownGrace(kill=4.0)),
    ({"namespace": ""}, "effective_namespace", ""),
    ({"namespace": "n.1"}, "effective_namespace", "n.1"),
    ({}, "effective_namespace", "s"),
    ({"encoding": "latin-1"}, "encoding", "latin-1"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "attribute", "value"), VALUES)
def test_value(fields: dict[str, Any], attribute: str, value: object) -> None:
    found = getattr(server(**fields), attribute)
    assert found == value
    assert type(found) is type(value)


def test_a_bom_and_another_clients_section_are_accepted() -> None:
    config = parse(b"\xef\xbb\xbf" + b'{"servers": {"b": {"command": "x"}, "a": {"url": "http://h"}}}')
    assert list(config.servers) == ["b", "a"]
    assert config.warnings == ()


def test_a_dict_is_taken_as_it_is() -> None:
    config = parse_config({"mcpServers": {"s": {"command": "x", "args": ("a",)}}}, environ={}, source="api")
    assert (config.servers["s"].args, config.source) == (("a",), "api")
    with pytest.raises(ConfigError) as caught:
        parse_config({"mcpServers": {1: {}, "s": {2: 3, "command": "x", "env": {4: "5"}}}}, environ={})  # type: ignore[dict-item]
    assert caught.value.problems == (
        "config: 'mcpServers' has a name that is not a string but a number",
        "server 's': has a key that is not a string but a number",
        "server 's': field 'env' has a key that is not a string",
    )


def test_a_dict_that_holds_itself_is_refused() -> None:
    loop: dict[str, Any] = {}
    loop["x"] = loop
    with pytest.raises(ConfigError, match="nested too deeply"):
        parse_config({"mcpServers": {"s": {"command": "x", "env": loop}}}, environ={})


def test_a_missing_home_matters_only_where_needed() -> None:
    assert parse_server("s", {"command": "x"}, environ={}).command == "x"
    assert parse_server("s", {"command": "~/x"}, environ={"HOME": "/h/"}).command == "/h/x"
    with pytest.raises(ConfigError, match="field 'command' begins with '~', but no home directory is known"):
        parse_server("s", {"command": "~/x"}, environ={})


def test_one_server_alone() -> None:
    found = parse_server("s", {"command": "x", "cwdd": "/"}, environ={})
    assert (found.name, found.transport) == ("s", "stdio")
    with pytest.raises(ConfigError) as caught:
        parse_server("no good", {"args": 1}, environ={})
    assert len(caught.value.problems) == 3


def test_a_server_shows_no_secret() -> None:
    for fields in (
        {"args": ["${TOKEN}"], "env": {"KEY": "${TOKEN}"}},
        {"url": "http://u:${TOKEN}@h/p?key=${TOKEN}", "headers": {"KEY": "${TOKEN}"}},
    ):
        config = parse({"mcpServers": {"s": {"command": "run"} | fields if "url" not in fields else fields}})
        assert SECRET not in repr(config)
        assert "KEY" in repr(config)
    assert server(url="http://u:p@h:8/p?key=1").public_url == "http://h:8/p"


KEYS = st.sampled_from([
    "mcpServers", "servers", "gateway", "s", "command", "url", "args", "env", "headers", "transport", "type", "timeout",
    "restart", "shutdown_grace", "disabled", "enabled", "encoding", "namespace", "max_concurrency", "kill", "jitter",
])  # fmt: skip
TEXTS = (
    st.sampled_from(["${TOKEN}", "${NOPE:-x}", "$${", "${", "http://h:1", "~/", "\0", "\ud800", "1e999"]) | st.text()
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=5),
    max_leaves=25,
)
SERVERS = st.dictionaries(KEYS | st.text(max_size=5), st.dictionaries(KEYS, JSON_VALUES, max_size=6), max_size=3)
FILES = JSON_VALUES | st.fixed_dictionaries({"mcpServers": SERVERS}, optional={"gateway": JSON_VALUES})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(FILES)
@example({"mcpServers": {"s": {"command": "${TOKEN}", "url": "${TOKEN}", "type": "${TOKEN}", "era": "${TOKEN}"}}})
def test_any_file_content_raises_only_config_errors(value: Any) -> None:
    for data in (value, json.dumps(value)):
        if not isinstance(data, str | dict):
            continue
        try:
            lines = parse_config(data, environ=ENVIRON).warnings
        except ConfigError as error:
            lines = error.problems
            assert lines
        assert not any("\n" in line or SECRET in line for line in lines)
        assert all(line.isprintable() for line in lines)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(alphabet="{}[]\":,/*#'\\ \n1aeu${}", max_size=60))
def test_any_text_raises_only_config_errors(data: bytes | str) -> None:
    with pytest.raises(ConfigError):
        parse_config(data, environ=ENVIRON)
