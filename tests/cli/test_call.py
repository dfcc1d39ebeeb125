"""`list`, `call`, `read` and `prompt`, against a config's servers and a running gateway."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import pytest
import trio

from gateway.access.keys import hash_key
from gateway.cli import main
from gateway.cli.arguments import split_words, typed
from gateway.cli.elicitation_form import WrongAnswer, describe, fields_of, read_answer
from gateway.cli.output import UsageError
from gateway.cli.terminal import NO_MODEL
from tests.support.gateway_process import ROOT, echo_backend, faulty_backend, open_gateway_process, peer

pytestmark = pytest.mark.leak_check

KEY = "k" * 43
QUICK = {"shutdown_grace": [0.3, 0.3, 1]}
SERVERS = {"echo": echo_backend() | QUICK, "rich": peer("rich_server.py") | QUICK}


@pytest.fixture
def cli(capsys, tmp_path, monkeypatch):
    """The command in this process, with a state directory of its own: (status, stdout, stderr)."""
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "200")

    def run_here(*args, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        return main(list(map(str, args))), *capsys.readouterr()

    return run_here


@pytest.fixture
def config(tmp_path):
    return write(tmp_path)


def write(folder, **more):
    path = folder / "config.json"
    path.write_text(json.dumps({"mcpServers": SERVERS | more}), encoding="utf-8")
    return path


def test_the_list_of_a_config(cli, tmp_path):
    config = write(tmp_path, gone={"command": "no-such-command-anywhere"})
    status, out, err = cli("list", "--config", config)
    assert status == 1  # one server failed to start, and the others are listed
    lines = [line.split() for line in out.splitlines()]
    assert ["echo.echo", "[text]", "The", "echo", "tool."] in lines
    assert ["memo://rich/one"] in lines
    assert ["prompts", "(3)"] in lines
    assert err.startswith("warning: server 'gone': ")
    assert "no-such-command-anywhere" in err


def test_warnings_about_lists_are_on_stderr(cli, tmp_path):
    config = write(tmp_path, odd=faulty_backend("bad_tool"))
    status, _, err = cli("list", "tools", "--config", config)
    assert status == 0
    assert "warning: server 'odd': tools[0] left out: it has no 'name'" in err.splitlines()
    assert all(line.startswith("warning: server 'odd': ") for line in err.splitlines())


def test_a_json_list_equals_the_clients_list(cli, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"mcpServers": {"echo": SERVERS["echo"]}}), encoding="utf-8")
    status, out, err = cli("list", "tools", "--json", "--config", path)
    assert (status, err) == (0, "")
    (tool,) = [one for one in json.loads(out)["tools"] if one["name"] == "echo.echo"]
    assert tool["inputSchema"]["properties"] == {"text": {"type": "string"}}


def test_call_arguments_follow_the_tools_schema(cli, config):
    assert cli("call", "echo.echo", "text=5", "--config", config) == (0, "5\n", "")
    status, out, _ = cli("call", "echo.params", "--config", config, "--json", "--args", '{"a": [1, {"b": null}]}')
    assert status == 0
    assert json.loads(out)["structuredContent"]["arguments"] == {"a": [1, {"b": None}]}


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_text_cut_inside_an_emoji_is_escaped(tmp_path, flags):
    path = str(write(tmp_path))
    command = [
        sys.executable,
        "-m",
        "gateway",
        "call",
        "echo.echo",
        "--args",
        r'{"text": "cut \ud83d"}',
        "--config",
        path,
    ]
    found = subprocess.run([*command, *flags], check=False, capture_output=True, timeout=30, cwd=ROOT)
    assert (found.returncode, found.stderr) == (0, b"")
    assert rb"cut \ud83d" in found.stdout


def test_is_error_sets_exit_code_1(cli, config):
    result = {"content": [{"type": "text", "text": "it broke"}], "isError": True}
    arguments = json.dumps({"result": result})
    assert cli("call", "rich.content", "--args", arguments, "--config", config) == (1, "it broke\n", "")


def test_an_unknown_tool_prints_a_hint(cli, config):
    status, out, err = cli("call", "echo.ech", "--config", config)
    assert (status, out) == (1, "")
    assert err.splitlines()[0] == "error: Unknown tool: echo.ech"
    assert err.splitlines()[1].startswith("hint: did you mean echo.echo")


ASK = {
    "message": "Who are you?",
    "requestedSchema": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2, "description": "As on the badge."},
            "age": {"type": "integer", "minimum": 0},
            "size": {"type": "string", "enum": ["s", "m"], "default": "m"},
        },
        "required": ["name"],
    },
}


def asking(method, params):
    return json.dumps({"requests": {"a": {"method": method, "params": params}}})


@pytest.mark.parametrize(
    ("stdin", "answer"),
    [
        ("x\nJo\n-1\n7\n\n\n", {"action": "accept", "content": {"name": "Jo", "age": 7, "size": "m"}}),
        ("Jo\n\n1\nn\n", {"action": "decline"}),
        ("Jo\n", {"action": "cancel"}),
    ],
)
def test_a_form_is_filled_in_at_the_prompt(cli, config, stdin, answer):
    arguments = asking("elicitation/create", ASK)
    status, out, err = cli("call", "rich.ask", "--config", config, "--json", "--args", arguments, stdin=stdin)
    assert status == 0
    assert json.loads(out)["structuredContent"]["answers"] == {"a": answer}
    assert "Who are you?" in err
    assert "As on the badge." in err


@pytest.mark.parametrize(("stdin", "action"), [("n\n", "decline"), ("y\n", "accept")])
def test_an_address_is_opened_after_agreement(cli, config, monkeypatch, stdin, action):
    opened = []
    monkeypatch.setenv("BROWSER", "x")
    monkeypatch.setattr("webbrowser.open", opened.append)
    page = {"mode": "url", "message": "Log in.", "url": "https://example.com/login", "elicitationId": "1"}
    arguments = asking("elicitation/create", page)
    _, out, err = cli("call", "rich.ask", "--config", config, "--json", "--args", arguments, stdin=stdin)
    assert json.loads(out)["structuredContent"]["answers"]["a"]["action"] == action
    assert "https://example.com/login" in err
    assert opened == (["https://example.com/login"] if action == "accept" else [])


def test_sampling_is_refused_with_a_reason(cli, config):
    arguments = asking("sampling/createMessage", {"messages": [], "maxTokens": 5})
    _, out, err = cli("call", "rich.ask", "--config", config, "--json", "--args", arguments)
    assert json.loads(out)["structuredContent"]["answers"]["a"]["error"]["message"] == NO_MODEL
    assert NO_MODEL in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_draws_a_bar_only_on_a_terminal(cli, config, monkeypatch):
    status, out, err = cli("call", "echo.progress", "n=3", "--config", config)
    assert (status, err) == (0, "")
    assert out
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert main(["call", "echo.progress", "n=3", "--config", str(config)]) == 0
    assert "echo.progress" in terminal.getvalue()
    assert "/3" in terminal.getvalue()


def test_a_resource_and_a_prompt(cli, config):
    assert cli("read", "memo://rich/one", "--config", config) == (0, "rich read memo://rich/one\n", "")
    assert cli("prompt", "rich.greet", "name=Jo", "--config", config) == (0, "user: Hello Jo, says rich.\n", "")
    status, out, err = cli("read", "memo://rich/nothing", "--config", config)
    assert (status, out) == (1, "")
    assert len(err.splitlines()) <= 2


async def test_a_gateway_that_runs_is_found_or_named(tmp_path, monkeypatch):
    state = tmp_path / "state"
    env = {"MCP_GATEWAY_STATE_DIR": str(state)}

    def run(*args):
        out, before = io.StringIO(), sys.stdout
        sys.stdout = out
        try:
            return main([*args, "--json"]), json.loads(out.getvalue())
        finally:
            sys.stdout = before

    monkeypatch.setenv("MCP_GATEWAY_KEY", KEY)
    access = {"keys": [{"name": "ada", "hash": hash_key(KEY)}]}
    async with open_gateway_process({"mcpServers": {"echo": SERVERS["echo"]}, "access": access}, env=env) as gateway:
        with trio.fail_after(20):
            wrong = ["--url", gateway.url, "--header", "authorization: Bearer other"]  # goes before the environment's
            status, result = await trio.to_thread.run_sync(run, "call", "echo.echo", "text=hi", *wrong)
            assert (status, result["error"]["code"]) == (1, "invalid_token")
            for where in (["--state-dir", str(state)], ["--url", gateway.url, "--header", "X-Test: 1"]):
                status, result = await trio.to_thread.run_sync(run, "call", "echo.echo", "text=hi", *where)
                assert (status, result["content"][0]["text"]) == (0, "hi")
            status, result = await trio.to_thread.run_sync(run, "list", "tools", "--state-dir", str(state))
            assert status == 0
            assert "echo.echo" in [tool["name"] for tool in result["tools"]]


def test_no_gateway_runs(cli):
    status, out, err = cli("list")
    assert (status, out) == (1, "")
    assert err.splitlines()[0] == "error: no gateway is running"
    assert err.splitlines()[1].startswith("hint: ")


@pytest.mark.parametrize(
    "args",
    [
        ["call", "a.b", "word"],
        ["call", "a.b", "k=v", "--args", "{}"],
        ["call", "a.b", "--args", "["],
        ["call", "a.b", "--args", "[]"],
        ["list", "tool"],
        ["list", "--config", "x", "--url", "http://x/"],
        ["list", "--header", "x"],
    ],
)
def test_wrong_usage(cli, args):
    status, out, err = cli(*args)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2


# -- without a server ----------------------------------------------------------------------------------------------


def test_words_become_the_schemas_types():
    schema = {
        "properties": {
            "text": {"type": "string"},
            "n": {"type": "integer"},
            "x": {"type": "number"},
            "yes": {"type": "boolean"},
            "some": {"type": "array"},
            "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
            "ref": {"$ref": "#/$defs/n"},
            "kind": {"enum": ["1", "2"]},
            "null": {"type": ["null", "string"]},
        },
        "$defs": {"n": {"type": "integer"}},
    }
    words = ["text=1", "n=2", "x=2.5", "yes=true", "some=[1]", "either=a", "ref=3", "kind=1", "null=null", "new=x=y"]
    assert typed(split_words(words), schema) == {
        "text": "1", "n": 2, "x": 2.5, "yes": True, "some": [1], "either": "a", "ref": 3, "kind": "1", "null": None,
        "new": "x=y",
    }  # fmt: skip
    assert typed({"either": "7", "new": "[1]"}, schema) == {"either": 7, "new": [1]}


@pytest.mark.parametrize(
    ("kind", "text"), [("integer", "1.5"), ("integer", "true"), ("boolean", "1"), ("array", "1"), ("object", "x")]
)
def test_words_that_do_not_fit_are_refused(kind, text):
    with pytest.raises(UsageError, match="key: "):
        typed({"key": text}, {"properties": {"key": {"type": kind}}})


def test_an_argument_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="'b'") as caught:
        typed({"b": "1"}, {"properties": {"a": {}}, "additionalProperties": False})
    assert caught.value.hint == "there are: a"


def test_a_circular_schema_causes_no_error():
    assert typed({"a": "1"}, {"properties": {"a": {"$ref": "#/properties/a"}}}) == {"a": 1}


def field(**schema):
    (made,) = fields_of({"properties": {"f": schema}, "required": ["f"] if schema.pop("required", False) else []})
    return made


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "", None),
        ({"type": "string", "default": "d"}, "", "d"),
        ({"type": "string", "format": "email"}, "a@b.de", "a@b.de"),
        ({"type": "string", "format": "date-time"}, "2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"),
        ({"type": "boolean"}, "No", False),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "string", "enum": ["a", "b"], "enumNames": ["A", "B"]}, "2", "b"),
        ({"type": "string", "oneOf": [{"const": "x", "title": "Ex"}]}, "x", "x"),
        ({"type": "array", "items": {"enum": ["a", "b", "c"]}}, "3, a", ["c", "a"]),
    ],
)
def test_valid_form_answers_are_accepted(schema, text, value):
    assert read_answer(field(**schema), text) == value


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "string", "required": True}, " "),
        ({"type": "string", "maxLength": 2}, "abc"),
        ({"type": "string", "format": "email"}, "a b@c"),
        ({"type": "string", "format": "uri"}, "example"),
        ({"type": "string", "format": "date"}, "1.1.2026"),
        ({"type": "string", "format": "date-time"}, "2026-01-01"),
        ({"type": "integer"}, "1.0"),
        ({"type": "integer", "maximum": 3}, "4"),
        ({"type": "number"}, "nan"),
        ({"type": "boolean"}, "perhaps"),
        ({"type": "string", "enum": ["a", "b"]}, "3"),
        ({"type": "array", "minItems": 2, "items": {"enum": ["a", "b"]}}, "a"),
    ],
)
def test_invalid_form_answers_are_rejected(schema, text):
    made = field(**schema)
    assert describe(made).endswith(": ")
    with pytest.raises(WrongAnswer):
        read_answer(made, text)
