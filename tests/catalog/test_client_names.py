"""The names that clients refuse, as the documentation lists them."""

from __future__ import annotations

import re

import pytest

from gateway.catalog.client_names import RULES, refused_names
from tests.support.pages import PAGES

EVERYWHERE = {rule.client for rule in RULES}


@pytest.mark.parametrize(
    ("name", "clients"),
    [
        ("time__now", set[str]()),
        ("a" * 60, set[str]()),
        ("time.now", {"Claude Desktop", "Copilot CLI", "OpenAI", "Anthropic"}),
        ("a" * 61, {"Cursor"}),
        ("a" * 65, {"Claude Desktop", "Cursor", "OpenAI", "Gemini"}),
        ("a" * 129, EVERYWHERE),
        ("1st", {"Gemini"}),
        ("größe", EVERYWHERE - {"Cursor"}),
    ],
)
def test_refused_names(name: str, clients: set[str]) -> None:
    assert refused_names(["fine", name]) == {client: [name] for client in clients}


def test_the_documentation_has_the_same_rules() -> None:
    page = (PAGES / "how-to" / "clients" / "index.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([A-Z][\w ]*?)(?: [\d.]+|,[^|]*)? \| (.*) \|$", page, re.MULTILINE))
    limits = {"Claude Desktop": 64, "Copilot CLI": 128, "Cursor": 60, "OpenAI": 64, "Anthropic": 128, "Gemini": 64}
    assert limits.keys() == EVERYWHERE
    assert [client for client, limit in limits.items() if str(limit) not in rows[client]] == []
    strict = {client for client in EVERYWHERE if "[a-zA-Z0-9_-]" in rows[client]}
    assert strict == set(refused_names(["a.b"]))
