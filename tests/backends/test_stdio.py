"""A stdio session with children that stop reading, close pipes, or write invalid messages."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import trio

from gateway.backends.opener import SessionOpener
from gateway.backends.session.handshake import Attempts
from gateway.backends.stdio import MAX_UNREAD_REPLIES, StdioSession, child_environment, open_stdio
from gateway.budget import Budget
from gateway.calls import Complete, Era
from gateway.config import parse_config, parse_server
from gateway.eras.requests import Hop
from gateway.errors import BackendError, BackendExited, BackendProtocol, BackendTooSlow, BuffersFull
from gateway.jsonrpc import raw
from gateway.processes.guard import open_guard
from gateway.processes.spawn import search_path
from tests.support.http_sessions import HOP, Received, first, outcome, start_call, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from gateway.backends.session.contracts import SessionObserver
    from gateway.processes.child import Child

PINGS = 1_000
WITHIN = 5.0  # seconds for immediate effects on a busy machine

CHILD = """
import json, os, sys, time
def write(text):
    sys.stdout.write(text); sys.stdout.flush()
def send(**message):
    write(json.dumps({"jsonrpc": "2.0", **message}) + "\\n")
def answer(message):
    if "id" not in message or "method" not in message:
        return
    if message["method"] == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "child"}}
        send(id=message["id"], result=result)
    elif message["method"] == "tools/list":
        send(id=message["id"], result={"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})
    else:
        send(id=message["id"], error={"code": -32601, "message": "unknown"})
def messages():
    while line := sys.stdin.buffer.readline():
        yield json.loads(line)
def serve(most=1 << 60):
    for message in messages():
        answer(message)
        if message.get("method") == "tools/list":
            return
"""


@asynccontextmanager
async def open_child(
    script: str, *, listener: Any = None, buffers: Budget | None = None, **fields: Any
) -> AsyncGenerator[StdioSession]:
    """Open a session with a child that runs `CHILD` and then this.

    Its end is raised as a single error.
    """
    entry = {"command": sys.executable, "args": ["-c", CHILD + script], "shutdown_grace": [0.1, 0.1, 1], **fields}
    config = parse_server("box", {"era": "legacy", **entry}, environ={})
    try:
        async with (
            open_guard(subreaper=False) as guard,
            open_stdio(
                config,
                listener or Received(),
                guard=guard,
                hop=HOP,
                attempts=Attempts("legacy", pinned=True),
                buffers=buffers or Budget(2**30),
            ) as session,
        ):
            yield session
    except BaseExceptionGroup as group:
        raise first(group) from group


async def end_of(script: str, use: Callable[[StdioSession, Received], Awaitable[None]]) -> BackendExited:
    """Return the error that ends a session used like this; it must end immediately."""
    listener = Received()
    try:
        with trio.fail_after(WITHIN):
            async with open_child(script, listener=listener) as session:
                await use(session, listener)
                await trio.sleep_forever()
    except BackendExited as problem:
        return problem


def make_session(stdin: trio.lowlevel.FdStream) -> StdioSession:
    config = parse_config(json.dumps({"mcpServers": {"box": {"command": "none"}}}), environ={}).servers["box"]
    listener: Any = SimpleNamespace(freed=lambda: None, wrote_stderr=lambda line: None, for_client=lambda *_: None)
    return StdioSession(
        config,
        cast("Child", SimpleNamespace(stdin=stdin)),
        cast("SessionObserver", listener),
        Hop(era=Era.LEGACY, client_info=raw({})),
        Budget(2**30),
    )


async def test_a_backend_ignoring_replies_uses_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    async with trio.lowlevel.FdStream(reading), trio.lowlevel.FdStream(writing) as stdin:
        session = make_session(stdin)
        ping = json.dumps({"jsonrpc": "2.0", "id": "p" * 10_000, "method": "ping"}).encode()
        with caplog.at_level(logging.WARNING):
            for _ in range(PINGS):
                session._handle_line(ping)
        assert 10_000 * PINGS > 2 * MAX_UNREAD_REPLIES  # else nothing was to be left out
        assert session._outbox.size <= MAX_UNREAD_REPLIES + len(ping)
        assert len([record for record in caplog.records if "does not read the replies" in record.message]) == 1


async def test_a_backend_that_reads_gets_every_reply() -> None:
    reading, writing = os.pipe()
    async with trio.lowlevel.FdStream(reading) as stdout, trio.lowlevel.FdStream(writing) as stdin:
        session = make_session(stdin)
        with trio.fail_after(10):
            for number in range(PINGS):
                data = json.dumps({"jsonrpc": "2.0", "id": f"{number:010000}", "method": "ping"}).encode()
                session._handle_line(data)
                received = b""
                while not received.endswith(b"\n"):
                    received += await stdout.receive_some(65_536)
                assert json.loads(received)["result"] == {}


def test_a_child_gets_a_minimal_environment_and_proxies() -> None:
    config = parse_config(b'{"mcpServers": {"s": {"command": "x", "env": {"KEY": "own"}}}}', environ={}).servers["s"]
    network = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "localhost", "SSL_CERT_FILE": "/ca.pem"}
    outside = {"PATH": "/bin", "API_TOKEN": "secret", "http_proxy": "http://me:secret@proxy:3128", **network}
    assert child_environment(config, outside) == {"PATH": "/bin", "KEY": "own", **network}


# -- children that close their stdin, or stop reading ------------------------------------------------------------------

CLOSES_STDIN = """
serve()
os.close(0)
send(method="notifications/tools/list_changed")  # for the test: it is closed now
time.sleep(1000)
"""


WRITES: dict[str, Callable[[StdioSession], object]] = {
    "call": lambda session: start_call(session, "t"),
    "ping": lambda session: session._conversation.begin("ping"),
    "list": lambda session: session._conversation.begin("tools/list"),
    "notification": lambda session: session.upkeep.pass_on("notifications/roots/list_changed", raw({})),
    "response": lambda session: session._handle_line(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'),
    "error response": lambda session: session._handle_line(b'{"jsonrpc":"2.0","id":1,"method":"vendor/unknown"}'),
}


@pytest.fixture
def silent_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system on which only a write says that stdin is closed."""

    async def wait_stdin_closed(_child: Child) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("gateway.processes.child.Child.wait_stdin_closed", wait_stdin_closed)


@pytest.mark.usefixtures("silent_kernel")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("direct", [True, False])  # as alone, and as behind others
async def test_closed_stdin_ends_the_session_at_next_write(
    write: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(session: StdioSession, listener: Received) -> None:
        await listener.change()
        if not direct:
            post = session._outbox.post
            monkeypatch.setattr(session._outbox, "post", lambda data, **_: post(data, direct=False))
        WRITES[write](session)

    assert (await end_of(CLOSES_STDIN, use)).reason == "closed its stdin"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so without a write")
@pytest.mark.parametrize("script", [CLOSES_STDIN, CLOSES_STDIN.replace("os.close(0)", "next(messages()); os.close(0)")])
async def test_closed_stdin_ends_the_session_without_a_write(script: str) -> None:
    async def use(session: StdioSession, _listener: Received) -> None:
        # Before it is closed: this is never read, or never answered.
        assert isinstance(await outcome(start_call(session, "t")), BackendExited)

    assert (await end_of(script, use)).reason == "closed its stdin"


@pytest.mark.usefixtures("silent_kernel")
async def test_closed_stdin_answers_all_calls() -> None:
    async def use(session: StdioSession, listener: Received) -> None:
        before = start_call(session, "t")
        await listener.change()
        for pending in (before, start_call(session, "t")):
            problem = await outcome(pending)
            assert isinstance(problem, BackendExited)
            assert problem.reason == "closed its stdin"

    await end_of(CLOSES_STDIN.replace("os.close(0)", "next(messages()); os.close(0)"), use)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so without a write")
async def test_an_answer_in_transit_survives_closed_stdin() -> None:
    async def use(session: StdioSession, listener: Received) -> None:
        before = start_call(session, "t")
        await listener.change()
        assert isinstance(await outcome(before), Complete)

    script = CLOSES_STDIN.replace("os.close(0)", "call = next(messages()); os.close(0)")
    await end_of(script.replace("time.sleep", 'send(id=call["id"], result={"content": []}); time.sleep'), use)


@pytest.mark.parametrize("kind", ["result", "invalid", "notification"])
async def test_a_large_message_is_handled_like_a_small_one(kind: str) -> None:
    script = """
for message in messages():
    if message.get("method") == "tools/call":
        text = "x" * (9 << 20)
        if message["params"]["name"] != "result":
            write('{"jsonrpc":"2.0","method":"notifications/none","params":{"a":"%s"}%s}\\n' % (
                text, "," if message["params"]["name"] == "invalid" else ""))
            text = "small"
        send(id=message["id"], result={"content": [{"type": "text", "text": text}]})
    else:
        answer(message)
"""
    buffers = Budget(2**30)
    with trio.fail_after(4 * WITHIN):
        async with open_child(script, buffers=buffers) as session:
            calls = [start_call(session, kind) for _ in range(2)]
            for pending in calls:
                assert text_of(await outcome(pending)) == ("x" * (9 << 20) if kind == "result" else "small")
    assert buffers.used == 0


async def test_a_result_that_fits_no_buffer_ends_its_call_only() -> None:
    script = """
for message in messages():
    if message.get("method") == "tools/call":
        send(id=message["id"], result={"content": ["x" * (100_000 if message["params"]["name"] == "big" else 1)]})
    else:
        answer(message)
"""
    buffers = Budget(50_000)
    with trio.fail_after(WITHIN):
        async with open_child(script, buffers=buffers) as session:
            big, small = start_call(session, "big"), start_call(session, "small")
            assert isinstance(await outcome(big), BuffersFull)
            assert isinstance(await outcome(small), Complete)
            buffers.most = 200_000
            assert isinstance(await outcome(start_call(session, "big")), Complete)
    assert buffers.used == 0


async def test_an_exit_is_reported_despite_write_failures() -> None:
    async def use(session: StdioSession, _listener: Received) -> None:
        await trio.lowlevel.checkpoint()
        start_call(session, "t")

    problem = await end_of(CLOSES_STDIN.replace("time.sleep(1000)", "os._exit(3)"), use)
    assert problem.reason == "exited with status 3"


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])  # in the pipe, beyond it, beyond the outbox
async def test_calls_to_a_non_reading_child_time_out(size: int) -> None:
    with trio.fail_after(4 * WITHIN):
        async with open_child("serve()\ntime.sleep(1000)\n") as session:
            await session.wait_writable()
            for _ in range(3):
                pending = start_call(session, "t", {"text": "x" * size})
                began = trio.current_time()
                with trio.move_on_after(0.3) as scope:
                    await pending.next()
                assert scope.cancelled_caught
                pending.close("the deadline has passed")
                assert trio.current_time() - began < WITHIN
            assert session.in_flight == 0
            assert isinstance(await session.upkeep.ping(timeout=0.1), BackendTooSlow)


# -- children that write invalid messages ------------------------------------------------------------------------------

PRETTY = """
def send(**message):
    write(json.dumps({"jsonrpc": "2.0", **message}, indent=%s).replace("\\n", %r) + "\\n")
for message in messages():
    answer(message)
"""
SPREAD = "wrote a JSON message spread over several lines; on stdout each message must be on one line"


async def problem_at_start(script: str, **fields: Any) -> str:
    with trio.fail_after(2 * WITHIN), pytest.raises(BackendError) as caught:
        async with open_child(script, **fields):
            pass
    return caught.value.reason


@pytest.mark.parametrize("era", ["legacy", "auto"])
@pytest.mark.parametrize("indent", ["2", "0", "'\\t'"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
async def test_a_multi_line_message_fails_the_start(era: str, indent: str, end: str) -> None:
    began = trio.current_time()
    assert (await problem_at_start(PRETTY % (indent, end), era=era)).startswith(SPREAD)
    assert trio.current_time() - began < WITHIN


@pytest.mark.parametrize("begin", ["", '{"jsonrpc": "2.0", "id": %d, "result": {\\n'])
async def test_a_multi_line_message_fails_only_its_call(begin: str) -> None:
    text = json.dumps({"jsonrpc": "2.0", "id": 0, "result": {"content": []}}, indent=2).replace("0,", "%d,")
    text = begin + '"content": []\\n}}' if begin else text.replace("\n", "\\n")
    script = f"""
serve()
for message in messages():
    if "id" in message:
        write({text!r}.replace("\\\\n", "\\n") % message["id"] + "\\n")
"""
    with trio.fail_after(WITHIN):
        async with open_child(script) as session:
            for _ in range(2):
                problem = await outcome(start_call(session, "t"))
                assert isinstance(problem, BackendProtocol)
                assert "on stdout each message must be on one line" in problem.reason
            assert "lines to stdout that are not MCP messages, the last:" in session.stray_output


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("time.sleep(1000)", ""),
        ("print('log 1'); write('log 2\\n'); time.sleep(1000)",
         "; it wrote 2 lines to stdout that are not MCP messages, the last: 'log 2'"),
        ("write('banner\\n'); time.sleep(1000)", "; it wrote a line to stdout that is not an MCP message: 'banner'"),
        ("write('Licence key: '); sys.stdin.readline(); time.sleep(1000)",
         "; its stdout ends with an unfinished line: 'Licence key:'"),
        ("write('b'); print('Error: no database', file=sys.stderr, flush=True); time.sleep(1000)",
         "; its stdout ends with an unfinished line: 'b'; stderr: Error: no database"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("era", ["legacy", "auto", "modern"])
async def test_a_start_that_takes_too_long_is_explained(era: str, script: str, said: str) -> None:
    reason = await problem_at_start(script, era=era, connect_timeout=1.0, probe_timeout=0.5)
    if era == "modern" and "connect_timeout" not in reason:
        assert reason.startswith("does not speak a modern protocol version")
        return
    assert reason == f"was not ready within 1 s (connect_timeout){said}"


async def test_an_early_exit_reports_stdout() -> None:
    reason = await problem_at_start("print('API_KEY is not set'); sys.exit(4)")
    assert reason == "exited with status 4; it wrote a line to stdout that is not an MCP message: 'API_KEY is not set'"


async def test_a_later_exit_ignores_old_stdout_lines() -> None:
    async def use(session: StdioSession, _listener: Received) -> None:
        await trio.lowlevel.checkpoint()
        start_call(session, "t")

    problem = await end_of("write('banner\\n')\nserve()\nnext(messages())\nsys.exit(4)", use)
    assert problem.reason == "exited with status 4"


@pytest.mark.parametrize("place", [".local/bin", ".cargo/bin", ".nvm/versions/node/v20.1.0/bin", ".volta/bin"])
def test_a_short_path_gains_user_install_directories(tmp_path, place):
    program = tmp_path / place / "uvx-of-a-test"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    outside = {"PATH": "/bin", "HOME": str(tmp_path)}

    def path_of(**server):
        config = parse_config(json.dumps({"mcpServers": {"a": server}}), environ={}).servers["a"]
        return child_environment(config, outside)["PATH"].split(":")

    assert str(program.parent) in path_of(command=program.name)
    assert path_of(command=program.name)[0] == "/bin"
    assert path_of(command="sh") == path_of(command="no-such-program") == path_of(command=str(program)) == ["/bin"]
    assert path_of(command=program.name, env={"PATH": "/own"}) == ["/own"]


def test_the_newest_of_several_versions_comes_first(tmp_path):
    for version in ("v9.9.9", "v20.1.0", "v18.20.1"):
        program = tmp_path / ".nvm/versions/node" / version / "bin" / "npx-of-a-test"
        program.parent.mkdir(parents=True)
        program.touch(mode=0o755)
    path = search_path("npx-of-a-test", {"PATH": "/bin", "HOME": str(tmp_path)}).split(":")
    found = [place.split("/")[-2] for place in path if "/.nvm/" in place]
    assert found == ["v20.1.0", "v18.20.1", "v9.9.9"]


COMPLAINS = """
for message in messages():
    if message["method"] == "server/discover":
        sys.stderr.write("Failed to validate request\\n" * 90); sys.stderr.flush()
        if EXITS: sys.exit(1)
    answer(message)
"""


@pytest.mark.parametrize("exits", [False, True], ids=["lives", "exits"])
async def test_a_legacy_servers_probe_complaint_is_debug(caplog: pytest.LogCaptureFixture, exits: bool):
    caplog.set_level(logging.DEBUG, logger="gateway.backend.box")
    config = parse_server(
        "box",
        {"command": sys.executable, "args": ["-c", CHILD + COMPLAINS.replace("EXITS", str(exits))]},
        environ={},
    )
    with trio.fail_after(WITHIN * 4):
        async with open_guard(subreaper=False) as guard, trio.open_nursery() as nursery:
            opener = SessionOpener(guard, name="gateway")
            await nursery.start(opener.run)
            async with opener(config, Received()) as session:
                assert session.greeting.era is Era.LEGACY
            nursery.cancel_scope.cancel()
    assert {record.levelno for record in caplog.records if "Failed to validate" in record.message} == {logging.DEBUG}


async def test_a_failed_starts_stderr_is_logged(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, logger="gateway.backend.box")
    with pytest.raises(BackendExited, match="no database"):
        async with open_child("sys.exit('no database')", era="auto"):
            pytest.fail("it started")
    assert "no database" in [record.message for record in caplog.records]
