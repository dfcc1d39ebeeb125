"""The handshake as a transcript: era, server information and lists."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.backends.session.handshake import Attempts, ServerIntroduction, change_filter, introduce
from gateway.calls import Era
from gateway.errors import BackendError, BackendProtocol, BackendTooSlow, BackendUnfit
from tests.support.fakes import Script
from tests.support.playbook import Playbook, play_backend

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

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
LEGACY_WAY = ["server/discover", "initialize", "notifications/initialized"]


async def open_with(
    answers: dict[str, Any], *, era: str = "auto", pinned: bool = False
) -> tuple[Script, ServerIntroduction]:
    script = Script(answers)
    with trio.fail_after(1000):
        return script, await introduce(script.conversation, Attempts(era, pinned=pinned), probe_timeout=5, timeout=30)


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
async def test_an_invalid_modern_answer_means_legacy(probed: Any, name: str, autojump_clock: MockClock) -> None:
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


@asynccontextmanager
async def opening(*, era: str = "auto") -> AsyncGenerator[Opening]:
    """A gateway that greets the test's backend; with the block's end it has been introduced."""
    script = Script()
    opened = Opening(script, play_backend(script))
    opened.play.values |= {"initialized": INITIALIZED, "discovered": DISCOVERED}
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.run, era)
            yield opened


class Opening:
    def __init__(self, script: Script, play: Playbook) -> None:
        self.script, self.play = script, play
        self.introduction: ServerIntroduction | None = None

    async def run(self, era: str) -> None:
        self.introduction = await introduce(self.script.conversation, Attempts(era), probe_timeout=5, timeout=30)


async def test_a_legacy_conversation_is_opened_in_three_messages(autojump_clock: MockClock) -> None:
    async with opening() as opened:
        await opened.play("""
            << {"id": "$probe", "method": "server/discover", "params": {"_meta": "..."}}
            >> {"id": "$probe", "error": {"code": -32601, "message": "what?"}}
            << {"id": "$hello", "method": "initialize", "params": {
                 "protocolVersion": "2025-11-25", "capabilities": "...", "clientInfo": {"name": "gw"}}}
            >> {"id": "$hello", "result": "$initialized"}
            << {"method": "notifications/initialized", "...": "..."}
        """)
    assert len(opened.script.posted) == 3
    assert opened.introduction is not None
    assert opened.introduction.era is Era.LEGACY


async def test_a_silent_probe_is_followed_by_initialize(autojump_clock: MockClock) -> None:
    async with opening() as opened:
        await opened.play("""
            << {"id": "$probe", "method": "server/discover", "params": "..."}
            << {"id": "$hello", "method": "initialize", "params": "..."}
            >> {"id": "$hello", "result": "$initialized"}
            << {"method": "notifications/initialized", "...": "..."}
        """)
    assert len(opened.script.posted) == 3


async def test_a_modern_answer_means_modern(autojump_clock: MockClock) -> None:
    async with opening() as opened:
        await opened.play("""
            << {"id": "$probe", "method": "server/discover", "params": "..."}
            >> {"id": "$probe", "result": "$discovered"}
        """)
    script, greeting = opened.script, opened.introduction
    assert script.methods == ["server/discover"]
    assert greeting is not None
    assert (greeting.era, greeting.version, greeting.instructions) == (Era.MODERN, "2026-07-28", "do")
    assert (script.conversation.hop.era, script.conversation.hop.version) == (Era.MODERN, "2026-07-28")


async def test_a_late_modern_answer_counts_if_initialize_fails(autojump_clock: MockClock) -> None:
    async with opening() as opened:
        await opened.play("""
            << {"id": "$probe", "method": "server/discover", "params": "..."}
            << {"id": "$hello", "method": "initialize", "params": "..."}
            >> {"id": "$probe", "result": "$discovered"}
            >> {"id": "$hello", "error": {"code": -32601, "message": "no handshake here"}}
        """)
    assert opened.introduction is not None
    assert opened.introduction.era is Era.MODERN
    assert opened.script.conversation.hop.era is Era.MODERN


async def test_a_late_modern_answer_shows_the_other_era(autojump_clock: MockClock) -> None:
    async with opening() as opened:
        await opened.play("""
            << {"id": "$probe", "method": "server/discover", "params": "..."}
            << {"id": "$hello", "method": "initialize", "params": "..."}
            >> {"id": "$probe", "result": "$discovered"}
            >> {"id": "$hello", "result": "$initialized"}
            << {"method": "notifications/initialized", "...": "..."}
        """)
    greeting = opened.introduction
    assert greeting is not None
    assert (greeting.era, greeting.other_era, greeting.offered) == (Era.LEGACY, Era.MODERN, ("2026-07-28",))
    assert opened.script.conversation.hop.era is Era.LEGACY


@pytest.mark.parametrize(
    ("era", "answers", "problem", "said"),
    [
        ("auto", {"server/discover": {"code": -32022, "message": "no", "data": {"supported": ["2099-01-01"]}}},
         BackendProtocol, "speaks none of our protocol versions"),
        ("auto", {"server/discover": METHOD_NOT_FOUND, "initialize": METHOD_NOT_FOUND},
         BackendProtocol, "answered initialize with error -32601: what?"),
        ("auto", {"server/discover": METHOD_NOT_FOUND, "initialize": {"protocolVersion": "1.0"}},
         BackendProtocol, "wants protocol version '1.0'"),
        ("auto", {"server/discover": METHOD_NOT_FOUND, "initialize": {"instructions": []}},
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
async def test_an_unusable_handshake_is_refused(
    era: str, answers: dict[str, Any], problem: type[BackendError], said: str, autojump_clock: MockClock
) -> None:
    with pytest.raises(problem) as caught:
        await open_with(answers, era=era, pinned=True)
    assert type(caught.value) is problem
    assert said in str(caught.value)


async def test_a_detected_era_never_ends_retries(autojump_clock: MockClock) -> None:
    with pytest.raises(BackendProtocol) as caught:
        await open_with({"initialize": METHOD_NOT_FOUND}, era="legacy")
    assert not isinstance(caught.value, BackendUnfit)


async def test_an_era_that_is_configured_is_not_probed(autojump_clock: MockClock) -> None:
    async with opening(era="legacy") as opened:
        await opened.play("""
            << {"id": "$hello", "method": "initialize", "params": "..."}
            >> {"id": "$hello", "result": "$initialized"}
            << {"method": "notifications/initialized", "...": "..."}
        """)
    assert len(opened.script.posted) == 2


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
def test_subscriptions_depend_on_declared_capabilities(capabilities: dict[str, Any], expected: dict[str, Any]) -> None:
    spans = {name: jsonrpc.raw(value) for name, value in capabilities.items()}
    assert change_filter(ServerIntroduction(era=Era.MODERN, version="", capabilities=spans)) == expected


@pytest.mark.parametrize("declared", [{}, {"capabilities": None}, {"capabilities": []}, {"capabilities": "tools"}])
@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_invalid_capabilities_count_as_empty(declared: Any, era: str, autojump_clock: MockClock) -> None:
    hello = INITIALIZED if era == "legacy" else DISCOVERED
    bare = {name: value for name, value in hello.items() if name != "capabilities"} | declared
    _, greeting = await open_with({"initialize": bare, "server/discover": bare}, era=era)
    assert greeting.capabilities == {}


@pytest.mark.parametrize("era", ["legacy", "modern"])
async def test_nulls_in_server_info_mean_absent(era: str) -> None:
    capabilities = {"tools": {}, "prompts": None, "resources": None}
    hello = {
        "legacy": {"protocolVersion": "2025-06-18", "serverInfo": None, "instructions": None, "_meta": None},
        "modern": {"supportedVersions": ["2026-07-28"], "instructions": None, "ttlMs": None},
    }[era]
    method = "initialize" if era == "legacy" else "server/discover"
    for given, expected in ((capabilities, {"tools"}), (None, set[str]())):
        script = Script({method: {**hello, "capabilities": given}})
        greeting = await introduce(script.conversation, Attempts(era), probe_timeout=1, timeout=1)
        assert greeting.capabilities.keys() == expected
