"""Events of log records: named in one table, and fields in JSON."""

from __future__ import annotations

import ast
import json
import logging
import re
from pathlib import Path

import pytest

import gateway
from gateway.telemetry.fields import DETAILS, EVENTS, FIELDS
from gateway.telemetry.formats import Console, JsonLines

PACKAGE = Path(gateway.__file__).parent


def event_dicts() -> list[tuple[str, ast.Dict]]:
    """Return every dict literal in the code with a literal `event`, and where it is."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict) and isinstance(literal_keys(node).get("event"), ast.Constant)
    ]


def literal_keys(node: ast.Dict) -> dict[str, ast.expr]:
    pairs = zip(node.keys, node.values, strict=True)
    return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}


def test_code_and_table_name_the_same_events() -> None:
    used: set[str] = set()
    used.update(ast.literal_eval(literal_keys(node)["event"]) for _, node in event_dicts())
    assert used == set(EVENTS)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", event) for event in EVENTS)


@pytest.mark.parametrize(("place", "node"), event_dicts(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_event_field_is_shown(place: str, node: ast.Dict) -> None:
    assert literal_keys(node).keys() - {"event", *FIELDS, *DETAILS} == set(), place


def test_event_fields_collide_with_no_log_attribute() -> None:
    reserved = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
    assert reserved & {"event", *FIELDS, *DETAILS} == set()


def test_json_lines_show_the_event_and_its_fields() -> None:
    log = logging.getLogger("gateway.test")
    extra = {"event": "backend_restart", "backend": "b", "code": "backend_exited", "retry_in": 0.5, "pid": None}
    record = log.makeRecord(log.name, logging.WARNING, __file__, 1, "text", (), None, extra=extra)
    shown = json.loads(JsonLines().format(record))
    assert {name: shown.get(name) for name in extra} == extra
    assert "pid" not in shown
    assert Console().format(record).endswith("gateway.test: text [backend=b]")


def test_fields_of_records_without_events_are_hidden() -> None:
    record = logging.getLogger("other").makeRecord("other", 20, __file__, 1, "text", (), None, extra={"state": "x"})
    assert "state" not in json.loads(JsonLines().format(record))
