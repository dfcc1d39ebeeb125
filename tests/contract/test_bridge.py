"""Every client with every server: each cell passes or is refused as specified.

The verdicts make the table in docs/pages/explanation/eras.md (`bin/bridge-table` writes it), which the last test
compares with them.
"""

from __future__ import annotations

import json
from contextlib import aclosing, asynccontextmanager
from functools import partial

import pytest
import trio

from tests.contract import bridge
from tests.contract.bridge import (
    ELICITATION,
    FORM,
    FORM_ANSWER,
    ROOT_ANSWER,
    ROOTS,
    SAMPLE,
    SAMPLE_ANSWER,
    SAMPLING,
    TOOL_ANSWER,
    WITH_TOOLS,
    YES,
    open_http_servers,
    open_talker,
    plain,
    row,
    stdio_servers,
    until,
    url_form,
)
from tests.contract.support import FAST, SHUTDOWN_GRACE, Client, check_leaks, open_gateways, with_token
from tests.support.gateway_process import META, HttpClient, make_request, open_gateway_process

SETTINGS = {"start_grace": 15, "keep_alive_interval": 0.2, "list_change_delay": 0.05}
EXTRA = {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}


@pytest.fixture(scope="module")
def gateways(tmp_path_factory):
    """A gateway for each frontend, each before servers of its own."""
    names = bridge.installed()
    with open_http_servers(names) as first, open_http_servers(names) as second:
        both = []
        for transport, over_http in (("stdio", first), ("streamable-http", second)):
            servers = {name: server | EXTRA for name, server in (stdio_servers(names) | over_http).items()}
            config = {"mcpServers": servers, "gateway": SETTINGS}
            state = str(tmp_path_factory.mktemp("state"))
            both.append(open_gateways(config, (transport,), "--state-dir", state))
        with both[0] as stdio, both[1] as http:
            yield stdio | http


leak_check = pytest.fixture(autouse=True)(check_leaks)

# -- calls -------------------------------------------------------------------------------------------------------------


@row("tool call")
async def test_tool_call(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        talk = await talker.call("echo", {"text": "grüezi 🌍\n"})
        found = plain(talk.result)
        assert found.pop("isError", False) is False  # which an SDK says of every result
        assert found == {"content": [{"type": "text", "text": "grüezi 🌍\n"}]}
        assert ("resultType" in talk.result) == talker.client.modern
    return YES


ODD = {
    "content": [
        {"type": "text", "text": "a", "x-extra": None, "annotations": {"x": [None]}},
        {"type": "hologram", "depth": 12345678901234567890, "x": {"y": None}},
    ],
    "x-number": 1e300,
    "x-null": None,
    "cut \ud83d": ["\ude00\ud83d", "\ud83d\ud83d", "\\ud83d", {"\udc00": "\ud83d\n"}],
}


@row("unknown fields", sdks=())
async def test_unknown_fields(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        listed = (await talker.converse("tools/list")).result["tools"]
        (page,) = (tool for tool in listed if tool["name"] == cell.tool("page"))
        assert page["_meta"]["other"] == 1
        assert page["_meta"]["ui"]["x"] is None
        result = (await talker.call("content", {"result": ODD})).result
        assert plain(result) == ODD
        own = {"com.example/x": "\ud83d", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        seen = await talker.call(
            "params", {"big": 2**70, "none": None, "\ud83d": "\ude00"}, **{"x-extra": [None], "_meta": own}
        )
        params = seen.result["structuredContent"]
        assert params["arguments"] == {"big": 2**70, "none": None, "\ud83d": "\ude00"}
        assert params["x-extra"] == [None]
        assert own.items() <= params["_meta"].items()
    return YES


@pytest.mark.parametrize("cell", [cell for cell in bridge.CELLS if not cell.is_sdk], ids="-".join)
async def test_text_cut_inside_an_emoji_is_readable(gateways, cell):
    """Ids and tokens return unchanged; unknown names, cursors and URIs give readable errors."""
    cut = bridge.CUT
    async with open_talker(gateways, cell) as talker:
        client = talker.client
        message = make_request(cut, "tools/list", client.params({}))
        if client.stdio is not None:
            await client.stdio.send(message)
            answer = await client.stdio.response(cut)
        else:
            own = client.http.modern_headers("tools/list") if client.modern else {}
            answer = (await client.http.post(message, headers=own)).json()
            assert answer["id"] == cut
        assert "tools" in answer["result"]
        params = {"name": cell.tool("progress"), "arguments": {"n": 1}, "_meta": {cut: cut}}
        talk = await talker.converse("tools/call", with_token(params, cut))
        assert [one["params"]["progressToken"] for one in talk.notifications] == [cut]
        assert (await talker.call(cut)).error["code"] == -32602
        assert (await talker.converse("tools/list", {"cursor": cut})).error["code"] == -32602
        assert (await talker.converse("prompts/get", {"name": cut})).error["code"] == -32602
        missing = await talker.converse("resources/read", {"uri": f"nothing:{cut}"})
        assert missing.error["data"]["uri"] == f"nothing:{cut}"


@row("structured result that is not an object", sdks=())
async def test_non_object_structured_results_are_converted(gateways, cell):
    value = [1, {"two": None}]
    async with open_talker(gateways, cell) as talker:
        listed = (await talker.converse("tools/list")).result["tools"]
        (listing,) = (tool for tool in listed if tool["name"] == cell.tool("list_out"))
        result = (await talker.call("structured", {"value": value})).result
        assert json.loads(result["content"][0]["text"]) == value
        if talker.client.modern:
            assert listing["outputSchema"]["type"] == "array"
            assert result["structuredContent"] == value
            return YES
        assert "outputSchema" not in listing  # a legacy schema describes an object
        if cell.era == "legacy":
            assert result["structuredContent"] == value  # its version has no such results; but nothing is lost
            return "as sent"
        assert "structuredContent" not in result
    return "as text"


@row("progress")
async def test_progress(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        params = {"name": cell.tool("progress"), "arguments": {"n": 3}}
        talk = await talker.converse("tools/call", with_token(params, "the token"))
        notified = [
            notification["params"]
            for notification in talk.notifications
            if notification["method"] == "notifications/progress"
        ]
        expected = [
            {"progressToken": "the token", "progress": n, "total": 3, "message": f"step {n}"} for n in (1, 2, 3)
        ]
        assert notified == expected
        assert talk.result["content"][0]["text"] == "3 steps"
    return YES


@row("log")
async def test_log(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        own = {"_meta": {META + "logLevel": "warning"}}
        if not talker.client.modern:
            own = {}
            await talker.converse("logging/setLevel", {"level": "warning"})
        loud = await talker.call("log", {"level": "error", "data": {"x": None}, "n": 2}, **own)
        notified = [
            notification["params"]
            for notification in loud.notifications
            if notification["method"] == "notifications/message"
        ]
        assert notified == [{"level": "error", "logger": "rich", "data": {"x": None}}] * 2
        quiet = await talker.call("log", {"level": "info"}, **own)
        assert [
            notification for notification in quiet.notifications if notification["method"] == "notifications/message"
        ] == []
        if talker.client.modern:
            unasked = await talker.call("log", {"level": "emergency"})
            assert [
                notification
                for notification in unasked.notifications
                if notification["method"] == "notifications/message"
            ] == []
    return YES


async def test_backends_log_at_the_most_verbose_requested_level(gateways):
    """A legacy backend's level holds for all its clients; each gets its own."""
    cells = [bridge.Cell(client, "http", "legacy", "http") for client in ("legacy", "modern")]
    async with open_talker(gateways, cells[0]) as quiet, open_talker(gateways, cells[1]) as talkative:
        await quiet.converse("logging/setLevel", {"level": "emergency"})

        async def is_told():
            return (await talkative.call("log", {"level": "debug"}, _meta={META + "logLevel": "debug"})).notifications

        await until(is_told)  # the first call that asks for so much may be as fast as the word of it
        assert (await quiet.call("log", {"level": "debug"})).notifications == []


# -- ends --------------------------------------------------------------------------------------------------------------


async def started(talker, tool, before):
    async def look():
        return (await talker.structured("count")).get(tool, 0) > before

    await until(look)


async def cancelled_at(talker):
    return (await talker.structured("cancelled_log"))["cancelled"]


@asynccontextmanager
async def open_other(gateways, cell, talker):
    """Open another client of the same kind; on pipes there is only one."""
    if cell.frontend == "stdio":
        yield talker
    else:
        async with open_talker(gateways, cell) as other:
            yield other


@row("cancel")
async def test_cancel(gateways, cell):
    async with open_talker(gateways, cell) as talker, open_other(gateways, cell, talker) as other:
        count = (await other.structured("count")).get("sleep", 0)
        before = await cancelled_at(other)
        async with talker.client.open_tool(cell.tool("sleep"), {"seconds": 60}) as call:
            await started(other, "sleep", count)
            await call.cancel()

            async def look():
                return (await cancelled_at(other))[len(before) :]

            assert len(await until(look)) == 1
            await call.assert_unanswered()
    return YES


@row("hang-up")
async def test_hang_up(gateways, cell):
    if cell.frontend == "stdio":
        if cell.client not in ENDED:
            ENDED[cell.client] = await end_stdin(cell.client)
        (answer,) = ENDED[cell.client][cell.backend]
        assert "error" in answer  # it may have closed one direction only: it receives an error for its interrupted call
        return "cancels"
    async with open_talker(gateways, cell) as talker, open_talker(gateways, cell) as other:
        before = await cancelled_at(other)
        arguments = {"n": 200 if talker.client.modern else 15, "delay": 0.02}
        async with talker.client.open_tool(cell.tool("progress"), arguments, token=1) as call:
            await call.read_head()
            last = await call.exchange.next_sse()
        if talker.client.modern:

            async def look():
                return (await cancelled_at(other))[len(before) :]

            assert len(await until(look)) == 1
            return "cancels"
        back = talker.client.http.session_headers() | {"Last-Event-ID": last.id, "Accept": "text/event-stream"}
        async with talker.client.http.exchange("GET", headers=back) as stream:
            while "result" not in (message := (await stream.next_sse()).json()):
                pass
        assert message["result"]["content"][0]["text"] == "15 steps"
        assert await cancelled_at(other) == before
    return "call continues"


ENDED = {}
"""By the client's era: what came of the call to each backend when a client had closed our stdin."""


async def end_stdin(era):
    """A client on pipes disconnects by closing stdin: its calls get errors, we end."""
    names = bridge.installed()
    with open_http_servers(names) as over_http:
        servers = {name: server | EXTRA for name, server in (stdio_servers(names) | over_http).items()}
        config = {"mcpServers": servers, "gateway": SETTINGS}
        async with open_gateway_process(config, transport="stdio", status=1) as gateway:
            client = Client((era, "stdio"), stdio=gateway.stdio)
            if not client.modern:
                await client.initialize()
            ids = {}
            for name in servers:
                params = {"name": f"{name}.sleep", "arguments": {"seconds": 60}}
                ids[name] = await gateway.stdio.start("tools/call", client.params(params))
            for name in servers:

                async def is_asleep(name=name):
                    params = client.params({"name": f"{name}.count"})
                    counts = await gateway.stdio.request("tools/call", params)
                    return "sleep" in counts["result"]["structuredContent"]

                await until(is_asleep)
            await gateway.stdio.sending.aclose()
            with trio.fail_after(10):
                assert await gateway.process.wait() == 1  # what was under way was cut off
                while line := await gateway.stdio.read_line():
                    gateway.stdio.arrived.append(json.loads(line))
        for name, server in over_http.items():
            await until(partial(was_cancelled, name, HttpClient(server["url"])))
        return {name: [one for one in gateway.stdio.arrived if one.get("id") == ids[name]] for name in servers}


async def was_cancelled(name, http):
    """Ask a server whether something was cancelled."""
    if name.startswith("legacy"):
        http.session_id = "the-session"
        answer = await http.call_tool("cancelled_log")
    else:
        answer = await http.call_modern("tools/call", {"name": "cancelled_log"})
    return answer["result"]["structuredContent"]["cancelled"]


# -- asks --------------------------------------------------------------------------------------------------------------


async def ask_one(gateways, cell, method, params, answer):
    """Have the backend send one request; return it as the client received it."""
    given = cell.fit(params)
    async with open_talker(gateways, cell) as talker:
        talk = await talker.call("ask", {"requests": {"one": {"method": method, "params": given}}})
        assert talk.answers == {"one": cell.fit(answer)}
        assert talk.rounds == talker.client.modern
        ((asked, found),) = talk.asked
        assert asked == method
        if cell.is_sdk and "mode" in found:
            given = {"mode": "form", **given}  # which an SDK says, and may be left out
        return params if found == given else found


@row("form elicitation")
async def test_form_elicitation(gateways, cell):
    assert await ask_one(gateways, cell, ELICITATION, FORM, FORM_ANSWER) == FORM
    return YES


@row("URL elicitation")
async def test_url_elicitation(gateways, cell):
    given = url_form(cell)
    asked = await ask_one(gateways, cell, ELICITATION, given, {"action": "accept"})
    found = asked.pop("elicitationId", None)
    given.pop("elicitationId", None)
    assert asked == given
    assert (found is not None) == (cell.client == "legacy")
    return YES


@row("URL elicitation by an error (-32042)", sdks=())
async def test_url_elicitation_by_an_error(gateways, cell):
    wanted = f"{cell.client}-{cell.frontend}"
    async with open_talker(gateways, cell) as talker:

        async def visit():
            """Do what the visited page does; a modern server learns it from the answer."""
            if cell.era == "legacy":
                await talker.call("granted", {"id": wanted})

        arguments = {"url": "https://example.com/a", "id": wanted}
        if talker.client.modern:
            sent = talker.with_capabilities({"name": cell.tool("url_needed"), "arguments": arguments})
            first = (await talker.client.request("tools/call", sent))["result"]
            (request,) = first["inputRequests"].values()
            assert request["method"] == ELICITATION
            assert request["params"] == {"mode": "url", "message": "Please visit.", "url": "https://example.com/a"}
            await visit()
            again = talker.retry(sent, first, bridge.Talk())
            assert (await talker.client.request("tools/call", again))["result"]["content"][0]["text"] == "granted"
            return YES
        if cell.era == "legacy":
            error = (await talker.call("url_needed", arguments)).error
            assert error["code"] == -32042
            assert error["data"]["elicitations"][0]["elicitationId"] == wanted
            await visit()
            assert await talker.text("url_needed", arguments) == "granted"
            return YES
        talk = await talker.call("url_needed", arguments)
        ((method, params),) = talk.asked
        assert method == ELICITATION
        assert params["url"] == "https://example.com/a"
        assert params["elicitationId"]
        assert talk.result["content"][0]["text"] == "granted"
    return YES


@row("sampling")
async def test_sampling(gateways, cell):
    assert await ask_one(gateways, cell, SAMPLING, SAMPLE, SAMPLE_ANSWER) == SAMPLE
    return YES


@row("sampling with tools")
async def test_sampling_with_tools(gateways, cell):
    assert await ask_one(gateways, cell, SAMPLING, WITH_TOOLS, TOOL_ANSWER) == WITH_TOOLS
    return YES


@row("roots")
async def test_roots(gateways, cell):
    assert await ask_one(gateways, cell, ROOTS, {}, ROOT_ANSWER) == {}
    return YES


BOTH = {"form": {"method": ELICITATION, "params": FORM}, "roots": {"method": ROOTS, "params": {}}}


@row("two server requests at once")
async def test_two_concurrent_asks_are_answered(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        talk = await talker.call("ask", {"requests": cell.fit(BOTH)})
        assert talk.answers == cell.fit({"form": FORM_ANSWER, "roots": ROOT_ANSWER})
        assert sorted(method for method, _ in talk.asked) == [ELICITATION, ROOTS]
        # A legacy server writes one after the other; where it pauses between them, the second is asked for later.
        assert talk.rounds in ({1, 2} if cell.era == "legacy" else {1}) or not talker.client.modern
    return YES


@row("server requests in turn, in one call")
async def test_ask_after_ask(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        before = (await talker.structured("count")).get("ask", 0)
        talk = await talker.call("ask", {"requests": {"one": {"method": ROOTS, "params": {}}}, "rounds": 3})
        assert talk.answers == cell.fit({"one": ROOT_ANSWER})
        assert [method for method, _ in talk.asked] == [ROOTS] * 3
        assert talk.rounds == 3 * talker.client.modern
        calls = (await talker.structured("count"))["ask"] - before
        assert calls == (1 if cell.era == "legacy" else 4)  # a suspended call is never run again
    return YES


@row("server request of a prompt")
async def test_ask_of_a_prompt(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        talk = await talker.converse("prompts/get", {"name": cell.tool("asks")})
        assert [method for method, _ in talk.asked] == [ROOTS]
        assert json.loads(talk.result["messages"][0]["content"]["text"]) == cell.fit({"roots": ROOT_ANSWER})
    return YES


@row("declined server request")
async def test_ask_that_is_declined(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        talker.respond = lambda *_: {"action": "decline"}
        talk = await talker.call("ask", {"requests": {"one": {"method": ELICITATION, "params": cell.fit(FORM)}}})
        assert talk.answers == {"one": {"action": "decline"}}
    return YES


@row("capability missing")
async def test_capability_missing(gateways, cell):
    requests = {"requests": {"one": {"method": ELICITATION, "params": cell.fit(FORM)}}}
    async with open_talker(gateways, cell, {"roots": {}}) as talker:
        talk = await talker.call("ask", requests)
        assert talk.asked == []
        if cell.era == "legacy":
            assert talk.answers["one"]["error"]["code"] == -32601
            return "the server gets -32601"
        if not talker.client.modern:
            assert talk.error["code"] == -32603
            assert talk.error["data"]["backendError"]["code"] == -32021
            return "refused: -32603"
        assert talk.error["code"] == -32021
        assert talk.status in {None, 400}
        if cell.is_sdk:
            return "refused: -32021"
        assert talk.error["data"] == {"requiredCapabilities": {"elicitation": {"form": {}}}}
        daring = await talker.call("dare", requests)  # a server that asks for it all the same
        assert daring.asked == []
        assert daring.error["code"] == -32021
        assert daring.error["data"] == {"requiredCapabilities": {"elicitation": {}}}
        assert daring.status in {None, 400}
    return "refused: -32021"


# -- subscriptions -----------------------------------------------------------------------------------------------------

PROMPTS_CHANGED, UPDATED = "notifications/prompts/list_changed", "notifications/resources/updated"


@asynccontextmanager
async def open_ear(talker, wanted):
    """Yield an async function that waits for this client's next notification of a method."""
    client = talker.client
    if client.modern:
        async with client.open_call("subscriptions/listen", {"notifications": wanted}) as call:
            yield await modern_ear(client, call, wanted)  # ruff: ignore[fallible-context-manager]
            if client.stdio is not None:
                await call.cancel()
    elif client.frontend == "http":
        async with client.http.open_get_stream() as stream, aclosing(stream.events()) as events:

            async def receive(method):
                async for event in events:
                    if event.data and event.json()["method"] == method:
                        return event.json()
                raise EOFError("the stream ended")

            yield receive
    else:
        yield client.stdio.notification


async def modern_ear(client, call, wanted):
    def is_mine(message, method):
        own = message.get("params", {}).get("_meta", {})
        return message.get("method") == method and own.get(META + "subscriptionId") == call.id

    async def receive(method):
        if client.stdio is not None:
            return await client.stdio.wait_for(lambda message: is_mine(message, method), 10)
        message = await call.next()
        assert is_mine(message, method), message
        return message

    acknowledged = await receive("notifications/subscriptions/acknowledged")
    assert acknowledged["params"]["notifications"] == wanted
    return receive


@row("list_changed")
async def test_list_changed(gateways, cell):
    async with open_talker(gateways, cell) as talker, open_ear(talker, {"promptsListChanged": True}) as receive:

        async def names():
            listed = (await talker.converse("prompts/list")).result["prompts"]
            return {prompt["name"] for prompt in listed if prompt["name"].startswith(cell.tool("grown"))}

        before = await names()
        await talker.text("grow")
        with trio.fail_after(10):
            await receive(PROMPTS_CHANGED)
            while await names() == before:  # on a pipe, that was a change an earlier test did not wait for
                await receive(PROMPTS_CHANGED)
    return YES


@row("resource updated")
async def test_resource_updated(gateways, cell):
    uri = cell.uri("one")
    async with open_talker(gateways, cell) as talker:

        async def subscribed():
            return uri in (await talker.structured("subscribed"))["uris"]

        async with open_ear(talker, {"resourceSubscriptions": [uri]}) as receive:
            if not talker.client.modern:
                assert plain((await talker.converse("resources/subscribe", {"uri": uri})).result) == {}
            await until(subscribed)
            await talker.text("touch", {"uri": uri})
            with trio.fail_after(10):
                params = (await receive(UPDATED))["params"]
            assert params.pop("uri") == uri
            own = params.pop("_meta", {})  # of a modern client's subscription, never of the gateway's own
            assert list(own) == [META + "subscriptionId"] * talker.client.modern
            assert params == {}
            if not talker.client.modern:
                await talker.converse("resources/unsubscribe", {"uri": uri})

        async def gone():
            return not await subscribed()

        await until(gone)
    return YES


# -- prompts and resources ---------------------------------------------------------------------------------------------


@row("prompts")
async def test_prompts(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        listed = (await talker.converse("prompts/list")).result["prompts"]
        (greet,) = (prompt for prompt in listed if prompt["name"] == cell.tool("greet"))
        assert cell.is_sdk or greet["x-extra"] is None
        got = (await talker.converse("prompts/get", {"name": cell.tool("greet"), "arguments": {"name": "Ada"}})).result
        assert got["messages"][0]["content"]["text"] == f"Hello Ada, says {cell.backend}."
    return YES


@row("resource templates")
async def test_templates(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        listed = (await talker.converse("resources/templates/list")).result["resourceTemplates"]
        assert cell.uri("item/{id}") in [template["uriTemplate"] for template in listed]
        result = (await talker.converse("resources/read", {"uri": cell.uri("item/7")})).result
        assert result["contents"][0]["text"] == f"{cell.backend} read {cell.uri('item/7')}"
        assert ("ttlMs" in result) == ("cacheScope" in result) == talker.client.modern
    return YES


@row("completion")
async def test_completion(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        for ref in (
            {"type": "ref/prompt", "name": cell.tool("greet")},
            {"type": "ref/resource", "uri": cell.uri("item/{id}")},
        ):
            params = {"ref": ref, "argument": {"name": "a", "value": "v"}, "context": {"arguments": {"b": "c"}}}
            found = (await talker.converse("completion/complete", params)).result["completion"]
            own = "greet" if "name" in ref else ref["uri"]
            assert found["values"] == [cell.backend, own, "v", '{"arguments":{"b":"c"}}']
    return YES


@row("missing resource")
async def test_missing_resource(gateways, cell):
    code = -32602 if cell.client == "modern" else -32002
    said = -32602 if cell.is_sdk else code  # the SDKs say the newer code in either era, and the gateway leaves it
    async with open_talker(gateways, cell) as talker:
        for uri, wanted in ((cell.uri("item/missing"), said), ("nobody://has/this", code)):
            error = (await talker.converse("resources/read", {"uri": uri})).error
            assert error["code"] == wanted
            assert error["data"]["uri"] == uri
    return f"refused: {said}"


@row("unknown tool")
async def test_unknown_tool(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        assert (await talker.call("nothing")).error["code"] == -32602
    return "refused: -32602"


@row("tool that requires a task", sdks=())
async def test_tool_that_runs_only_as_a_task(gateways, cell):
    async with open_talker(gateways, cell) as talker:
        assert await talker.text("job", {"text": "worked", "polls": 1, "interval": 10}) == "worked"
        listed = (await talker.converse("tools/list")).result["tools"]
        (job,) = (tool for tool in listed if tool["name"] == cell.tool("job"))
        assert "execution" not in job
    return YES


def test_the_documented_table_matches_this_run():
    if not bridge.is_complete():
        pytest.skip("not all cells ran, or some failed")
    found = bridge.in_page(bridge.PAGE.read_text(encoding="utf-8"))
    assert found == bridge.render(), "run bin/bridge-table"
