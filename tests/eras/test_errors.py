"""Errors on the wire: codes and HTTP statuses of both eras, one row each."""

from __future__ import annotations

import json

import pytest

from gateway import errors as tree
from gateway import jsonrpc
from gateway.calls import Call, Caller, Era, Failure
from gateway.eras import asks, errors

BOTH = (Era.LEGACY, Era.MODERN)


def all_errors(cls: type[tree.GatewayError]) -> set[type[tree.GatewayError]]:
    return {cls}.union(*(all_errors(sub) for sub in cls.__subclasses__() if sub.__module__ == tree.__name__))


@pytest.mark.parametrize("era", BOTH)
@pytest.mark.parametrize(
    ("problem", "code", "data"),
    [
        (tree.UnknownMethod("m"), -32601, None),
        (tree.UnknownName("m"), -32602, None),
        (tree.Denied("m"), -32602, None),
        (tree.InvalidParams("m"), -32602, None),
        (tree.Busy("m"), -32603, {"reason": "busy", "retry": True}),
        (tree.ShuttingDown("m"), -32603, {"reason": "shutting_down", "retry": True}),
        (tree.BackendUnavailable("b", "m"), -32603, {"backend": "b", "reason": "backend_unavailable"}),
        (tree.BackendExited("b", "m"), -32603, {"backend": "b", "reason": "backend_exited"}),
        (tree.BackendTooSlow("b", "m"), -32603, {"backend": "b", "reason": "backend_timeout"}),
        (tree.BackendProtocol("b", "m"), -32603, {"backend": "b", "reason": "backend_protocol"}),
        (tree.ConfigError(["m"]), -32603, {"reason": "invalid_config"}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_our_own_errors(problem: tree.GatewayError, code: int, data: object, era: Era) -> None:
    wire = errors.to_wire(problem, era)
    assert (wire.code, wire.message) == (code, str(problem))
    assert (None if wire.data is None else json.loads(wire.data)) == data


def test_our_errors_reuse_no_standard_code() -> None:
    for cls in all_errors(tree.GatewayError):
        given = () if cls is tree.Revoked else ("b", "m") if issubclass(cls, tree.BackendError) else ("m",)
        problem = cls(*given)
        for era in BOTH:
            assert errors.to_wire(problem, era).code in {-32601, -32602, -32603}


WRAPPED = object()


@pytest.mark.parametrize(
    ("code", "backend", "client", "expected"),
    [
        (-32000, Era.LEGACY, Era.MODERN, -32000),
        (-32603, Era.MODERN, Era.LEGACY, -32603),
        (42, Era.LEGACY, Era.LEGACY, 42),
        (-32019, Era.LEGACY, Era.MODERN, -32019),
        (-32100, Era.LEGACY, Era.MODERN, -32100),
        # resource not found is -32602 in the modern era, and -32002 only in the legacy one
        (-32002, Era.LEGACY, Era.LEGACY, -32002),
        (-32002, Era.LEGACY, Era.MODERN, -32602),
        # url elicitation exists between legacy peers only
        (-32042, Era.LEGACY, Era.LEGACY, -32042),
        (-32042, Era.LEGACY, Era.MODERN, WRAPPED),
        (-32042, Era.MODERN, Era.LEGACY, WRAPPED),
        # a backend's quarrel with the gateway is not the client's
        (-32020, Era.MODERN, Era.MODERN, WRAPPED),
        # but a missing capability is the real client's, as declared to the backend
        (-32021, Era.MODERN, Era.MODERN, -32021),
        (-32021, Era.MODERN, Era.LEGACY, WRAPPED),
        (-32022, Era.MODERN, Era.LEGACY, WRAPPED),
        # reserved codes must not be sent
        (-32050, Era.LEGACY, Era.LEGACY, WRAPPED),
        (-32099, Era.LEGACY, Era.MODERN, WRAPPED),
    ],
)
def test_a_backends_own_error(code: int, backend: Era, client: Era, expected: object) -> None:
    for data in (None, b'{"uri": "x",\n"deep":[null]}'):
        wire = errors.to_wire(Failure(code, "said", data, backend), client)
        encoded = wire.encode(7)
        assert b"\n" not in encoded
        found = json.loads(encoded)["error"]
        original = {"code": code, "message": "said"} | ({} if data is None else {"data": json.loads(data)})
        if expected is WRAPPED:
            assert found == {"code": -32603, "message": "said", "data": {"backendError": original}}
        else:
            assert found == original | {"code": expected}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (-32601, 404),
        (-32020, 400),
        (-32021, 400),
        (-32022, 400),
        (-32700, 400),
        (-32600, 400),
        (-32602, 200),
        (-32603, 200),
        (-32000, 200),
        (5, 200),
    ],
)
def test_http_statuses(code: int, status: int) -> None:
    assert errors.http_status(code) == status


def call(method: str, version: str, era: Era, **capabilities: object) -> Call:
    caller = Caller(era=era, version=version, capabilities=jsonrpc.raw(capabilities))
    return Call(method=method, name="file:///x", params={}, meta={}, caller=caller)


@pytest.mark.parametrize(
    ("code", "backend", "failed", "expected"),
    [
        # a missing resource
        (-32602, Era.MODERN, call("resources/read", "2025-11-25", Era.LEGACY), -32002),
        (-32602, Era.MODERN, call("resources/read", "2026-07-28", Era.MODERN), -32602),
        (-32602, Era.MODERN, call("tools/call", "2025-11-25", Era.LEGACY), -32602),
        (-32602, Era.LEGACY, call("resources/read", "2025-11-25", Era.LEGACY), -32602),
        (-32002, Era.LEGACY, call("resources/read", "2026-07-28", Era.MODERN), -32602),
        (-32002, Era.LEGACY, call("resources/read", "2024-11-05", Era.LEGACY), -32002),
        # pages to be visited
        (-32042, Era.LEGACY, call("tools/call", "2025-11-25", Era.LEGACY, elicitation={"url": {}}), -32042),
        (-32042, Era.LEGACY, call("tools/call", "2025-11-25", Era.LEGACY, elicitation={}), -32603),
        (-32042, Era.LEGACY, call("tools/call", "2025-06-18", Era.LEGACY, elicitation={"url": {}}), -32603),
        (-32042, Era.LEGACY, call("tools/call", "2026-07-28", Era.MODERN, elicitation={"url": {}}), -32603),
        # what the client cannot do
        (-32021, Era.MODERN, call("tools/call", "2026-07-28", Era.MODERN), -32021),
        (-32021, Era.MODERN, call("tools/call", "2025-11-25", Era.LEGACY), -32603),
        (-32021, Era.LEGACY, call("tools/call", "2026-07-28", Era.MODERN), -32603),
    ],
)
def test_a_backends_own_error_about_a_call(code: int, backend: Era, failed: Call, expected: int) -> None:
    assert errors.to_wire(Failure(code, "said", None, backend), failed.caller.era, failed).code == expected


@pytest.mark.parametrize("era", [Era.LEGACY, Era.MODERN])
@pytest.mark.parametrize("can", [{}, {"elicitation": {"url": {}}}])
def test_an_unsafe_page_is_never_named(era: Era, can: dict[str, object]) -> None:
    for url in ("https://user:secret@example.com", "javascript:secret()"):
        pages = [{"mode": "url", "url": "https://example.com"}, {"mode": "url", "url": url}]
        failure = Failure(-32042, "visit", json.dumps({"elicitations": pages}).encode(), Era.LEGACY)
        failed = call("tools/call", "2025-11-25" if era is Era.LEGACY else "2026-07-28", era, **can)
        wire = errors.to_wire(failure, era, failed)
        assert (wire.code, wire.data) == (-32603, None)
        assert "must not be sent to a client" in wire.message
        assert "secret" not in wire.message
        assert asks.url_input_requests(failure, failed.caller) is None


@pytest.mark.parametrize(("era", "code"), [(Era.LEGACY, -32002), (Era.MODERN, -32602)])
def test_a_resource_without_an_owner_is_unknown(era: Era, code: int) -> None:
    found = errors.to_wire(tree.UnknownName("Unknown resource: file:///x", uri="file:///x"), era)
    assert (found.code, json.loads(found.data or b"")) == (code, {"uri": "file:///x"})
    said = errors.to_wire(Failure(-32002, "gone", None, Era.LEGACY), era, call("resources/read", "2026-07-28", era))
    assert said.code == code
    assert (said.data is None) == (era is Era.LEGACY)
