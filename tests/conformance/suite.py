"""Run the official conformance suite and count its checks independently of its own summary.

A scenario counts as passed only if nothing failed and a check beyond `wire-schema-valid` succeeded: the suite also
passes one in which everything was skipped or only warned. A check is counted by id and name, since an id may recur.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from tests.interop.cached import ROOT, node_binary, node_modules

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

NODE = "22.23.3"
STABLE, NEXT = "0.1.16", "0.2.0-alpha.12"
VERSIONS = {"legacy": "2025-11-25", "modern": "2026-07-28"}
"""The revision of the specification that each era is tried with."""

RUN_WITHIN = 240.0  # seconds for all scenarios of one run; each has 30 s of its own
FORMAL = "wire-schema-valid"
EACH_TIME = {"valid-bearer-token"}  # one for each request; how many a client makes is its own affair
OPTIONAL = {"server-sse-streams-functional"}  # an answer may be JSON, too, which the suite then notes
_RESULTS = re.compile(r"(?:server-)?(.+)-\d{4}-\d\d-\d\dT[\d-]+Z?")

Check = tuple[str, str]  # id, name


@dataclass
class Scenario:
    """What one scenario found."""

    passed_checks: Counter[Check] = field(default_factory=Counter)
    failed: dict[Check, str] = field(default_factory=dict)  # what did not pass -> why
    noted: set[str] = field(default_factory=set)  # ids of what the suite merely notes

    @property
    def count(self) -> int:
        return self.passed_checks.total()

    @property
    def passed(self) -> bool:
        failures = any(not reason.startswith(("WARNING", "SKIPPED")) for reason in self.failed.values())
        return not failures and any(check[0] != FORMAL for check in self.passed_checks)

    def lost(self, through: Scenario | None) -> list[str]:
        """The checks that pass here and not there, each with its reason, if any."""
        if through is None:
            return ["the scenario did not run"] if self.count else []
        missing = self.passed_checks - through.passed_checks
        return [
            f"{check[0] if check[0] != FORMAL else ' '.join(check)}"
            f"{f' x{number}' if number > 1 else ''}: {through.failed.get(check, 'was not tried')}"
            for check, number in missing.items()
            if check[0] not in OPTIONAL or check[0] not in through.noted
        ]


@dataclass(frozen=True)
class Suite:
    """One release of the suite, installed."""

    version: str
    node: Path
    script: Path

    async def run_server(
        self, url: str, era: str, output: Path, scenarios: Sequence[str] = (), within: float = RUN_WITHIN
    ) -> dict[str, Scenario]:
        """Try the server at `url` with all scenarios of the era, or with those named."""
        common = ["server", "--url", url, "--spec-version", VERSIONS[era], "-o", str(output)]
        if not scenarios:
            await self._run([*common, "--suite", "all"], {}, output, within)
        for name in scenarios:
            await self._run([*common, "--scenario", name], {}, output, within)
        return read_results(output)

    async def run_client(
        self, command: Sequence[str], era: str, output: Path, scenario: str, environment: Mapping[str, str]
    ) -> Scenario | None:
        """Try the client `command`; its last argument is the URL of the suite's server."""
        arguments = ["client", "--command", shlex.join(command), "--scenario", scenario]
        # A revision in a scenario's name is the only one that it has; one of an extension has none, which needs force.
        version = re.search(r"\d{4}-\d\d-\d\d", scenario)
        arguments += ["--spec-version", version[0] if version else VERSIONS[era], "--force", "-o", str(output)]
        await self._run(arguments, environment, output, RUN_WITHIN)
        return read_results(output).get(scenario)

    async def auth_scenarios(self, era: str) -> list[str]:
        """Those about authorization in this era; older ones and those of extensions count as legacy."""
        listed = await trio.run_process([str(self.node), str(self.script), "list", "--client"], capture_stdout=True)
        found = re.findall(r"- (auth/\S+) \[(.*)\]", listed.stdout.decode())
        return [
            name
            for name, versions in found
            if VERSIONS[era] in versions or (era == "legacy" and VERSIONS["modern"] not in versions)
        ]

    async def _run(self, arguments: list[str], extra: Mapping[str, str], output: Path, within: float) -> None:
        said = b""
        with trio.move_on_after(within) as scope:
            done = await trio.run_process(
                [str(self.node), str(self.script), *arguments],
                stdin=subprocess.DEVNULL,
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
                cwd=ROOT,
                env={**os.environ, **extra},
            )
            said = done.stdout
        keep(
            output / "output.txt", said if not scope.cancelled_caught else f"cut short after {within:.0f} s\n".encode()
        )


def keep(path: Path, data: bytes) -> None:
    """Add to a log, in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        log.write(data)


def install(version: str) -> Suite:
    """The suite of this version, from the cache or the registry."""
    name = "conformance/suite-" + version
    modules = node_modules(name, f"@modelcontextprotocol/conformance@{version}")
    script = modules / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
    return Suite(version, node_binary("conformance/node", NODE), script)


def read_results(output: Path) -> dict[str, Scenario]:
    """All scenarios that left results in this folder; of several runs of one, the last."""
    found: dict[str, Scenario] = {}
    for path in sorted(output.rglob("checks.json"), key=lambda path: path.stat().st_mtime_ns):
        match = _RESULTS.fullmatch(str(path.parent.relative_to(output)))
        if match is not None:
            found[match[1]] = read_scenario(json.loads(path.read_text(encoding="utf-8")))
    return found


def read_scenario(checks: list[dict[str, Any]]) -> Scenario:
    scenario = Scenario()
    for check in checks:
        key = (check["id"], check.get("name", ""))
        if check["status"] == "SUCCESS":
            scenario.passed_checks[key] += key[0] not in EACH_TIME or not scenario.passed_checks[key]
        elif check["status"] == "INFO":
            scenario.noted.add(check["id"])
        else:
            reason = check.get("errorMessage") or json.dumps(check.get("details", {}).get("violations", ""))
            scenario.failed[key] = f"{check['status']} {' '.join(str(reason).split())[:240]}"
    return scenario
