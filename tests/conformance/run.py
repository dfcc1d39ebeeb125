"""`bin/conformance`: the official suite against a test server, without and with the gateway.

Results are shown side by side. One gateway with one backend under namespace "" is in between, once for each transport
of the backend, and once for each frontend that the suite does not speak: a second gateway then translates. A check that
passes directly and not through the gateway is lost; any lost check makes the exit status 1. What the suite wrote, and
the gateway's logs, stay in .cache/conformance/results, a folder a run; the newest are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from tests.conformance import suite as suites
from tests.conformance.suite import NEXT, STABLE, VERSIONS, Scenario, Suite
from tests.interop.cached import CACHE, ROOT, InstallError
from tests.support.gateway_process import HttpClient, open_gateway_process, run_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

RESULTS = CACHE / "conformance" / "results"
KEPT_RESULTS = 5  # folders of former runs
READY_WITHIN = 20.0  # seconds until the backend is ready behind the gateway
POLL = 0.05  # seconds between two checks for it
TRANSPORTS = {"stdio": "stdio", "sse": "sse", "http": "streamable-http"}
RELAYED = {"stdio": "by-stdio", "sse": "by-sse"}  # frontend -> its column
SERVER = [sys.executable, "-m", "tests.conformance.server"]
DRIVER = [sys.executable, "-m", "tests.conformance.drive"]
MAX_AGAIN = 3  # scenarios that may be tried again; more is not a timing accident

ONE_STREAM = "a stream that the server closes alone, to be resumed, does not exist on this transport"
NOT_REQUIRED = {(column, "server-sse-polling"): ONE_STREAM for column in ("stdio", "sse", *RELAYED.values())}
NOT_TRIED = {
    "auth/enterprise-managed-authorization": "the SDK leaves it to its user to exchange a login for an assertion",
    "auth/wif-jwt-bearer": "the SDK has no jwt-bearer grant without a client secret",
    "auth/dpop": "the SDK does not bind tokens to keys",
    "auth/dpop-nonce": "the same",
}
"""Extensions of authorization that the SDK's own client cannot do, and for which the gateway has no setting."""
CLIENT_SCENARIOS = {
    "legacy": [
        "initialize",
        "tools_call",
        "elicitation-sep1034-client-defaults",
        "sse-retry",
        "json-schema-2020-12-preservation",
    ],
    "modern": [
        "tools_call",
        "request-metadata",
        "sep-2322-client-request-state",
        "http-standard-headers",
        "http-custom-headers",
        "http-invalid-tool-headers",
        "json-schema-ref-no-deref",
        "json-schema-2020-12-preservation",
    ],
}
"""Those that concern a gateway; the others are about authorization (the kind `auth`) and extensions."""


@dataclass
class Table:
    """The columns of one comparison; the first is the yardstick."""

    title: str
    columns: dict[str, dict[str, Scenario]] = field(default_factory=dict)
    not_tried: dict[str, str] = field(default_factory=dict)
    """Scenarios of the suite that were left out, and why."""

    def lost(self) -> list[str]:
        direct, *others = self.columns
        return [
            f"{column:10} {name}: {loss}"
            for column in others
            for name, found in losses(column, self.columns[direct], self.columns[column]).items()
            for loss in found
        ]

    def spared(self) -> list[str]:
        """Return where fewer checks passed although none is lost, so that totals add up."""
        direct, *others = self.columns
        return [
            f"{column:10} {name}: {NOT_REQUIRED.get((column, name), 'noted as allowed')}"
            for column in others
            for name, scenario in self.columns[direct].items()
            if self.columns[column].get(name, Scenario()).count < scenario.count
            and name not in losses(column, self.columns[direct], self.columns[column])
        ]

    def lines(self) -> list[str]:
        names = list(dict.fromkeys(name for column in self.columns.values() for name in column))
        width = max(map(len, [*names, "scenarios passed"]), default=0)
        lines = [self.title, "", f"{'checks passed':{width}}" + "".join(f"{column:>10}" for column in self.columns)]
        lines += [f"{name:{width}}" + "".join(self._cell(column, name) for column in self.columns) for name in names]
        passed = [sum(found.passed for found in column.values()) for column in self.columns.values()]
        checks = [sum(found.count for found in column.values()) for column in self.columns.values()]
        lines.append(f"{'scenarios passed':{width}}" + "".join(f"{number:>10}" for number in passed))
        lines.append(f"{'checks passed':{width}}" + "".join(f"{number:>10}" for number in checks))
        return [*lines, "", *self._notes()]

    def _cell(self, column: str, name: str) -> str:
        if (column, name) in NOT_REQUIRED:
            return f"{'n/a':>10}"
        direct = next(iter(self.columns.values())).get(name, Scenario())
        found = self.columns[column].get(name)
        mark = "!" if direct.lost(found) else ""
        return f"{f'{found.count if found else 0}{mark}':>10}"

    def _notes(self) -> list[str]:
        direct = next(iter(self.columns.values()))
        unsound = [
            f"direct     {name}: {check[0]}: {reason}"
            for name, found in direct.items()
            if not found.passed
            for check, reason in found.failed.items()
        ]
        notes = ["Not passed directly, so not required:", *unsound, ""] if unsound else []
        if spared := self.spared():
            notes += ["Fewer checks, and none lost:", *spared, ""]
        if self.not_tried:
            notes += ["Not tried:", *(f"{name}: {reason}" for name, reason in self.not_tried.items()), ""]
        lost = self.lost()
        return [*notes, f"Lost checks: {len(lost)}", *lost, ""]


def losses(column: str, direct: dict[str, Scenario], found: dict[str, Scenario]) -> dict[str, list[str]]:
    """The scenarios that lose checks which are required in this column, each with those."""
    lost = {name: scenario.lost(found.get(name)) for name, scenario in direct.items()}
    return {name: checks for name, checks in lost.items() if checks and (column, name) not in NOT_REQUIRED}


@asynccontextmanager
async def open_backend(backend: str) -> AsyncGenerator[dict[str, Any]]:
    """The test server, and the config entry that leads to it."""
    if backend == "stdio":
        yield {"command": SERVER[0], "args": SERVER[1:], "cwd": str(ROOT)}
        return
    async with open_server(TRANSPORTS[backend]) as url:
        yield {"url": url, "transport": TRANSPORTS[backend]}


@asynccontextmanager
async def open_server(transport: str) -> AsyncGenerator[str]:
    async with run_process([*SERVER, "--transport", transport]) as server:
        line = await server.wait_stderr("listening on http://", within=READY_WITHIN)
        yield line[line.index("http://") :].split()[0]


@asynccontextmanager
async def open_through(backend: str, log: Path, frontend: str = "http") -> AsyncGenerator[str]:
    """Open a gateway before the test server; yield its URL, perhaps a relay's.

    A relay translates a frontend that the suite does not speak.
    """
    async with open_backend(backend) as entry:
        if frontend == "http":
            async with open_gateway(entry, log) as url:
                yield url
        elif frontend == "sse":
            async with (
                open_gateway(entry, log, "streamable-http,sse") as url,
                open_gateway({"url": f"{url.removesuffix('/mcp')}/sse", "transport": "sse"}, log) as relay,
            ):
                yield relay
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "config.json"
                path.write_text(json.dumps(make_config(entry)), encoding="utf-8")
                arguments = ["-m", "gateway", "serve", "--config", str(path), "--state-dir", f"{folder}/state"]
                command = {"command": sys.executable, "args": arguments, "cwd": str(ROOT)}
                async with open_gateway(command, log) as relay:
                    yield relay


def make_config(server: dict[str, Any]) -> dict[str, Any]:
    return {"mcpServers": {"suite": {"namespace": "", **server}}, "gateway": {"max_sessions": 500}}


@asynccontextmanager
async def open_gateway(server: dict[str, Any], log: Path, transport: str = "streamable-http") -> AsyncGenerator[str]:
    async with open_gateway_process(make_config(server), transport=transport, status=None) as gateway:
        assert gateway.url is not None
        problem = await wait_ready(gateway.url)
        if problem is not None:
            print(f"{log.stem}: {problem}", flush=True)
        try:
            yield gateway.url
        finally:
            suites.keep(log, bytes(gateway.stderr))


async def wait_ready(url: str) -> str | None:
    """Wait until the backend is ready; return the problem if it does not."""
    backend: dict[str, Any] = {}
    with trio.move_on_after(READY_WITHIN):
        while True:
            backend = (await HttpClient(url).get("/health")).json()["backends"]["suite"]
            if backend["state"] == "ready":
                return None
            if backend["state"] in {"failed", "backoff"}:
                break
            await trio.sleep(POLL)
    return f"the backend is {backend.get('state')}: {backend.get('last_error')}"


async def compare_server(
    suite: Suite,
    era: str,
    backends: Sequence[str],
    scenarios: Sequence[str],
    results: Path,
    frontends: Sequence[str] = (),
) -> Table:
    """Try the server scenarios directly, behind each transport, and over HTTP behind each other frontend.

    `results` takes what the suite writes.
    """
    table = Table(
        f"Server scenarios, {era} ({VERSIONS[era]}), suite {suite.version}; columns: how the server is reached,"
        " and by-: by which frontend the gateway is"
    )
    results /= f"server-{suite.version}-{era}"
    async with open_server("streamable-http") as url:
        direct = table.columns["direct"] = await suite.run_server(url, era, results / "direct", scenarios)
    ways = [(backend, backend, "http") for backend in backends]
    ways += [(RELAYED[frontend], "http", frontend) for frontend in frontends]
    for column, backend, frontend in ways:
        if "sse" in {backend, frontend} and era == "modern":
            continue  # that transport knows the legacy era alone
        async with open_through(backend, results / f"{column}.log", frontend) as url:
            found = await suite.run_server(url, era, results / column, scenarios)
            # Windows of half a second are missed on a busy machine: what was lost gets one more chance, alone.
            again = list(losses(column, direct, found))
            if 0 < len(again) <= MAX_AGAIN:
                found |= await suite.run_server(url, era, results / f"{column}-again", again)
        table.columns[column] = found
    return table


async def compare_client(
    suite: Suite, era: str, scenarios: Sequence[str], results: Path, columns: Sequence[str] = ("legacy", "modern")
) -> Table:
    """Try the client scenarios with the SDK alone, and through a gateway."""
    table = Table(
        f"Client scenarios, {era} ({VERSIONS[era]}), suite {suite.version}; "
        "columns: the SDK alone, and the gateway with a client of that era"
    )
    for through in ("direct", *columns):
        column = table.columns[through] = {}
        for scenario in scenarios:
            output = results / f"client-{suite.version}-{era}" / f"{through}-{scenario}"
            found = await suite.run_client(DRIVER, era, output, scenario, {"CONFORMANCE_THROUGH": through})
            if found is not None:
                column[scenario] = found
    return table


async def compare(options: argparse.Namespace, results: Path) -> list[Table]:
    tables: list[Table] = []
    is_whole = options.kind is None and not options.short and not options.scenario
    for era in [options.era] if options.era else list(VERSIONS):
        if options.kind in {None, "server"}:
            for version in [NEXT] if options.short or era == "modern" else [NEXT, STABLE]:
                suite = suites.install(version)
                found = await compare_server(suite, era, options.backend, options.scenario, results, options.frontend)
                tables.append(found)
                show(tables[-1])
        if options.kind == "client" or is_whole:
            chosen = chosen_of(options, CLIENT_SCENARIOS[era])
            tables.append(await compare_client(suites.install(NEXT), era, chosen, results))
            show(tables[-1])
        if options.kind == "auth" or is_whole:
            suite = suites.install(NEXT)
            offered = chosen_of(options, await suite.auth_scenarios(era))
            chosen = [name for name in offered if name not in NOT_TRIED]
            tables.append(await compare_client(suite, era, chosen, results, [era]))
            tables[-1].not_tried = {name: NOT_TRIED[name] for name in offered if name in NOT_TRIED}
            show(tables[-1])
    return tables


def chosen_of(options: argparse.Namespace, scenarios: Sequence[str]) -> list[str]:
    return [name for name in scenarios if not options.scenario or name in options.scenario]


def make_results() -> Path:
    """A folder for this run; the oldest of former ones are removed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for old in sorted(RESULTS.glob("2*"))[:-KEPT_RESULTS]:
        shutil.rmtree(old, ignore_errors=True)
    results = RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    results.mkdir()
    return results


def show(table: Table) -> None:
    print("\n".join(table.lines()), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bin/conformance", description=__doc__)
    parser.add_argument("kind", nargs="?", choices=["server", "client", "auth"], help="only the scenarios of this kind")
    parser.add_argument("--era", choices=list(VERSIONS), help="only this era (default: both)")
    parser.add_argument("--backend", action="append", choices=list(TRANSPORTS), help="behind this transport")
    parser.add_argument("--frontend", action="append", choices=list(RELAYED), help="by this frontend of the gateway")
    parser.add_argument("--scenario", action="append", default=[], metavar="NAME", help="only this scenario")
    parser.add_argument("--short", action="store_true", help="one suite, server scenarios, stdio and http")
    options = parser.parse_args(arguments)
    if not options.backend and not options.frontend:
        options.backend = ["stdio", "http"] if options.short else list(TRANSPORTS)
        options.frontend = [] if options.short else list(RELAYED)
    options.backend, options.frontend = options.backend or [], options.frontend or []
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        tables = trio.run(compare, options, make_results())
    except InstallError as error:
        print(f"bin/conformance: {error}", file=sys.stderr)
        return 1
    lost = sum(len(table.lost()) for table in tables)
    print(f"{lost} checks lost in all" if lost else "no check lost")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
