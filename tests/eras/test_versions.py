"""Negotiation of the revision: the table of both choices, with the SDK as oracle."""

from __future__ import annotations

import pytest
from mcp.shared.inbound import MODERN_PROTOCOL_VERSIONS
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from gateway.eras import versions


@pytest.mark.parametrize(
    ("requested", "answered"),
    [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),  # no handshake leads to a modern revision
        ("1999-01-01", "2025-11-25"),
        ("", "2025-11-25"),
    ],
)
def test_initialize_is_answered_with_a_version(requested: str, answered: str) -> None:
    assert versions.negotiate_legacy(requested) == answered


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["2026-07-28"], "2026-07-28"),
        (["2099-01-01", "2026-07-28", "2025-11-25"], "2026-07-28"),
        (["2025-11-25"], None),
        ([], None),
    ],
)
def test_a_modern_version_is_chosen(offered: list[str], chosen: str | None) -> None:
    assert versions.choose_modern(offered) == chosen


def test_the_versions_are_those_of_the_sdk() -> None:
    assert set(versions.LEGACY_VERSIONS) == set(HANDSHAKE_PROTOCOL_VERSIONS)
    assert set(versions.MODERN_VERSIONS) == set(MODERN_PROTOCOL_VERSIONS)
    assert list(versions.SUPPORTED_VERSIONS) == sorted(versions.SUPPORTED_VERSIONS, reverse=True)
