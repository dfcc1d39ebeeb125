"""Public servers with state in a file or process: clients of both eras share it.

Two know the legacy era alone; the third, on the Python SDK 2, offers both, and is one process for clients of either.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway_process import open_gateway_process
from tests.support.wire_http import HttpClient

pytestmark = pytest.mark.real("servers")
SDK2 = {"command": sys.executable, "args": [str(Path(__file__).parent / "servers" / "sdk2_server.py"), "counter"]}
TURNS = ("legacy", "modern", "modern", "legacy", "modern", "legacy")


class Client:
    """A client of one era that lives as long as the gateway."""

    def __init__(self, url: str, era: str) -> None:
        self.http, self.era = HttpClient(url), era

    async def request(self, method: str, **params: Any) -> Any:
        if self.era == "modern":
            answer = (await self.http.post_modern(method, params)).messages()[-1]
        else:
            if self.http.session_id is None:
                await self.http.initialize()
            answer = await self.http.request(method, params)
        assert "result" in answer, answer
        assert not answer["result"].get("isError"), answer
        return answer["result"]

    async def call(self, name: str, **arguments: Any) -> Any:
        return await self.request("tools/call", name=name, arguments=arguments)


async def test_clients_of_both_eras_share_the_state(stateful_servers: dict[str, Any], tmp_path: Path) -> None:
    config = {"mcpServers": {**stateful_servers, "counter": SDK2}, "gateway": {"start_grace": 30}}
    async with open_gateway_process(config, env={"FILE": str(tmp_path / "state")}) as gateway:
        assert gateway.url is not None
        clients = {era: Client(gateway.url, era) for era in ("legacy", "modern")}
        await clients["legacy"].call("sqlite.create_table", query="CREATE TABLE turns (n INTEGER, era TEXT)")
        for number, era in enumerate(TURNS):
            client = clients[era]
            entity = {"name": f"turn {number}", "entityType": era, "observations": [f"said {number}"]}
            await client.call("memory.create_entities", entities=[entity])
            await client.call("sqlite.write_query", query=f"INSERT INTO turns VALUES ({number}, '{era}')")
            await client.call("sqlite.append_insight", insight=f"insight {number}")
            await client.call("counter.echo", text=era)
        for client in clients.values():
            graph = (await client.call("memory.read_graph"))["structuredContent"]
            assert [(one["name"], one["entityType"]) for one in graph["entities"]] == [
                (f"turn {number}", era) for number, era in enumerate(TURNS)
            ]
            rows = await client.call("sqlite.read_query", query="SELECT era FROM turns ORDER BY n")
            assert rows["content"][0]["text"] == str([{"era": era} for era in TURNS])
            memo = (await client.request("resources/read", uri="memo://insights"))["contents"][0]["text"]
            assert [f"insight {number}" in memo for number in range(len(TURNS))] == [True] * len(TURNS)
            assert (await client.call("counter.count"))["structuredContent"]["echo"] == len(TURNS)
        # At its first call it may be started again in that call's era, and never afterwards.
        assert gateway.stderr_text.count("backend 'counter' is restarted") <= 1
    lines = (tmp_path / "state.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"turn {number}" for number in range(len(TURNS))]
