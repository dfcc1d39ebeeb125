"""MkDocs hook: fills the parts of pages that are made from the code.

A page has `<!-- generated: NAME -->` where the part belongs; `PARTS` has the function for each name. So no reference is
written by hand, and none can be out of date.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.admin.metrics import FAMILIES, PREFIX
from gateway.admin.openapi import openapi_document
from gateway.admin.operations import OPERATIONS
from gateway.cli import reference
from gateway.cli.flags import PROGRAM, Flag
from gateway.cli.main import COMMANDS, find_command
from gateway.errors import CODES
from gateway.renamed import RENAMES
from gateway.telemetry.fields import DETAILS, EVENTS, FIELDS
from gateway.version import VERSION
from tests.support import guarantees

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT: Final = Path(__file__).resolve().parent.parent
MARKER: Final = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
ACCESS: Final = {
    "open": "Anyone who can reach the gateway.",
    "read": "The admin token; none on loopback while the config has no section `access`.",
    "change": "The admin token.",
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the generated parts into a page."""
    return MARKER.sub(lambda found: PARTS[found[1]](), markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the OpenAPI document itself."""
    from mkdocs.structure.files import File

    text = json.dumps(openapi_document(OPERATIONS, VERSION), indent=2)
    files.append(File.generated(config, "reference/openapi.json", content=text))
    return files


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def code(text: str) -> str:
    """Return text as inline code; nothing for nothing."""
    return f"`{text}`" if text else ""


def sentence(text: str) -> str:
    """Return text with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def commands() -> str:
    """Return a section for each command, with its usage and its flags."""
    sections: list[str] = []
    for name in COMMANDS:
        command = find_command(name)
        usage = " ".join([PROGRAM, name, *map(usage_of, (flag for flag in command.flags if not flag.is_option))])
        usage += "".join(f" {f.name} {f.metavar}" for f in command.flags if f.is_option and f.required)
        if any(flag.is_option and not flag.required for flag in command.flags):
            usage += " [OPTIONS]"
        rows = [(flag_name(flag), sentence(flag.help) + variable(flag), default(flag)) for flag in command.flags]
        section = [f"## {name}", sentence(command.help), f"```text\n{usage}\n```"]
        if rows:
            section.append(table(("argument", "meaning", "default"), rows))
        if command.epilog:
            section.append(sentence(command.epilog))
        sections.append("\n\n".join(section))
    return "\n\n".join(sections)


def usage_of(flag: Flag) -> str:
    """Return a positional argument as a usage line has it."""
    name = f"{flag.name}..." if flag.many else flag.name
    return name if flag.required else f"[{name}]"


def flag_name(flag: Flag) -> str:
    """Return a flag with its value."""
    if not flag.is_option or flag.switch:
        return code(flag.name)
    value = f"{{{','.join(flag.choices)}}}" if flag.choices else flag.metavar
    return code(f"{flag.name} {value}")


def variable(flag: Flag) -> str:
    """Return the hint at the environment variable of a secret."""
    return f" Prefer the variable `{flag.variable}`." if flag.variable else ""


def default(flag: Flag) -> str:
    """Return a flag's default, where it is a plain value that the help does not give."""
    value = flag.default
    if value is None or flag.switch or "default" in flag.help:
        return ""
    return code(",".join(value) if isinstance(value, tuple) else str(value))


def configuration() -> str:
    """Return the tables of `mcp-gateway fields`, with headings that can be linked to."""
    return re.sub(r"^\*\*(.+)\*\*$", r"## \1", reference.render(), flags=re.MULTILINE)


def management_api() -> str:
    """Return the operations of the management API and the documents that they answer with."""
    document = openapi_document(OPERATIONS, VERSION)
    schemas: dict[str, Any] = document["components"]["schemas"]
    parts = ["## Operations"]
    for operation in OPERATIONS:
        described = document["paths"][operation.path][operation.method.lower()]
        answers = [f"[{answer.__name__}](#{answer.__name__.lower()})" for answer in operation.answers]
        parts += [
            f"### {operation.method} {operation.path}",
            operation.summary,
            f"*Access:* {ACCESS[operation.access]} *Answer:* {' or '.join(answers) or code(operation.content_type)}",
            table(("status", "meaning"), ((s, r["description"]) for s, r in described["responses"].items())),
        ]
    parts.append("## Documents")
    for name, schema in schemas.items():
        required = set(schema.get("required", ()))
        parts += [f"### {name}", schema.get("description", "")]
        if "enum" in schema:
            parts.append(f"One of {type_of(schema)}.")
            continue
        rows = ((code(f), type_of(s), "yes" if f in required else "") for f, s in schema["properties"].items())
        parts.append(table(("member", "type", "always present"), rows))
    return "\n\n".join(filter(None, parts))


def type_of(schema: dict[str, Any]) -> str:
    """Return the type of a schema, with a link to the document that it is."""
    match schema:
        case {"$ref": str(target)}:
            name = target.rpartition("/")[2]
            return f"[{name}](#{name.lower()})"
        case {"anyOf": list(options)}:
            return " or ".join(map(type_of, options))
        case {"enum": list(values)}:
            return " or ".join(code(str(value)) for value in values)
        case {"type": "array"}:
            return f"list of {type_of(schema.get('items') or {})}"
        case {"type": "object", "additionalProperties": dict(values)}:
            return f"object of {type_of(values)}"
        case {"type": str(name)}:
            return name
        case _:
            return "any"


def metrics() -> str:
    """Return every metric."""
    rows = (
        (code(f"{PREFIX}{name}{'_total' if kind == 'counter' else ''}"), kind, ", ".join(map(code, labels)), text)
        for name, (kind, text, labels) in FAMILIES.items()
    )
    return table(("metric", "kind", "labels", "meaning"), rows)


def events() -> str:
    """Return every event of the log."""
    fields = f"Fields: {', '.join(map(code, (*FIELDS, *DETAILS)))}."
    return f"{table(('event', 'when'), ((code(name), text) for name, text in EVENTS.items()))}\n\n{fields}"


def error_codes() -> str:
    """Return every error code."""
    rows = ((code(name), *meaning) for name, meaning in CODES.items())
    return table(("code", "when", "what to do"), rows)


def renamed() -> str:
    """Return every former name that still works."""
    rows = ((code(each.where), code(each.former), code(each.present), each.gone_in) for each in RENAMES)
    return table(("where", "former name", "name", "works until"), rows)


def text_of(name: str) -> str:
    """Return a file of the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def program(name: str) -> str:
    """Return a program of the repository as a block."""
    return f"```python\n{text_of(name).rstrip()}\n```"


PARTS: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "configuration": configuration,
    "management API": management_api,
    "metrics": metrics,
    "events": events,
    "error codes": error_codes,
    "guarantees": guarantees.render,
    "renamed": renamed,
    **{name: partial(text_of, name) for name in ("SECURITY.md", "CHANGELOG.md", "gateway/README.md")},
    **{name: partial(program, name) for name in ("docs/examples/embed_trio.py", "docs/examples/embed_fastapi.py")},
}
