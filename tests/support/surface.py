"""The names that docs/pages/reference/compatibility.md calls stable, as in the code.

`python -m tests.support.surface` prints them; tests/surface.txt has its output of the latest release.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import gateway
from gateway.admin.metrics import FAMILIES, PREFIX
from gateway.admin.openapi import openapi_document
from gateway.admin.operations import OPERATIONS
from gateway.cli.main import COMMANDS, find_command
from gateway.config import config_reference
from gateway.errors import CODES
from gateway.telemetry.fields import DETAILS, EVENTS, FIELDS
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Iterator


def list_names() -> Iterator[str]:
    """Yield each stable name with its kind."""
    for row in config_reference():
        yield f"config {row.section}: {row.field}"
    for command in COMMANDS:
        yield f"command {command}"
        for flag in find_command(command).flags:
            yield f"command {command} {flag.name}"
            yield from (f"command {command} {flag.name} {choice}" for choice in flag.choices)
    for operation in OPERATIONS:
        yield f"http {operation.method} {operation.path}"
    for name, schema in openapi_document(OPERATIONS, VERSION)["components"]["schemas"].items():
        yield from (f"document {name}: {member}" for member in schema.get("properties", ()))
    for name, family in FAMILIES.items():
        yield f"metric {PREFIX}{name}{{{','.join(family.labels)}}}"
    yield from (f"error {code}" for code in CODES)
    yield from (f"event {event}" for event in EVENTS)
    yield from (f"log field {field}" for field in (*FIELDS, *DETAILS))
    for name in gateway.__all__:
        exported = getattr(gateway, name)
        yield f"python {name}"
        members = inspect.getmembers(exported, callable) if inspect.isclass(exported) else [("", exported)]
        for member, function in members:
            if not member.startswith("_") and callable(function):
                parameters = list(inspect.signature(function).parameters)
                yield from (f"python {name}.{member}({parameter})" for parameter in ("", *parameters))


if __name__ == "__main__":
    print("\n".join(sorted(set(list_names()))))
