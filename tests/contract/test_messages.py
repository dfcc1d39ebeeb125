"""Every legacy message, on every frontend and backend transport, arrives as sent.

The gateways have one backend each, whose names and URIs they do not change, so that params and results can be compared
as whole JSON values with those of the backend in this process. `messages` has the manifest of all messages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio

from tests.contract import messages
from tests.contract.bridge import (
    ELICITATION,
    EVERYTHING,
    FORM,
    FORM_ANSWER,
    ROOT_ANSWER,
    ROOTS,
    SAMPLE,
    SAMPLE_ANSWER,
    SAMPLING,
    TOOL_ANSWER,
    WITH_TOOLS,
    answer_to,
    until,
)
from tests.contract.messages import TASKS, TRANSPORTS, VENDOR, covers
from tests.contract.support import FAST, SHUTDOWN_GRACE, check_leaks, open_client, open_gateways, text_of
from tests.support.gateway_process import ANSWER_WITHIN, PEERS, ROOT, make_notification, peer

SETTINGS = {"name": "office", "start_grace": 15, "keep_alive_interval": 0.2, "list_change_delay": 0.05}
REQUEST, ASK = "client request", "server request"
NOTE, NOTICE = "client notification", "server notification"
NAME = "rich"
URI = f"memo://{NAME}/one"
SERVER = [sys.executable, str(PEERS / "bridge_server.py"), "--name", NAME, "--transport"]
ODD = {
    "x-extra": None,
    "big": 2**70,
    "é": ["\u2028", 1.5, {}],
    "cut \ud83d": ["\ude00\ud83d", "\ud83d\ud83d\ude00", "\\ud83d"],
}
"""What no model knows, and text cut inside an emoji; it must arrive as it is."""
BESIDE = ("list_changed", "resources/updated", "elicitation/complete")
"""Notifications that belong to no call, though they come on the same pipe."""


@contextmanager
def open_server(transport):
    """Yield the config entry of a backend over this transport.

    One over HTTP ends when its stdin does.
    """
    if transport == "stdio":
        yield peer("bridge_server.py", "--name", NAME)
        return
    process = subprocess.Popen([*SERVER, transport], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    try:
        line = process.stderr.readline().decode()
        assert line.startswith("listening on "), line
        yield {"url": line.split()[-1], "transport": "sse" if transport == "sse" else "streamable-http"}
    finally:
        process.stdin.close()
        process.stderr.close()
        process.wait(10)


@contextmanager
def open_harness(transport, frontend, folder):
    with open_server(transport) as server:
        server |= {"namespace": "", "restart": FAST, "shutdown_grace": SHUTDOWN_GRACE, "era": "legacy"}
        config = {"mcpServers": {NAME: server}, "gateway": SETTINGS}
        with open_gateways(config, (frontend,), "--state-dir", str(folder)) as found:
            yield found


@pytest.fixture(scope="module")
def gateways(tmp_path_factory):
    """By the backend's transport, then by frontend; all start at the same time."""
    harnesses = [(transport, frontend) for transport in TRANSPORTS for frontend in ("stdio", "streamable-http,sse")]
    with ExitStack() as stack, ThreadPoolExecutor(len(harnesses)) as pool:
        opened = [open_harness(*harness, tmp_path_factory.mktemp("state")) for harness in harnesses]
        started = [pool.submit(one.__enter__) for one in opened]
        for one in opened:
            stack.push(one.__exit__)
        found = {}
        for (transport, _), future in zip(harnesses, started, strict=True):
            found.setdefault(transport, {}).update(future.result())
        yield found
        list(pool.map(lambda one: one.__exit__(None, None, None), opened))
        stack.pop_all()


leak_check = pytest.fixture(autouse=True)(check_leaks)


class Talk:
    """One client request: the server requests and notifications before its response."""

    def __init__(self):
        self.asked, self.notified, self.answer = [], [], None

    @property
    def result(self):
        assert "result" in self.answer, self.answer
        return self.answer["result"]

    @property
    def structured(self):
        return self.result["structuredContent"]


class Talker:
    """A legacy client; `respond` makes its answers to server requests, None for silence."""

    def __init__(self, client, cell):
        self.client, self.cell = client, cell
        self.modern = False
        self.respond = answer_to

    async def request(self, method, params=None):
        talk = Talk()
        with trio.fail_after(ANSWER_WITHIN):
            async with self.client.open_call(method, params) as call:
                while True:
                    message = await self.next_message(call)
                    if "method" not in message:
                        talk.answer = message
                        return talk
                    if "id" in message:
                        talk.asked.append(message)
                        answer = self.respond(message["method"], message.get("params", {}))
                        if answer is not None:
                            await self.send({"jsonrpc": "2.0", "id": message["id"], "result": answer})
                    else:
                        talk.notified.append(message)

    async def next_message(self, call):
        if self.client.stdio is None:
            message = await call.next()
            assert message is not None, "the stream ended without a response"
            return message

        def is_of_call(one):
            if "method" not in one:
                return one["id"] == call.id
            return "id" in one or not one["method"].endswith(BESIDE)

        return await self.client.stdio.wait_for(is_of_call, ANSWER_WITHIN)

    async def tool(self, name, arguments=None, **kwargs):
        return await self.request("tools/call", {"name": name, "arguments": arguments or {}, **kwargs})

    async def ask(self, method, params, **kwargs):
        """Have the backend send one request; return it and the backend's answer."""
        talk = await self.tool("ask", {"requests": {"one": {"method": method, "params": params}}}, **kwargs)
        return talk.asked, talk.structured["answers"]["one"]

    async def send(self, message):
        """Send a notification or response."""
        if self.client.stdio is not None:
            await self.client.stdio.send(message)
        else:
            assert (await self.client.http.post(message)).status == 202

    async def say(self, *said, **kwargs):
        """Have the backend send these messages during a call; return what the client received."""
        talk = await self.tool("say", {"messages": list(said)}, **kwargs)
        assert text_of(talk.answer) == "said"
        return talk

    async def caught(self, method, wanted=lambda _params: True):
        """Wait until the backend has got a notification; all of this kind."""

        async def look():
            found = (await self.tool("caught")).structured["messages"]
            return [one for one in found if one.get("method") == method and wanted(one.get("params", {}))]

        return await until(look)

    async def count(self, method):
        """Return the number of messages of this kind that the backend has received."""
        seen = (await self.tool("seen")).structured["messages"]
        return sum(1 for one in seen if one.get("method") == method)


@asynccontextmanager
async def open_talker(gateways, cell, capabilities=EVERYTHING):
    async with open_client(gateways[cell.transport], ("legacy", cell.frontend), initialize=False) as client:
        talker = Talker(client, cell)
        talker.greeting = await client.initialize(capabilities=capabilities)
        yield talker


@asynccontextmanager
async def open_ear(talker):
    """An async function that waits for the next notification that belongs to no call."""
    client = talker.client
    if client.stdio is not None:
        client.stdio.arrived.clear()  # notifications of earlier tests

        async def receive():
            return await client.stdio.wait_for(lambda one: one.get("method", "").endswith(BESIDE), ANSWER_WITHIN)

        yield receive
        return
    async with client.http.open_get_stream() as stream:

        async def receive_stream():
            return (await stream.next_sse()).json()

        yield receive_stream


def same(found, expected):
    """Whether two JSON values are the same, the order of members included."""
    return json.dumps(found) == json.dumps(expected)


def test_the_manifest_and_the_tests_agree():
    assert messages.gaps() == {"without a test": set(), "not in the manifest": set(), "known to the SDK alone": set()}


# -- what clients ask --------------------------------------------------------------------------------------------------


@covers(REQUEST, "initialize")
@covers(NOTE, "notifications/initialized")
async def test_initialize(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        expected = {
            "protocolVersion": "2025-11-25",
            "capabilities": {
                "tools": {"listChanged": True},
                "prompts": {"listChanged": True},
                "resources": {"listChanged": True, "subscribe": True},
                "completions": {},
                "logging": {},
                "extensions": {"io.modelcontextprotocol/ui": {}},  # the server has a page
            },
        }
        greeting = dict(talker.greeting)
        assert greeting.pop("serverInfo")["name"] == "office"
        assert f"How to use {NAME}." in greeting.pop("instructions")
        assert greeting == expected
        (first, second) = [
            one
            for one in (await talker.tool("seen")).structured["messages"]
            if one["method"] in {"initialize", "notifications/initialized"}
        ]
        assert first["params"]["clientInfo"]["name"] == "office"
        capabilities = {"roots": {"listChanged": True}, "sampling": {"tools": {}}}
        capabilities["elicitation"] = {"form": {}, "url": {}}
        capabilities["extensions"] = {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}
        assert first["params"]["capabilities"] == capabilities
        assert second == make_notification("notifications/initialized")  # the gateway's own, once


@covers(REQUEST, "ping")
async def test_a_ping_of_the_client(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        assert (await talker.request("ping")).result == {}
        assert await talker.count("ping") == 0  # it is about this hop


LISTS = {
    "tools/list": "tools",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/templates/list": "resourceTemplates",
}


@covers(REQUEST, *LISTS)
async def test_lists(gateways, cell):
    server = messages.make_reference(NAME)
    async with open_talker(gateways, cell) as talker:
        for method, member in LISTS.items():
            expected = server.methods[method]({}, {})
            for entry in expected[member]:
                entry.pop("execution", None)  # the gateway does what has to be done as a task by itself
            found = (await talker.request(method)).result
            found[member] = [one for one in found[member] if "grown" not in json.dumps(one)]
            assert same(found, expected)


@covers(REQUEST, "tools/call")
async def test_a_tool_call(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        params = {"name": "params", "arguments": ODD, "x-extra": [None], "_meta": {"com.example/x": None}}
        assert same((await talker.request("tools/call", params)).structured, params)
        result = {"content": [{"type": "hologram", **ODD}], "isError": True, **ODD, "_meta": {"a/b": None}}
        assert same((await talker.tool("content", {"result": result})).result, result)
        assert (await talker.tool("nothing")).answer["error"]["code"] == -32602


@covers(REQUEST, "resources/read", "prompts/get", "completion/complete")
async def test_guarantee_g7_what_backends_answer(gateways, cell):
    server = messages.make_reference(NAME)
    asked = [
        ("resources/read", {"uri": URI}),
        ("resources/read", {"uri": f"memo://{NAME}/item/é 7"}),
        ("prompts/get", {"name": "greet", "arguments": {"name": "Ada"}}),
        ("prompts/get", {"name": "linked"}),
        *(
            ("completion/complete", {"ref": ref, "argument": {"name": "a", "value": "v"}, "context": {"arguments": {}}})
            for ref in (
                {"type": "ref/prompt", "name": "greet", "title": "x"},
                {"type": "ref/resource", "uri": f"memo://{NAME}/item/{{id}}"},
            )
        ),
    ]
    async with open_talker(gateways, cell) as talker:
        for method, params in asked:
            expected = server.methods[method]({"id": 0}, params)
            assert same((await talker.request(method, params)).result, expected), method
        error = (await talker.request("resources/read", {"uri": "nobody://has/this"})).answer["error"]
        uri = {"uri": "nobody://has/this"}
        assert error == {"code": -32002, "message": "Resource not found: nobody://has/this", "data": uri}


@covers(REQUEST, "resources/subscribe", "resources/unsubscribe")
@covers(NOTICE, "notifications/resources/updated")
async def test_guarantee_g7_a_subscription(gateways, cell):
    async with open_talker(gateways, cell) as talker:

        async def subscribed():
            return (await talker.tool("subscribed")).structured["uris"]

        async with open_ear(talker) as receive:
            assert (await talker.request("resources/subscribe", {"uri": URI})).result == {}
            assert await subscribed() == [URI]
            await talker.tool("touch", {"uri": URI})
            with trio.fail_after(ANSWER_WITHIN):
                expected = make_notification("notifications/resources/updated", {"uri": URI})
                assert same(await receive(), expected)
            assert (await talker.request("resources/unsubscribe", {"uri": URI})).result == {}

            async def is_gone():
                return not await subscribed()

            await until(is_gone)


@covers(REQUEST, "logging/setLevel")
@covers(NOTICE, "notifications/message")
async def test_guarantee_g7_logging(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        for level, expected in (("error", 0), ("info", 1)):
            assert (await talker.request("logging/setLevel", {"level": level})).result == {}
            line = {"level": "warning", "logger": "x", "data": ODD, "x-extra": None}
            talk = await talker.say({"method": "notifications/message", "params": line})
            notified = [one["params"] for one in talk.notified if one["method"] == "notifications/message"]
            assert same(notified, [line] * expected)
        assert (await talker.request("logging/setLevel", {"level": "loud"})).answer["error"]["code"] == -32602
        await until(partial(talker.count, "logging/setLevel"))  # a session is kept as wished beside its calls


@covers(REQUEST, *TASKS)
@covers(ASK, *TASKS)
@covers(NOTE, "notifications/tasks/status")
@covers(NOTICE, "notifications/tasks/status")
async def test_tasks_are_the_gateways_own(gateways, cell):
    """Neither side is offered the other's tasks; the gateway runs mandatory tasks silently."""
    async with open_talker(gateways, cell) as talker:
        state = {"method": "notifications/tasks/status", "params": {"taskId": "task-1", "status": "working"}}
        assert text_of((await talker.tool("job", {"text": "worked", "polls": 1, "interval": 5})).answer) == "worked"
        assert not [one for one in (await talker.say(state)).notified if "tasks" in one["method"]]
        await talker.send({"jsonrpc": "2.0", **state})
        for method in sorted(TASKS):
            assert (await talker.request(method, {"taskId": "task-1"})).answer["error"]["code"] == -32601
            asked, answer = await talker.ask(method, {"taskId": "task-1"})
            assert (asked, answer["error"]["code"]) == ([], -32601)
        caught = (await talker.tool("caught")).structured["messages"]
        assert not [one for one in caught if one.get("method") == state["method"]]


@covers(REQUEST, VENDOR)
@covers(NOTE, VENDOR)
@covers(ASK, VENDOR)
@covers(NOTICE, VENDOR)
async def test_unknown_methods_pass_in_both_directions(gateways, cell):
    """One backend is the only possible target; clients get only requests they can declare."""
    async with open_talker(gateways, cell) as talker:
        params = {**ODD, "_meta": {"a/b": None}}
        assert same((await talker.request("vendor/echo", params)).result, {"params": params})
        assert (await talker.request("vendor/unknown")).answer["error"]["code"] == -32601
        mark = f"{cell.frontend} {cell.transport}"
        await talker.send(make_notification("vendor/note", {**ODD, "mark": mark}))
        (note,) = await talker.caught("vendor/note", lambda found: found["mark"] == mark)
        assert same(note, make_notification("vendor/note", {**ODD, "mark": mark}))
        asked, answer = await talker.ask("vendor/question", {})
        assert (asked, answer["error"]["code"]) == ([], -32601)
        notified = (await talker.say({"method": "notifications/vendor/news", "params": ODD})).notified
        assert same(
            [one for one in notified if "vendor" in one["method"]],
            [make_notification("notifications/vendor/news", ODD)],
        )


# -- what servers ask --------------------------------------------------------------------------------------------------


@covers(ASK, "ping")
async def test_a_ping_of_the_server(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        assert await talker.ask("ping", {}) == ([], {})


URL_FORM = {"mode": "url", "message": "Please visit.", "url": "https://example.com/v?x=1", "elicitationId": "e"}


@covers(ASK, SAMPLING, ELICITATION, ROOTS)
async def test_what_servers_ask(gateways, cell):
    odd = {"x-extra": None, "_meta": {"a/b": None}}
    async with open_talker(gateways, cell) as talker:
        for method, params, answer in (
            (SAMPLING, SAMPLE | odd, SAMPLE_ANSWER | odd),
            (SAMPLING, WITH_TOOLS, TOOL_ANSWER),
            (ELICITATION, FORM | odd, FORM_ANSWER | odd),
            (ELICITATION, URL_FORM, {"action": "decline"}),
            (ROOTS, {}, ROOT_ANSWER | odd),
        ):
            talker.respond = lambda *_, answer=answer: answer
            asked, got = await talker.ask(method, params)
            assert [one["method"] for one in asked] == [method]
            assert same([one["params"] for one in asked], [params])
            assert same(got, answer)


@covers(NOTE, "notifications/progress")
async def test_progress_of_the_client(gateways, cell):
    """About a request of the server's, under the server's own token."""
    token = f"{cell.frontend} {cell.transport}"
    async with open_talker(gateways, cell) as talker:
        talker.respond = lambda *_: None
        params = {**SAMPLE, "_meta": {"progressToken": token}}
        arguments = {"requests": {"one": {"method": SAMPLING, "params": params}}}
        async with talker.client.open_tool("ask", arguments) as call:
            asked = await talker.next_message(call)
            own = asked["params"]["_meta"].pop("progressToken")
            assert asked["params"] == {**SAMPLE, "_meta": {}}
            notified = {"progress": 1, "total": 2, "message": "on it", "x-extra": None}
            await talker.send(make_notification("notifications/progress", {"progressToken": own, **notified}))
            await talker.send({"jsonrpc": "2.0", "id": asked["id"], "result": SAMPLE_ANSWER})
            assert "result" in await talker.next_message(call)
        (note,) = await talker.caught("notifications/progress", lambda found: found["progressToken"] == token)
        assert same(note["params"], {"progressToken": token, **notified})


@covers(NOTICE, "notifications/cancelled")
async def test_a_server_may_withdraw_its_request(gateways, cell):
    cancelled = {"method": "notifications/cancelled", "params": {"requestId": "mine", "reason": "never mind"}}
    async with open_talker(gateways, cell) as talker:
        talker.respond = lambda *_: None
        talk = await talker.say({"id": "mine", "method": ROOTS, "params": {}}, cancelled)
        notified = [one["params"] for one in talk.notified if one["method"] == "notifications/cancelled"]
        assert [one["requestId"] for one in notified] == [one["id"] for one in talk.asked]
        for one in talk.asked:  # an answer all the same is dropped
            await talker.send({"jsonrpc": "2.0", "id": one["id"], "result": ROOT_ANSWER})
        assert not [one for one in (await talker.tool("caught")).structured["messages"] if one.get("id") == "mine"]


# -- notifications -----------------------------------------------------------------------------------------------------


@covers(NOTE, "notifications/cancelled")
async def test_a_client_may_cancel_its_request(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        before = (await talker.tool("cancelled_log")).structured["cancelled"]
        params = {"name": "progress", "arguments": {"n": 1000, "delay": 0.05}, "_meta": {"progressToken": "t"}}
        async with talker.client.open_call("tools/call", params) as call:
            assert (await call.next())["params"]["progressToken"] == "t"
            await call.cancel()
            await call.assert_unanswered()

        async def cancelled():
            return (await talker.tool("cancelled_log")).structured["cancelled"][len(before) :]

        (number,) = await until(cancelled)
        (note,) = await talker.caught("notifications/cancelled", lambda found: found["requestId"] == number)
        assert note["params"].keys() == {"requestId", "reason"}


@covers(NOTE, "notifications/roots/list_changed")
async def test_changed_roots(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        name = "notifications/roots/list_changed"
        before = sum(1 for one in (await talker.tool("caught")).structured["messages"] if one.get("method") == name)
        await talker.send(make_notification(name))

        async def received():
            found = [one for one in (await talker.tool("caught")).structured["messages"] if one.get("method") == name]
            return found[before:]

        assert await until(received) == [make_notification(name)]


@covers(NOTICE, "notifications/progress")
async def test_guarantee_g7_progress_of_the_server(gateways, cell):
    said = [{"progress": n, "total": 3.5, "message": f"é {n}", "x-extra": None} for n in (1, 2, 3)]
    async with open_talker(gateways, cell) as talker:
        for token in ("a token", 7):
            talk = await talker.say(
                *({"method": "notifications/progress", "params": {"progressToken": "$token", **one}} for one in said),
                {"method": "notifications/progress", "params": {"progressToken": "nobody's", "progress": 1}},
                _meta={"progressToken": token},
            )
            notified = [one["params"] for one in talk.notified if one["method"] == "notifications/progress"]
            assert same(notified, [{"progressToken": token, **one} for one in said])


FEATURES = ["prompts", "resources", "tools"]


@covers(NOTICE, *(f"notifications/{feature}/list_changed" for feature in FEATURES))
async def test_changed_lists(gateways, cell):
    async with open_talker(gateways, cell) as talker, open_ear(talker) as receive:

        async def listed():
            found = [(await talker.request(f"{feature}/list")).result for feature in FEATURES]
            return [json.dumps(one).count("grown_") for one in found]

        before = await listed()
        await talker.tool("grow", {"features": FEATURES})
        with trio.fail_after(ANSWER_WITHIN):
            notified = [await receive() for _ in FEATURES]
        assert sorted(one["method"] for one in notified) == [
            f"notifications/{feature}/list_changed" for feature in FEATURES
        ]
        assert all(one.keys() == {"jsonrpc", "method"} for one in notified)
        after = [before[0] + 1, before[1] + 1, before[2] + 1]

        async def are_listed():
            return await listed() == after

        await until(are_listed)


@covers(NOTICE, "notifications/elicitation/complete")
async def test_the_end_of_an_elicitation(gateways, cell):
    wanted = f"{cell.frontend} {cell.transport}"
    async with open_talker(gateways, cell) as talker, open_ear(talker) as receive:
        asked, _ = await talker.ask(ELICITATION, URL_FORM | {"elicitationId": wanted})
        assert asked[0]["params"]["elicitationId"] == wanted
        await talker.tool("granted", {"id": wanted})
        with trio.fail_after(ANSWER_WITHIN):
            notified = await receive()
        assert same(notified, make_notification("notifications/elicitation/complete", {"elicitationId": wanted}))
