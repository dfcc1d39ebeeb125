"""One trace through client, gateway and backend, in every cell of the bridge.

Client and servers are on the Python SDK 2, which makes spans of its own; all three export to one OTLP receiver.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from itertools import product
from typing import NamedTuple

import pytest
import trio

from tests.contract import bridge
from tests.contract.support import ERAS
from tests.support.gateway_process import LATEST_LEGACY, MODERN, ROOT, open_gateway_process
from tests.support.otlp import export_to, open_receiver

INTEROP = ROOT / "tests" / "interop"
CONVERSE_WITHIN = 90.0  # seconds, of which a client gives itself 60
MODES = {"legacy": "legacy", "modern": "auto"}
ASKED = {"requests": {"one": {"method": "roots/list", "params": {}}}}
GATEWAY = "trio-mcp-gateway"
VERSIONS = {"legacy": LATEST_LEGACY, "modern": MODERN}


class Cell(NamedTuple):
    client: str
    frontend: str
    server: str
    transport: str

    @property
    def backend(self) -> str:
        return f"{self.server}-{self.transport}"


CELLS = [
    *(Cell(client, "http", server, transport) for client, server, transport in product(ERAS, ERAS, bridge.TRANSPORTS)),
    *(Cell(client, "stdio", server, "http") for client, server in product(ERAS, ERAS)),
]


def traced(service, script, *arguments):
    return [sys.executable, str(INTEROP / "traced.py"), service, str(INTEROP / script), *arguments]


async def converse(client, frontend, backends, environment, **target):
    """Have a client of this era call `echo` and `ask` of these backends."""
    tools = (("echo", {"text": "x"}), ("ask", ASKED))
    calls = [[f"{name}.{tool}", given] for name in backends for tool, given in tools]
    job = {"mode": MODES[client], "calls": calls, **target}
    with trio.fail_after(CONVERSE_WITHIN):
        done = await trio.run_process(
            traced(f"{client} client on {frontend}", "clients/sdk2_asked.py", json.dumps(job)),
            stdin=subprocess.DEVNULL,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert all(one["text"] for one in json.loads(done.stdout)["calls"])


@pytest.fixture(scope="module")
def spans(tmp_path_factory):
    """All spans of one conversation of each client over each frontend, by id."""
    path = tmp_path_factory.mktemp("stdio") / "config.json"
    arguments = ["-m", "gateway", "serve", "--config", str(path), "--state-dir", str(path.parent)]

    async def run(config, environment, over_http):
        async with open_gateway_process(config, env=environment) as gateway, trio.open_nursery() as nursery:
            for client in ERAS:
                stdio = partial(converse, client, "stdio", over_http, environment)
                nursery.start_soon(partial(stdio, command=sys.executable, args=arguments))
            for client in ERAS:  # one after the other, since a shared pipe cannot tell whom a server asks
                await converse(client, "http", config["mcpServers"], environment, url=gateway.url)

    with open_receiver() as receiver:
        environment = export_to(receiver)
        commands = {f"{era}-http": traced(f"{era}-http", "servers/sdk2_server.py", era, "http") for era in ERAS}
        with bridge.open_over_http(commands, env=environment) as servers:
            over_http = {name: server | {"era": name.partition("-")[0]} for name, server in servers.items()}
            config = {"mcpServers": over_http, "gateway": {"start_grace": 30}}
            path.write_text(json.dumps(config))
            for era in ERAS:
                command, *args = traced(f"{era}-stdio", "servers/sdk2_server.py", era)
                entry = {"command": command, "args": args, "env": environment, "era": era}
                config = config | {"mcpServers": {**config["mcpServers"], f"{era}-stdio": entry}}
            trio.run(run, config, environment, over_http)
    return {span.span_id: span for span in receiver.spans}


def chains(spans, cell, service, name):
    """The spans of this name in the cell, each with its ancestors."""
    for span in spans.values():
        chain = [span]
        while chain[-1].parent in spans:
            chain.append(spans[chain[-1].parent])
        if (span.service, span.name, chain[-1].service) == (service, name, f"{cell.client} client on {cell.frontend}"):
            yield chain


def steps(chain):
    return [(span.service, span.kind, span.name) for span in chain]


@pytest.mark.parametrize("cell", CELLS, ids="-".join)
def test_call_is_one_trace(spans, cell):
    (chain,) = chains(spans, cell, cell.backend, "tools/call echo")
    assert steps(chain) == [
        (cell.backend, "server", "tools/call echo"),
        (GATEWAY, "client", "tools/call echo"),
        (GATEWAY, "server", f"tools/call {cell.backend}.echo"),
        (chain[3].service, "client", f"MCP send tools/call {cell.backend}.echo"),
    ]
    assert len({one.trace_id for one in chain}) == 1
    assert [name for name, _ in chain[2].events] == (["bridged"] if cell.client != cell.server else [])
    assert chain[1].attributes["network.transport"] == ("pipe" if cell.transport == "stdio" else "tcp")
    assert chain[2].attributes["network.transport"] == ("pipe" if cell.frontend == "stdio" else "tcp")
    assert [one.attributes["mcp.protocol.version"] for one in chain[1:3]] == [
        VERSIONS[cell.server],
        VERSIONS[cell.client],
    ]


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.server == "legacy"], ids="-".join)
def test_server_request_is_part_of_the_trace(spans, cell):
    (served,) = [
        chain
        for chain in chains(spans, cell, GATEWAY, "roots/list")
        if chain[0].kind == "server" and chain[0].attributes["mcp_gateway.backend"] == cell.backend
    ]
    assert steps(served)[:4] == [
        (GATEWAY, "server", "roots/list"),
        (cell.backend, "client", "MCP send roots/list"),
        (cell.backend, "server", "tools/call ask"),
        (GATEWAY, "client", "tools/call ask"),
    ]
    sent = [span for span in spans.values() if span.parent == served[0].span_id]
    assert [(span.service, span.kind, span.name) for span in sent if span.service == GATEWAY] == (
        [(GATEWAY, "client", "roots/list")] if cell.client == "legacy" else []
    )


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if (cell.client, cell.server) == ("modern", "legacy")], ids="-".join
)
def test_suspended_call_links_both_requests(spans, cell):
    (chain,) = chains(spans, cell, cell.backend, "tools/call ask")
    backend_request, first = chain[1:3]
    assert [name for name, _ in backend_request.events] == ["suspended", "resumed"]
    assert [name for name, _ in first.events] == ["bridged", "suspended"]
    (retry,) = [span for span in spans.values() if backend_request.span_id in span.links]
    assert [name for name, _ in retry.events] == ["resumed"]
    assert retry.name == first.name


@pytest.mark.parametrize(
    "cell", [cell for cell in CELLS if (cell.client, cell.server) == ("legacy", "modern")], ids="-".join
)
def test_each_round_of_input_is_a_request_to_the_backend(spans, cell):
    rounds = list(chains(spans, cell, cell.backend, "tools/call ask"))
    assert len(rounds) == 2
    assert len({chain[2].span_id for chain in rounds}) == 1
    asked = [span for span in spans.values() if span.parent == rounds[0][2].span_id and span.name == "roots/list"]
    assert [(span.service, span.kind) for span in asked] == [(GATEWAY, "client")]
