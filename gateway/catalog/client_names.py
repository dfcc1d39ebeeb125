"""Names of tools that clients and APIs of models refuse; docs/pages/how-to/clients/index.md has the sources. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_PLAIN: Final = r"[a-zA-Z0-9_-]"


class NameRule(NamedTuple):
    """The names that one client accepts."""

    client: str
    accepted: re.Pattern[str]


RULES: Final = (
    NameRule("Claude Desktop", re.compile(rf"{_PLAIN}{{1,64}}")),
    NameRule("Copilot CLI", re.compile(rf"{_PLAIN}{{1,128}}")),
    NameRule("Cursor", re.compile(r".{1,60}", re.DOTALL)),
    NameRule("OpenAI", re.compile(rf"{_PLAIN}{{1,64}}")),
    NameRule("Anthropic", re.compile(rf"{_PLAIN}{{1,128}}")),
    NameRule("Gemini", re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}")),
)
"""Clients that replace or shorten names themselves are left out, as long as the tools can be called."""


def refused_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the refused names by client."""
    names = list(names)
    found = {rule.client: [name for name in names if not rule.accepted.fullmatch(name)] for rule in RULES}
    return {client: refused for client, refused in found.items() if refused}
