"""Events in captured log records, which tests match instead of message texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.telemetry.fields import details_of, fields_of

if TYPE_CHECKING:
    import pytest


def logged_events(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """Return the fields of every captured record of this event, oldest first."""
    found = [details_of(record) | fields_of(record) for record in caplog.records]
    return [fields for fields in found if fields.get("event") == event]
