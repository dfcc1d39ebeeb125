"""Access to the management API, by credentials, `access` section and listener."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.admin.access import FORWARDED
from gateway.admin.operations import OPERATIONS
from gateway.frontends.http.listen_address import ListenAddress
from tests.support.access import ADMIN_TOKEN, ALICE, Harness, keys, make_config, running
from tests.support.fakes import FakeExchange, settle

if TYPE_CHECKING:
    from trio.testing import MockClock

    from gateway.admin.openapi import Operation

CREDENTIALS: dict[str, dict[str, str]] = {
    "none": {},
    "wrong token": {"authorization": "Bearer wrong-wrong-wrong-wrong"},
    "MCP key": {"authorization": f"Bearer {ALICE}"},
    "MCP key as X-API-Key": {"x_api_key": ALICE},
    "admin token as X-API-Key": {"x_api_key": ADMIN_TOKEN},
    "admin token as Basic": {"authorization": f"Basic {ADMIN_TOKEN}"},
    "admin token": {"authorization": f"Bearer {ADMIN_TOKEN}"},
}
STREAMS = {"/events", "/servers/a/stderr"}
WAYS: dict[str, dict[str, str]] = {
    "loopback": {},
    "unix socket": {},
    "another host": {"host": "gw.example"},
    **{name.decode(): {name.decode().replace("-", "_"): "192.0.2.1"} for name in sorted(FORWARDED)},
}
SECTIONS: dict[str, Any] = {
    "no access": None,
    "keys": keys(),
    "origins alone": {"allow_origins": ["https://app.example"]},
}


async def ask(harness: Harness, way: str, method: str, path: str, credentials: dict[str, str]) -> FakeExchange:
    """One request, from its beginning to its end."""
    given = {"host": "localhost", **WAYS[way], **credentials}
    headers = {name.replace("_", "-"): value for name, value in given.items()}
    body = b"{}" if method == "POST" else b""
    exchange = FakeExchange(body, method=method, headers={**headers, "content-type": "application/json"})
    exchange.scope |= {"path": path, "query_string": b""}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.frontend, exchange.scope, exchange.receive, exchange.send)
        if path in STREAMS:
            await settle()
            exchange.gone.set()
    return exchange


def path_of(operation: Operation) -> str:
    before, _, after = operation.path.partition("{name}")
    return operation.path if before == operation.path else f"{before}a{after}"


def make_harness(section: str, way: str) -> Harness:
    access = SECTIONS[section]
    if way == "another host":
        access = {**(access or {}), "allow_hosts": ["gw.example"]}
    binding = ListenAddress(uds=Path("/run/s")) if way == "unix socket" else ListenAddress()
    return Harness(make_config(access), binding.admin_host)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("section", SECTIONS)
async def test_each_endpoint_requires_its_credentials(section: str, way: str, autojump_clock: MockClock) -> None:
    harness = make_harness(section, way)
    is_open = section == "no access" and way in {"loopback", "unix socket"}
    async with running(harness):
        for name, credentials in CREDENTIALS.items():
            may_read = is_open or name == "admin token"
            for one in OPERATIONS:
                if name == "admin token" and one.access == "change":
                    continue  # the test of the API itself shows what those do
                path = path_of(one)
                exchange = await ask(harness, way, one.method, path, credentials)
                may = {"open": True, "read": may_read, "change": False}[one.access]
                assert exchange.status == (200 if may else 401), (name, one.path)
                if one.name == "health":
                    assert ("backends" in json.loads(exchange.body)) is may_read, name
        assert list(harness.fleet.supervisors) == ["a"]
        changed = await ask(harness, way, "POST", "/servers/a/restart", CREDENTIALS["admin token"])
        assert changed.status == 200


async def test_a_head_request_reads_too(autojump_clock: MockClock) -> None:
    harness = make_harness("keys", "loopback")
    async with running(harness):
        for one in OPERATIONS:
            if one.access == "read":
                exchange = await ask(harness, "loopback", "HEAD", path_of(one), {})
                assert exchange.status == 401, one.path
