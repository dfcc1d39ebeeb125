"""Parameters mirrored in headers: validity and values, compared with the SDK."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mcp.shared.inbound import find_invalid_x_mcp_header, mcp_param_headers, x_mcp_header_map

from gateway import jsonrpc
from gateway.eras.param_headers import MAX_ANNOTATIONS, InvalidAnnotation, find_annotations, param_headers


def marked(kind: Any = "string", name: Any = "Name") -> dict[str, Any]:
    return {"type": kind, "x-mcp-header": name}


def with_properties(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


VALID = [
    with_properties(),
    with_properties(a=marked("string"), b=marked("integer", "B"), c=marked("boolean", "C-1")),
    with_properties(a=with_properties(b=with_properties(c=marked()))),
    with_properties(a={"type": "object", "default": {"x-mcp-header": "data"}, "enum": [{"x-mcp-header": "data"}]}),
    with_properties(**{"x-mcp-header": {"type": "string"}}),  # a parameter of that name
    {"type": "object"},
    True,
    None,
]
INVALID = [
    with_properties(a=marked("number")),
    with_properties(a=marked(["string", "null"])),
    with_properties(a={"x-mcp-header": "Name"}),
    with_properties(a=marked("object")),
    *(with_properties(a=marked(name=name)) for name in ("", "a b", "ä", "a\r\nb", "a:b", 5, None, {})),
    with_properties(a=marked(), b=marked(name="nAME")),
    with_properties(a={"type": "array", "items": marked()}),
    with_properties(a={"anyOf": [marked()]}),
    with_properties(a={"oneOf": [with_properties(b=marked())]}),
    with_properties(a={"allOf": [marked()]}),
    with_properties(a={"not": marked()}),
    with_properties(a={"if": marked(), "then": {}, "else": {}}),
    {"type": "object", "additionalProperties": marked()},
    {"type": "object", "patternProperties": {"x": marked()}},
    {"type": "object", "$defs": {"x": marked()}},
    {"type": "object", "dependentSchemas": {"x": marked()}},
    {"type": "object", "prefixItems": [marked()]},
    {"type": "string", "x-mcp-header": "AtTheRoot"},
]


@pytest.mark.parametrize("schema", VALID)
def test_valid_schemas(schema: Any) -> None:
    assert find_invalid_x_mcp_header(schema) is None
    expected = {path: f"mcp-param-{name}".encode() for path, name in x_mcp_header_map(schema).items()}
    assert dict(find_annotations(schema)) == expected


@pytest.mark.parametrize("schema", INVALID)
def test_invalid_schemas(schema: Any) -> None:
    assert find_invalid_x_mcp_header(schema) is not None
    with pytest.raises(InvalidAnnotation, match="x-mcp-header"):
        find_annotations(schema)


def test_too_many_annotations() -> None:
    names = {f"p{n}": marked(name=f"P{n}") for n in range(MAX_ANNOTATIONS)}
    assert len(find_annotations(with_properties(**names))) == MAX_ANNOTATIONS
    with pytest.raises(InvalidAnnotation, match="more than"):
        find_annotations(with_properties(**names, one=marked(name="More")))


def test_a_deep_schema_causes_no_error() -> None:
    schema: dict[str, Any] = marked()
    for _ in range(5_000):
        schema = with_properties(a=schema)
    assert len(find_annotations(schema)) == 1


SCHEMA = with_properties(
    s=marked("string", "S"), i=marked("integer", "I"), b=marked("boolean", "B"), o=with_properties(s=marked(name="O"))
)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.characters(exclude_categories=["Cs"])))


@given(st.fixed_dictionaries({}, optional={"s": VALUES, "i": VALUES, "b": VALUES, "o": VALUES, "x": VALUES}))
def test_headers_equal_those_of_the_sdk(arguments: dict[str, Any]) -> None:
    headers = param_headers(find_annotations(SCHEMA), jsonrpc.encode(arguments))
    expected = mcp_param_headers(x_mcp_header_map(SCHEMA), arguments)
    assert {name.decode().lower(): value.decode() for name, value in headers} == {
        name.lower(): value for name, value in expected.items()
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (b'{"o":{"s":"x"}}', [(b"mcp-param-O", b"x")]),
        (b'{"o":{"s":null}}', []),
        (b'{"i":42.0}', [(b"mcp-param-I", b"42")]),
        (b'{"s":[1]}', []),
        (b'{"s":""}', [(b"mcp-param-S", b"")]),
        (b"[]", []),
        (b"not json", []),
        (b"", []),
    ],
)
def test_values_without_a_spelling_get_no_header(arguments: bytes, expected: list[tuple[bytes, bytes]]) -> None:
    assert param_headers(find_annotations(SCHEMA), arguments) == expected
