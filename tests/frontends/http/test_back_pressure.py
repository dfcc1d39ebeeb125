"""HTTP clients that do not read: each costs itself, not the backend's reader."""

from __future__ import annotations

import gc
import json
import tracemalloc
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
import trio
import trio.testing

from gateway.budget import Share
from gateway.calls import Complete, Era
from gateway.config import parse_config
from tests.support import access
from tests.support.certificates import tls_settings
from tests.support.fakes import settle
from tests.support.http_frontends import log_line
from tests.support.http_server import PATIENCE, by_tls, connected, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.support.http_server import Client

pytestmark = pytest.mark.leak_check
SIZE = 16 * 2**20
"""Bytes of a response; more than the kernel takes for a client that does not read."""
KINDS = ["http/1.1 legacy", "http/1.1 modern", "https modern", "http/2 legacy", "http/2 modern"]


class Caller:
    """A client with one call at a time."""

    def __init__(self, client: Client, headers: dict[str, str], *, modern: bool) -> None:
        self.client = client
        self.modern = modern
        self.headers = {"accept": "application/json", "content-type": "application/json", **headers}

    async def call(self) -> None:
        """Send a call, whole."""
        await self.client.send(self.request())

    def request(self) -> bytes:
        """Return a call as HTTP/1.1."""
        body = json.dumps(access.tool_call(modern=self.modern)).encode()
        lines = [f"{name}: {value}" for name, value in (self.headers | {"content-length": str(len(body))}).items()]
        head = "\r\n".join(["POST /mcp HTTP/1.1", "host: localhost", *lines])
        return head.encode() + b"\r\n\r\n" + body

    async def response(self) -> tuple[int, bytes]:
        """Read the response to its end."""
        status, _, body = await self.client.answer()
        return status, body

    async def is_closed(self) -> bool:
        """Read to the end, and say whether it came before the end of the response."""
        try:
            return len(await self.client.rest()) < SIZE
        except trio.BrokenResourceError:
            return True


class StreamCaller(Caller):
    """The same over HTTP/2, each call on a stream of its own."""

    def __init__(self, client: Client, headers: dict[str, str], *, modern: bool) -> None:
        super().__init__(client, headers, modern=modern)
        self.connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.connection.initiate_connection()
        self.connection.increment_flow_control_window(2**30)
        self.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**30})

    async def call(self) -> None:
        body = json.dumps(access.tool_call(modern=self.modern)).encode()
        stream = self.connection.get_next_available_stream_id()
        head = [(":method", "POST"), (":path", "/mcp"), (":scheme", "https"), (":authority", "localhost")]
        self.connection.send_headers(stream, [*head, *self.headers.items()])
        self.connection.send_data(stream, body, end_stream=True)
        await self.client.send(self.connection.data_to_send())

    async def response(self) -> tuple[int, bytes]:
        status, body = 0, bytearray()
        with trio.fail_after(PATIENCE):
            while data := await self.client.stream.receive_some(2**16):
                for event in self.connection.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        status = int(dict(event.headers)[b":status"])
                    elif isinstance(event, h2.events.DataReceived):
                        body += event.data
                    elif isinstance(event, h2.events.StreamEnded):
                        return status, bytes(body)
        raise EOFError

    async def is_closed(self) -> bool:
        try:
            await self.response()
        except (EOFError, trio.BrokenResourceError):
            return True
        return False


class Gateway:
    """A gateway of fakes on a socket: the test is the backend, and its clients."""

    def __init__(self, harness: access.Harness, connect: Callable[[], AbstractAsyncContextManager[Client]], kind: str):
        self.harness, self.unsent = harness, harness.runtime.buffers
        self.offered = 0
        """Requests that were offered without a task."""
        self._connect, self._kind = connect, kind

    @asynccontextmanager
    async def caller(self) -> AsyncGenerator[Caller]:
        modern = "modern" in self._kind
        given = access.modern_headers() if modern else {"mcp_session_id": await self.harness.initialize(None)}
        headers = {name.replace("_", "-"): value for name, value in given.items()}
        async with self._connect() as client:
            yield (StreamCaller if "http/2" in self._kind else Caller)(client, headers, modern=modern)

    async def call(self, caller: Caller) -> None:
        """Send a call, up to the backend."""
        session = self.harness.fakes["a"].session
        before = len(session.working)
        await caller.call()
        with trio.fail_after(PATIENCE):
            while len(session.working) == before:  # noqa: ASYNC110 - the fake backend says nothing
                await settle()

    def answer(self, size: int = 10) -> None:
        """Answer the oldest call like the backend's reader: in one step, catching nothing."""
        result = {"content": [{"type": "text", "text": "x" * size}]}
        self.harness.fakes["a"].session.answer(outcome=Complete(json.dumps(result).encode(), Era.LEGACY))

    async def serve(self, caller: Caller, size: int = 10) -> None:
        """Have a call answered."""
        await self.call(caller)
        self.answer(size)
        status, body = await caller.response()
        assert (status, body.count(b"x" * size)) == (200, 1)

    async def assert_at_rest(self) -> None:
        with trio.fail_after(PATIENCE):
            # Events kept for a client that may return count in `used`.
            while self.unsent.unsent or self.harness.router.under_way:  # noqa: ASYNC110 - nothing says when
                await settle()


@asynccontextmanager
async def open_gateway(kind: str, folder: Path) -> AsyncGenerator[Gateway]:
    settings: dict[str, Any] = {}
    if not kind.startswith("http/1.1"):
        settings = tls_settings(folder)
    config = parse_config(json.dumps({"mcpServers": {"a": {"command": "x"}}}), environ={})
    harness = access.Harness(config)

    def begin(exchange: Any) -> bool:
        gateway.offered += 1
        return harness.mcp.begin(exchange)

    async with (
        access.running(harness),
        serving("ours", harness.frontend, handle_nowait=begin, unsent=harness.runtime.buffers, **settings) as server,
    ):
        protocol = "h2" if kind.startswith("http/2") else "http/1.1"
        connect = partial(by_tls, server, settings, protocol) if settings else partial(connected, server)
        gateway = Gateway(harness, connect, kind)
        yield gateway  # ruff: ignore[fallible-context-manager]
        await gateway.assert_at_rest()


@pytest.mark.parametrize("kind", KINDS)
async def test_an_unread_response_delays_no_other_call(kind: str, tmp_path: Path) -> None:
    async with open_gateway(kind, tmp_path) as gateway, gateway.caller() as slow, gateway.caller() as other:
        await gateway.call(slow)
        gateway.answer(SIZE)
        await settle()
        assert SIZE // 4 < gateway.unsent.used < SIZE * 1.01
        for _ in range(3):
            await gateway.serve(other)
        status, body = await slow.response()
        assert (status, body.count(b"x" * SIZE)) == (200, 1)
        await gateway.serve(slow)
        assert bool(gateway.offered) is not kind.startswith("http/2")


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_response_that_waits_is_kept_once(kind: str, streams: bool, tmp_path: Path) -> None:
    async with open_gateway(kind, tmp_path) as gateway, gateway.caller() as slow:
        gc.collect()
        gc.disable()
        try:
            if streams:
                slow.headers["accept"] += ", text/event-stream"
            await gateway.call(slow)
            if streams:
                gateway.harness.fakes["a"].session.working[0].notify(log_line("so that it is a stream"))
                await settle()
            tracemalloc.start()
            gateway.answer(SIZE)
            await settle()
            kept, _ = tracemalloc.get_traced_memory()
            assert SIZE // 4 < gateway.unsent.used < SIZE * 1.01
            # Over TLS the task that waits has the response, and the wire what is encrypted of it.
            assert kept < SIZE * (2.2 if kind.startswith("https") and streams else 1.2)
        finally:
            tracemalloc.stop()
            gc.enable()


@pytest.mark.parametrize("kind", KINDS)
async def test_over_the_total_bound_the_largest_connection_closes(kind: str, tmp_path: Path) -> None:
    async with (
        open_gateway(kind, tmp_path) as gateway,
        gateway.caller() as slow,
        gateway.caller() as slower,
        gateway.caller() as other,
    ):
        gateway.unsent.most = SIZE * 2
        for caller, size in ((slow, SIZE), (slower, SIZE * 2)):
            await gateway.call(caller)
            gateway.answer(size)
            await settle()
        with trio.fail_after(PATIENCE):
            while gateway.unsent.used > SIZE * 1.01:  # noqa: ASYNC110 - nothing says when
                await settle()
        await gateway.serve(other)
        assert await slower.is_closed()
        status, body = await slow.response()
        assert (status, body.count(b"x" * SIZE)) == (200, 1)


@pytest.mark.parametrize("kind", KINDS)
async def test_calls_are_refused_while_buffers_are_full(kind: str, tmp_path: Path) -> None:
    async with open_gateway(kind, tmp_path) as gateway, gateway.caller() as caller, gateway.caller() as other:
        await gateway.call(other)
        ending = Share(gateway.unsent, lambda: None)  # a connection that takes its time to end
        ending.add(gateway.unsent.most + 1)
        await caller.call()
        _, body = await caller.response()
        error = json.loads(body)["error"]
        assert error["data"] == {"reason": "busy", "retry": True, "retryAfterMs": 1000}
        assert gateway.harness.router.refused == {("a", "busy"): 1}
        gateway.answer()  # an accepted call ends as usual
        assert (await other.response())[0] == 200
        ending.release()
        await gateway.serve(caller)


@pytest.mark.parametrize("kind", KINDS)
async def test_an_exception_in_a_sink_ends_its_exchange(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_gateway(kind, tmp_path) as gateway, gateway.caller() as broken, gateway.caller() as other:
        await gateway.call(broken)
        await gateway.call(other)
        with monkeypatch.context() as patch:
            patch.setattr(gateway.harness.answers, "encode_outcome", lambda *_: 1 / 0)
            gateway.answer()
            status, _ = await broken.response()
        assert status == 500
        gateway.answer()
        assert (await other.response())[0] == 200
        await gateway.serve(other)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("modern") and "http/2" not in kind])
async def test_a_stalled_clients_pipelined_calls_wait(kind: str, tmp_path: Path) -> None:
    count = 50
    async with open_gateway(kind, tmp_path) as gateway, gateway.caller() as slow, gateway.caller() as other:
        session = gateway.harness.fakes["a"].session
        await slow.client.send(slow.request() * count)
        for number in range(count):
            with trio.fail_after(PATIENCE):
                while not session.working:  # noqa: ASYNC110 - the fake backend says nothing
                    await settle()
            if number == 0:
                gateway.answer(SIZE)
                await settle()
                assert len(session.names) == 1  # nothing more is read before the response is out
                await gateway.serve(other)
                await slow.response()
            else:
                gateway.answer(number)
                status, body = await slow.response()
                assert (status, body.count(b'"' + b"x" * number + b'"')) == (200, 1)
        assert len(session.names) == count + 1


@pytest.mark.parametrize("hangs_up_in", [0, 1])
async def test_a_hang_up_drops_the_calls_sent_ahead(hangs_up_in: int, tmp_path: Path) -> None:
    async with open_gateway("http/1.1 modern", tmp_path) as gateway:
        session = gateway.harness.fakes["a"].session
        async with gateway.caller() as caller:
            await caller.client.send(caller.request() * 20)
            for _ in range(hangs_up_in + 1):
                with trio.fail_after(PATIENCE):
                    while not session.working:  # noqa: ASYNC110 - the fake backend says nothing
                        await settle()
                if hangs_up_in and len(session.names) == 1:
                    gateway.answer()
        with trio.fail_after(PATIENCE):
            while session.working:  # noqa: ASYNC110 - the fake backend says nothing
                await settle()
        assert len(session.names) == hangs_up_in + 1
        assert len(session.withdrawn) == 1


@pytest.mark.parametrize("kind", ["http/1.1 legacy", "http/1.1 modern"])
async def test_a_call_that_is_split_anywhere_is_answered(kind: str, tmp_path: Path) -> None:
    async with open_gateway(kind, tmp_path) as gateway, gateway.caller() as caller:
        session = gateway.harness.fakes["a"].session
        data = caller.request()
        for at in range(1, len(data)):
            await caller.client.send(data[:at])
            await trio.testing.wait_all_tasks_blocked()
            assert session.working == []
            await caller.client.send(data[at:])
            with trio.fail_after(PATIENCE):
                while not session.working:  # noqa: ASYNC110 - the fake backend says nothing
                    await settle()
            gateway.answer()
            assert (await caller.response())[0] == 200
        assert len(session.names) == gateway.offered == len(data) - 1
