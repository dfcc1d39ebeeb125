"""Calls during shutdown: drained within the grace, or cancelled and answered with an error.

Each backend's stdin goes through `tee`, so that a test reads in a file what the backend was sent.
"""

from __future__ import annotations

import json
import signal
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from tests.support.gateway_process import (
    ANSWER_WITHIN,
    STOP_WITHIN,
    HttpClient,
    bare_nursery,
    echo_backend,
    faulty_backend,
    modern_params,
    open_gateway_process,
)

POLL = 0.01  # seconds between two checks of a file that a process writes
CELLS = [("legacy", "stdio"), ("modern", "stdio"), ("legacy", "http"), ("modern", "http")]
every_cell = pytest.mark.parametrize("cell", CELLS, ids="-".join)


class Stopping:
    """A gateway before one backend, a client, and what the backend was sent."""

    def __init__(self, gateway, sent, cell):
        self.gateway, self.sent, self.era = gateway, sent, cell[0]
        self.answers = {}
        self.client = gateway.stdio or HttpClient(gateway.url)
        self.arrived = {}  # id -> response on the pipe
        self.arrival = trio.Condition()

    def messages(self):
        """Every whole line that the backend was sent so far."""
        if not self.sent.exists():
            return []
        return [json.loads(line) for line in self.sent.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]

    def calls(self):
        """Id on the backend's hop by the call's `text` argument."""
        requests = [message for message in self.messages() if message.get("method") == "tools/call"]
        return {request["params"]["arguments"]["text"]: request["id"] for request in requests}

    def cancelled(self):
        """Ids of cancelled calls (a modern session's end also cancels its listen)."""
        notifications = [message for message in self.messages() if message.get("method") == "notifications/cancelled"]
        return [
            id_
            for notification in notifications
            if (id_ := notification["params"]["requestId"]) in self.calls().values()
        ]

    async def request(self, method, params):
        if self.gateway.stdio is None:
            request = self.client.request if self.era == "legacy" else self.client.call_modern
            return await request(method, params)
        request_id = await self.client.start(method, modern_params(params) if self.era == "modern" else params)
        with trio.fail_after(ANSWER_WITHIN):
            async with self.arrival:
                while request_id not in self.arrived:
                    await self.arrival.wait()
        return self.arrived[request_id]

    async def collect(self):
        """Read the pipe continuously, so that each answer is seen when it comes."""
        while line := await self.client.read_line():
            message = json.loads(line)
            async with self.arrival:
                self.arrived[message.get("id")] = message
                self.arrival.notify_all()

    async def call(self, text, seconds=0.0, name="b.sleep", **kwargs):
        """Call, and keep the answer."""
        arguments = {"seconds": seconds, "text": text, **kwargs}
        answer = await self.request("tools/call", {"name": name, "arguments": arguments})
        self.answers[text] = answer
        return answer

    async def reached(self, *texts):
        """Wait until the backend was sent these calls."""
        with trio.fail_after(ANSWER_WITHIN):
            while not self.calls().keys() >= set(texts):  # ruff: ignore[async-busy-wait]
                await trio.sleep(POLL)

    async def signal(self, number=signal.SIGTERM):
        """Send a signal and return when the gateway has taken note of it."""
        self.gateway.process.send_signal(number)
        await self.gateway.wait_stderr("draining")

    async def exit(self):
        """Return the exit status. A process that hangs takes longer than this."""
        with trio.fail_after(STOP_WITHIN):
            return await self.gateway.process.wait()


@asynccontextmanager
async def stopping(cell, folder, *, backend=None, fields=None, status=0, **settings):
    sent = folder / "sent"
    inner = backend or echo_backend("--era", "both")
    entry = {"command": "sh", "args": ["-c", 'tee "$0" | "$@"', str(sent), inner["command"], *inner["args"]]}
    config = {
        "mcpServers": {"b": entry | {"shutdown_grace": [1, 1, 1]} | (fields or {})},
        "gateway": {"start_grace": 10, **settings},
    }
    transport = "stdio" if cell[1] == "stdio" else "streamable-http"
    async with open_gateway_process(config, transport=transport, status=status) as gateway:
        found = Stopping(gateway, sent, cell)
        if cell[0] == "legacy":
            await found.client.initialize()
        await gateway.wait_stderr("backend 'b' is ready")
        async with bare_nursery() as nursery:
            if gateway.stdio is not None:
                nursery.start_soon(found.collect)
            yield found  # ruff: ignore[fallible-context-manager]
            nursery.cancel_scope.cancel()
        assert "Traceback" not in gateway.stderr_text


def text_of(answer):
    return answer["result"]["content"][0]["text"]


@pytest.mark.parametrize(
    ("cell", "number"),
    [*((cell, signal.SIGTERM) for cell in CELLS), (CELLS[0], signal.SIGINT)],
    ids=[*map("-".join, CELLS), "sigint"],
)
async def test_running_calls_finish_and_new_ones_are_refused(cell, number, tmp_path):
    gate = tmp_path / "gate"
    async with stopping(cell, tmp_path, drain_grace=30) as run, trio.open_nursery() as nursery:
        for text in ("one", "two"):
            nursery.start_soon(partial(run.call, text, 60, until=str(gate)))
        await run.reached("one", "two")
        await run.signal(number)
        refused = await run.call("late")
        assert "shutting down" in refused["error"]["message"]
        assert refused["error"]["code"] == -32603
        assert refused["error"]["data"] == {"reason": "shutting_down", "retry": True}
        assert not run.answers.keys() & {"one", "two"}  # the refusal did not wait for them
        gate.touch()
        assert await run.exit() == 0
        assert "late" not in run.calls()
    assert [text_of(run.answers[text]) for text in ("one", "two")] == ["one", "two"]
    assert run.cancelled() == []


@every_cell
async def test_calls_beyond_the_grace_are_cancelled_and_reported(cell, tmp_path):
    async with stopping(cell, tmp_path, drain_grace=0.9, status=1) as run, trio.open_nursery() as nursery:
        nursery.start_soon(run.call, "quick", 0.1)
        nursery.start_soon(run.call, "slow", 60)
        await run.reached("quick", "slow")
        began = time.monotonic()
        await run.signal()
        assert await run.exit() == 1
        assert time.monotonic() - began >= 0.9
    error = run.answers["slow"]["error"]
    assert "shutting down" in error["message"]
    assert error["data"]["backend"] == "b"
    assert text_of(run.answers["quick"]) == "quick"
    assert run.cancelled() == [run.calls()["slow"]]


@every_cell
async def test_queued_calls_are_drained_too(cell, tmp_path):
    texts = ["1", "2", "3"]
    async with stopping(cell, tmp_path, fields={"max_concurrency": 1}) as run, trio.open_nursery() as nursery:
        for text in texts:
            nursery.start_soon(run.call, text, 0.15)
        with trio.fail_after(ANSWER_WITHIN):
            while len(run.calls()) < 1:  # ruff: ignore[async-busy-wait]
                await trio.sleep(POLL)
        if cell[1] == "stdio":  # on one pipe these were read before
            await run.request("tools/list", {})
        else:
            with trio.fail_after(ANSWER_WITHIN):
                while len(run.answers) + sum(await under_way(run)) < 3:  # ruff: ignore[async-busy-wait]
                    await trio.sleep(POLL)
        await run.signal()
        assert await run.exit() == 0
    assert [text_of(run.answers[text]) for text in texts] == texts


async def under_way(run):
    """(in flight, queued)"""
    report = (await run.client.get("/health")).json()["backends"]["b"]
    return report["in_flight"], report["queued"]


@every_cell
async def test_queued_calls_beyond_the_grace_are_never_sent(cell, tmp_path):
    options = {"fields": {"max_concurrency": 1}, "drain_grace": 0.3, "status": 1}
    async with stopping(cell, tmp_path, **options) as run, trio.open_nursery() as nursery:
        nursery.start_soon(run.call, "sent", 60)
        await run.reached("sent")
        nursery.start_soon(run.call, "queued", 60)
        if cell[1] == "stdio":
            await trio.testing.wait_all_tasks_blocked()  # the call has been written
            await run.request("tools/list", {})
        else:
            with trio.fail_after(ANSWER_WITHIN):
                while not (await under_way(run))[1]:  # ruff: ignore[async-busy-wait]
                    await trio.sleep(POLL)
        await run.signal()
        assert await run.exit() == 1
    assert all("shutting down" in run.answers[text]["error"]["message"] for text in ("sent", "queued"))
    assert list(run.calls()) == ["sent"]
    assert run.cancelled() == [run.calls()["sent"]]


@every_cell
async def test_a_second_signal_waits_for_nothing(cell, tmp_path):
    """Neither for the drain nor the shutdown sequence, which would take minutes."""
    options = {"backend": faulty_backend("hang", "--era", "both"), "fields": {"shutdown_grace": [60, 60, 1]}}
    async with stopping(cell, tmp_path, drain_grace=30, status=1, **options) as run, trio.open_nursery() as nursery:
        nursery.start_soon(run.call, "stuck", 0, "b.go")
        await run.reached("stuck")
        await run.signal()
        assert run.answers == {}
        run.gateway.process.send_signal(signal.SIGINT)
        assert await run.exit() == 1
    assert "shutting down" in run.answers["stuck"]["error"]["message"]


async def test_a_second_signal_ends_the_shutdown_sequence(tmp_path):
    options = {"backend": faulty_backend("hang"), "fields": {"shutdown_grace": [60, 60, 1]}}
    async with stopping(("legacy", "http"), tmp_path, drain_grace=0.1, status=1, **options) as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.call, "stuck", 0, "b.go")
            await run.reached("stuck")
            await run.signal()
        await run.gateway.wait_stderr("backend 'b' is draining")
        run.gateway.process.send_signal(signal.SIGTERM)
        assert await run.exit() == 1


async def test_a_stalled_client_delays_no_second_signal(tmp_path):
    arguments = {"name": "b.big", "arguments": {"n": 8_000_000, "text": "unread"}}
    async with stopping(("legacy", "http"), tmp_path, drain_grace=60, status=None) as run:
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": arguments}
        async with run.client.stream(message):  # reads the head, and then nothing
            await run.signal()
            run.gateway.process.send_signal(signal.SIGTERM)
            assert await run.exit() in {0, 1}


async def test_eof_gives_running_calls_one_second(tmp_path):
    gate = tmp_path / "gate"
    async with stopping(("legacy", "stdio"), tmp_path) as run, trio.open_nursery() as nursery:
        nursery.start_soon(partial(run.call, "quick", 60, until=str(gate)))
        await run.reached("quick")
        await run.client.sending.aclose()
        gate.touch()
        assert await run.exit() == 0
    assert text_of(run.answers["quick"]) == "quick"


async def test_eof_waits_no_longer_than_a_client(tmp_path):
    """A client that closes stdin sends SIGTERM 2 s later: all must be over."""
    async with stopping(("legacy", "stdio"), tmp_path, drain_grace=30, status=1) as run:
        asked = [
            await run.client.start("tools/call", {"name": "b.sleep", "arguments": {"seconds": 60, "text": text}})
            for text in ("slow", "unwanted")
        ]
        await run.reached("slow", "unwanted")
        await run.client.notify("notifications/cancelled", {"requestId": asked[1]})
        began = time.monotonic()
        await run.client.sending.aclose()
        await run.exit()
        assert 1 <= time.monotonic() - began < 15  # far less than the grace
        assert set(run.cancelled()) == set(run.calls().values())
        with trio.fail_after(ANSWER_WITHIN):
            async with run.arrival:
                while asked[0] not in run.arrived:
                    await run.arrival.wait()
        assert "stdin has ended" in run.arrived[asked[0]]["error"]["message"]
        assert asked[1] not in run.arrived


async def test_a_signal_stops_a_starting_backend_immediately(tmp_path):
    config = {"mcpServers": {"b": echo_backend("--hang", "initialize") | {"shutdown_grace": [1, 1, 1]}}}
    async with open_gateway_process(config) as gateway:
        assert (await HttpClient(gateway.url).get("/health")).json()["backends"]["b"]["state"] == "starting"
        gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() == 0


async def test_a_signal_ends_backoff_and_failed_backends(tmp_path):
    never = {"restart": {"max_quick_failures": 1}}
    config = {"mcpServers": {"away": faulty_backend("exit_at_once"), "failed": faulty_backend("exit_at_once") | never}}
    async with open_gateway_process(config) as gateway:
        await gateway.wait_stderr("backend 'away' is backoff")
        await gateway.wait_stderr("backend 'failed' is failed")
        gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() == 0


async def test_signals_during_the_last_steps_change_nothing():
    """From the end of stdin to the exit, further signals have no effect."""
    async with open_gateway_process({"mcpServers": {}}, transport="stdio") as gateway:
        await gateway.stdio.initialize()
        await gateway.stdio.sending.aclose()
        with trio.fail_after(STOP_WITHIN):
            while gateway.process.poll() is None:
                gateway.process.send_signal(signal.SIGTERM)
                gateway.process.send_signal(signal.SIGINT)
                await trio.lowlevel.checkpoint()
        assert gateway.process.returncode == 0, gateway.stderr_text
