"""A stdio session with children that do not read, close their pipes, or write what is not MCP."""

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

from gateway.backends.guard import open_guard
from gateway.backends.stdio import MAX_UNREAD_REPLIES, StdioSession, child_environment, open_stdio
from gateway.calls import Complete, Era
from gateway.config import parse_config, parse_server
from gateway.eras.requests import Hop
from gateway.errors import BackendExited, BackendTooSlow
from gateway.jsonrpc import raw
from tests.http_sessions import HOP, Heard, first, outcome, start_call

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable

    from gateway.backends.children import Child
    from gateway.backends.session import Listener

PINGS = 1_000
WITHIN = 5.0  # seconds within which what happens at once must have happened, on a machine that is busy

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
async def open_child(script: str, *, listener: Any = None, **fields: Any) -> AsyncGenerator[StdioSession]:
    """A session with a child that runs `CHILD` and then this; what ends it comes out as the one error it is."""
    entry = {"command": sys.executable, "args": ["-c", CHILD + script], "shutdown_grace": [0.1, 0.1, 1], **fields}
    config = parse_server("box", {"era": "legacy", **entry}, environ={})
    try:
        async with (
            open_guard(subreaper=False) as guard,
            open_stdio(config, listener or Heard(), guard=guard, hop=HOP) as session,
        ):
            yield session
    except BaseExceptionGroup as group:
        raise first(group) from group


async def end_of(script: str, use: Callable[[StdioSession, Heard], Awaitable[None]]) -> BackendExited:
    """What ends a session that is used like this; it must end at once."""
    listener = Heard()
    try:
        with trio.fail_after(WITHIN):
            async with open_child(script, listener=listener) as session:
                await use(session, listener)
                await trio.sleep_forever()
    except BackendExited as problem:
        return problem


def make_session(stdin: trio.lowlevel.FdStream) -> StdioSession:
    config = parse_config(json.dumps({"mcpServers": {"box": {"command": "none"}}}), environ={}).servers["box"]
    listener: Any = SimpleNamespace(freed=lambda: None, wrote_stderr=lambda line: None)
    return StdioSession(
        config,
        cast("Child", SimpleNamespace(stdin=stdin)),
        cast("Listener", listener),
        Hop(era=Era.LEGACY, client_info=raw({})),
    )


async def test_a_backend_that_asks_and_reads_no_reply_costs_bounded_memory(caplog: pytest.LogCaptureFixture) -> None:
    reading, writing = os.pipe()
    async with trio.lowlevel.FdStream(reading), trio.lowlevel.FdStream(writing) as stdin:
        session = make_session(stdin)
        ping = json.dumps({"jsonrpc": "2.0", "id": "p" * 10_000, "method": "ping"}).encode()
        with caplog.at_level(logging.WARNING):
            for _ in range(PINGS):
                session._take(ping)
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
                session._take(data)
                received = b""
                while not received.endswith(b"\n"):
                    received += await stdout.receive_some(65_536)
                assert json.loads(received)["result"] == {}


def test_a_child_gets_a_small_environment_with_what_its_network_needs() -> None:
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
    "response": lambda session: session._take(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'),
    "error response": lambda session: session._take(b'{"jsonrpc":"2.0","id":1,"method":"vendor/unknown"}'),
}


@pytest.fixture
def silent_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system on which only a write says that stdin is closed."""

    async def wait_stdin_closed(_child: Child) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("gateway.backends.children.Child.wait_stdin_closed", wait_stdin_closed)


@pytest.mark.usefixtures("silent_kernel")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("direct", [True, False])  # as alone, and as behind others
async def test_a_closed_stdin_ends_the_session_at_the_next_write(
    write: str, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(session: StdioSession, listener: Heard) -> None:
        await listener.change()
        if not direct:
            monkeypatch.setattr(session._outbox, "_write_now", lambda data: data)
        WRITES[write](session)

    assert (await end_of(CLOSES_STDIN, use)).reason == "closed its stdin"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says so without a write")
@pytest.mark.parametrize("script", [CLOSES_STDIN, CLOSES_STDIN.replace("os.close(0)", "next(messages()); os.close(0)")])
async def test_a_closed_stdin_ends_the_session_without_a_write(script: str) -> None:
    async def use(session: StdioSession, _listener: Heard) -> None:
        # Before it is closed: nobody ever reads this, or nobody ever answers.
        assert isinstance(await outcome(start_call(session, "t")), BackendExited)

    assert (await end_of(script, use)).reason == "closed its stdin"


@pytest.mark.usefixtures("silent_kernel")
async def test_a_closed_stdin_answers_all_calls_at_once() -> None:
    async def use(session: StdioSession, listener: Heard) -> None:
        before = start_call(session, "t")
        await listener.change()
        for ticket in (before, start_call(session, "t")):
            problem = await outcome(ticket)
            assert isinstance(problem, BackendExited)
            assert problem.reason == "closed its stdin"

    await end_of(CLOSES_STDIN.replace("os.close(0)", "next(messages()); os.close(0)"), use)


async def test_an_answer_that_was_under_way_when_stdin_was_closed_arrives() -> None:
    async def use(session: StdioSession, listener: Heard) -> None:
        before = start_call(session, "t")
        await listener.change()
        assert isinstance(await outcome(before), Complete)

    script = CLOSES_STDIN.replace("os.close(0)", "call = next(messages()); os.close(0)")
    await end_of(script.replace("time.sleep", 'send(id=call["id"], result={"content": []}); time.sleep'), use)


async def test_a_child_that_exits_says_so_although_writing_fails_too() -> None:
    async def use(session: StdioSession, _listener: Heard) -> None:
        await trio.lowlevel.checkpoint()
        start_call(session, "t")

    problem = await end_of(CLOSES_STDIN.replace("time.sleep(1000)", "os._exit(3)"), use)
    assert problem.reason == "exited with status 3"


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])  # in the pipe, beyond it, beyond the outbox
async def test_calls_to_a_child_that_reads_no_more_end_by_their_deadline(size: int) -> None:
    with trio.fail_after(4 * WITHIN):
        async with open_child("serve()\ntime.sleep(1000)\n") as session:
            await session.room()
            for _ in range(3):
                ticket = start_call(session, "t", {"text": "x" * size})
                began = trio.current_time()
                with trio.move_on_after(0.3) as scope:
                    await ticket.next()
                assert scope.cancelled_caught
                ticket.close("the deadline has passed")
                assert trio.current_time() - began < WITHIN
            assert session.in_flight == 0
            assert isinstance(await session.upkeep.ask_alive(timeout=0.1), BackendTooSlow)
