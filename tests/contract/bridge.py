"""The bridge matrix: cells, one conversation in each, and the table of results.

A cell is a client's era and frontend, and a server and its transport. A server is on the standard library, which can
send anything, and of one era, or on a public SDK, and then of both. A row is one interaction of the two; its test is
written once, with `@row`, runs in every cell and returns its verdict. `Talker` holds a conversation with server
requests in the form of the client's era: requests on the stream of its own request, or `input_required` and another
request.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shutil
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import pytest
import trio

from tests.contract.support import ERAS, FRONTENDS, open_client, text_of
from tests.interop.cached import InstallError, chosen, node_modules
from tests.support.gateway_process import ANSWER_WITHIN, META, PEERS, ROOT

TRANSPORTS = ("stdio", "http")
SDKS = {"python": "Python SDK 2", "typescript": "TypeScript SDK 2"}
"""The servers that offer both eras, with their titles; Python's is the installed one."""
TS2_SERVER = ("@modelcontextprotocol/server@2.4.0", "@modelcontextprotocol/node@2.1.2")
SERVER = "bridge_server.py"
YES = "yes"
ELICITATION, SAMPLING, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"
EVERYTHING = {"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {"listChanged": True}}


class Cell(NamedTuple):
    client: str
    frontend: str
    server: str
    transport: str

    @property
    def era(self):
        """The era in which the server is spoken to."""
        return self.client if self.is_sdk else self.server

    @property
    def is_sdk(self):
        return self.server in SDKS

    @property
    def backend(self):
        """The backend's name in the config; a child of both eras exists for each."""
        return f"{self.server}-{self.transport}" + (
            f"-{self.client}" if self.is_sdk and self.transport == "stdio" else ""
        )

    def tool(self, name):
        return f"{self.backend}.{name}"

    def uri(self, path):
        return f"memo://{self.backend}/{path}"

    def fit(self, value):
        """Return the value as the server can forward it: SDKs drop unknown members."""
        return ordinary(value) if self.is_sdk else value


def ordinary(value):
    """Return the value without lone surrogates, nulls and unspecified members."""
    if isinstance(value, str):
        return re.sub(r"[\ud800-\udfff]", "", value)
    if isinstance(value, list):
        return [ordinary(one) for one in value if one is not None]
    if isinstance(value, dict):
        known = {key: one for key, one in value.items() if one is not None and key not in {"x-extra", CUT}}
        return {key: ordinary(one) for key, one in known.items()}
    return value


REAL = pytest.mark.real("servers")
CELLS = list(itertools.starmap(Cell, itertools.product(ERAS, FRONTENDS, (*ERAS, *SDKS), TRANSPORTS)))

# -- the table ---------------------------------------------------------------------------------------------------------

ROWS: dict[str, list[Cell]] = {}
"""Titles, in the order of the table, with the cells that each is tried in."""
VERDICTS: dict[tuple[str, Cell], str] = {}
"""What each cell gave in this run."""
PAGE = ROOT / "docs" / "pages" / "explanation" / "eras.md"
BEGIN, END = "<!-- bridge table -->", "<!-- end of bridge table -->"
ABSENT = "-"
"""The verdict where an SDK has no such thing."""


def row(title, *, sdks=tuple(SDKS)):
    """Make `async test(gateways, cell) -> verdict` a test of every cell.

    `sdks` are those that can do it.
    """

    def decorate(test):
        cells = ROWS[title] = [cell for cell in CELLS if not cell.is_sdk or cell.server in sdks]
        params = [pytest.param(cell, marks=REAL if cell.server == "typescript" else ()) for cell in cells]

        @pytest.mark.parametrize("cell", params, ids="-".join)
        @functools.wraps(test)
        async def run(gateways, cell):
            VERDICTS.pop((title, cell), None)
            VERDICTS[title, cell] = await test(gateways, cell)

        return run

    return decorate


def is_complete():
    return len(VERDICTS) == sum(cell.server in installed() for cells in ROWS.values() for cell in cells)


def render():
    """The table as it is in the page, without the servers that are not installed."""
    sdks = [sdk for sdk in SDKS if sdk in installed()]
    columns = [*itertools.product(ERAS, ERAS), *((client, sdk) for sdk in sdks for client in ERAS)]
    heads = [f"{client} client, {SDKS.get(server) or f'{server} server'}" for client, server in columns]
    lines = [" | ".join(["", "what", *heads, ""]).strip(), "|---" * (len(heads) + 1) + "|"]
    for title in ROWS:
        found = [summary(title, client, server) for client, server in columns]
        lines.append(" | ".join(["", title, *found, ""]).strip())
    return "\n".join(lines)


def summary(title, client, server):
    """Return one verdict for all transports, one for each frontend, or all."""
    by_frontend = {}
    for cell in CELLS:
        if (cell.client, cell.server) == (client, server):
            by_frontend.setdefault(cell.frontend, []).append(VERDICTS.get((title, cell), ABSENT))
    joined = {frontend: " or ".join(dict.fromkeys(verdicts)) for frontend, verdicts in by_frontend.items()}
    if len(set(joined.values())) == 1:
        return joined["stdio"]
    return "; ".join(f"{frontend}: {verdict}" for frontend, verdict in joined.items())


def in_page(text):
    """The table in this text, without servers that are not installed."""
    lines = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()
    absent = tuple(f"{title} " for sdk, title in SDKS.items() if sdk not in installed())
    kept = [not head.endswith(absent) for head in lines[0].split("|")]
    return "\n".join("|".join(itertools.compress(line.split("|"), kept)) for line in lines)


def put_in_page(text, table):
    before, found, rest = text.partition(BEGIN)
    assert found, f"there is no {BEGIN} in it"
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


# -- backends ----------------------------------------------------------------------------------------------------------


INTEROP = ROOT / "tests" / "interop" / "servers"


def command_of(server, transport, name):
    """The command of a server whose name is that of its backend."""
    http = ["http"] if transport == "http" else []
    if server == "python":
        return [sys.executable, str(INTEROP / "sdk2_server.py"), name, *http]
    if server == "typescript":
        try:
            modules = install()
        except InstallError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None
        return [shutil.which("node") or "node", str(INTEROP / "ts2_server.mjs"), str(modules), name, *http]
    options = ["--era", server, "--name", name, "--odd-schemas", "--transport", transport]
    return [sys.executable, str(PEERS / SERVER), *options]


def install():
    """The folder of node modules that holds the TypeScript SDK. Raises InstallError."""
    return node_modules("interop/ts2-server", *TS2_SERVER)


def installed():
    """The servers that this run starts."""
    return [*ERAS, *(sdk for sdk in SDKS if sdk != "typescript" or "servers" in chosen.parts)]


def open_http_servers(servers=ERAS):
    """Servers over HTTP: config entries by name."""
    return open_over_http({f"{server}-http": command_of(server, "http", f"{server}-http") for server in servers})


@contextmanager
def open_over_http(commands, env=None):
    """Start these commands, which end with their stdin; yield config entries by name."""
    running = []
    try:
        found = {}
        for name, command in commands.items():
            given = {**os.environ, **(env or {})}
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, env=given)
            running.append(process)
            line = process.stderr.readline().decode()
            assert line.startswith("listening on "), line
            found[name] = {"url": line.split()[-1]}
        yield found
    finally:
        for process in running:
            process.stdin.close()
            process.stderr.close()
        for process in running:
            assert process.wait(10) == 0


def stdio_servers(servers=ERAS):
    """Servers on pipes: config entries by name."""
    cells = [cell for cell in CELLS if cell.transport == "stdio" and cell.server in servers]
    commands = {cell.backend: command_of(cell.server, "stdio", cell.backend) for cell in cells}
    return {name: {"command": command, "args": arguments} for name, (command, *arguments) in commands.items()}


# -- conversations -----------------------------------------------------------------------------------------------------

CUT = "cut \ud83d"
"""Text cut inside an emoji."""
FORM = {
    "message": "Who are you? \ude00",
    "requestedSchema": {"type": "object", "properties": {"name": {"type": "string", "title": "Name"}}},
}
SAMPLE = {
    "messages": [{"role": "user", "content": {"type": "text", "text": "2 + 2?"}}],
    "maxTokens": 10,
    "x-extra": [None, {CUT: CUT}],
}
WITH_TOOLS = {**SAMPLE, "tools": [{"name": "add", "inputSchema": {"type": "object"}}], "toolChoice": {"mode": "auto"}}
ROOT_ANSWER = {"roots": [{"uri": "file:///home/ada", "name": CUT, "x-extra": None}]}
FORM_ANSWER = {"action": "accept", "content": {"name": "Ada", CUT: CUT}}
SAMPLE_ANSWER = {
    "role": "assistant",
    "content": {"type": "text", "text": "4"},
    "model": "m",
    "stopReason": "endTurn",
    "x-extra": [None, {CUT: CUT}],
}
TOOL_USE = {"type": "tool_use", "id": "use-1", "name": "add", "input": {"a": 2, "b": 2}}
TOOL_ANSWER = {**SAMPLE_ANSWER, "content": [TOOL_USE], "stopReason": "toolUse"}


def answer_to(method, params):
    """Return the answer of these tests' client to a server request."""
    if method == ROOTS:
        return ROOT_ANSWER
    if method == SAMPLING:
        return TOOL_ANSWER if "tools" in params else SAMPLE_ANSWER
    return {"action": "accept"} if params.get("mode") == "url" else FORM_ANSWER


def url_form(cell, number=1):
    """A URL elicitation in the form of this cell: only the legacy era has ids."""
    params = {"mode": "url", "message": "Please visit.", "url": "https://example.com/visit?x=1"}
    return params | ({"elicitationId": f"e-{number}"} if cell.era == "legacy" else {})


@dataclass(eq=False)
class Talk:
    """One call with all its messages."""

    answer: dict | None = None
    asked: list = field(default_factory=list)
    """(method, params) of what the client was asked."""
    notifications: list = field(default_factory=list)
    rounds: int = 0
    """Number of `input_required` results the client received."""
    status: int | None = None

    @property
    def result(self):
        assert "result" in self.answer, self.answer
        return self.answer["result"]

    @property
    def error(self):
        assert "error" in self.answer, self.answer
        return self.answer["error"]

    @property
    def answers(self):
        """The answers that the tool `ask` got."""
        return self.result["structuredContent"]["answers"]


class Talker:
    """A client in one cell that can be asked; `capabilities` is what it declares."""

    def __init__(self, client, cell, capabilities):
        self.client, self.cell, self.capabilities = client, cell, capabilities
        self.respond = lambda method, params: cell.fit(answer_to(method, params))

    def with_capabilities(self, params):
        if not self.client.modern:
            return params or {}
        own = {META + "clientCapabilities": self.capabilities} | (params or {}).get("_meta", {})
        return {**(params or {}), "_meta": own}

    async def call(self, tool, arguments=None, **kwargs):
        """One of the backend's tools."""
        params = {"name": self.cell.tool(tool), "arguments": arguments or {}, **kwargs}
        return await self.converse("tools/call", params)

    async def text(self, tool, arguments=None):
        return text_of((await self.call(tool, arguments)).answer)

    async def structured(self, tool, arguments=None):
        return (await self.call(tool, arguments)).result["structuredContent"]

    async def converse(self, method, params=None):
        """Do what the method says, and answer whatever is asked on the way."""
        talk = Talk()
        sent = self.with_capabilities(params)
        while True:
            talk.answer = await self.exchange(method, sent, talk)
            result = talk.answer.get("result", {})
            if not self.client.modern or result.get("resultType") != "input_required":
                return talk
            talk.rounds += 1
            assert talk.rounds < 10
            sent = self.retry(sent, result, talk)

    def retry(self, sent, result, talk):
        """The params with which a modern client retries."""
        responses = {}
        for key, wanted in result.get("inputRequests", {}).items():
            asked = wanted["method"], wanted.get("params", {})
            talk.asked.append(asked)
            responses[key] = self.respond(*asked)
        again = {**sent, "inputResponses": responses}
        again.pop("requestState", None)
        return again | ({"requestState": result["requestState"]} if "requestState" in result else {})

    async def exchange(self, method, params, talk):
        """One request, up to its response."""
        client = self.client
        async with client.open_call(method, params) as call:
            while True:
                message = await self.next_message(call)
                assert message is not None, f"the stream ended without a response to {method}"
                talk.status = None if client.stdio else call.exchange.status
                if "method" not in message:
                    return message
                if "id" in message:
                    await self.answer(message, talk)
                else:
                    talk.notifications.append(message)

    async def next_message(self, call):
        if self.client.stdio is None:
            return await call.next()

        def is_of_call(message):
            method = message.get("method")
            if method is None:
                return message["id"] == call.id
            return "id" in message or method in {"notifications/progress", "notifications/message"}

        return await self.client.stdio.wait_for(is_of_call, ANSWER_WITHIN)

    async def answer(self, message, talk):
        """Answer a request of the server's, which only legacy clients get."""
        assert not self.client.modern, f"a modern client must not be sent requests: {message}"
        params = message.get("params", {})
        talk.asked.append((message["method"], params))
        response = {"jsonrpc": "2.0", "id": message["id"], "result": self.respond(message["method"], params)}
        if self.client.stdio is not None:
            await self.client.stdio.send(response)
        else:
            assert (await self.client.http.post(response)).status == 202


@asynccontextmanager
async def open_talker(gateways, cell, capabilities=EVERYTHING):
    async with open_client(gateways, (cell.client, cell.frontend), initialize=False) as client:
        if not client.modern:
            await client.initialize(capabilities=capabilities)
        yield Talker(client, cell, capabilities)


def plain(result):
    """A result without what a modern one must have besides."""
    return {name: value for name, value in result.items() if name not in {"resultType", "ttlMs", "cacheScope", "_meta"}}


async def until(look):
    """Ask the backend until it is so."""
    with trio.fail_after(10):
        while not (found := await look()):
            pass
    return found
