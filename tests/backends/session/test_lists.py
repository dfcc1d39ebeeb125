"""Backend lists as a transcript: each list is independent of errors in the others."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.backends.session.handshake import ServerIntroduction
from gateway.backends.session.lists import LIST_SHARE, MAX_PAGES, UNDECLARED_WAIT, list_all, list_feature
from gateway.calls import Era
from gateway.catalog.listing import Listing
from gateway.eras.methods import FEATURES, Kind
from gateway.errors import MAX_REASON, BackendExited, BackendProtocol, BackendTooSlow
from tests.support.fakes import Script
from tests.support.log_events import logged_events

METHOD_NOT_FOUND = {"code": -32601, "message": "what?"}
SCHEMA = {"type": "object"}
TIMEOUT = 30.0
SPOILED = b'{"jsonrpc":"2.0","id":%d,"result":{"x":NaN}}'
NO_OBJECT = b'{"jsonrpc":"2.0","id":%d,"result":[]}'

# Answers to a list request: (the answer, whether reading it again may help, part of the problem). "$" is the member.
FAILURES: dict[str, tuple[Any, bool | None, str]] = {
    "unknown method": (METHOD_NOT_FOUND, False, "with error -32601: what?"),
    "internal error": ({"code": -32603, "message": "no database"}, True, "with error -32603: no database"),
    "own error": ({"code": -32000, "message": "later"}, True, "with error -32000: later"),
    "odd error": ({"code": 0, "message": ""}, True, "with error 0"),
    "positive error": ({"code": 404, "message": "gone"}, True, "with error 404: gone"),
    "object": ({"$": {}}, False, "without a valid '$' array"),
    "string": ({"$": "none"}, False, "without a valid '$' array"),
    "number": ({"$": 0}, False, "without a valid '$' array"),
    "not an object": (NO_OBJECT, True, "with a result that is not an object"),
    "no JSON": (SPOILED, True, "not valid JSON"),
    "silence": (None, True, "did not answer"),
}
EMPTY: dict[str, Any] = {"missing": {}, "null": {"$": None}, "null cursor": {"$": None, "nextCursor": None}}


def entries(kind: Kind, *names: str) -> list[dict[str, Any]]:
    return [{kind.key: name, "name": name, "inputSchema": SCHEMA} for name in names]


def answer_of(script: Script, kind: Kind, answer: Any) -> Any:
    if isinstance(answer, bytes):
        return answer % script.posted[-1]["id"]
    return answer and {kind.member if name == "$" else name: value for name, value in answer.items()}


def make_script(answers: dict[Kind, list[Any]], *, era: Era = Era.LEGACY) -> Script:
    """A backend whose lists have these pages; other lists have one entry `good`.

    The last page never ends.
    """
    script = Script(era=era)
    asked = dict.fromkeys(Kind, 0)

    def make(kind: Kind) -> Any:
        def answer(_params: Any) -> Any:
            pages = answers.get(kind, [{"$": entries(kind, "good")}])
            page = pages[min(asked[kind], len(pages) - 1)]
            asked[kind] += 1
            return answer_of(script, kind, page)

        return answer

    script.answers = {kind.list_method: make(kind) for kind in Kind}
    return script


async def list_everything(script: Script, capabilities: Any = None, *, era: Era = Era.LEGACY) -> Listing:
    declared = {feature: {} for feature in FEATURES} if capabilities is None else capabilities
    spans = {name: jsonrpc.raw(value) for name, value in declared.items()}
    with trio.fail_after(1000):
        greeting = ServerIntroduction(era=era, version="", capabilities=spans, instructions="do")
        return await list_all(script.conversation, greeting, timeout=TIMEOUT)


def names_of(listing: Listing) -> dict[Kind, list[str]]:
    return {kind: [item.own for item in items] for kind, items in listing.items.items()}


def expected_problem(text: str, kind: Kind) -> str:
    return text.replace("$", kind.member)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("era", Era)
async def test_a_list_that_fails_costs_only_itself(
    era: Era, failure: str, kind: Kind, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    answer, again, text = FAILURES[failure]
    script = make_script({kind: [answer]}, era=era)
    listing = await list_everything(script, era=era)
    assert names_of(listing) == {other: [] if other is kind else ["good"] for other in Kind}
    if kind is Kind.TEMPLATES and failure == "unknown method":  # as nearly all servers with resources do
        assert (listing.warnings, listing.unread, caplog.messages) == ((), {}, [])
        return
    (warning,) = listing.problems[kind]
    assert listing.warnings == (warning,)
    assert expected_problem(text, kind) in warning
    assert warning.endswith(f"no {kind.member} are served")
    assert logged_events(caplog, "list_problem") == [{"event": "list_problem", "backend": "b"}]
    assert warning in caplog.text
    assert listing.unread == {kind: again}


LONG = "long " * 200_000
LONG_ANSWERS: dict[str, Any] = {
    "error": {"code": -32000, "message": LONG},
    "entry without a schema": {"$": [{"name": LONG, "inputSchema": 5}]},
    "entry listed twice": {"$": entries(Kind.TOOLS, LONG, LONG)},
}


@pytest.mark.parametrize("answer", LONG_ANSWERS)
async def test_warnings_are_short_whatever_a_backend_says(
    answer: str, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listing = await list_everything(make_script({Kind.TOOLS: [LONG_ANSWERS[answer]]}))
    (warning,) = listing.warnings
    assert len(warning) < 3 * MAX_REASON
    assert "long long" in warning
    assert all(len(message) < 3 * MAX_REASON for message in caplog.messages)


def test_errors_are_short_whatever_a_backend_says() -> None:
    for kind in (BackendExited, BackendProtocol, BackendTooSlow):
        problem = kind("b", f"said: {LONG}")
        assert str(problem).startswith("backend 'b' said: long long")
        assert str(problem).endswith("...")
        assert len(str(problem)) < MAX_REASON + 50


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("empty", EMPTY)
async def test_a_list_without_an_array_is_empty(empty: str, kind: Kind, autojump_clock: MockClock) -> None:
    listing = await list_everything(make_script({kind: [EMPTY[empty]]}))
    assert names_of(listing) == {other: [] if other is kind else ["good"] for other in Kind}
    assert listing.warnings == (f"answered {kind.list_method} without {kind.member!r}; it counts as an empty list",)
    assert listing.unread == {}


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("failure", FAILURES)
async def test_the_pages_before_a_failure_are_served(failure: str, kind: Kind, autojump_clock: MockClock) -> None:
    answer, again, text = FAILURES[failure]
    first = {"$": entries(kind, "a", "b"), "nextCursor": "2"}
    listing = await list_everything(make_script({kind: [first, answer]}))
    assert names_of(listing) == {other: ["a", "b"] if other is kind else ["good"] for other in Kind}
    (warning,) = listing.warnings
    assert expected_problem(text, kind) in warning
    assert warning.endswith(f"the 2 {kind.member} before that are served")
    assert listing.unread == {kind: again}


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("cursor", [8, 0, 1.5, True, False, [], {}, ["2"]])
async def test_an_odd_cursor_ends_the_list(cursor: Any, kind: Kind, autojump_clock: MockClock) -> None:
    script = make_script({kind: [{"$": entries(kind, "a"), "nextCursor": "2"}, {"$": [], "nextCursor": cursor}]})
    listing = await list_everything(script)
    assert names_of(listing) == {other: ["a"] if other is kind else ["good"] for other in Kind}
    assert listing.warnings == (
        f"answered {kind.list_method} with a nextCursor that is not a string; the list ends there",
    )
    assert listing.unread == {}


@pytest.mark.parametrize("cursors", [["2", "3"], ["", "x"]])  # an empty cursor is not the end
async def test_all_pages_are_read(cursors: list[str], autojump_clock: MockClock) -> None:
    pages: list[Any] = [
        {"$": entries(Kind.TOOLS, "a"), "nextCursor": cursors[0]},
        {"$": entries(Kind.TOOLS, "b", "c"), "nextCursor": cursors[1]},
        {"$": entries(Kind.TOOLS, "d"), "nextCursor": None},
    ]
    listing = await list_everything(make_script({Kind.TOOLS: pages}))
    assert names_of(listing)[Kind.TOOLS] == ["a", "b", "c", "d"]
    assert listing.warnings == ()


@pytest.mark.parametrize(("names", "served"), [((["a"], ["a"]), ["a"]), ((["a"], ["b"]), ["a", "b"])])
async def test_repeating_cursors_end_the_list(names: Any, served: list[str], autojump_clock: MockClock) -> None:
    pages = [{"$": entries(Kind.TOOLS, *each), "nextCursor": ""} for each in names]
    listing = await list_everything(make_script({Kind.TOOLS: pages}))
    assert names_of(listing)[Kind.TOOLS] == served
    assert listing.warnings == ("the cursors of tools/list repeat; the list ends there",)


async def test_endless_cursors_are_bounded(autojump_clock: MockClock) -> None:
    pages = [{"$": [], "nextCursor": str(number)} for number in range(MAX_PAGES + 2)]
    script = make_script({Kind.TOOLS: pages})
    listing = await list_everything(script)
    assert script.methods.count("tools/list") == MAX_PAGES
    assert listing.warnings == (f"tools: over {MAX_PAGES} pages; the rest is left out",)


async def test_entries_left_out_are_problems_of_the_list(autojump_clock: MockClock) -> None:
    bad = [{"name": f"n{number}"} for number in range(30)]
    spoiled = b'{"jsonrpc":"2.0","id":%d,"result":{"prompts":[{"name":"good"},{"name":"bad","x":NaN}]}}'
    script = make_script({Kind.TOOLS: [{"$": [*bad, *entries(Kind.TOOLS, "good")]}], Kind.PROMPTS: [spoiled]})
    listing = await list_everything(script)
    assert names_of(listing) == {kind: ["good"] for kind in Kind}
    assert "tools[0] left out: tool 'n0' has no inputSchema" in listing.problems[Kind.TOOLS][0]
    assert listing.problems[Kind.TOOLS][-1] == "tools: and 10 more"
    assert "prompts[1] ('bad') left out" in listing.problems[Kind.PROMPTS][0]
    assert listing.unread == {}


async def test_lists_are_requested_one_at_a_time(autojump_clock: MockClock) -> None:
    script = make_script({})
    await list_everything(script)
    assert script.methods == [kind.list_method for kind in Kind]


async def test_a_hanging_list_delays_others_one_second(autojump_clock: MockClock) -> None:
    script = make_script({Kind.TOOLS: [None]})
    began = trio.current_time()
    listing = await list_everything(script)
    assert trio.current_time() - began == pytest.approx(TIMEOUT * LIST_SHARE)
    assert listing.unread == {Kind.TOOLS: True}
    assert script.methods[-1] == "notifications/cancelled"


async def test_a_slow_list_gets_all_the_time(autojump_clock: MockClock) -> None:
    script = make_script({Kind.TOOLS: [None]})
    async with trio.open_nursery() as nursery:

        async def answer_late() -> None:
            await trio.sleep(TIMEOUT * 0.9)
            script.feed({"id": script.posted[0]["id"], "result": {"tools": entries(Kind.TOOLS, "late")}})

        nursery.start_soon(answer_late)
        listing = await list_everything(script, {"tools": {}})
    assert names_of(listing) == {Kind.TOOLS: ["late"]}
    assert listing.warnings == ()


async def test_silence_on_every_list_fails_the_start(autojump_clock: MockClock) -> None:
    with pytest.raises(BackendTooSlow, match="tools/list"):
        await list_everything(make_script({kind: [None] for kind in Kind}))


class Refused(BackendProtocol):
    """A substitute for `HttpRefused`: the list was refused before MCP."""


@pytest.mark.parametrize("refused", [[Kind.TOOLS], list(Kind)])
async def test_a_server_refusing_every_request_fails_to_start(refused: list[Kind], autojump_clock: MockClock) -> None:
    script = make_script({})

    def refuse(_params: Any) -> None:
        script.conversation.finish(script.posted[-1]["id"], Refused("b", "requires authorization"))

    script.answers |= {kind.list_method: refuse for kind in refused}
    if len(refused) == len(Kind):
        with pytest.raises(Refused):
            await list_everything(script)
    else:
        assert (await list_everything(script)).warnings == ("requires authorization; no tools are served",)


async def test_the_end_of_the_session_fails_the_start(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    script = make_script({})
    script.answers["prompts/list"] = lambda _params: script.conversation.close(BackendExited("b", "has gone"))
    with pytest.raises(BackendExited, match="has gone"):
        await list_everything(script)
    assert caplog.messages == []


# -- what is declared --------------------------------------------------------------------------------------------------


async def test_only_what_is_declared_is_listed(autojump_clock: MockClock) -> None:
    script = make_script({})
    listing = await list_everything(script, {"prompts": {}, "logging": {}})
    assert script.methods == ["prompts/list"]
    assert names_of(listing) == {Kind.PROMPTS: ["good"]}
    assert (listing.capabilities.keys(), listing.instructions) == ({"prompts", "logging"}, "do")


@pytest.mark.parametrize("declared", [{}, {"logging": {}}, {"tools": None}, {"tools": False, "prompts": None}])
@pytest.mark.parametrize("era", Era)
@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.name)
@pytest.mark.parametrize("failure", [*FAILURES, *EMPTY])
async def test_a_server_declaring_no_list_is_asked_once(
    failure: str, kind: Kind, era: Era, declared: Any, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    answer = EMPTY[failure] if failure in EMPTY else FAILURES[failure][0]
    script = make_script({other: [answer] for other in Kind if other is not kind}, era=era)
    listing = await list_everything(script, declared, era=era)
    asked = [method for method in script.methods if method != "notifications/cancelled"]
    assert asked == [each.list_method for each in Kind]
    assert names_of(listing) == {other: ["good"] if other is kind else [] for other in Kind}
    assert kind.feature in listing.capabilities
    assert (listing.warnings, listing.unread, caplog.messages) == ((), {}, [])


@pytest.mark.parametrize("patience", [1000.0, 3.0])
async def test_a_server_without_lists_may_be_silent(patience: float, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    with trio.fail_after(patience):
        listing = await list_everything(make_script({kind: [None] for kind in Kind}), {})
    assert (names_of(listing), listing.warnings) == ({kind: [] for kind in Kind}, ())
    assert trio.current_time() - began <= UNDECLARED_WAIT


# -- later -------------------------------------------------------------------------------------------------------------


async def test_a_feature_is_read_again(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    script = make_script({Kind.RESOURCES: [METHOD_NOT_FOUND]})
    with trio.fail_after(100):
        found = await list_feature(script.conversation, "resources", timeout=TIMEOUT)
        assert names_of(found) == {Kind.RESOURCES: [], Kind.TEMPLATES: ["good"]}
        assert len(caplog.messages) == 1
        await list_feature(script.conversation, "resources", timeout=TIMEOUT, known=found.warnings)
    assert len(caplog.messages) == 1
