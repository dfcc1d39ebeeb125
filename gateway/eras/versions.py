"""Protocol revisions and their negotiation (2025-11-25 basic/lifecycle; 2026-07-28 basic/versioning)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

LEGACY_VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""Handshake revisions, newest first."""
MODERN_VERSIONS: Final = ("2026-07-28",)
"""Per-request revisions, newest first."""
LATEST_LEGACY: Final = LEGACY_VERSIONS[0]
LATEST_MODERN: Final = MODERN_VERSIONS[0]
SUPPORTED_VERSIONS: Final = MODERN_VERSIONS + LEGACY_VERSIONS
BATCH_VERSION: Final = "2025-03-26"
"""The one revision in which receiving JSON-RPC batches is a MUST; they were removed in the next one."""

_DATE: Final = re.compile(r"(?<![0-9])[0-9]{4}-[0-9]{2}-[0-9]{2}(?![0-9-])")


def negotiate_legacy(requested: str) -> str:
    """Return the version for `initialize`: the requested one if supported, else our latest legacy one."""
    return requested if requested in LEGACY_VERSIONS else LATEST_LEGACY


def choose_modern(offered: Collection[str]) -> str | None:
    """Return the newest modern version in common; None means that the backend is legacy."""
    return next((version for version in MODERN_VERSIONS if version in offered), None)


def choose_legacy(offered: Collection[str], refused: Collection[str] = ()) -> str | None:
    """Return the newest legacy version offered and not refused, or None."""
    return next((one for one in LEGACY_VERSIONS if one in offered and one not in refused), None)


def find_legacy(text: str) -> list[str]:
    """Return the legacy versions in a text; as dates, they stand out."""
    named = set(_DATE.findall(text))
    return [version for version in LEGACY_VERSIONS if version in named]
