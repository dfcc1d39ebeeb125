"""The documentation is true: examples run, commands exist, references are complete."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import json
import os
import re
import shlex
import sys
import tomllib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from gateway.calls import NAME_LENGTHS, SEPARATORS
from gateway.cli.clients import read_client
from gateway.cli.flags import convert, read_plain
from gateway.cli.main import COMMANDS, find_command
from gateway.config import parse_config
from tests.support import guarantees
from tests.support.gateway_process import ROOT
from tests.support.pages import ALL, PAGES, Block, Shell, blocks, fits

EXAMPLES = ROOT / "docs" / "examples"
TOGETHER = {
    PAGES / "tutorial" / "connect-a-client.md": [PAGES / "tutorial" / "first-gateway.md"],
}
"""Pages that continue others, whose files are there."""
OF_CLIENTS = {PAGES / "tutorial" / "one-gateway.md"}
"""Pages whose sessions need real clients; tests/interop/test_install.py runs them."""
OTHER_PROGRAMS = {"claude", "pip"}
"""What shell blocks may run besides the gateway; not run here."""
NOT_RUN = {"text", "nginx", ""}
"""Languages of blocks that no test reads."""
EVERY = [block for page in ALL for block in blocks(page)]


def of(*languages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", [each for each in EVERY if each.language in languages], ids=str)


def parse_command(words: list[str]) -> None:
    """Check a command line of the gateway, up to a redirection."""
    name, *rest = words[1:]
    if name == "--version":
        return
    if ">" in rest:
        rest = rest[: rest.index(">")]
    command = find_command(name)
    raw = read_plain(command, rest)
    assert raw is not None, words
    convert(command, raw)


def is_gateway(word: str) -> bool:
    return Path(word).name == "mcp-gateway"


def check_entry(entry: dict[str, object]) -> None:
    """Check what a client would start, or connect to."""
    command = entry.get("command")
    words = [*(command if isinstance(command, list) else [command] if command else ()), *entry.get("args", ())]
    if words:
        assert is_gateway(words[0])
        parse_command(words)
        return
    query = parse_qs(urlsplit(str(entry.get("url", entry.get("httpUrl")))).query)
    assert set(query.pop("separator", [])) <= set(SEPARATORS)
    assert set(query.pop("max_name_length", [])) <= set(map(str, NAME_LENGTHS))
    assert not query


def is_for_client(block: Block) -> bool:
    return "/path/to/mcp-gateway" in block.text or "127.0.0.1:8080/mcp" in block.text


def test_every_block_is_in_a_tested_language() -> None:
    known = NOT_RUN | {"console", "sh", "json", "toml", "python", "ini", "yaml"}
    assert [str(block) for block in EVERY if block.language not in known] == []
    assert len(EVERY) > 60


@of("json", "toml")
def test_a_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    if not is_for_client(block):
        if "-1" not in block.text:  # the page about errors shows one
            config = parse_config(block.text, environ={})
            assert config.warnings == ()
        return
    root = tomllib.loads(block.text) if block.language == "toml" else json.loads(block.text)
    (section,) = root.values()
    check_entry(section["gateway"])
    path = tmp_path / (block.title or "claude_desktop_config.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text, encoding="utf-8")
    found = read_client(str(path), {}, tmp_path, Path("/path/to/config.json"))
    assert found.skipped == {}
    if "/path/to/mcp-gateway" in block.text:
        assert found.own == ["gateway"]
    else:
        assert urlsplit(found.servers["gateway"]["url"]).path == "/mcp"


@of("sh")
def test_a_shell_command_is_one_that_exists(block: Block) -> None:
    for line in block.text.splitlines():
        words = shlex.split(line, comments=True)
        place = next((index for index, word in enumerate(words) if is_gateway(word)), None)
        if place is not None and (place == 0 or words[:place] == ["uvx", "--from", "."] or words[0] in OTHER_PROGRAMS):
            parse_command(words[place:])
        elif words and words[0].startswith("bin/"):
            assert os.access(ROOT / words[0], os.X_OK)
        else:
            assert words[0] in OTHER_PROGRAMS


@of("ini")
def test_a_systemd_unit_starts_the_gateway(block: Block) -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(block.text)
    if "Socket" not in unit:
        parse_command(shlex.split(unit["Service"]["ExecStart"]))


@of("yaml")
def test_yaml_can_be_read(block: Block) -> None:
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(block.text)


@of("python")
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    tree = ast.parse(block.text)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    if any(importlib.util.find_spec(name.partition(".")[0]) is None for name in imported):
        assert "clients" in block.page.parts, "only client programs may need uninstalled packages"
        return
    with Shell(tmp_path) as shell:
        path = shell.write(block.title or "program.py", block.text)
        status, printed = shell.run(f'"{sys.executable}" {shlex.quote(str(path))}')
    assert status == 0, printed
    assert "12:00 in Europe/Berlin" in printed


@pytest.mark.parametrize(
    "page",
    [page for page in ALL if page not in OF_CLIENTS and any(block.language == "console" for block in blocks(page))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_sessions_of_a_page_run_as_shown(page: Path, tmp_path: Path) -> None:
    with Shell(tmp_path) as shell:
        shell.follow(page, *TOGETHER.get(page, ()))


@pytest.mark.parametrize(
    ("shown", "printed", "fit"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a ... s", "a 0.05 s\n", True),
        ("a ... s", "a\nb s\n", False),
        ("a\n...\nz", "a\nb\nc\nz\n", True),
        ("...", "", True),
        ("a.c", "abc", False),
    ],
)
def test_shown_output_is_compared(shown: str, printed: str, fit: bool) -> None:
    assert fits(shown, printed) is fit


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    shown = set(re.findall(r"`(?:bin/)?mcp-gateway ([a-z-]+)", page.read_text(encoding="utf-8")))
    assert shown <= set(COMMANDS)


def test_every_generated_part_is_in_a_page() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    markers = [name for page in ALL for name in generate.MARKER.findall(page.read_text(encoding="utf-8"))]
    assert sorted(markers) == sorted(generate.PARTS)
    for name, part in generate.PARTS.items():
        assert part(), name
    assert re.findall(r"^## (.+)$", generate.commands(), re.MULTILINE) == list(COMMANDS)


def test_links_of_readme_lead_to_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
    assert text.count("\n") <= 150


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.name)
def test_an_example_is_a_configuration_without_warnings(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("${file:/run/secrets/database-url}", "${DATABASE_URL}")
    variables = {"HOME": "/home/ada"} | dict.fromkeys(re.findall(r"\$\{(\w+)\}", text), "a secret")
    assert parse_config(text, environ=variables).warnings == ()


def test_every_guarantee_has_a_test() -> None:
    found = guarantees.find_tests()
    assert list(found) == list(guarantees.ROWS), "a test is named after a row that there is not"
    assert [row for row, tests in found.items() if not tests] == []
