"""README says what is so: its generated parts are what the program generates now."""

from __future__ import annotations

import re
from pathlib import Path

from gateway.cli.fields import render
from gateway.cli.main import COMMANDS
from tests import seeds

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_config_reference_is_the_present_one() -> None:
    found = re.search(r"<!-- config reference -->\n(.*?)\n<!-- end of config reference -->", README, re.DOTALL)
    assert found is not None
    assert found[1] == render(), "put the output of `bin/mcp-gateway fields` between the markers"


def test_every_seed_has_a_test_and_the_table_is_the_present_one() -> None:
    found = seeds.find_tests()
    assert list(found) == list(seeds.ROWS), "a test is named after a row that there is not"
    assert [row for row, tests in found.items() if not tests] == []
    assert seeds.put_in_readme(README, seeds.render()) == README, "run bin/seed-table"


def test_every_command_that_it_shows_exists() -> None:
    shown = set(re.findall(r"bin/mcp-gateway ([a-z]+)", README))
    assert shown
    assert shown <= set(COMMANDS)
