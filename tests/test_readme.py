"""README says what is so: its generated parts are what the program generates now."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from gateway.cli.flags import convert, read_plain
from gateway.cli.main import COMMANDS, find_command
from gateway.cli.reference import render
from gateway.config import parse_config
from tests.support import guarantees

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_config_reference_is_the_present_one() -> None:
    found = re.search(r"<!-- config reference -->\n(.*?)\n<!-- end of config reference -->", README, re.DOTALL)
    assert found is not None
    assert found[1] == render(), "put the output of `bin/mcp-gateway fields` between the markers"


def test_every_guarantee_has_a_test_and_the_table_is_current() -> None:
    found = guarantees.find_tests()
    assert list(found) == list(guarantees.ROWS), "a test is named after a row that there is not"
    assert [row for row, tests in found.items() if not tests] == []
    assert guarantees.put_in_readme(README, guarantees.render()) == README, "run bin/guarantee-table"


def test_every_command_that_it_shows_exists() -> None:
    shown = set(re.findall(r"bin/mcp-gateway ([a-z-]+)", README))
    assert shown
    assert shown <= set(COMMANDS)


def section(title: str) -> str:
    """What stands under a heading."""
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_examples_of_access_control_are_configs_and_command_lines() -> None:
    text = section("Access control")
    keys, oauth = (
        parse_config(block, environ={}).access for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    )
    assert keys is not None
    assert [key.name for key in keys.keys] == ["alice", "ci"]
    assert keys.keys[1].rules.max_concurrency == 4
    assert oauth is not None
    assert oauth.requires_credentials
    introspection = json.loads(
        "{" + re.findall(r"`(\"introspection\": .*?)`", text)[0].replace("...", '"https://x.example"') + "}"
    )
    oauth_section = {"resource": "https://g.example/mcp", "issuer": "https://i.example", **introspection}
    config = {"mcpServers": {}, "access": {"oauth": oauth_section}}
    found = parse_config(json.dumps(config), environ={"SECRET": "s"}).access
    assert found is not None
    assert found.oauth is not None
    assert found.oauth.introspection is not None
    assert found.oauth.introspection.client_secret == "s"
    lines = re.findall(r"\$ bin/mcp-gateway (.*)", text)
    assert len(lines) == 3
    for line in lines:
        name, *words = shlex.split(line)
        command = find_command(name)
        raw = read_plain(command, words)
        assert raw is not None, line
        convert(command, raw)
