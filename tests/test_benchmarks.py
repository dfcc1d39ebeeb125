"""The benchmarks' own honesty: wrong answers are refused, the tables' arithmetic is right. No figure is judged."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import answers, load, table, wire
from benchmarks.peers import compare, roster
from tests.support import PEERS, ROOT

RIGHT = answers.CONSTANT


def other(**changes):
    return json.dumps(json.loads(RIGHT) | changes).encode()


def test_the_echo_of_this_request_is_right():
    answers.check_echo(RIGHT, answers.FIRST_ID)
    answers.check_constant(RIGHT, answers.FIRST_ID)


@pytest.mark.parametrize(
    "body",
    [
        other(id=answers.FIRST_ID + 1),
        other(id=str(answers.FIRST_ID)),
        other(result={"content": []}),
        other(result={"content": [{"type": "text", "text": answers.TEXT % 7}]}),
        b'{"jsonrpc":"2.0","id":1000000,"error":{"code":-32603,"message":"no"}}',
        RIGHT[:-1],
        b"",
        b"[]",
    ],
)
def test_a_wrong_answer_is_refused(body):
    with pytest.raises(answers.WrongAnswer):
        answers.check_echo(body, answers.FIRST_ID)
    with pytest.raises(answers.WrongAnswer):
        answers.check_constant(body, answers.FIRST_ID)


def entry(name):
    return {"name": name, "inputSchema": {"type": "object"}}


def test_a_list_must_be_whole_and_without_doubles():
    answers.check_list([entry("a"), entry("b")], 2)
    for entries in ([entry("a")], [entry("a"), entry("a")], [entry("a"), entry("b"), entry("c")]):
        with pytest.raises(answers.WrongAnswer):
            answers.check_list(entries, 2)


HEAD = b"HTTP/1.1 200 \r\nContent-Type: %s\r\n"


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (HEAD % b"application/json" + b"content-length: 5\r\n\r\n[1,2]", b"[1,2]"),
        (
            HEAD % b"application/json" + b"Transfer-Encoding: chunked\r\n\r\n2\r\n[1\r\nA\r\n,2        \r\n0\r\n\r\n",
            b"[1,2        ",
        ),
        (
            HEAD % b"text/event-stream"
            + b"content-length: 38\r\n\r\ndata: {}\n\n: hm\r\n\r\nid: 1\r\ndata: [3]\r\n\r\n",
            b"[3]",
        ),
        (b"HTTP/1.1 202 \r\nserver: x\r\n\r\n", b""),
    ],
)
def test_responses_are_parsed_when_whole_and_not_before(response, message):
    for cut in range(len(response)):
        assert wire.parse_response(bytearray(response[:cut])) is None
    parsed = wire.parse_response(bytearray(response + b"HTTP/1.1 next"))
    assert parsed.length == len(response)
    assert parsed.message() == message
    assert parsed.status in {200, 202}


def test_the_template_makes_valid_requests_of_one_length():
    for era in ("legacy", "modern"):
        template = wire.call_template("100%.echo", era)
        first, last = (template % (i, i) for i in (answers.FIRST_ID, 9_999_999))
        assert len(first) == len(last)
        message = json.loads(first)
        assert message["id"] == answers.FIRST_ID
        assert message["params"]["name"] == "100%.echo"
        assert message["params"]["arguments"]["text"] == answers.TEXT % answers.FIRST_ID
        assert ("_meta" in message["params"]) == (era == "modern")


def test_the_load_generator_runs_over_pipes():
    command = [sys.executable, str(PEERS / "echo_server.py")]
    spec = {"kind": "stdio", "command": command, "era": "legacy", "window": 4, "seconds": 0.05, "tool": "echo"}
    result = load.run(spec)
    assert result["calls"] > 0
    assert result["p50"] <= result["p99"]
    assert result["per_second"] == pytest.approx(result["calls"] / 0.05)


def test_the_load_generator_refuses_a_server_that_answers_others():
    command = [sys.executable, str(PEERS / "echo_server.py"), "--tools", "1"]
    spec = {"kind": "stdio", "command": command, "era": "legacy", "window": 1, "seconds": 0.05, "tool": "tool_0"}
    with pytest.raises(answers.WrongAnswer):
        load.run(spec)


def test_summaries():
    result = load.summarize([0.004, 0.001, 0.002, 0.003, 0.1], 0.5)
    assert (result["p50"], result["p99"], result["per_second"]) == (0.003, 0.1, 10)
    with pytest.raises(answers.WrongAnswer):
        load.summarize([], 1)


def test_ratios_are_taken_round_by_round():
    # The medians alone would say 20 / 10 = 2; in no round was it more than 1.5.
    figure = table.ratios([15, 20, 40], [10, 40, 60])
    assert figure == table.Figure(2 / 3, 0.5, 1.5)
    assert table.differences([3, 5], [1, 1]) == table.Figure(3, 2, 4)
    assert figure.show() == "0.67 (0.50 to 1.50)"


@pytest.mark.parametrize(
    ("claim", "reached", "wanted"),
    [
        (table.Claim("a", table.Figure(0.6, 0.5, 0.7), least=0.6), True, ">= 0.6"),
        (table.Claim("a", table.Figure(0.59, 0.5, 0.7), least=0.6), False, ">= 0.6"),
        (table.Claim("a", table.Figure(0.00025, 0, 1), scale=1e3, most=0.25), True, "<= 0.25"),
        (table.Claim("a", table.Figure(0.00026, 0, 1), scale=1e3, most=0.25), False, "<= 0.25"),
        (table.Claim("a", table.Figure(1, 1, 1)), True, ""),
    ],
)
def test_claims(claim, reached, wanted):
    assert (claim.reached, claim.wanted) == (reached, wanted)
    assert ("MISSED" in claim.row()) == (not reached)


def test_a_table_is_straight():
    lines = table.render(["a", "bb"], [["long", 1], ["x", 22]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("|---")


def test_the_command_line_lists_its_questions():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    for question in ("call", "list", "startup", "memory"):
        assert question in done.stdout


def test_the_peers_are_described_by_data(tmp_path):
    assert len({peer.name for peer in roster.EVERYBODY}) == len(roster.EVERYBODY)
    installed = dict.fromkeys(("python", "bin", "node", "modules"), "installed")
    for peer in roster.EVERYBODY:
        words = peer.command(installed, ["python", "server.py"], 1234, tmp_path)
        assert "1234" in words
        # Either the command line says what stands behind it, or the config that it names does.
        assert "server.py" in " ".join(words) or str(tmp_path / "config.json") in words
        assert peer.faces
        assert bool(peer.pins) == (peer.runtime != "own")
        assert all(pin.replace("==", "@").rpartition("@")[2][0].isdigit() for pin in peer.pins)
    assert json.loads((tmp_path / "config.json").read_text())["mcpServers"]["echo"]["args"] == ["server.py"]


def test_a_peer_that_answers_wrongly_gets_no_figure():
    result = {"per_second": 10.0, "p50": 0.001, "p99": 0.002}
    peer = roster.RIVALS[0]
    face = next(iter(peer.faces))
    found = {(roster.OWN.name, face): [result], (peer.name, face): "wrong: request 7 got | nothing"}
    row = compare.make_row(found, peer.name, face, found[peer.name, face])
    assert row[2:] == ["wrong: request 7 got / nothing", "", "", ""]
    assert compare.make_claims([roster.OWN, peer], {"echo": found}) == []
    right = found | {(peer.name, face): [result | {"per_second": 4.0}]}
    (claim,) = compare.make_claims([roster.OWN, peer], {"echo": right})
    assert (claim.figure.value, claim.reached) == (2.5, True)


def test_a_choice_of_peers_always_has_the_gateway_itself():
    assert roster.choose([])[0] is roster.OWN
    assert {peer.pins[0] for peer in roster.choose(["MCP-PROXY"])[1:]} == {"mcp-proxy==0.13.0", "mcp-proxy@6.7.19"}
    with pytest.raises(SystemExit):
        roster.choose(["nobody"])
