"""The benchmarks' correctness: wrong answers are refused, arithmetic is right. No figure is judged."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

from benchmarks import (
    answers,
    clock,
    flame,
    load,
    own,
    page,
    pipes,
    plots,
    processes,
    profile,
    questions,
    recovery,
    show,
    soak,
    soak_client,
    soak_long,
    table,
    trend,
    wire,
)
from benchmarks.peers import compare, roster
from tests.support.gateway_process import PEERS, ROOT

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


def counted(spec):
    """Return a short measurement's result, or a longer one's on a busy machine."""
    for seconds in (0.05, 0.5, 5.0):
        try:
            return load.run(spec | {"seconds": seconds})
        except answers.WrongAnswer as exc:
            if answers.NONE_IN_TIME not in str(exc):
                raise
    raise AssertionError(f"no call was answered: {spec}")


def test_the_load_generator_runs_over_pipes():
    command = [sys.executable, str(PEERS / "echo_server.py")]
    result = counted({"kind": "stdio", "command": command, "era": "legacy", "window": 4, "tool": "echo"})
    assert result["calls"] > 0
    assert result["p50"] <= result["p99"]
    assert result["per_second"] == pytest.approx(result["calls"] / result["seconds"])


def test_the_load_generator_refuses_mismatched_answers():
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


def test_table_columns_are_aligned():
    lines = table.render(["a", "bb"], [["long", 1], ["x", 22]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].startswith("|---")


# -- clocks, questions and callers -----------------------------------------------------------------------------------


def test_an_open_loop_measures_from_the_due_time():
    loop = clock.OpenLoop(1.0, 10)
    loop.due(loop.start + 0.35)  # calls were due after 0, 0.1, 0.2 and 0.3 s
    assert [round(due - loop.start, 9) for due in loop.waiting] == [0, 0.1, 0.2, 0.3]
    assert loop.next_in(loop.start + 0.35) == pytest.approx(0.05)
    for due in loop.waiting:  # a server that stalled until 0.6 s: the warm-up is over after 0.2 s
        loop.add(due, loop.start + 0.6)
    assert loop.latencies == pytest.approx([0.4, 0.3])
    loop.due(loop.start + 100)
    assert loop.numbered == loop.total == 12
    assert loop.next_in(loop.start + 100) is None


@pytest.mark.parametrize("check", ["echo", "numbered", "big"])
@pytest.mark.parametrize("size", [0, 10_000])
def test_answers_of_any_size_are_compared(check, size):
    asked = questions.make_question({"tool": "t", "era": "legacy", "check": check, "size": size, "prefix": "p "})
    request = json.loads(asked.fill(answers.FIRST_ID))
    text = asked.expected(answers.FIRST_ID)
    assert len(text) >= size
    if check != "big":
        assert text.endswith(request["params"]["arguments"]["text"])

    def answer(text, request_id=answers.FIRST_ID):
        return json.dumps({"id": request_id, "result": {"content": [{"type": "text", "text": text}]}}).encode()

    asked.check(answer(text), answers.FIRST_ID)
    wrong = [answer(text, answers.FIRST_ID + 1), answer(text + "x"), answer(text[1:] or "y"), b"{}", b""]
    for body in wrong:
        with pytest.raises(answers.WrongAnswer):
            asked.check(body, answers.FIRST_ID)


def test_unknown_tools_must_only_succeed():
    asked = questions.make_question({"tool": "t", "era": "modern", "check": "any", "arguments": {"a": "50 %"}})
    assert json.loads(asked.fill(7))["params"]["arguments"] == {"a": "50 %"}
    asked.check(b'{"id":7,"result":{"whatever":1}}', 7)
    for body in (b'{"id":7,"result":{"isError":true}}', b'{"id":7,"error":{}}', b'{"id":8,"result":{}}'):
        with pytest.raises(answers.WrongAnswer):
            asked.check(body, 7)


def test_long_lines_ids_are_found_at_either_end():
    line = b'{"jsonrpc":"2.0","id":%d,"result":{"text":"%b"}}' % (answers.FIRST_ID, b"x" * 40_000)
    last = b'{"result":{"text":"%b"},"id":%d,"jsonrpc":"2.0"}' % (b"x" * 40_000, answers.FIRST_ID)
    assert pipes.id_of(line) == pipes.id_of(last) == answers.FIRST_ID
    assert pipes.id_of(b'{"method":"notifications/message","params":{}}') is None


def test_one_call_works_for_every_load():
    """One gateway, briefly: both loops, both HTTP transports, errors as answers, whole lists."""
    members = {"gateway": {"sse_after": 5}}
    with processes.serving_gateway({"echo": processes.backend()}, "streamable-http,sse", **members) as gateway:
        gateway.wait_ready(1)
        call = {"port": gateway.port, "seconds": 0.05, "connections": 2, "tool": "echo.echo"}
        for spec in (
            {"kind": "http", "era": "legacy", "size": 10_000},
            {"kind": "http", "era": "legacy", "one_session": True},
            {"kind": "http", "era": "modern", "rate": 100},
            {"kind": "sse", "era": "legacy"},
            {"kind": "sse", "era": "legacy", "rate": 100},
        ):
            result = counted(call | spec)
            assert result["calls"] > 0
            assert result["quantiles"][0][1] == result["p50"] <= result["quantiles"][-1][1]
        wrong = call | {"kind": "http", "era": "modern", "tool": "echo.nothing"}
        made = counted(wrong | {"timeline": True})["calls_made"]
        assert made
        assert not any(ok for _sent, _answered, ok in made)
        with pytest.raises(answers.WrongAnswer):
            load.run(wrong)
        lists = {"kind": "list", "port": gateway.port, "era": "modern", "tools": 9, "count": 1, "warm_up": 0}
        assert load.run(lists)["tools"] == 9


# -- growth ----------------------------------------------------------------------------------------------------------


def make_series(seed, slope=0.0, memory=0.0):
    """Return samples of 600 s: a settling phase, then correlated noise and a slope."""
    random, noise, points = Random(seed), 0.0, []
    for second in range(0, 600, 2):
        noise = memory * noise + random.gauss(0, 1)
        settling = 40 * min(1, second / 60)
        points.append((second, 100 + settling + noise + slope * second))
    return points


@pytest.mark.parametrize("memory", [0.0, 0.5, 0.9])
def test_noise_is_no_growth(memory):
    rising = [seed for seed in range(100) if trend.fit(make_series(seed, memory=memory)).rises]
    assert len(rising) <= 3, rising


@pytest.mark.parametrize("growth", [{"slope": 0.01}, {"slope": 0.02, "memory": 0.5}])
def test_growth_is_found(growth):
    assert all(trend.fit(make_series(seed, **growth)).rises for seed in range(20))


def test_constant_counts_have_no_margin():
    assert trend.fit([(second, 7) for second in range(60)]) == trend.Trend(0.0, 0.0)
    with pytest.raises(ValueError, match="fewer than 20"):
        trend.fit([(second, 7) for second in range(10)])


def test_a_leak_fails_the_soak():
    samples = {name: make_series(1) for name in soak_long.UNITS}
    assert not soak.fatal(soak_long.make_claims(soak_client.Tally(), samples, 10, 16))
    samples["tasks"] = make_series(1, slope=0.01)
    claims = soak_long.make_claims(soak_client.Tally(), samples, 10, 16)
    assert [claim.what for claim in claims if not claim.reached] == ["slope of tasks, with its error"]
    assert soak.fatal(claims)


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_a_kill_is_judged_by_surrounding_calls():
    calls = [[0.0, 0.9, True], [0.95, 1.02, False], [0.98, 1.01, True], [1.03, 1.04, False], [1.05, 1.5, True]]
    found = recovery.judge(calls, 1.0)
    assert found == pytest.approx({"heard": 0.02, "answered": 0.02, "served": 0.5, "errors": 2})


def test_a_profile_adds_up():
    def stack(*names):
        return ["runpy:run", "trio/_core/_run.py:unrolled_run", *names]

    stacks = [
        [stack(), 2],
        [stack("gateway/frontends/http/endpoint.py:f"), 3],
        [stack("gateway/httpd/connection.py:f", "h11/_connection.py:g", "3.11/json/decoder.py:h"), 4],
        [stack("httpcore2/_async/http11.py:f", "h11/_connection.py:g"), 1],
    ]
    rows = profile.add_up(stacks, 100e-6)
    assert [(row[0], row[1]) for row in rows] == [
        (profile.SERVER, "40.0"),
        ("frontends: routing, checks, sessions", "30.0"),
        (profile.CLIENT, "10.0"),
        ("trio: scheduler and waiting", "20.0"),
        ("all", "100.0"),
    ]
    drawn = ElementTree.fromstring(flame.draw_flame([(profile.trim(names), seen) for names, seen in stacks], "a <b>"))
    widths = [float(one.get("width")) for one in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths.count(flame.WIDTH) == 3  # the paper, all, and the function that all have in common


def test_plots_are_drawn_whatever_their_numbers():
    result = load.summarize([0.001, 0.002, 0.2], 1)
    for plot in (
        plots.percentiles("p", {"a <b>": result, "c": result}),
        plots.Plot("t", "x", "y", {"a": [(1, 0), (300, 5)]}, x_log=True),
        plots.Plot("t", "x", "y", {"a": [(1, 1)], "empty": []}, y_log=True),
        plots.Plot("t", "x", "y", {}),
    ):
        ElementTree.fromstring(plots.draw(plot))


def test_the_report_is_one_page(tmp_path):
    claim = table.Claim("calls & <more>", table.Figure(1, 1, 1), least=2)
    plot = plots.Plot("t", "x", "y", {"a": [(1, 2.5), (2, 3)]}, x_names={1: "one"})
    shown = [table.Table(["a"], [["<1>"]], "title"), "text\n\n| h |\n|---|\n| cell |\n", plot]
    for question in ("call", "list"):
        path = page.keep(tmp_path, question, answers, {"cpu": "one"}, [claim], (shown, {"a": 1}))
    text = path.read_text(encoding="utf-8")
    assert all(f'id="{question}"' in text for question in ("call", "list"))
    for part in (
        "calls &amp; &lt;more&gt;",
        'class="missed"',
        "&lt;1&gt;",
        "<td>cell</td>",
        "<svg",
        "the checks of answers",
    ):
        assert part.lower() in text.lower()
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)  # nothing is fetched


def test_findings_without_a_terminal_are_markdown(capsys):
    claim = table.Claim("calls", table.Figure(1, 1, 1), least=2)
    show.report("call", {"cpu": "one"}, [claim], details=("| h |\n|---|\n| cell |", None))
    said = capsys.readouterr().out
    assert table.parts(said)[-1].rows == [["calls", "1.00", "", ">= 2", "MISSED"]]
    show.report("call", {}, [claim], details=([], {"a": 1}), as_json=True)
    assert json.loads(capsys.readouterr().out)["details"] == {"a": 1}


def test_a_tools_owner_is_found_by_name(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"mcpServers": {"a": {"command": "x"}, "b": {"command": "y", "disabled": True}}}))
    server, name = own.find_owner(path, "a.tool.of.a")
    assert (server.command, name) == ("x", "tool.of.a")
    with pytest.raises(processes.Failed):
        own.find_owner(path, "b.tool")


def test_the_command_line_lists_its_questions():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    for question in (
        "call",
        "list",
        "startup",
        "memory",
        "recovery",
        "fairness",
        "scale",
        "own",
        "profile",
        "all",
        "costs",
        "compare",
    ):
        assert question in done.stdout


def test_the_peers_are_described_by_data(tmp_path):
    assert len({peer.name for peer in roster.EVERYBODY}) == len(roster.EVERYBODY)
    installed = dict.fromkeys(("python", "bin", "node", "modules"), "installed")
    for peer in roster.EVERYBODY:
        words = peer.command(installed, ["python", "server.py"], 1234, tmp_path)
        assert "1234" in words
        # Either the command line names its servers, or its config does.
        assert "server.py" in " ".join(words) or str(tmp_path / "config.json") in words
        assert peer.frontends
        assert bool(peer.pins) == (peer.runtime != "own")
        assert all(pin.replace("==", "@").rpartition("@")[2][0].isdigit() for pin in peer.pins)
    assert json.loads((tmp_path / "config.json").read_text())["mcpServers"]["echo"]["args"] == ["server.py"]


def test_a_peer_that_answers_wrongly_gets_no_figure():
    result = {"per_second": 10.0, "p50": 0.001, "p99": 0.002}
    peer = roster.RIVALS[0]
    frontend = next(iter(peer.frontends))
    found = {(roster.OWN.name, frontend): [result], (peer.name, frontend): "wrong: request 7 got | nothing"}
    row = compare.make_row(found, peer.name, frontend, found[peer.name, frontend])
    assert row[2:] == ["wrong: request 7 got / nothing", "", "", ""]
    assert compare.make_claims([roster.OWN, peer], {"echo": found}) == []
    right = found | {(peer.name, frontend): [result | {"per_second": 4.0}]}
    (claim,) = compare.make_claims([roster.OWN, peer], {"echo": right})
    assert (claim.figure.value, claim.reached) == (2.5, True)


def test_a_choice_of_peers_includes_the_gateway():
    assert roster.choose([])[0] is roster.OWN
    assert {peer.pins[0] for peer in roster.choose(["MCP-PROXY"])[1:]} == {"mcp-proxy==0.13.0", "mcp-proxy@6.7.19"}
    with pytest.raises(SystemExit):
        roster.choose(["nobody"])


def processes_with(variable):
    """Return the pids of the processes whose environment has this entry."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if variable.encode() in (directory / "environ").read_bytes().split(b"\0"):
                found.append(directory.name)
    return found


def wait_until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_terminated_benchmark_ends_what_it_started():
    name, value = "BENCHMARK_MARK", uuid.uuid4().hex
    command = [sys.executable, "-m", "benchmarks", "call", "--only", "relay", "--rounds", "1", "--seconds", "60"]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {name: value}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as benchmark:
        try:
            wait_until(lambda: len(processes_with(f"{name}={value}")) >= 3)
        finally:
            benchmark.terminate()
        assert benchmark.wait(30) == 128 + signal.SIGTERM
    wait_until(lambda: processes_with(f"{name}={value}") == [])
