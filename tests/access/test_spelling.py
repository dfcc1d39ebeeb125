"""Alternative spellings of members the gateway decides on: refused where they could change a decision."""

from __future__ import annotations

import json
import os
from contextlib import asynccontextmanager
from itertools import starmap
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from gateway import jsonrpc
from gateway.calls import ANYBODY, Era, Failure, Scope
from gateway.catalog.listing import Item, Listing
from gateway.catalog.parts import Naming, make_part
from gateway.catalog.snapshot import Snapshot
from gateway.config import parse_config
from gateway.config.audit import AuditSettings
from gateway.config.offered import ToolChoice
from gateway.eras import asks, requests
from gateway.eras.methods import Kind
from gateway.eras.param_headers import find_second_argument
from gateway.errors import MAX_REASON
from gateway.frontends.stdio import StdioFrontend
from tests.support.access import ALICE, HELLO, MODERN_META, Harness, keys, modern_headers, running
from tests.support.fakes import FakeExchange, public_names, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

META = "io.modelcontextprotocol/"
PARAMS = {
    "tools/call": ["name", "arguments", "_meta", "task", "requestState", "inputResponses"],
    "prompts/get": ["name", "_meta"],
    "resources/read": ["uri", "_meta"],
    "resources/subscribe": ["uri"],
    "resources/unsubscribe": ["uri"],
    "completion/complete": ["ref"],
    "tools/list": ["cursor"],
    "logging/setLevel": ["level"],
    "tasks/get": ["taskId"],
    "initialize": ["protocolVersion", "capabilities", "clientInfo"],
    "subscriptions/listen": ["notifications"],
    "notifications/cancelled": ["requestId"],
    "notifications/progress": ["progressToken"],
    "vendor/method": ["_meta"],
}
FOLDED = [("s", "\u017f"), ("k", "\u212a"), ("s", "\\u017f"), ("k", "\\u212a"), ("i", "\u0131")]
WITHIN = {
    "ref": ["type", "name", "uri"],
    "notifications": ["toolsListChanged", "promptsListChanged", "resourcesListChanged", "resourceSubscriptions"],
    "_meta": [
        "progressToken",
        *(META + key for key in ("protocolVersion", "clientInfo", "clientCapabilities", "logLevel", "related-task")),
    ],
}


def spellings(name: str) -> list[str]:
    """Keys, as written between quotes, that some parser takes for `name`."""
    first = next(index for index, letter in enumerate(name) if letter.isalpha())
    found = [
        name.upper(),
        name[:first] + name[first:].capitalize(),
        name.swapcase(),
        name,
        f"{name[:first]}\\u{ord(name[first]):04x}{name[first + 1 :]}",
        f"{name[:first]}\\u{ord(name[first].upper()):04x}{name[first + 1 :]}",
        f"{name}\\u0000x",
        *starmap(name.replace, FOLDED),
    ]
    return [found[3], *(one for one in found if one != name)]


def find(data: str) -> str | None:
    return requests.find_second_spelling(data.encode(), jsonrpc.decode(data.encode()))


@pytest.mark.parametrize("first", [True, False], ids=["before it", "behind it"])
@pytest.mark.parametrize(("method", "name"), [(method, name) for method, names in PARAMS.items() for name in names])
def test_params_in_a_second_spelling_are_found(method: str, name: str, first: bool) -> None:
    for other in spellings(name):
        members = [f'"{name}":{{}}', f'"{other}":{{}}']
        body = ",".join(reversed(members) if first else members)
        assert find(f'{{"jsonrpc":"2.0","id":1,"method":"{method}","params":{{{body}}}}}') is not None, other


@pytest.mark.parametrize(("parent", "name"), [(parent, name) for parent, names in WITHIN.items() for name in names])
def test_alternative_spellings_of_params_members_are_found(parent: str, name: str) -> None:
    for other in spellings(name):
        inner = f'"{parent}":{{"{name}":"x","{other}":"y"}}'
        found = find(f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x",{inner}}}}}')
        assert found is not None, other
        assert parent in found


@pytest.mark.parametrize("name", ["jsonrpc", "id", "method", "params", "result", "error"])
def test_envelopes_in_a_second_spelling_are_found(name: str) -> None:
    values = {"jsonrpc": '"2.0"', "id": "1", "method": '"tools/call"', "params": "{}", "result": "{}", "error": "{}"}
    for other in spellings(name):
        members = ",".join(f'"{key}":{values[key]}' for key in ("jsonrpc", "id", name))
        assert find(f'{{{members},"{other}":{values[name]}}}') is not None, other


@pytest.mark.parametrize(
    "message",
    ['{{"id":1,{}}}', '{{"id":1,"method":"tools/call","params":{{{}}}}}',
     '{{"id":1,"method":"completion/complete","params":{{"ref":{{{}}}}}}}',
     '{{"id":1,"method":"tools/call","params":{{"_meta":{{{}}}}}}}'],
    ids=["envelope", "params", "ref", "_meta"],
)  # fmt: skip
def test_long_members_are_quoted_in_part(message: str) -> None:
    long = "x" * 100_000
    found = find(message.format(f'"{long}":1,"{long}":2'))
    assert found is not None
    assert len(found) < MAX_REASON + 500


COMPANY = {
    "a lone surrogate": ',"x":"\\ud83d"',
    "a lone surrogate as a key": ',"\\ud83d":1',
    "a lone surrogate further in": ',"arguments":{"\\udc00":["\\uD83D"]}',
    "a number beyond all bounds": ',"x":1e999',
    "deep nesting": ',"x":' + "[" * 500 + "]" * 500,
}


@pytest.mark.parametrize("mark", ["", "\ufeff", " \ufeff\n"], ids=["no mark", "a mark", "a mark in white space"])
@pytest.mark.parametrize("company", COMPANY)
def test_odd_members_and_boms_hide_no_second_spelling(company: str, mark: str) -> None:
    odd = COMPANY[company]
    for other in spellings("name"):
        assert find(f'{mark}{{"id":1,"method":"tools/call","params":{{"name":"x","{other}":"y"{odd}}}}}'), other
        inner = f'"ref":{{"name":"x","{other}":"y"{odd}}}'
        assert find(f'{mark}{{"id":1,"method":"completion/complete","params":{{{inner}}}}}'), other
    for other in spellings("method"):
        assert find(f'{mark}{{"id":1,"method":"tools/call","{other}":"x","params":{{}}{odd}}}'), other


@pytest.mark.parametrize(
    "params",
    [
        '{"name":"x","arguments":{"name":1,"NAME":2,"NAME":3}}',
        '{"names":1,"nam":2,"name ":3,"na-me":4,"name":"x","title":1,"TITLE":2}',
        '{"na\\u006de":"x"}',
        '{"_meta":{"NAME":1,"vendor/x":1,"vendor/X":2},"name":"x"}',
        '{"name":"x","ref":{"title":1,"TITLE":2}}',
        '{"name":"\\ud83d","arguments":{"x":"\\ude00"}}',
        "{}",
        "[]",
        "null",
    ],
)
def test_near_misses_are_accepted(params: str) -> None:
    assert find(f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}') is None


def test_other_methods_may_reuse_mcp_member_names() -> None:
    assert find('{"jsonrpc":"2.0","id":1,"method":"acme/do","params":{"Name":1,"URI":2,"ref":{"Type":1}}}') is None


# -- every way in ------------------------------------------------------------------------------------------------------

EXCLUSIONS: dict[str, Any] = {
    "exclude": {"tools": {"exclude": ["y"]}},
    "include": {"tools": {"include": ["x"]}},
    "disabled": {"tools": {"overrides": {"y": {"enabled": False}}}},
}
LIMITS = ["rule", "servers", "view", *EXCLUSIONS]
TWICE = [
    b'"name":"a.x","NAME":"y"',
    b'"NAME":"y","name":"a.x"',
    b'"name":"y","name":"a.x"',
    b'"name":"a.x","na\\u006de":"a.x"',
    b'"name":"a.x","_MeTa":{}',
    '"name":"a.x","ta\u017f\u212a":{}'.encode(),
    b'"name":"a.x","NAME":"y","x":"\\ud83d"',
]


def config_for(limit: str | None) -> Any:
    rules = {"rule": {"tools": ["a.x"]}, "servers": {"servers": ["a"]}}.get(limit or "", {})
    server = {"command": "x", **EXCLUSIONS.get(limit or "", {})}
    raw = {"mcpServers": {"a": server, "off": {"disabled": True, "command": "x", **EXCLUSIONS["exclude"]}}}
    return parse_config({**raw, "views": {"small": {"tools": ["*.x"]}}, "access": keys(**rules)}, environ={})


@asynccontextmanager
async def open_limited(limit: str | None) -> AsyncGenerator[tuple[Harness, str]]:
    harness = Harness(config_for(limit))
    with trio.fail_after(1e7):  # of the clock that jumps
        async with running(harness):
            yield harness, "/small" if limit == "view" else ""


def call(members: bytes, *, modern: bool, request_id: int = 1) -> bytes:
    own = b',"_meta":' + json.dumps(MODERN_META).encode() if modern else b""
    return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{%b%b}}' % (request_id, members, own)


async def start_session(harness: Harness, path: str, version: str = "2025-11-25") -> dict[str, str]:
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {**HELLO, "protocolVersion": version}}
    exchange = await harness.start("POST", path, hello, key=ALICE)
    return {"mcp_session_id": exchange.headers["mcp-session-id"]}


def problem_in(body: bytes) -> tuple[int, Any]:
    message = json.loads(body)
    return message["error"]["code"], message["id"]


@pytest.mark.parametrize("way", ["legacy", "modern", "batch", "sse", "sse batch"])
@pytest.mark.parametrize("limit", LIMITS)
async def test_a_limited_client_is_refused_over_http(
    limit: str, way: str, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_limited(limit) as (harness, below):
        harness.audit.apply(AuditSettings())
        path, headers = await open_way(harness, way, below)
        for members in TWICE:
            body = call(members, modern=way == "modern")
            exchange = await harness.start(
                "POST", path, b"[%b]" % body if "batch" in way else body, key=ALICE, **headers
            )
            assert (exchange.status, problem_in(exchange.body)) == (400, (-32602, 1)), members
        assert harness.sent == 0
        noted = [record.__dict__["fields"] for record in caplog.records if record.name == "gateway.audit"]
        assert [(line["outcome"], line["principal"]) for line in noted] == [("refused", "alice")] * len(TWICE)
        harness.audit.apply(None)
        plain = call(b'"name":"a.x"', modern=way == "modern")
        await harness.start("POST", path, b"[%b]" % plain if "batch" in way else plain, key=ALICE, **headers)
        assert harness.sent == 1


async def open_way(harness: Harness, way: str, below: str) -> tuple[str, dict[str, str]]:
    """The path and the headers of requests that come this way."""
    version = "2025-03-26" if "batch" in way else "2025-11-25"
    if way == "modern":
        return f"/mcp{below}", modern_headers("a.x")
    if not way.startswith("sse"):
        return f"/mcp{below}", await start_session(harness, f"/mcp{below}", version)
    stream = await harness.start("GET", f"/sse{below}", key=ALICE)
    path = stream.body.decode().split("data: ")[1].split("\r\n")[0]
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {**HELLO, "protocolVersion": version}}
    await harness.start("POST", path, hello, key=ALICE)
    return path, {}


@pytest.mark.parametrize("way", ["legacy", "modern", "batch", "sse"])
async def test_members_pass_unchanged_for_unrestricted_clients(way: str, autojump_clock: MockClock) -> None:
    async with open_limited(None) as (harness, below):
        path, headers = await open_way(harness, way, below)
        members = b'"name":"a.x","NAME":"y","arguments":{"a":1,"A":1.0,"a":2}, "x":1'
        body = call(members, modern=way == "modern")
        await harness.start("POST", path, b"[%b]" % body if "batch" in way else body, key=ALICE, **headers)
        (pending,) = harness.fakes["a"].session.working
        hop = requests.Hop(era=Era.LEGACY, client_info=jsonrpc.EMPTY_OBJECT)
        sent = jsonrpc.encode(requests.backend_params(pending.call, "x", None, hop))
        assert sent == b'{"name":"x","NAME":"y","arguments":{"a":1,"A":1.0,"a":2},"x":1}'


@pytest.mark.parametrize("limit", [*EXCLUSIONS, "view", None])
async def test_a_client_on_stdio_is_refused_too(limit: str | None, autojump_clock: MockClock) -> None:
    async with open_limited(limit) as (harness, _):
        theirs_in, ours_in = os.pipe()
        ours_out, theirs_out = os.pipe()
        scope = Scope(view="small") if limit == "view" else None
        identity = msgspec.structs.replace(ANYBODY, scope=scope)
        harness.nursery.start_soon(StdioFrontend(harness.answers, theirs_in, theirs_out, trio.Event(), identity).run)
        hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}
        lines = [json.dumps(hello).encode(), *(call(one, modern=False, request_id=7) for one in TWICE[:1])]
        lines += [call(one, modern=True, request_id=8) for one in TWICE[:1]]
        lines.append(b'{"jsonrpc":"2.0","method":"notifications/x","Method":"y"}')
        lines.append(b'{"jsonrpc":"2.0","id":1,"result":{},"RESULT":{}}')
        async with trio.lowlevel.FdStream(ours_in) as stdin, trio.lowlevel.FdStream(ours_out) as stdout:
            await stdin.send_all(b"\n".join(lines) + b"\n")
            await settle()
            answers = [json.loads(line) for line in (await stdout.receive_some()).splitlines()]
            errors = [(one["error"]["code"], one["id"]) for one in answers if "error" in one]
            assert errors == ([] if limit is None else [(-32602, 7), (-32602, 8), (-32602, None), (-32602, None)])
            assert harness.sent == (2 if limit is None else 0)
            harness.nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "message",
    [
        b'{"jsonrpc":"2.0","method":"notifications/x","params":{"_meta":{},"_META":{}}}',
        b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"PROGRESSTOKEN":2}}',
        b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"requestid":2}}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"Result":{}}',
        b'{"jsonrpc":"2.0","id":1,"ID":2,"result":{}}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"result":{}}',
    ],
)
async def test_notifications_and_responses_are_refused(message: bytes, autojump_clock: MockClock) -> None:
    async with open_limited("servers") as (harness, _):
        headers = await start_session(harness, "/mcp")
        exchange = await harness.start("POST", "/mcp", message, key=ALICE, **headers)
        assert (exchange.status, problem_in(exchange.body)) == (400, (-32602, None))
        assert harness.fakes["a"].session.upkeep.passed_on == []


async def test_a_program_offering_some_tools_restricts_its_clients(autojump_clock: MockClock) -> None:
    async with open_limited(None) as (harness, _):
        assert not harness.fleet.is_limited(None)
        assert harness.fleet.offer({}) == []
        assert harness.fleet.is_limited(None)
        harness.fleet.offer(None)
        assert not harness.fleet.is_limited(None)


async def test_limits_follow_the_config(autojump_clock: MockClock) -> None:
    async with open_limited(None) as (harness, _):
        await harness.fleet.apply(config_for("exclude"))
        assert harness.fleet.is_limited(None)
        await harness.fleet.apply(config_for(None))
        assert not harness.fleet.is_limited(None)


# -- methods, headers, and what backends say ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ("notifications/acme", True),
        ("notifications/acme/fooChanged", True),
        ("acme/changed", True),
        ("tools/call", False),
        ("TOOLS/CALL", False),
        ("Initialize", False),
        ("Notifications/Cancelled", False),
        ("notifications/progres\u017f", False),
    ],
)
async def test_no_request_is_passed_on_as_a_notification(method: str, passes: bool, autojump_clock: MockClock) -> None:
    async with open_limited("exclude") as (harness, _):
        headers = await start_session(harness, "/mcp")
        message = {"jsonrpc": "2.0", "method": method, "params": {"name": "y"}}
        exchange: FakeExchange = await harness.start("POST", "/mcp", message, key=ALICE, **headers)
        assert exchange.status == 202
        assert harness.fakes["a"].session.upkeep.passed_on == ([(method, b'{"name": "y"}')] if passes else [])


async def test_mcp_methods_in_another_case_are_refused(autojump_clock: MockClock) -> None:
    async with open_limited("exclude") as (harness, _):
        headers = await start_session(harness, "/mcp")
        for method in ("Tools/call", "TOOLS/CALL", "tool\u017f/call", "PING"):
            message = {"jsonrpc": "2.0", "id": method, "method": method, "params": {"name": "y"}}
            exchange = await harness.start("POST", "/mcp", message, key=ALICE, **headers)
            assert problem_in(exchange.body) == (-32601, method)
        assert harness.sent == 0


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (b'{"region":"eu","REGION":"us"}', "REGION"),
        (b'{"region":"eu","region":"us"}', "region"),
        (b'{"where":{"zone":"a","Zone":"b"}}', "where.Zone"),
        (b'{"where":{},"WHERE":{"zone":"b"}}', "WHERE"),
        (b'{"region":"eu","other":1,"OTHER":2}', None),
        (b'{"where":[]}', None),
        (b"null", None),
    ],
)
def test_arguments_that_headers_repeat_are_spelled_once(arguments: bytes, found: str | None) -> None:
    annotations = ((("region",), b"Mcp-Param-Region"), (("where", "zone"), b"Mcp-Param-Zone"))
    assert find_second_argument(annotations, arguments) == found


@pytest.mark.parametrize("kind", list(Kind))
def test_duplicate_backend_names_are_hidden_from_restricted_clients(kind: Kind) -> None:
    key = kind.key
    raws = [f'{{"{key}":"u:1","{other}":"u:2"}}'.encode() for other in (key.upper(), key.capitalize())]
    items = (Item("u:1", raws[0]), Item("u:3", b'{"%b":"u:3"}' % key.encode()), Item("u:4", raws[1]))
    listing = Listing(items={kind: items}, capabilities={kind.feature: jsonrpc.EMPTY_OBJECT})
    snapshot = Snapshot([make_part("a", "a", listing, Naming())], listed=frozenset({"a"}))
    assert len(public_names(snapshot, kind)["a"]) == 3
    assert [name.removeprefix("a.") for name in public_names(snapshot.within(Scope(servers=("a",))), kind)["a"]] == [
        "u:3"
    ]


def test_a_duplicate_tool_is_not_offered_beside_exclusions() -> None:
    items = (Item("x", b'{"name":"x","NAME":"y"}'), Item("z", b'{"name":"z"}'))
    part = make_part("a", "a", Listing(items={Kind.TOOLS: items}), Naming(), ToolChoice(exclude=("y",)))
    assert [entry.own for entry in part.entries[Kind.TOOLS]] == ["z"]
    assert any("'x'" in text for text in part.loose_ends)


ELICITATIONS = [
    ('{"mode":"url","url":"https://a.example"}', False),
    ('{"mode":"url","url":"https://a.example","URL":"javascript:x"}', True),
    ('{"mode":"url","url":"https://a.example","uRl":"javascript:x"}', True),
    ('{"mode":"form","MODE":"url","message":"x"}', True),
]


@pytest.mark.parametrize(
    ("params", "unsafe"), [*ELICITATIONS, ('{"mode":"url","url":"javascript:x","url":"https://a.example"}', True)]
)
def test_elicitations_are_spelled_once(params: str, unsafe: bool) -> None:
    required = b'{"inputRequests":{"a":{"method":"elicitation/create","params":%b}}}' % params.encode()
    assert (asks.unsafe_elicitation(required) is not None) is unsafe
    refusal = Failure(-32042, "x", b'{"elicitations":[%b]}' % params.encode(), Era.LEGACY)
    assert (asks.unsafe_refusal(refusal) is not None) is unsafe


@pytest.mark.parametrize(("params", "unsafe"), ELICITATIONS)
def test_elicitations_of_legacy_backends_are_spelled_once(params: str, unsafe: bool) -> None:
    assert (asks.unsafe_url(jsonrpc.decode_object(params.encode())) is not None) is unsafe
