"""The opening of a conversation, as a script: which era it is, who is there, and what it lists."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.backends import handshake
from gateway.backends.handshake import Greeting, change_filter, greet, list_all, list_feature
from gateway.calls import Era
from gateway.catalog.kinds import Kind
from gateway.errors import BackendError, BackendProtocol, BackendTooSlow, BackendUnfit
from tests.fakes import Script

INITIALIZED = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {"listChanged": True}},
    "serverInfo": {"name": "s", "version": "1"},
    "instructions": "do",
    "new": None,
}
DISCOVERED = {
    "resultType": "complete",
    "supportedVersions": ["2026-07-28"],
    "capabilities": {"tools": {}},
    "instructions": "do",
}
METHOD_NOT_FOUND = {"code": -32601, "message": "what?"}
SCHEMA = {"type": "object"}
LEGACY_WAY = ["server/discover", "initialize", "notifications/initialized"]


async def open_with(answers: dict[str, Any], *, era: str = "auto", pinned: bool = False) -> tuple[Script, Greeting]:
    script = Script(answers)
    with trio.fail_after(1000):
        return script, await greet(script.conversation, era=era, probe_timeout=5, timeout=30, pinned=pinned)


@pytest.mark.parametrize(
    ("probed", "name"),
    [
        (METHOD_NOT_FOUND, "the method is unknown"),
        ({"code": -32600, "message": "initialize first"}, "any other error"),
        ({"code": 0, "message": ""}, "an error of no kind"),
        ({"code": -32022, "message": "no", "data": {"supported": ["2025-11-25"]}}, "modern, with legacy versions only"),
        ({"resultType": "complete", "supportedVersions": ["2025-11-25"], "capabilities": {}}, "the same, friendlier"),
        ({}, "an empty result"),
        (b'{"jsonrpc":"2.0","id":1,"result":[]}', "a result of another form"),
        (None, "silence"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_no_modern_answer_means_legacy(probed: Any, name: str, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    script, greeting = await open_with({"server/discover": probed, "initialize": INITIALIZED})
    assert [method for method in script.methods if method != "notifications/cancelled"] == LEGACY_WAY
    assert (greeting.era, greeting.version, greeting.instructions) == (Era.LEGACY, "2025-11-25", "do")
    assert bytes(greeting.server_info) == b'{"name": "s", "version": "1"}'
    assert script.conversation.hop.era is Era.LEGACY
    assert trio.current_time() - began == pytest.approx(5 if probed is None else 0)
    assert "_meta" in script.posted[0]["params"]
    assert script.posted[1]["params"]["clientInfo"] == {"name": "gw"}
    assert "_meta" not in script.posted[1]["params"]


async def test_a_modern_answer_means_modern(autojump_clock: MockClock) -> None:
    script, greeting = await open_with({"server/discover": DISCOVERED})
    assert script.methods == ["server/discover"]
    assert (greeting.era, greeting.version, greeting.instructions) == (Era.MODERN, "2026-07-28", "do")
    assert (script.conversation.hop.era, script.conversation.hop.version) == (Era.MODERN, "2026-07-28")


async def test_a_late_modern_answer_still_counts_if_initialize_is_refused(autojump_clock: MockClock) -> None:
    def refuse(_params: Any) -> Any:
        script.feed({"id": 1, "result": DISCOVERED})
        return {"code": -32601, "message": "no handshake here"}

    script = Script({"initialize": refuse})
    with trio.fail_after(100):
        greeting = await greet(script.conversation, era="auto", probe_timeout=5, timeout=30)
    assert greeting.era is Era.MODERN
    assert script.conversation.hop.era is Era.MODERN


@pytest.mark.parametrize(
    ("era", "answers", "problem", "said"),
    [
        ("auto", {"server/discover": {"code": -32022, "message": "no", "data": {"supported": ["2099-01-01"]}}},
         BackendProtocol, "speaks none of our protocol versions"),
        ("auto", {"server/discover": METHOD_NOT_FOUND, "initialize": METHOD_NOT_FOUND},
         BackendProtocol, "answered initialize with error -32601: what?"),
        ("auto", {"server/discover": METHOD_NOT_FOUND, "initialize": {"protocolVersion": "1.0"}},
         BackendProtocol, "wants protocol version '1.0'"),
        ("auto", {"server/discover": METHOD_NOT_FOUND, "initialize": {"capabilities": []}},
         BackendProtocol, "introduced itself with an invalid result"),
        ("auto", {}, BackendTooSlow, "did not answer initialize within 30 s"),
        ("legacy", {}, BackendTooSlow, "did not answer initialize within 30 s"),
        ("modern", {}, BackendProtocol, "does not speak a modern protocol version"),
        ("modern", {"server/discover": {"code": -32603, "message": "not yet"}}, BackendProtocol, "not yet"),
        ("modern", {"server/discover": METHOD_NOT_FOUND}, BackendUnfit, "(era: modern): what?; without 'era'"),
        ("modern", {"server/discover": {"code": -32000, "message": "initialize first"}}, BackendUnfit, "era: modern"),
        ("modern", {"server/discover": {**DISCOVERED, "supportedVersions": ["2025-11-25"]}},
         BackendUnfit, "era: modern"),
        ("legacy", {"initialize": METHOD_NOT_FOUND}, BackendUnfit, "(era: legacy): what?; without 'era'"),
        ("legacy", {"initialize": {"code": -32022, "message": "no"}}, BackendUnfit, "(era: legacy): no"),
        ("legacy", {"initialize": {"code": -32603, "message": "not yet"}}, BackendProtocol, "not yet"),
    ],
)  # fmt: skip
async def test_who_cannot_be_greeted(
    era: str, answers: dict[str, Any], problem: type[BackendError], said: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(problem) as caught:
        await open_with(answers, era=era, pinned=True)
    assert type(caught.value) is problem
    assert said in str(caught.value)


async def test_an_era_that_was_only_found_out_before_is_no_reason_to_give_up(autojump_clock: MockClock) -> None:
    with pytest.raises(BackendProtocol) as caught:
        await open_with({"initialize": METHOD_NOT_FOUND}, era="legacy")
    assert not isinstance(caught.value, BackendUnfit)


async def test_an_era_that_is_configured_is_not_probed(autojump_clock: MockClock) -> None:
    script, _ = await open_with({"initialize": INITIALIZED}, era="legacy")
    assert script.methods == ["initialize", "notifications/initialized"]


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, {}),
        ({"tools": {}, "prompts": {"listChanged": False}}, {}),
        ({"tools": {"listChanged": True}, "resources": {"listChanged": True}},
         {"toolsListChanged": True, "resourcesListChanged": True}),
        ({"tools": [], "prompts": None}, {}),
    ],
)  # fmt: skip
def test_what_is_listened_to(capabilities: dict[str, Any], expected: dict[str, Any]) -> None:
    spans = {name: jsonrpc.raw(value) for name, value in capabilities.items()}
    assert change_filter(Greeting(era=Era.MODERN, version="", capabilities=spans)) == expected


# -- lists -------------------------------------------------------------------------------------------------------------


def pages(member: str, *runs: list[str], key: str = "name", cursors: list[Any] | None = None) -> Any:
    """A list method of several pages; cursors are "1", "2", ... unless they are given."""
    following = cursors or [str(number + 1) for number in range(len(runs) - 1)]

    def answer(params: Any) -> Any:
        number = following.index(params["cursor"]) + 1 if "cursor" in params else 0
        result: dict[str, Any] = {member: [{key: name, "inputSchema": SCHEMA} for name in runs[number]]}
        if number < len(following):
            result["nextCursor"] = following[number]
        return result

    return answer


async def listed(answers: dict[str, Any], feature: str = "tools") -> dict[Kind, list[str]]:
    script = Script(answers)
    with trio.fail_after(1000):
        found = await list_feature(script.conversation, feature, timeout=30)
    return {kind: [item.own for item in items] for kind, items in found.items()}


@pytest.mark.parametrize(
    "cursors",
    [None, ["", "x"]],  # an empty cursor is not the end
)
async def test_all_pages_are_read(cursors: Any, autojump_clock: MockClock) -> None:
    answer = pages("tools", ["a"], ["b", "c"], ["d"], cursors=cursors)
    assert await listed({"tools/list": answer}) == {Kind.TOOLS: ["a", "b", "c", "d"]}


async def test_cursors_in_a_circle_end(autojump_clock: MockClock) -> None:
    count = 0

    def answer(_params: Any) -> Any:
        nonlocal count
        count += 1
        return {"tools": [{"name": str(count), "inputSchema": SCHEMA}], "nextCursor": "same"}

    assert await listed({"tools/list": answer}) == {Kind.TOOLS: ["1", "2"]}


async def test_cursors_without_end_end(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    monkeypatch.setattr(handshake, "MAX_PAGES", 7)
    count = 0

    def answer(_params: Any) -> Any:
        nonlocal count
        count += 1
        return {"tools": [], "nextCursor": str(count)}

    assert await listed({"tools/list": answer}) == {Kind.TOOLS: []}
    assert count == 7


@pytest.mark.parametrize(
    "answer",
    [METHOD_NOT_FOUND, {}, {"tools": {}}, {"tools": None}, {"tools": [], "nextCursor": 3}],
)
async def test_tools_that_cannot_be_listed_fail_the_start(answer: Any, autojump_clock: MockClock) -> None:
    with pytest.raises(BackendProtocol, match="tools/list"):
        await listed({"tools/list": answer})


async def test_other_lists_count_as_empty(autojump_clock: MockClock) -> None:
    answers = {
        "resources/list": pages("resources", ["a:b"], key="uri"),
        "resources/templates/list": METHOD_NOT_FOUND,
        "prompts/list": {"prompts": 3},
    }
    assert await listed(answers, "resources") == {Kind.RESOURCES: ["a:b"], Kind.TEMPLATES: []}
    assert await listed(answers, "prompts") == {Kind.PROMPTS: []}


async def test_silence_fails_the_start(autojump_clock: MockClock) -> None:
    with pytest.raises(BackendTooSlow):
        await listed({}, "prompts")


async def test_only_what_is_declared_is_listed(autojump_clock: MockClock) -> None:
    script = Script({"prompts/list": {"prompts": [{"name": "p"}, {}]}})
    capabilities = {"prompts": jsonrpc.raw({}), "logging": jsonrpc.raw({})}
    greeting = Greeting(era=Era.LEGACY, version="2025-11-25", capabilities=capabilities, instructions="do")
    with trio.fail_after(5):
        listing = await list_all(script.conversation, greeting, timeout=30)
    assert script.methods == ["prompts/list"]
    assert {kind: [item.own for item in items] for kind, items in listing.items.items()} == {Kind.PROMPTS: ["p"]}
    assert (listing.capabilities, listing.instructions) == (capabilities, "do")
