"""Versions inside the eras: unreadable content is converted, everything else keeps its bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.calls import Caller, Complete, Era
from gateway.eras import contents, results, tools
from gateway.eras.tools import View
from gateway.eras.versions import LATEST_MODERN, LEGACY_VERSIONS

AUDIO = {"type": "audio", "data": "AAAA", "mimeType": "audio/wav", "annotations": {"priority": 1}}
LINK = {"type": "resource_link", "uri": "file:///a", "name": "a", "_meta": {"x": None}}
OTHER = [{"type": "text", "text": "audio"}, {"type": "image", "data": ""}, {"type": "hologram", "x": None}, 7, None]
AUDIO_TEXT = "[audio/wav, about 4 bytes, which this client's protocol version cannot carry]"


def encoded(value: object) -> bytes:
    return json.dumps(value).encode()


def text(value: str, **kwargs: Any) -> dict[str, Any]:
    return {"type": "text", "text": value, **kwargs}


def in_tool(*blocks: Any) -> tuple[str, Any]:
    return "tools/call", {"content": [*OTHER, *blocks], "unknown": None}


def in_prompt(*blocks: Any) -> tuple[str, Any]:
    return "prompts/get", {"messages": [*({"role": "user", "content": block, "x": 1} for block in blocks), 7]}


def in_prompt_array(*blocks: Any) -> tuple[str, Any]:
    return "prompts/get", {"messages": [{"role": "user", "content": list(blocks)}]}


@pytest.mark.parametrize("place", [in_tool, in_prompt, in_prompt_array])
@pytest.mark.parametrize(
    ("version", "audio", "link"),
    [
        ("2024-11-05", True, True),
        ("2025-03-26", False, True),
        ("2025-06-18", False, False),
        ("2025-11-25", False, False),
    ],
)
def test_content_kinds_unknown_to_a_version_become_text(version: str, audio: bool, link: bool, place: Any) -> None:
    method, body = place(AUDIO, LINK, OTHER[0])
    raw = encoded(body)
    found = contents.for_version(method, raw, version)
    shown_audio = text(AUDIO_TEXT, annotations={"priority": 1}) if audio else AUDIO
    shown_link = text("[a](file:///a)", _meta={"x": None}) if link else LINK
    assert json.loads(found) == place(shown_audio, shown_link, OTHER[0])[1]
    assert (found is raw) == (not audio and not link)


@pytest.mark.parametrize(
    ("block", "shown"),
    [
        ({"type": "resource_link", "uri": "u:1", "name": "n", "title": "T", "description": "d"}, "[T](u:1): d"),
        ({"type": "resource_link", "uri": "u:1"}, "<u:1>"),
        ({"type": "resource_link", "uri": 5, "name": None}, "<>"),
    ],
)
def test_how_a_link_reads(block: Any, shown: str) -> None:
    found = json.loads(contents.for_version("tools/call", encoded({"content": [block]}), "2024-11-05"))
    assert found == {"content": [text(shown)]}


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"content":"audio"}', b'{"content":{"type":"audio"}}', b'"audio"'])
def test_invalid_results_pass_unchanged(data: bytes) -> None:
    assert contents.for_version("tools/call", data, "2024-11-05") is data


@pytest.mark.parametrize(
    ("value", "content", "added"),
    [
        ([1, {"two": None}], [], '[1, {"two": null}]'),
        ([1], [text("[ 1 ]")], None),  # already present
        ([1], [text("one"), text("2")], "[1]"),
        ("hi", [text("hi")], None),
        ("hi", [text('"hi"')], None),
        ("hi", [text("ho")], '"hi"'),
        (None, [], "null"),
        (7, [{"type": "image", "text": "8"}], "7"),
        (True, None, "true"),
    ],
)
def test_non_object_structure_becomes_legacy_text(value: Any, content: Any, added: str | None) -> None:
    body: dict[str, Any] = {"resultType": "complete", "structuredContent": value, "isError": False}
    if content is not None:
        body["content"] = content
    found = json.loads(results.for_legacy(Complete(encoded(body), Era.MODERN), method="tools/call"))
    assert found == {"isError": False, "content": (content or []) + ([] if added is None else [text(added)])}


@pytest.mark.parametrize("body", [{"structuredContent": {"a": 1}, "content": []}, {"content": []}, {"content": 7}])
def test_structure_that_is_an_object_stays(body: Any) -> None:
    raw = encoded({"resultType": "complete", **body})
    assert json.loads(results.for_legacy(Complete(raw, Era.MODERN), method="tools/call")) == body


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)))
def test_no_value_is_lost(value: Any) -> None:
    raw = encoded({"structuredContent": value, "content": []})
    found = json.loads(results.for_legacy(Complete(raw, Era.MODERN), method="tools/call"))
    assert json.loads(found["content"][0]["text"]) == value


# -- the list of tools -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "modern", "latest", "older"),
    [
        ({}, True, True, True),
        ({"outputSchema": {"type": "object", "x": None}}, True, True, True),
        ({"outputSchema": {"type": "array"}}, True, {}, {}),
        ({"outputSchema": {"anyOf": []}, "x": 1}, True, {"x": 1}, {"x": 1}),
        ({"outputSchema": True}, True, {}, {}),
        ({"outputSchema": None}, True, {}, {}),
        ({"execution": {"taskSupport": "required"}}, {}, {}, {}),
        ({"execution": {"taskSupport": "optional", "x": 1}}, {}, {"execution": {"x": 1}}, {}),
        ({"execution": {"taskSupport": "forbidden"}}, {}, True, {}),
        ({"execution": {}}, {}, True, {}),
        ({"execution": 7}, {}, True, {}),
        ({"description": '"execution" "outputSchema"'}, True, True, True),
    ],
)
def test_a_tool_in_the_list(kwargs: Any, modern: Any, latest: Any, older: Any) -> None:
    tool = {"name": "t", "inputSchema": {"type": "object"}, "unknown": None}
    raw = encoded({**tool, **kwargs})
    for view, expected in [(View.MODERN, modern), (View.LATEST, latest), (View.OLDER, older)]:
        found = tools.shown(raw, view)
        if expected is True:
            assert found is raw
        else:
            assert json.loads(found) == {**tool, **expected}


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"execution"', b'{"outputSchema"'])
def test_invalid_tools_pass_unchanged(data: bytes) -> None:
    assert all(tools.shown(data, view) is data for view in View)


@pytest.mark.parametrize(
    ("execution", "expected"),
    [
        ({"taskSupport": "required"}, True),
        ({"taskSupport": "optional"}, False),
        ({"taskSupport": 7}, False),
        (7, False),
    ],
)
def test_which_tools_need_a_task(execution: Any, expected: bool) -> None:
    assert tools.needs_task(encoded({"execution": execution})) is expected


def test_classes_of_clients() -> None:
    found = [tools.view_of(Caller(era=Era.LEGACY, version=version)) for version in LEGACY_VERSIONS]
    assert found == [View.LATEST, View.OLDER, View.OLDER, View.OLDER]
    assert tools.view_of(Caller(era=Era.MODERN, version=LATEST_MODERN)) is View.MODERN
