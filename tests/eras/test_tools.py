"""Tools as clients of each class of versions see them, and their own declarations."""

from __future__ import annotations

from typing import Any

import pytest

from gateway import jsonrpc
from gateway.eras.tools import is_for_apps


@pytest.mark.parametrize(
    ("visibility", "expected"),
    [
        (["app"], True),
        (["model", "app"], True),
        (["model"], False),
        ([], False),
        (None, True),  # no form that MCP Apps has: as if nothing were said
        ("model", True),
        (["model", 3], True),
    ],
)
def test_which_tools_are_for_apps(visibility: Any, expected: bool) -> None:
    tool = {"name": "x", "_meta": {"ui": {"visibility": visibility}}}
    assert is_for_apps(jsonrpc.encode(tool)) is expected


@pytest.mark.parametrize("meta", [None, {}, {"ui": None}, {"ui": {}}, {"ui/visibility": ["model"]}])
def test_a_tool_without_visibility_is_for_apps(meta: Any) -> None:
    assert is_for_apps(jsonrpc.encode({"name": "x", "_meta": meta})) is True
