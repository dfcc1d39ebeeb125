"""What a stdio session keeps for a child that does not read."""

from __future__ import annotations

import json
import logging
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import trio

from gateway.backends.stdio import MAX_UNREAD_REPLIES, StdioSession, child_environment
from gateway.calls import Era
from gateway.config import parse_config
from gateway.eras.requests import Hop
from gateway.jsonrpc import raw

if TYPE_CHECKING:
    import pytest

    from gateway.backends.children import Child
    from gateway.backends.conversation import Listener

PINGS = 1_000


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
