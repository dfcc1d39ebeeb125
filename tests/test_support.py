"""A failing gateway process fails its test with exit status, original error and stderr."""

from __future__ import annotations

import pytest

from tests.support.gateway_process import echo_backend, open_gateway_process

pytestmark = pytest.mark.leak_check

CONFIG = {"mcpServers": {"echo": echo_backend()}}


async def test_the_exit_status_is_checked():
    with pytest.raises(AssertionError, match="exit status 0"):
        async with open_gateway_process(CONFIG, status=7):
            pass


async def test_a_block_that_raises_raises_its_own():
    with pytest.raises(LookupError, match="mine"):
        async with open_gateway_process(CONFIG):
            raise LookupError("mine")


async def test_a_failed_gateway_start_shows_its_stderr():
    with pytest.raises(AssertionError, match="mcpServers"):
        async with open_gateway_process({"mcpServers": 1}):
            pass
