"""Tables of the conformance server's tools, prompts, resources and forms.

The names and texts are demanded by the suite's scenarios; the tables are its fixtures and have no behaviour. Everything
is JSON as sent on the wire, so that a reader may compare it with the gateway's output.
"""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

Json = dict[str, Any]


def _png() -> str:
    """One red pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def _wav() -> str:
    """Eight samples of silence."""
    samples = bytes(8)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 8000, 1, 8) + struct.pack("<4sI", b"data", len(samples))
    riff = b"WAVE" + head + samples
    return base64.b64encode(b"RIFF" + struct.pack("<I", len(riff)) + riff).decode()


PNG, WAV = _png(), _wav()


def text(value: str) -> Json:
    return {"type": "text", "text": value}


def text_resource(uri: str, mime_type: str, value: str) -> Json:
    return {"type": "resource", "resource": {"uri": uri, "mimeType": mime_type, "text": value}}


IMAGE: Json = {"type": "image", "data": PNG, "mimeType": "image/png"}
AUDIO: Json = {"type": "audio", "data": WAV, "mimeType": "audio/wav"}

# -- tools -----------------------------------------------------------------------------------------------------------

NO_ARGUMENTS: Json = {"type": "object", "properties": {}}


def _one_argument(name: str, **schema: Any) -> Json:
    return {"type": "object", "properties": {name: {"type": "string", **schema}}, "required": [name]}


# Keywords that a proxy with a closed model of a schema would drop.
FULL_SCHEMA: Json = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

FIXED_RESULTS: dict[str, Json] = {
    "test_simple_text": {"content": [text("This is a simple text response for testing.")]},
    "test_image_content": {"content": [IMAGE]},
    "test_audio_content": {"content": [AUDIO]},
    "test_embedded_resource": {
        "content": [
            text_resource("test://embedded-resource", "text/plain", "This is an embedded resource content."),
        ]
    },
    "test_multiple_content_types": {
        "content": [
            text("Multiple content types test:"),
            IMAGE,
            text_resource("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
        ]
    },
    "test_error_handling": {
        "content": [text("This tool intentionally returns an error for testing")],
        "isError": True,
    },
    "json_schema_2020_12_tool": {"content": [text("The schema is what matters.")]},
}
"""Tools whose every call has the same result."""

SCHEMAS: dict[str, Json] = {
    "json_schema_2020_12_tool": FULL_SCHEMA,
    "test_sampling": _one_argument("prompt"),
    "test_elicitation": _one_argument("message"),
    "test_x_mcp_header": {
        "type": "object",
        "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
    },
}
"""Input schemas of the tools that take arguments."""

# -- what is asked of the client -------------------------------------------------------------------------------------


def form(**properties: Json) -> Json:
    return {"type": "object", "properties": properties, "required": list(properties)}


NAME_FORM = form(name={"type": "string"})
CONFIRM_FORM = form(ok={"type": "boolean"})
COLOR_FORM = form(color={"type": "string"})
CONTEXT_FORM = form(context={"type": "string"})
RESPONSE_FORM = form(response={"type": "string", "description": "User's response"})
DEFAULTS_FORM: Json = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
    "required": [],
}


def _titled(*titles: str) -> list[Json]:
    return [{"const": f"value{number}", "title": title} for number, title in enumerate(titles, 1)]


_OPTIONS = ["option1", "option2", "option3"]
ENUMS_FORM: Json = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": _OPTIONS},
        "titledSingle": {"type": "string", "oneOf": _titled("First", "Second", "Third")},
        "legacyEnum": {"type": "string", "enum": ["opt1", "opt2", "opt3"], "enumNames": ["One", "Two", "Three"]},
        "untitledMulti": {"type": "array", "items": {"type": "string", "enum": _OPTIONS}},
        "titledMulti": {"type": "array", "items": {"anyOf": _titled("First", "Second", "Third")}},
    },
    "required": [],
}


def ask_form(message: str, schema: Json) -> Json:
    return {
        "method": "elicitation/create",
        "params": {"mode": "form", "message": message, "requestedSchema": schema},
    }


def ask_model(question: str, max_tokens: int = 100) -> Json:
    return {
        "method": "sampling/createMessage",
        "params": {"messages": [{"role": "user", "content": text(question)}], "maxTokens": max_tokens},
    }


ASK_ROOTS: Json = {"method": "roots/list"}

# -- resources -------------------------------------------------------------------------------------------------------

RESOURCES: dict[str, Json] = {
    "test://static-text": {
        "name": "static-text",
        "description": "A text that never changes.",
        "mimeType": "text/plain",
        "text": "This is the content of the static text resource.",
    },
    "test://static-binary": {
        "name": "static-binary",
        "description": "One red pixel.",
        "mimeType": "image/png",
        "blob": PNG,
    },
    "test://watched-resource": {
        "name": "watched-resource",
        "description": "A resource to subscribe to.",
        "mimeType": "text/plain",
        "text": "Watched resource content",
    },
}

TEMPLATE: Json = {
    "uriTemplate": "test://template/{id}/data",
    "name": "template",
    "description": "Data for any id.",
    "mimeType": "application/json",
}

# -- prompts ---------------------------------------------------------------------------------------------------------

PROMPTS: dict[str, list[str]] = {
    "test_simple_prompt": [],
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
    "test_prompt_with_image": [],
    "test_input_required_result_prompt": [],
}
"""Each prompt with its arguments, all of them required."""
