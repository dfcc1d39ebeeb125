"""A gateway that exports to an OTLP receiver, and one whose receiver hangs."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
import trio

from tests.peers.http_peer import LegacyServer, ModernServer, Request, SseServer, open_peer
from tests.support.gateway_process import HttpClient, echo_backend, open_gateway_process
from tests.support.otlp import Received, Receiver, export_to, open_receiver

TRACE, PARENT, OTHER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1,b=2", "baggage": "k=v;p=1"}
UNSAMPLED = f"00-{TRACE}-{PARENT}-00"
OF_HTTP = f"00-{TRACE[::-1]}-{OTHER}-01"
CRASHES_ONCE = """
import json, os, sys
tool = {"name": "go", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}}
for line in sys.stdin:
    message = json.loads(line)
    if message["method"] == "tools/call" and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        os._exit(3)
    info = {"name": "once", "version": "1"}
    results = {
        "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info},
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": []},
    }
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": results.get(message["method"], {})}))
        sys.stdout.flush()
"""


class Talk:
    """What one conversation gave: answers, requests at HTTP backends, and what the receiver has."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.sent: dict[str, list[Request]] = {}
        self.stderr = ""
        self.spans: list[Received] = []
        self.points: dict[str, list[Any]] = {}

    def span(self, target: str, kind: str = "server") -> Received:
        """The latest span of a request for this target."""
        return [one for one in self.spans if one.kind == kind and one.attributes.get("gen_ai.tool.name") == target][-1]

    def meta(self, name: str) -> dict[str, str]:
        return self.answers[name]["result"]["structuredContent"]["_meta"]


async def converse(talk: Talk, receiver: Receiver, once: str) -> None:
    over_sse = open_peer(SseServer(), path="/sse")
    async with open_peer(LegacyServer()) as legacy, open_peer(ModernServer()) as modern, over_sse as sse:
        remote = {"legacy-http": legacy, "modern-http": modern, "sse": sse}
        config = {
            "mcpServers": {
                "a": echo_backend(),
                "modern": echo_backend("--era", "modern"),
                "idle": echo_backend() | {"idle_timeout": 0.1},
                "once": {"command": sys.executable, "args": ["-c", CRASHES_ONCE, once], "retry": True},
                **{name: {"url": served.url} for name, served in remote.items()},
            },
            "gateway": {"start_grace": 30, "audit": {}},
        }
        async with open_gateway_process(
            config, env=export_to(receiver), extra_args=["--log-format", "json"]
        ) as gateway:
            client = HttpClient(gateway.url)
            await client.initialize()
            await client.request("tools/list")

            async def call(name: str, tool: str, meta: Any = None, given: Any = None, **headers: str) -> None:
                params = {"name": tool, "arguments": given or {}, **({} if meta is None else {"_meta": meta})}
                talk.answers[name] = await client.request("tools/call", params, headers=headers)

            await call("both", "a.params", CONTEXT, traceparent=OF_HTTP)
            await call("http", "a.params", {}, traceparent=OF_HTTP, tracestate="c=3")
            await call("unsampled", "a.params", CONTEXT | {"traceparent": UNSAMPLED})
            await call("invalid", "a.params", {"traceparent": 7, "tracestate": "a=1", "x": 1})
            await call("unknown", "a.nothing")
            await call("tool_error", "a.structured", None, {"value": 1, "extra": {"isError": True}})
            await call("bridged", "modern.params", CONTEXT)
            for name in remote:
                await call(name, f"{name}.echo", CONTEXT, {"text": "x"})
            await call("retried", "once.go", CONTEXT)
            await gateway.wait_stderr("'idle' is stopped")
            await call("queued", "idle.echo", None, {"text": "x"})
            params = {"name": "a.sleep", "arguments": {"seconds": 60}}
            with trio.move_on_after(0.3):
                await client.post_modern("tools/call", params)
            await call("done", "a.echo", None, {"text": "x"})
        talk.stderr = gateway.stderr_text
        talk.sent = {name: served.all("tools/call") for name, served in remote.items()}


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Talk:
    found = Talk()
    with open_receiver() as receiver:
        trio.run(converse, found, receiver, str(tmp_path_factory.mktemp("once") / "crashed"))
    found.spans, found.points = receiver.spans, receiver.points
    return found


def test_meta_is_the_parent_and_http_a_link(talk: Talk) -> None:
    served = next(span for span in talk.spans if span.parent == PARENT)
    assert (served.trace_id, served.links, served.state) == (TRACE, [OTHER], "a=1,b=2")
    assert served.name == "tools/call a.params"
    (sent,) = [span for span in talk.spans if span.parent == served.span_id]
    assert talk.meta("both") == {
        "traceparent": f"00-{TRACE}-{sent.span_id}-01",
        "tracestate": "a=1,b=2",
        "baggage": "k=v;p=1",
    }


def test_http_alone_is_the_parent(talk: Talk) -> None:
    (served,) = [span for span in talk.spans if span.parent == OTHER]
    assert (served.trace_id, served.links) == (TRACE[::-1], [])
    assert talk.meta("http")["tracestate"] == "c=3"
    assert talk.meta("http")["traceparent"].startswith(f"00-{TRACE[::-1]}-")


def test_unsampled_trace_continues_without_spans(talk: Talk) -> None:
    sent = talk.meta("unsampled")
    assert sent["traceparent"].startswith(f"00-{TRACE}-")
    assert sent["traceparent"].endswith("-00")
    assert sent["traceparent"] != UNSAMPLED
    assert {name: sent[name] for name in ("tracestate", "baggage")} == {"tracestate": "a=1,b=2", "baggage": "k=v;p=1"}
    span_id = sent["traceparent"].split("-")[2]
    assert span_id not in {span.span_id for span in talk.spans}


def test_invalid_context_begins_a_new_trace(talk: Talk) -> None:
    sent = talk.meta("invalid")
    assert sent["x"] == 1
    assert "tracestate" not in sent
    assert TRACE not in sent["traceparent"]


def test_unknown_tool_is_not_an_error_of_the_server(talk: Talk) -> None:
    span = talk.span("a.nothing")
    assert (span.is_error, span.attributes["rpc.response.status_code"]) == (False, "-32602")
    assert "error.type" not in span.attributes
    assert talk.answers["unknown"]["error"]["code"] == -32602


@pytest.mark.parametrize("kind", ["server", "client"])
def test_tool_error_is_an_error(talk: Talk, kind: str) -> None:
    span = talk.span("a.structured" if kind == "server" else "structured", kind)
    assert (span.is_error, span.attributes["error.type"]) == (True, "tool_error")


def test_bridged_call_says_so(talk: Talk) -> None:
    assert ("bridged", {"client_era": "legacy", "backend_era": "modern"}) in talk.span("modern.params").events


@pytest.mark.parametrize("backend", ["legacy-http", "modern-http", "sse"])
def test_http_backend_gets_keys_in_body_and_headers(talk: Talk, backend: str) -> None:
    (span,) = [one for one in talk.spans if one.attributes.get("mcp_gateway.backend") == backend and "call" in one.name]
    expected = CONTEXT | {"traceparent": f"00-{TRACE}-{span.span_id}-01"}
    (sent,) = talk.sent[backend]
    assert {name: sent.headers[name] for name in CONTEXT} == expected
    assert expected.items() <= sent.params["_meta"].items()
    assert span.attributes["server.address"] == "127.0.0.1"
    assert span.attributes["network.protocol.name"] == "http"


def test_each_attempt_has_a_span(talk: Talk) -> None:
    served = talk.span("once.go")
    sent = [span for span in talk.spans if span.parent == served.span_id]
    assert [name for name, _ in served.events] == ["retried", "backend started"]
    assert [span.attributes.get("error.type") for span in sent] == ["backend_exited", None]
    assert not served.is_error


def test_wait_for_a_backend_is_in_the_trace(talk: Talk) -> None:
    assert talk.span("idle.echo").events == [
        ("queued", {"backend": "idle"}),
        ("backend started", {"backend": "idle"}),
    ]


@pytest.mark.parametrize(("target", "kind"), [("a.sleep", "server"), ("sleep", "client")])
def test_cancellation_has_its_reason(talk: Talk, target: str, kind: str) -> None:
    span = talk.span(target, kind)
    assert ("cancelled", {"reason": "the client hung up"}) in span.events
    assert not span.is_error


def test_requests_of_the_gateway_have_spans(talk: Talk) -> None:
    names = {span.name for span in talk.spans if span.attributes.get("mcp_gateway.backend") == "legacy-http"}
    assert names == {"server/discover", "initialize", "tools/list", "tools/call echo"}
    assert {span.name for span in talk.spans if span.kind == "server"} >= {"initialize", "tools/list"}


def test_durations_have_bounded_attributes(talk: Talk) -> None:
    assert set(talk.points) == {
        f"mcp.{side}.{what}.duration" for side in ("client", "server") for what in ("operation", "session")
    }
    tools = {attributes.get("gen_ai.tool.name") for attributes, _ in talk.points["mcp.server.operation.duration"]}
    assert "a.params" in tools
    assert "a.nothing" not in tools
    (params,) = [
        point
        for attributes, point in talk.points["mcp.server.operation.duration"]
        if attributes.get("gen_ai.tool.name") == "a.params"
    ]
    assert params.count == 4  # the one that was not sampled, too
    (session,) = talk.points["mcp.server.session.duration"]
    assert session[0]["mcp.protocol.version"] == "2025-11-25"


def test_logs_carry_trace_and_span(talk: Talk) -> None:
    served = talk.span("once.go")
    ids = {"trace_id": served.trace_id, "span_id": served.span_id}
    lines = [json.loads(line) for line in talk.stderr.splitlines() if line.startswith("{")]
    (resent,) = [line for line in lines if line.get("event") == "call_resent"]
    assert ids.items() <= resent.items()
    (audited,) = [line for line in lines if line.get("name") == "once.go"]
    assert ids.items() <= audited.items()


async def test_hanging_endpoint_delays_neither_calls_nor_the_end() -> None:
    with open_receiver(answers=False) as receiver:
        environ = export_to(receiver, OTEL_BSP_MAX_QUEUE_SIZE="8", OTEL_METRICS_EXPORTER="none")
        async with open_gateway_process({"mcpServers": {"a": echo_backend()}}, env=environ) as gateway:
            client = HttpClient(gateway.url)
            await client.initialize()
            longest = 0.0
            for _ in range(20):
                began = time.perf_counter()
                answer = await client.call_tool("a.echo", {"text": "x"})
                longest = max(longest, time.perf_counter() - began)
                assert answer["result"]["content"][0]["text"] == "x"
            assert longest < 5  # the exporter's own timeout is 10 s
            metrics = (await client.get("/metrics")).body.decode()
            (dropped,) = [line for line in metrics.splitlines() if line.startswith("mcp_gateway_spans_dropped_total")]
            assert float(dropped.split()[1]) > 0
            began = time.perf_counter()
        assert time.perf_counter() - began < 8
        assert "did not accept the last export within 2 s" in gateway.stderr_text
