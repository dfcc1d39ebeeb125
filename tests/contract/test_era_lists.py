"""Servers with different lists per era, over pipes and HTTP: clients see their era's."""

from __future__ import annotations

import sys

import pytest

from tests.contract.bridge import open_over_http
from tests.contract.support import check_leaks, every_cell, open_client, open_gateways
from tests.support.gateway_process import PEERS, peer

ARGS = ("--era", "both", "--by-era")
LISTS = [
    ("tools/list", "tools", "name", "{server}.echo"),
    ("prompts/list", "prompts", "name", "{server}.greet"),
    ("resources/list", "resources", "uri", "memo://{server}/one"),
    ("resources/templates/list", "resourceTemplates", "uriTemplate", "memo://{server}/item/{{id}}"),
]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory):
    script = str(PEERS / "bridge_server.py")
    command = [sys.executable, script, *ARGS, "--transport", "http", "--name", "remote"]
    with open_over_http({"remote": command}) as servers:
        servers["child"] = peer("rich_server.py", *ARGS, "--name", "child") | {"era": "each"}
        config = {"mcpServers": servers, "gateway": {"start_grace": 15}}
        with open_gateways(
            config, ("stdio", "streamable-http"), "--state-dir", str(tmp_path_factory.mktemp("s"))
        ) as one:
            yield one


leak_check = pytest.fixture(autouse=True)(check_leaks)


@every_cell
@pytest.mark.parametrize("server", ["remote", "child"])
async def test_a_client_sees_the_lists_of_its_era(gateways, cell, server):
    async with open_client(gateways, cell) as client:
        for method, member, key, first in LISTS:
            name = first.format(server=server)
            listed = [entry[key] for entry in (await client.request(method))["result"][member]]
            assert [one for one in listed if one.startswith(f"{name}_")] == [f"{name}_{client.era}"]
            assert name in listed
