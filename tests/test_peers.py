"""The faulty peer without a gateway: each fault must really occur."""

from __future__ import annotations

import sys

import pytest
import trio

from tests.support.gateway_process import (
    PEERS,
    StdioClient,
    run_process,
)

pytestmark = pytest.mark.leak_check


class Peer:
    """A script of tests/peers as a child, with a client on its pipes."""

    def __init__(self, script, *args):
        self.command = [sys.executable, str(PEERS / script), *map(str, args)]

    async def __aenter__(self):
        self.run = run_process(self.command)
        self.running = await self.run.__aenter__()
        self.process = self.running.process
        self.client = StdioClient(self.process.stdin, self.process.stdout)
        return self.client

    async def __aexit__(self, *details):
        return await self.run.__aexit__(*details)


def text_of(message):
    return message["result"]["content"][0]["text"]


async def go(client, **arguments):
    return await client.start("tools/call", {"name": "go", "arguments": arguments})


@pytest.mark.parametrize("fault", ["garbage", "crlf", "pretty", "bad_tool", "dup_tools", "slow_start"])
async def test_faults_that_still_answer(fault):
    async with Peer("faulty_server.py", "--fault", fault, "--start-delay", 0.01) as client:
        await client.start("initialize")
        await client.start("tools/list")
        await go(client)
        lines = []
        while len([line for line in lines if b'"id"' in line and b'"result"' in line and b"object" not in line]) < 2:
            with trio.fail_after(5):
                lines.append(await client.read_line())
        everything = b"".join(lines)
        expected = {
            "garbage": b"not utf-8",
            "crlf": b"}\r\n",
            "pretty": b'{\r  "jsonrpc"',
            "bad_tool": b'"name":17',
            "dup_tools": b"The same name again.",
            "slow_start": b'"serverInfo"',
        }[fault]
        while expected not in everything:
            with trio.fail_after(5):
                everything += await client.read_line()


@pytest.mark.parametrize(
    ("variant", "start", "end"),
    [
        ("id_start", b'{"jsonrpc":"2.0","id":1,"result"', b'"}]}}\n'),
        ("id_end", b'{"jsonrpc":"2.0","result"', b'"}]},"id":1}\n'),
        ("id_absent", b'{"jsonrpc":"2.0","result"', b'"}]}}\n'),
    ],
)
async def test_big_line(variant, start, end):
    async with Peer("faulty_server.py", "--fault", "big_line", "--variant", variant, "--size", 3_000_000) as client:
        await go(client)
        with trio.fail_after(5):
            line = await client.read_line()
        assert line.startswith(start)
        assert line.endswith(end)
        assert 3_000_000 < len(line) < 3_000_200
        assert text_of(await client.call_tool("echo", {"text": "alive"})) == "alive"


@pytest.mark.parametrize(
    ("fault", "variant", "status"),
    [("exit_at_once", "", 4), ("dies_mid_call", "", 5), ("dies_mid_call", "kill", -9), ("half_line", "", 6)],
)
async def test_faults_that_end_the_process(fault, variant, status):
    peer = Peer("faulty_server.py", "--fault", fault, "--variant", variant)
    async with peer as client:
        with trio.fail_after(5):
            try:
                await go(client)
                rest = await client.read_line()
            except trio.BrokenResourceError:
                rest = b""
            assert await peer.process.wait() == status
        assert not rest.endswith(b"\n")
        assert bool(rest) == (fault == "half_line")


async def test_closes_stdout_but_lives():
    peer = Peer("faulty_server.py", "--fault", "closes_stdout")
    async with peer as client:
        await go(client)
        with trio.fail_after(5):
            assert await client.read_line() == b""
        assert peer.process.poll() is None


@pytest.mark.parametrize("fault", ["unknown_ids", "answers_twice", "asks", "progress_after_result", "string_id"])
async def test_faults_around_an_answer(fault):
    async with Peer("faulty_server.py", "--fault", fault) as client:
        await go(client)
        await client.request("ping")
        got = [(message.get("method"), message.get("id")) for message in client.arrived]
        expected = {
            "unknown_ids": [(None, i) for i in (999_999, "nobody", None, -1, 888_888, 1)],
            "answers_twice": [(None, 1), (None, 1)],
            "asks": [("ping", 1), ("vendor/unknown", "a"), (None, 1)],
            "progress_after_result": [(None, 1), *[("notifications/progress", None)] * 3],
            "string_id": [(None, "1")],
        }[fault]
        assert got == expected


@pytest.mark.parametrize("variant", ["plain", "huge_float", "surrogate", "nan", "latin1", "duplicate"])
async def test_odd_result_arrives_as_its_bytes(variant):
    async with Peer("faulty_server.py", "--fault", "odd_result", "--variant", variant) as client:
        await go(client)
        with trio.fail_after(5):
            line = await client.read_line()
        marks = {"plain": b"hologram", "huge_float": b"1e400", "surrogate": b"\\ud800", "nan": b"NaN"}
        assert marks.get(variant, b'"content"') in line
