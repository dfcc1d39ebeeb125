"""Calls that crash their server: their client is limited, the others keep the server."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.access.keys import hash_key
from tests.support.gateway_process import ANSWER_WITHIN, HttpClient, faulty_backend, open_gateway_process, open_sse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.support.gateway_process import Message

MALLORY, ALICE = "mcpgw_mallory_0123456789", "mcpgw_alice_0123456789"
KEYS = [{"name": "mallory", "hash": hash_key(MALLORY)}, {"name": "alice", "hash": hash_key(ALICE)}]
WAYS = ("dies_mid_call", "closes_stdout", "half_line")


class Keyed(HttpClient):
    """A client that sends a key with every request."""

    def __init__(self, url: str, key: str) -> None:
        super().__init__(url)
        self.key = key

    def session_headers(self) -> dict[str, str]:
        return {**super().session_headers(), "Authorization": f"Bearer {self.key}"}


def config(fault: str, audit: Path | None = None, **access: Any) -> dict[str, Any]:
    restart = {"initial_delay": 0.05, "max_delay": 0.1}
    server = faulty_backend(fault) | {"restart": restart, "shutdown_grace": [0.2, 0.2, 0.2]}
    return {
        "mcpServers": {"f": server},
        "gateway": {} if audit is None else {"audit": {"file": str(audit)}},
        **({"access": access} if access else {}),
    }


def assert_is_refused(answer: Message) -> None:
    data = answer["error"]["data"]
    assert data["reason"] == "busy", answer
    assert 500_000 < data["retryAfterMs"] <= 600_000
    assert "(crash_limit)" in answer["error"]["message"]


async def crash(call: Callable[[], Awaitable[Message]]) -> None:
    """Have a call kill the server, after the last crash's session is closed."""
    for _ in range(100):
        answer = await call()
        assert answer["error"]["data"] == {"backend": "f", "reason": "backend_exited"}, answer
        if not answer["error"]["message"].endswith("was stopped"):
            return
    raise AssertionError("the server does not come back")


@pytest.mark.parametrize("fault", WAYS)
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_a_crashing_clients_key_is_refused_alone(tmp_path: Path, fault: str, era: str) -> None:
    audit = tmp_path / "audit"
    async with open_gateway_process(config(fault, audit, keys=KEYS)) as gateway:
        assert gateway.url is not None
        mallory, alice = Keyed(gateway.url, MALLORY), Keyed(gateway.url, ALICE)
        for client in (mallory, alice) if era == "legacy" else ():
            await client.initialize()

        async def call(client: Keyed, name: str) -> Message:
            if era == "legacy":
                return await client.call_tool(name)
            key = {"Authorization": f"Bearer {client.key}"}
            return await client.call_modern("tools/call", {"name": name, "arguments": {}}, headers=key)

        for _ in range(3):
            await crash(lambda: call(mallory, "f.go"))
        assert_is_refused(await call(mallory, "f.go"))
        assert_is_refused(await call(mallory, "f.echo"))
        assert "result" in await call(alice, "f.echo")
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(one["principal"], one["name"], one["reason"]) for one in lines if one.get("crash") == "suspect"] == [
        ("mallory", "f.go", "backend_exited")
    ] * 3
    named = "backend 'f' died with calls in flight, last first: go of principal 'mallory'"
    assert gateway.stderr_text.count(named) == 3


async def test_sessions_without_a_key_are_distinguished() -> None:
    async with open_gateway_process(config("dies_mid_call")) as gateway:
        assert gateway.url is not None
        mallory, alice = HttpClient(gateway.url), HttpClient(gateway.url)
        for client in (mallory, alice):
            await client.initialize()
        for _ in range(3):
            await crash(lambda: mallory.call_tool("f.go"))
        assert_is_refused(await mallory.call_tool("f.go"))
        assert "result" in await alice.call_tool("f.echo")


async def test_requests_without_a_session_are_counted_by_address() -> None:
    async with open_gateway_process(config("dies_mid_call")) as gateway:
        assert gateway.url is not None
        client = HttpClient(gateway.url)
        for _ in range(3):
            await crash(lambda: client.call_modern("tools/call", {"name": "f.go", "arguments": {}}))
        assert_is_refused(await client.call_modern("tools/call", {"name": "f.go", "arguments": {}}))
        await client.initialize()
        assert "result" in await client.call_tool("f.echo")
        assert "go of address 127.0.0.1 (call" in gateway.stderr_text


@pytest.mark.parametrize("transport", ["stdio", "sse"])
async def test_clients_on_a_stream_are_refused_too(transport: str) -> None:
    async with open_gateway_process(config("dies_mid_call"), transport=transport) as gateway:
        if transport == "stdio":
            assert gateway.stdio is not None
            await assert_limited(gateway.stdio)
        else:
            assert gateway.url is not None
            async with open_sse(gateway.url) as client:
                await assert_limited(client)


async def assert_limited(client: Any) -> None:
    await client.initialize()
    for _ in range(3):
        await crash(lambda: client.call_tool("f.go"))
    assert_is_refused(await client.call_tool("f.go"))


async def test_a_server_failed_by_many_clients_recovers() -> None:
    async with open_gateway_process(config("dies_mid_call")) as gateway:
        assert gateway.url is not None
        clients = [HttpClient(gateway.url) for _ in range(5)]
        for client in clients:
            await client.initialize()
            await crash(partial(client.call_tool, "f.go"))
        await gateway.wait_stderr("backend 'f' is failed")
        watcher = clients[0]
        with trio.fail_after(ANSWER_WITHIN):
            while (await watcher.get("/health")).json()["backends"]["f"]["state"] != "ready":
                assert not gateway.stderr_ended
        assert "result" in await watcher.call_tool("f.echo")


async def test_sessions_of_single_calls_count_too() -> None:
    private = config("dies_mid_call")
    private["mcpServers"]["f"]["session"] = "call"
    async with open_gateway_process(private) as gateway:
        assert gateway.url is not None
        client = HttpClient(gateway.url)
        await client.initialize()
        for _ in range(3):
            await crash(lambda: client.call_tool("f.go"))
        assert_is_refused(await client.call_tool("f.go"))
