"""A client's cancel reaches the backend under its id, for one call, without an answer."""

from __future__ import annotations

import pytest
import trio

from tests.contract.support import every_cell, every_cell_and_sse, open_client, structured_of, text_of
from tests.support.gateway_process import ANSWER_WITHIN

every_backend = pytest.mark.parametrize("backend", ["legacy", "modern"])


async def id_at_backend(client, backend):
    """Return this request's id at the backend, which is also its progress token."""
    params = structured_of(await client.call(f"{backend}.params", token="shown"))
    return params["_meta"]["progressToken"]


async def cancelled_at(client, backend):
    return structured_of(await client.call(f"{backend}.cancelled_log"))["cancelled"]


async def wait_cancelled(client, backend, before):
    """Wait for cancellations at the backend besides `before`; a hang-up takes time."""
    with trio.fail_after(ANSWER_WITHIN):
        while (after := await cancelled_at(client, backend)) == before:
            pass
    assert after[: len(before)] == before
    return after[len(before) :]


@every_cell_and_sse
@every_backend
async def test_a_cancel_reaches_only_its_own_call(gateways, cell, backend):
    async with open_client(gateways, cell) as client:
        before = await cancelled_at(client, backend)
        shown = await id_at_backend(client, backend)
        # The progress tool does not heed a cancel: its answer comes all the same, and must not get through.
        async with (
            client.open_tool(f"{backend}.progress", {"n": 6, "delay": 0.06}, token="first") as first,
            client.open_tool(f"{backend}.sleep", {"seconds": 0.5, "text": "undisturbed"}) as second,
        ):
            assert (await first.next())["params"]["progress"] == 1
            await first.cancel()
            assert text_of(await second.response()) == "undisturbed"
            await first.assert_unanswered()
        cancelled = await wait_cancelled(client, backend, before)
        assert cancelled in ([shown + 1], [shown + 2])  # first and second race to the backend over HTTP


@every_cell_and_sse
async def test_a_cancel_carries_the_backends_id(gateways, cell):
    async with open_client(gateways, cell) as client:
        shown = await id_at_backend(client, "legacy")
        before = await cancelled_at(client, "legacy")
        async with client.open_tool("legacy.progress", {"n": 100, "delay": 0.05}, token=5) as call:
            await call.next()
            await call.cancel()
            await call.assert_unanswered()
        assert await wait_cancelled(client, "legacy", before) == [shown + 2]


@every_cell
async def test_cancels_of_unknown_requests_are_ignored(gateways, cell):
    async with open_client(gateways, cell) as client:
        before = await cancelled_at(client, "legacy")
        for params in (
            {"requestId": 999_999},
            {"requestId": "never"},
            {"requestId": None},
            {},
            {"requestId": {"a": 1}},
        ):
            if client.frontend == "stdio":
                await client.stdio.notify("notifications/cancelled", params)
            elif not client.modern:
                message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
                assert (await client.http.post(message)).status == 202
        async with client.open_tool("legacy.echo", {"text": "done"}) as call:
            assert text_of(await call.response()) == "done"
            if not (client.modern and client.frontend == "http"):
                await call.cancel()  # too late: ignored
        assert await cancelled_at(client, "legacy") == before
