"""Server requests per client version, and their conversion for that client."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from gateway import jsonrpc
from gateway.calls import Caller, Era
from gateway.eras import asks
from gateway.eras.versions import LATEST_MODERN, LEGACY_VERSIONS

ALL = {"sampling": {"tools": {}}, "elicitation": {"form": {}, "url": {}}, "roots": {}}


def caller(version: str, capabilities: Any = None) -> Caller:
    era = Era.MODERN if version == LATEST_MODERN else Era.LEGACY
    return Caller(era=era, version=version, capabilities=jsonrpc.raw(ALL if capabilities is None else capabilities))


def spans(params: dict[str, Any]) -> dict[str, msgspec.Raw]:
    return {name: jsonrpc.raw(value) for name, value in params.items()}


def values(params: dict[str, msgspec.Raw]) -> Any:
    return {name: json.loads(bytes(span)) for name, span in params.items()}


@pytest.mark.parametrize(
    ("method", "params", "first_in", "missing"),
    [
        (asks.SAMPLING, {}, "2024-11-05", None),
        (asks.ROOTS, {}, "2024-11-05", None),
        (asks.ELICITATION, {}, "2025-06-18", "elicitation"),
        (asks.ELICITATION, {"mode": "form"}, "2025-06-18", "elicitation"),
        (asks.ELICITATION, {"mode": "url"}, "2025-11-25", "elicitation.url"),
        (asks.SAMPLING, {"tools": []}, "2025-11-25", "sampling.tools"),
        (asks.SAMPLING, {"toolChoice": {}}, "2025-11-25", "sampling.tools"),
    ],
)
def test_clients_cannot_use_features_newer_than_their_version(
    method: str, params: Any, first_in: str, missing: str | None
) -> None:
    for version in (*LEGACY_VERSIONS, LATEST_MODERN):
        found = asks.missing_capability(caller(version), method, spans(params))
        if version >= first_in:
            assert found is None
        else:
            assert found in {missing, "elicitation"}
        assert asks.missing_capability(caller(version, {}), method, spans(params)) is not None


TITLED = {"type": "string", "title": "Pick", "oneOf": [{"const": "a", "title": "A"}, {"const": "b"}], "default": "a"}
NAMED = {"type": "string", "title": "Pick", "default": "a", "enum": ["a", "b"], "enumNames": ["A", "b"]}
PLAIN = {"type": "string", "enum": ["a"], "x": None}


def form(**fields: Any) -> dict[str, Any]:
    return {"message": "m", "requestedSchema": {"type": "object", "properties": fields, "required": ["one"]}, "x": 1}


@pytest.mark.parametrize("version", ["2025-06-18", "2025-11-25"])
def test_titled_choices_use_the_older_form(version: str) -> None:
    given = spans(form(one=TITLED, two=PLAIN, three=7))
    found = asks.for_version(asks.ELICITATION, given, version)
    older = version == "2025-06-18"
    assert values(found) == form(one=NAMED if older else TITLED, two=PLAIN, three=7)
    assert (found is given) == (not older)
    assert values(given) == form(one=TITLED, two=PLAIN, three=7)  # what the server sent is not touched


def test_multiple_choice_requires_a_newer_version() -> None:
    params = spans(form(one={"type": "array", "items": {"type": "string", "enum": ["a"]}}))
    assert asks.for_version(asks.ELICITATION, params, "2025-11-25") is params
    with pytest.raises(ValueError, match="several choices"):
        asks.for_version(asks.ELICITATION, params, "2025-06-18")


def test_a_message_with_several_blocks_becomes_several() -> None:
    text, audio = {"type": "text", "text": "t"}, {"type": "audio", "data": "", "mimeType": "audio/wav"}
    given = spans({"messages": [{"role": "user", "content": [text, audio], "x": 1}, {"role": "user", "content": text}]})
    found = values(asks.for_version(asks.SAMPLING, given, "2025-03-26"))
    assert found["messages"] == [
        {"role": "user", "content": text, "x": 1},
        {"role": "user", "content": audio, "x": 1},
        {"role": "user", "content": text},
    ]
    oldest = values(asks.for_version(asks.SAMPLING, given, "2024-11-05"))
    assert [message["content"]["type"] for message in oldest["messages"]] == ["text", "text", "text"]
    assert asks.for_version(asks.SAMPLING, given, LATEST_MODERN) is given


@pytest.mark.parametrize("messages", [7, [7, {"content": 7}, {}], None])
def test_messages_of_another_form_pass(messages: Any) -> None:
    assert values(asks.for_version(asks.SAMPLING, spans({"messages": messages}), "2024-11-05")) == {
        "messages": messages
    }


@pytest.mark.parametrize(
    ("url", "refused"),
    [
        ("https://user:secret@example.com/x", True),
        ("https://token@example.com", True),
        ("https://user:secret@[::1]:8080/?q", True),
        ("https://example.com/@someone?mail=a@b#c@d", False),
        ("https://example.com?mail=a@b", False),
        ("https://example.com\\@evil", False),
        ("mailto:a@b", False),
        ("https:user:secret@example.com", True),
        ("HTTPS:\\\\user:secret@example.com", True),
        ("https:///user:secret@example.com", True),
        (" ht\ttps://user:secret@example.com", True),
        ("javascript:alert('secret')", True),
        ("java\nScript:alert('secret')", True),
        ("file:///home/secret", True),
        ("data:text/html,secret", True),
        ("app://open/javascript:x", False),
        ("/javascript:x", False),
    ],
)
@pytest.mark.parametrize("version", ["2025-11-25", LATEST_MODERN])
def test_unsafe_urls_are_shown_to_no_client(url: str, refused: bool, version: str) -> None:
    params = spans({"mode": "url", "message": "m", "url": url})
    if refused:
        with pytest.raises(ValueError, match="must not be sent to a client") as caught:
            asks.for_version(asks.ELICITATION, params, version)
        assert "secret" not in str(caught.value)
    else:
        assert asks.for_version(asks.ELICITATION, params, version) == params
