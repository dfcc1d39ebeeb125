"""Backends that break during shutdown: it ends in time and order, leaving nothing."""

from __future__ import annotations

import os
import signal

import pytest
import trio

from tests.contract.support import FAST, SHUTDOWN_GRACE, structured_of, wait_health
from tests.support.gateway_process import STOP_WITHIN, HttpClient, echo_backend, faulty_backend, open_gateway_process

EXTRA = {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}
AT_EOF = ("hang", "garbage", "half_line", "floods_stderr", "flood_stdout", "closes_stdout", "dies_mid_call")
IN_CALL = ("dies_mid_call", "half_line", "closes_stdout", "hang")


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("transport", ["stdio", "streamable-http"])
async def test_drain_ends_orderly_whatever_backends_do_at_eof(transport):
    backends = {
        f"{fault}_{era}": faulty_backend(fault, "--when", "eof", "--size", 1_000_000, "--era", era) | EXTRA
        for fault in AT_EOF
        for era in ("legacy", "modern")
        if era == "legacy" or fault == "hang"
    }
    config = {"mcpServers": backends, "gateway": {"start_grace": 10}}
    async with open_gateway_process(config, transport=transport) as gateway:
        client = gateway.stdio or HttpClient(gateway.url)
        await client.initialize()
        pids = [structured_of(await client.call_tool(f"{name}.env"))["pid"] for name in backends]
        assert all(map(is_running, pids))
        if transport == "stdio":
            await gateway.process.stdin.aclose()
        else:
            gateway.process.send_signal(signal.SIGTERM)
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() == 0
        assert not any(map(is_running, pids))
        await gateway.wait_stderr_end()
        assert "Traceback" not in gateway.stderr_text


@pytest.mark.parametrize("fault", IN_CALL)
async def test_a_backend_breaking_during_drain_answers_its_call(fault):
    config = {
        "mcpServers": {"breaks": faulty_backend(fault) | EXTRA, "good": echo_backend() | EXTRA},
        "gateway": {"start_grace": 10, "drain_grace": 0.9},
    }
    async with open_gateway_process(config, status=None) as gateway:
        client = HttpClient(gateway.url)
        await client.initialize()
        answers = {}

        async def call(name, arguments):
            answers[name] = await client.call_tool(name, arguments)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "breaks.go", {"delay": 0.3})
            nursery.start_soon(call, "good.sleep", {"seconds": 0.4})
            await wait_health(
                gateway, lambda report: all(backend["in_flight"] for backend in report["backends"].values())
            )
            gateway.process.send_signal(signal.SIGTERM)
        assert answers["breaks.go"]["error"]["data"]["backend"] == "breaks"
        assert answers["good.sleep"]["result"]["content"][0]["text"] == "slept"
        with trio.fail_after(STOP_WITHIN):
            status = await gateway.process.wait()
        # A call that had to be cut off is a failure that the exit status tells; one that was answered is none.
        assert status == (1 if fault == "hang" else 0)


async def test_garbage_during_drain_fails_no_call():
    config = {
        "mcpServers": {fault: faulty_backend(fault) | EXTRA for fault in ("garbage", "flood_stdout")},
        "gateway": {"start_grace": 10, "drain_grace": 8},
    }
    async with open_gateway_process(config, status=None) as gateway:
        client = HttpClient(gateway.url)
        await client.initialize()
        answers = {}

        async def call(name):
            answers[name] = await client.call_tool(name, {"delay": 0.3})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "garbage.go")
            nursery.start_soon(call, "flood_stdout.go")
            await wait_health(
                gateway, lambda report: all(backend["in_flight"] for backend in report["backends"].values())
            )
            gateway.process.send_signal(signal.SIGTERM)
        texts = {name: answer["result"]["content"][0]["text"] for name, answer in answers.items()}
        assert texts == {"garbage.go": "amid garbage", "flood_stdout.go": "flooded"}
        with trio.fail_after(STOP_WITHIN):
            assert await gateway.process.wait() == 0
