"""The gateway as a real process, through the helpers that other tests use: both kinds of face, and how a block ends."""

from __future__ import annotations

import pytest

from tests.support.gateway_process import HttpClient, echo_backend, open_gateway_process

pytestmark = pytest.mark.leak_check

CONFIG = {"mcpServers": {"echo": echo_backend()}}


def text_of(message):
    return message["result"]["content"][0]["text"]


async def test_http_in_both_eras():
    async with open_gateway_process(CONFIG) as gateway:
        client = HttpClient(gateway.url)
        await client.initialize()
        assert text_of(await client.call_tool("echo.echo", {"text": "legacy"})) == "legacy"
        answer = await client.call_modern("tools/call", {"name": "echo.echo", "arguments": {"text": "modern"}})
        assert text_of(answer) == "modern"
        assert (await client.get("/health")).json()["backends"]["echo"]["state"] == "ready"


async def test_stdio():
    async with open_gateway_process(CONFIG, transport="stdio") as gateway:
        await gateway.stdio.initialize()
        assert text_of(await gateway.stdio.call_tool("echo.echo", {"text": "hi"})) == "hi"


async def test_the_exit_status_is_checked():
    with pytest.raises(AssertionError, match="exit status 0"):
        async with open_gateway_process(CONFIG, status=7):
            pass


async def test_a_block_that_raises_raises_its_own():
    with pytest.raises(LookupError, match="mine"):
        async with open_gateway_process(CONFIG):
            raise LookupError("mine")


async def test_a_gateway_that_does_not_start_shows_its_stderr():
    with pytest.raises(AssertionError, match="mcpServers"):
        async with open_gateway_process({"mcpServers": 1}):
            pass
