"""Public names: released ones stay, and former ones work until their removal."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import gateway
from gateway.renamed import RENAMES, Rename
from gateway.version import VERSION
from tests.support.surface import list_names

STABLE = (Path(__file__).parent / "surface.txt").read_text(encoding="utf-8").splitlines()
"""The names of the last minor release, by `python -m tests.support.surface`."""
CHANGELOG = (Path(__file__).parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")
ids = [f"{rename.where}-{rename.former}" for rename in RENAMES]


def release(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize("rename", RENAMES, ids=ids)
def test_a_former_name_is_removed_on_time(rename: Rename) -> None:
    assert release(VERSION) < release(rename.gone_in), "delete the row, and what CHANGELOG and docs/ say of it"


@pytest.mark.parametrize("rename", RENAMES, ids=ids)
def test_the_changelog_has_the_present_name(rename: Rename) -> None:
    assert f"`{rename.present}`" in CHANGELOG


@pytest.mark.parametrize("rename", [each for each in RENAMES if each.where.startswith("ProxyManager.")])
def test_the_row_fits_the_method(rename: Rename) -> None:
    method = getattr(gateway.ProxyManager, rename.where.removeprefix("ProxyManager."))
    parameters = inspect.signature(method).parameters
    assert rename.present in parameters
    assert rename.former not in parameters


def test_every_name_of_the_last_release_exists() -> None:
    gone = set(STABLE) - set(list_names())
    assert not gone, "keep them beside the present names (gateway/renamed.py), then change tests/surface.txt"


@pytest.mark.parametrize("kind", ["config", "command", "http", "document", "metric", "error", "event", "log", "python"])
def test_every_stable_surface_is_recorded(kind: str) -> None:
    assert sum(line.startswith(f"{kind} ") for line in STABLE) > 5
