"""The rules of the semantic conventions for one request."""

from __future__ import annotations

import json

import pytest

from gateway.calls import Complete, Era, Failure
from gateway.errors import BackendExited, BackendTooSlow, Busy
from gateway.tracing import conventions
from gateway.tracing.conventions import PIPE, SUCCESS, Ending, Network, Operation

CALL = Operation("tools/call", "a.x", "2025-11-25", PIPE)
READ = Operation("resources/read", "memo://a", "", PIPE)
FAULTLESS = [-32700, -32600, -32601, -32602, -32002]


def tool_result(**members: object) -> Complete:
    return Complete(json.dumps({"content": [], **members}).encode(), Era.LEGACY)


@pytest.mark.parametrize("code", [*FAULTLESS, -32603, -32000, -32042, 0, 1])
def test_codes_are_errors_of_client_and_perhaps_of_server(code: int) -> None:
    failure = Failure(code, "text", None, Era.LEGACY)
    error = "" if code in FAULTLESS else str(code)
    assert conventions.server_ending(code, failure, "tools/call") == Ending(error, str(code), "text")
    assert conventions.client_ending(failure, "tools/call") == Ending(str(code), str(code), "text")


@pytest.mark.parametrize(
    ("outcome", "method", "ending"),
    [
        (tool_result(isError=True), "tools/call", Ending("tool_error")),
        (tool_result(isError=False), "tools/call", SUCCESS),
        (tool_result(text='"isError"'), "tools/call", SUCCESS),
        (tool_result(isError=True), "prompts/get", SUCCESS),
        (None, "tools/call", SUCCESS),
    ],
)
def test_tool_error_is_an_error_without_a_code(outcome: Complete | None, method: str, ending: Ending) -> None:
    assert conventions.server_ending(None, outcome, method) == ending
    assert conventions.client_ending(outcome, method) == ending


def test_backend_that_does_not_answer_has_no_code() -> None:
    assert conventions.client_ending(BackendTooSlow("a", "is late"), "ping").error_type == "timeout"
    assert conventions.client_ending(BackendExited("a", "died"), "ping")[:2] == (BackendExited.code, "")
    assert conventions.server_ending(-32603, Busy("full"), "tools/call") == Ending("-32603", "-32603", "full")


@pytest.mark.parametrize(
    ("operation", "name", "attributes"),
    [
        (CALL, "tools/call a.x", {"gen_ai.tool.name": "a.x", "gen_ai.operation.name": "execute_tool"}),
        (CALL._replace(method="prompts/get"), "prompts/get a.x", {"gen_ai.prompt.name": "a.x"}),
        (READ, "resources/read", {"mcp.resource.uri": "memo://a"}),
        (Operation("tools/list", "", "", PIPE), "tools/list", {}),
        (Operation("completion/complete", "a.x", "", PIPE), "completion/complete", {}),
    ],
)
def test_name_and_target_of_each_method(operation: Operation, name: str, attributes: dict[str, str]) -> None:
    found = conventions.span_attributes(operation)
    assert conventions.span_name(operation) == name
    assert attributes.items() <= found.items()
    targets = {*conventions.TARGETS.values(), "gen_ai.operation.name"}
    assert targets & found.keys() == attributes.keys()


def test_http_has_protocol_and_address() -> None:
    network = Network("tcp", "http", "1.1", "example.com", 443)
    assert conventions.network_attributes(network) == {
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "server.address": "example.com",
        "server.port": 443,
    }


@pytest.mark.parametrize(
    ("operation", "is_known", "expected"),
    [
        (CALL, True, CALL),
        (CALL, False, CALL._replace(target="")),
        (READ, True, READ._replace(target="")),
        (Operation("x/" + "y" * 99, "z", "", PIPE), True, Operation("_OTHER", "", "", PIPE)),
    ],
)
def test_clients_cannot_make_up_series(operation: Operation, *, is_known: bool, expected: Operation) -> None:
    assert conventions.bounded(operation, is_known=is_known) == expected


def test_texts_of_peers_are_cut() -> None:
    long = "x" * 10_000
    operation = Operation(long, long, "", PIPE)
    assert len(conventions.span_name(operation)) <= conventions.MAX_VALUE
    assert len(conventions.span_attributes(operation)["mcp.method.name"]) <= conventions.MAX_VALUE
    failure = Failure(-32603, long, None, Era.LEGACY)
    assert len(conventions.client_ending(failure, "ping").message) == conventions.MAX_STATUS + len("...")
