"""Lazy backends: listed without a start, started by a call, stopped only when idle."""

from __future__ import annotations

import itertools
import os
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gateway.supervisor.lifecycle import State
from tests.support.fakes import RESULT, FakeBackend, settle
from tests.support.gateway_process import ANSWER_WITHIN, START_WITHIN, HttpClient, echo_backend, open_gateway_process
from tests.support.supervision import outcome, running_supervisor

POLL = 0.01  # seconds between two looks at /health
LAZY = {"start": "lazy", "shutdown_grace": [1, 1, 1]}


class Lazy:
    """A gateway over HTTP with a legacy client; backend `b` is the one looked at."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.client = HttpClient(gateway.url)

    async def status(self, name="b"):
        return (await self.client.get("/health")).json()["backends"][name]

    async def wait_state(self, state, name="b"):
        with trio.fail_after(ANSWER_WITHIN):
            while (await self.status(name))["state"] != state:  # ruff: ignore[async-busy-wait]
                await trio.sleep(POLL)

    async def tools(self):
        return [tool["name"] for tool in (await self.client.request("tools/list"))["result"]["tools"]]

    async def pid(self):
        """The backend's own idea of its pid."""
        return (await self.client.call_tool("b.env"))["result"]["structuredContent"]["pid"]

    def count(self, state):
        return self.gateway.stderr_text.count(f"backend 'b' is {state}\n")


@asynccontextmanager
async def lazy(folder, *, backend=None, starts=None, **fields):
    """Run a gateway; in the end, the backend must have had `starts` starts."""
    config = {
        "mcpServers": {"b": (backend or echo_backend("--tools", 2)) | LAZY | fields},
        "gateway": {"start_grace": START_WITHIN},  # no list is without the backend because the machine is busy
    }
    async with open_gateway_process(config, env={"MCP_GATEWAY_STATE_DIR": str(folder)}) as gateway:
        found = Lazy(gateway)
        await found.client.initialize()
        yield found
    assert "Traceback" not in gateway.stderr_text
    assert starts is None or found.count("starting") == starts


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def catalog(folder) -> Path:
    (path,) = Path(folder, "catalogs").iterdir()
    return path


# -- starting ----------------------------------------------------------------------------------------------------------


async def test_an_unknown_backend_is_started_once_and_recorded(tmp_path):
    async with lazy(tmp_path, starts=1) as run:
        names = await run.tools()
        assert {"b.echo", "b.tool_0", "b.tool_1"} <= set(names)
    assert catalog(tmp_path).stat().st_mode & 0o777 == 0o600
    async with lazy(tmp_path, starts=0) as run:
        assert await run.tools() == names
        status = await run.status()
        assert (status["state"], status["pid"], status["tools"], status["stale"]) == ("stopped", None, len(names), True)


async def test_an_unfinished_first_listing_teaches_the_next_run(tmp_path):
    """The gateway stops right after it has listed; catalogs are otherwise stored once a second."""
    async with lazy(tmp_path) as run:
        await run.wait_state("ready")
    async with lazy(tmp_path, starts=0) as run:
        assert "b.echo" in await run.tools()


async def test_the_first_call_starts_it(tmp_path):
    async with lazy(tmp_path) as run:
        await run.tools()
    async with lazy(tmp_path, starts=1) as run:
        answer = await run.client.call_tool("b.echo", {"text": "wake up"})
        assert answer["result"]["content"][0]["text"] == "wake up"
        status = await run.status()
        assert status["state"] == "ready"
        assert is_running(status["pid"])


async def test_many_first_calls_start_it_once(tmp_path):
    async with lazy(tmp_path) as run:
        await run.tools()
    async with lazy(tmp_path, starts=1) as run:
        answers = []

        async def call(text):
            answers.append((await run.client.call_tool("b.echo", {"text": text}))["result"]["content"][0]["text"])

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(call, str(number))
        assert sorted(answers) == sorted(map(str, range(10)))


async def test_a_start_replaces_the_cached_lists(tmp_path):
    """The same command line may offer something else today: a cache may be outdated."""
    script = tmp_path / "server.py"
    template = "import sys; sys.argv[1:] = ['--tools', '{}']; exec(open({!r}).read())"
    source = echo_backend()["args"][0]
    backend = {"command": echo_backend()["command"], "args": [str(script)]}
    script.write_text(template.format(1, source))
    async with lazy(tmp_path / "state", backend=backend) as run:
        assert "b.tool_1" not in await run.tools()
    script.write_text(template.format(2, source))
    async with lazy(tmp_path / "state", backend=backend) as run:
        assert "b.tool_1" not in await run.tools()
        await run.client.call_tool("b.echo", {"text": "start"})
        with trio.fail_after(ANSWER_WITHIN):
            while "b.tool_1" not in await run.tools():  # ruff: ignore[async-busy-wait]
                await trio.sleep(POLL)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00garbage", b'{"format":1,"server":"b","items":7}'])
async def test_a_corrupt_cache_file_counts_as_absent(tmp_path, content):
    async with lazy(tmp_path) as run:
        names = await run.tools()
    catalog(tmp_path).write_bytes(content)
    async with lazy(tmp_path, starts=1) as run:
        assert await run.tools() == names
        await run.gateway.wait_stderr("ignoring the last-good catalog of 'b'")
    async with lazy(tmp_path, starts=0) as run:  # it was written again
        assert await run.tools() == names


async def test_an_unwritable_state_directory_costs_only_the_cache(tmp_path):
    """A file is in the directory's place; even root cannot create one there."""
    blocked = tmp_path / "blocked"
    blocked.write_text("")
    for _ in range(2):
        async with lazy(blocked / "state", starts=1) as run:
            assert "b.echo" in await run.tools()


async def test_a_failed_start_answers_and_stays_listed(tmp_path):
    script = tmp_path / "server.py"
    backend = {"command": echo_backend()["command"], "args": [str(script)]}
    script.write_text(f"exec(open({echo_backend()['args'][0]!r}).read())")
    restart = {"initial_delay": 0.05, "max_delay": 0.1, "max_quick_failures": 2}
    async with lazy(tmp_path / "state", backend=backend, restart=restart) as run:
        await run.tools()
    script.write_text("raise SystemExit(7)")
    async with lazy(tmp_path / "state", backend=backend, restart=restart) as run:
        answer = await run.client.call_tool("b.echo", {"text": "hello"})
        assert "exited with status 7" in answer["error"]["message"]
        assert answer["error"]["data"]["backend"] == "b"


# -- stopping when idle ------------------------------------------------------------------------------------------------


async def test_an_idle_backend_stops_stays_listed_and_restarts(tmp_path):
    async with lazy(tmp_path, idle_timeout=0.2) as run:
        names = await run.tools()
        await run.wait_state("stopped")
        first = None
        for _ in range(2):
            pid = await run.pid()
            assert pid != first
            first = pid
            await run.wait_state("stopped")
            with trio.fail_after(ANSWER_WITHIN):
                while is_running(pid):  # ruff: ignore[async-busy-wait] - the stop sequence follows the state
                    await trio.sleep(POLL)
            assert await run.tools() == names
        assert (await run.status())["pid"] is None


async def test_an_eager_one_stops_when_idle_too(tmp_path):
    async with lazy(tmp_path, start="eager", idle_timeout=0.2) as run:
        await run.wait_state("stopped")
        assert "b.echo" in await run.tools()
        assert is_running(await run.pid())


async def test_calls_in_flight_prevent_the_idle_stop(tmp_path):
    async with lazy(tmp_path, idle_timeout=0.1) as run:
        answer = await run.client.call_tool("b.sleep", {"seconds": 0.6, "text": "done"})
        assert answer["result"]["content"][0]["text"] == "done"
        await run.wait_state("stopped")


async def test_queued_calls_prevent_the_idle_stop(tmp_path):
    async with lazy(tmp_path, idle_timeout=0.3, max_concurrency=1) as run:
        pid, texts = await run.pid(), []

        async def call(text):
            answer = await run.client.call_tool("b.sleep", {"seconds": 0.25, "text": text})
            texts.append(answer["result"]["content"][0]["text"])

        async with trio.open_nursery() as nursery:
            for text in "abcd":
                nursery.start_soon(call, text)
        assert sorted(texts) == list("abcd")
        assert await run.pid() == pid


async def test_calls_racing_the_idle_stop_are_answered(tmp_path):
    """Gaps just around the timeout: calls find the backend ready, stopping or stopped."""
    patience = 0.02
    async with lazy(tmp_path, idle_timeout=patience) as run:
        await run.tools()
        gaps = [patience + offset / 4000 for offset in range(-12, 13)]
        for number, gap in zip(range(75), itertools.cycle(gaps), strict=False):
            answer = await run.client.call_tool("b.echo", {"text": str(number)})
            assert answer.get("result", answer) == {"content": [{"type": "text", "text": str(number)}]}
            await trio.sleep(gap)  # the stimulus, not a wait for something
        assert run.count("stopped") > 10  # the race was run


@pytest.mark.parametrize("late", [0.0, 1.0])
async def test_a_simultaneous_call_prevents_the_idle_stop(late, mock_clock):
    """The timeout ends in the same step: the call is neither queued nor sent."""
    async with running_supervisor(FakeBackend(), idle_timeout=60) as rig:
        await settle()
        mock_clock.jump(60 + late)
        pending = rig.call()  # no checkpoint between the two
        await settle()
        assert rig.state is State.READY
        rig.backend.session.answer()
        assert (await outcome(pending)) is RESULT
        assert len(rig.backend.starts) == 1


async def test_a_call_during_an_idle_stop_restarts(tmp_path):
    """The backend ignores the end of its stdin: the call waits for the next one."""
    command = echo_backend()
    deaf = {"command": "sh", "args": ["-c", '"$@"; exec sleep 60', "sh", command["command"], *command["args"]]}
    async with lazy(tmp_path, backend=deaf, idle_timeout=0.2, shutdown_grace=[1, 1, 1]) as run:
        await run.tools()
        await run.wait_state("stopped")
        with trio.fail_after(ANSWER_WITHIN):
            answer = await run.client.call_tool("b.echo", {"text": "patience"})
        assert answer["result"]["content"][0]["text"] == "patience"


async def test_shutdown_accepts_a_stopped_backend(tmp_path):
    async with lazy(tmp_path, idle_timeout=0.1) as run:
        await run.wait_state("stopped")
    async with lazy(tmp_path) as run:  # never started at all
        assert (await run.status())["state"] == "stopped"
