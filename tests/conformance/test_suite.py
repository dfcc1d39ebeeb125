"""The short form of bin/conformance, and its counting.

The test server must itself pass every scenario, or the comparison means nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.conformance import suite as suites
from tests.conformance.run import ONE_STREAM, Table, compare_client, compare_server
from tests.conformance.suite import NEXT, Scenario, Suite, read_scenario
from tests.interop.cached import InstallError

if TYPE_CHECKING:
    from pathlib import Path

SCENARIOS = {"legacy": (33, 84), "modern": (40, 152)}
"""How many scenarios and checks the server passes directly."""


@pytest.fixture(scope="session")
def suite() -> Suite:
    try:
        return suites.install(NEXT)
    except InstallError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


@pytest.mark.leak_check
@pytest.mark.real("conformance")
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_gateway_loses_no_check(suite: Suite, era: str, tmp_path: Path) -> None:
    table = await compare_server(suite, era, ["stdio", "http"], [], tmp_path)
    direct = table.columns["direct"]
    assert (sum(found.passed for found in direct.values()), sum(found.count for found in direct.values())) == SCENARIOS[
        era
    ], "\n".join(table.lines())
    assert not table.lost(), "\n".join(table.lines())


LOGINS = {
    "legacy": ["auth/scope-step-up", "auth/pre-registration", "auth/client-credentials-basic"],
    "modern": ["auth/scope-step-up", "auth/iss-normalized"],
}
"""A selection; `bin/conformance auth` tries all."""


@pytest.mark.real("conformance")
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_the_gateway_logs_in_like_the_sdk(suite: Suite, era: str, tmp_path: Path) -> None:
    table = await compare_client(suite, era, LOGINS[era], tmp_path, [era])
    assert all(found.passed for found in table.columns["direct"].values()), "\n".join(table.lines())
    assert not table.lost(), "\n".join(table.lines())


def check(name: str, status: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "name": name.title(), "status": status, **more}


@pytest.mark.parametrize(
    ("checks", "passed", "count"),
    [
        ([check("a", "SUCCESS"), check("wire-schema-valid", "SUCCESS")], True, 2),
        ([check("wire-schema-valid", "SUCCESS")], False, 1),
        ([check("a", "SKIPPED"), check("wire-schema-valid", "SUCCESS")], False, 1),
        ([check("a", "SUCCESS"), check("b", "WARNING")], True, 1),
        ([check("a", "SUCCESS"), check("b", "FAILURE")], False, 1),
        ([check("a", "INFO")], False, 0),
        ([], False, 0),
    ],
)
def test_only_expected_results_count_as_passed(checks: list[dict[str, Any]], passed: bool, count: int) -> None:
    scenario = read_scenario(checks)
    assert (scenario.passed, scenario.count) == (passed, count)


def test_a_check_that_occurs_twice_is_lost_once() -> None:
    direct = read_scenario([check("a", "SUCCESS"), check("a", "SUCCESS"), check("b", "SUCCESS")])
    through = read_scenario([check("a", "SUCCESS"), check("b", "WARNING", errorMessage="half of it")])
    assert direct.lost(through) == ["a: was not tried", "b: WARNING half of it"]
    assert direct.lost(direct) == []
    assert direct.lost(None) == ["the scenario did not run"]
    assert Scenario().lost(None) == []


def test_a_check_of_each_request_counts_once() -> None:
    direct = read_scenario([check("valid-bearer-token", "SUCCESS")] * 4)
    through = read_scenario([check("valid-bearer-token", "SUCCESS")])
    assert (direct.count, through.count) == (1, 1)
    assert direct.lost(through) == []


def test_an_answer_may_come_without_a_stream() -> None:
    direct = read_scenario([check("server-sse-streams-functional", "SUCCESS"), check("tools-name-format", "SUCCESS")])
    through = read_scenario([check("server-sse-streams-functional", "INFO"), check("tools-name-format", "INFO")])
    assert direct.lost(through) == ["tools-name-format: was not tried"]


def test_the_table_marks_what_is_lost() -> None:
    direct, through = read_scenario([check("a", "SUCCESS")]), read_scenario([])
    table = Table("title", {"direct": {"one": direct, "two": direct}, "stdio": {"one": direct, "two": through}})
    rows = [line.split() for line in table.lines()]
    assert ["one", "1", "1"] in rows
    assert ["two", "1", "0!"] in rows
    assert ["scenarios", "passed", "2", "1"] in rows
    assert table.lost() == ["stdio      two: a: was not tried"]


def test_unsupported_checks_are_reported_and_not_lost() -> None:
    scenario, through = read_scenario([check("a", "SUCCESS")]), read_scenario([])
    name = "server-sse-polling"
    table = Table("title", {"direct": {name: scenario}, "stdio": {name: through}, "http": {name: through}})
    assert table.spared() == [f"stdio      {name}: {ONE_STREAM}"]
    assert table.lost() == [f"http       {name}: a: was not tried"]
