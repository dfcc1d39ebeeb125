"""The JSON Schema of the config file for editors, generated from the Structs.

It includes the short forms and aliases that the fields' readers accept. A number or choice may also be a string with
`${VAR}`. Unknown keys are valid, as they are for the gateway, except in `access`. Pure.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from gateway.config.access import AccessSettings
from gateway.config.fields import VARIABLE, FieldSpec, JsonSchema, specs_of, structs_within
from gateway.config.model import NOT_WRITTEN, GatewaySettings, ServerConfig
from gateway.config.offered import EXCLUDING, INCLUDING
from gateway.config.views import ViewConfig

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/{name}"
_STRICT = ("AccessSettings", "AccessKey", "ResourceServer", "Introspection")


def config_schema() -> dict[str, Any]:
    """Return the schema as a document."""
    types = (ServerConfig, GatewaySettings, AccessSettings, ViewConfig)
    structs = {struct.__name__: struct for each in types for struct in structs_within(each)}
    (server, gateway, access, view), components = msgspec.json.schema_components(types, ref_template=_REF)
    defs = {name: _component(structs[name], each) for name, each in components.items()}
    rules = defs.pop("Rules")["properties"]
    for name in ("AccessKey", "ResourceServer"):  # rules are in the same object
        del defs[name]["properties"]["rules"]
        defs[name]["properties"] |= rules
    for name in _STRICT:
        defs[name]["additionalProperties"] = False
    servers = {
        "type": "object",
        "description": "The servers, by name.",
        "propertyNames": {"pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "additionalProperties": server,
    }
    nothing = {"type": "null"}
    return {
        "$schema": _DIALECT,
        "title": "The config of trio-mcp-gateway",
        "type": "object",
        "properties": {
            "$schema": {"type": "string"},
            "mcpServers": servers,
            "servers": {**servers, "description": "The same as 'mcpServers'."},
            "gateway": {"anyOf": [gateway, nothing], "description": "Settings of the gateway as a whole."},
            "access": {"anyOf": [access, nothing], "description": "Access control of the endpoint."},
            "views": {
                "anyOf": [{"type": "object", "additionalProperties": view}, nothing],
                "description": "Parts of the gateway with their own endpoints, by name.",
            },
        },
        "oneOf": [{"required": ["mcpServers"]}, {"required": ["servers"]}],
        "$defs": defs,
    }


def _component(struct: type[msgspec.Struct], schema: JsonSchema) -> JsonSchema:
    """Return the schema of one Struct, as its reader accepts it."""
    specs = specs_of(struct)
    properties: dict[str, Any] = {
        key: _member(specs[key], each)
        for key, each in schema["properties"].items()
        if struct is not ServerConfig or key not in NOT_WRITTEN
    }
    for key in list(properties):
        for alias in specs[key].aliases:
            properties[alias] = {**properties[key], "description": f"The same as '{key}'."}
    if struct is ServerConfig:
        properties["enabled"] = {**properties["disabled"], "description": "The opposite of 'disabled'."}
        for other in sorted(INCLUDING | EXCLUDING):
            part = "include" if other in INCLUDING else "exclude"
            properties[other] = {"type": ["array", "null"], "description": f"The same as 'tools.{part}'."}
    made: dict[str, Any] = {**schema, "properties": properties}
    made.pop("required", None)
    required = [key for key in schema.get("required", ()) if key in properties and not specs[key].aliases]
    if required:
        made["required"] = required
    if struct is ServerConfig:
        made["oneOf"] = [{"required": ["command"]}, {"required": ["url"]}]
    return made


def _member(spec: FieldSpec, schema: JsonSchema) -> JsonSchema:
    """Return one field's schema: description, default and all accepted forms, null included."""
    notes = {what: schema[what] for what in ("description", "default") if what in schema}
    forms = schema.get("anyOf") or [{what: said for what, said in schema.items() if what not in notes}]
    forms = [*(_plain(form) for form in forms), *spec.forms]
    if any(
        form.get("type") in {"number", "integer", "boolean"} or "enum" in form or "pattern" in form for form in forms
    ):
        forms.append(VARIABLE)
    if {"type": "null"} not in forms:
        forms.append({"type": "null"})
    return {**notes, "anyOf": forms}


def _plain(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema without the wording of bounds and with patterns in JSON Schema's syntax."""
    made = {key: value for key, value in schema.items() if key != "title"}
    if "pattern" in made:
        made["pattern"] = made["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
    inner: Any = made.get("additionalProperties")
    if isinstance(inner, dict) and "$ref" not in inner:
        made["additionalProperties"] = {"anyOf": [_plain(cast("dict[str, Any]", inner)), VARIABLE]} if inner else {}
    return made
