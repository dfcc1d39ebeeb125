"""A call stream in memory, with the test as its backend."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gateway import jsonrpc
from gateway.calls import Call, Caller, Complete, Era, Failure, InputRequired, ServerRequest
from gateway.errors import GatewayError
from gateway.frontends.call_stream import CallStream
from gateway.inflight.pending import PendingCall
from tests.support.fakes import Carrier

CAN = jsonrpc.raw({"elicitation": {"form": {}, "url": {}}, "sampling": {"tools": {}}, "roots": {}})
ELICITATION, SAMPLING, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"


class Lines:
    """The part of `gateway.router.Router` that a call stream needs: every call sent, as a ticket."""

    def __init__(self) -> None:
        self.pending_calls: list[PendingCall] = []
        self.carrier = Carrier()
        self.cancelled = self.carrier.reasons
        """The reasons of cancels sent to backends."""
        self.released: list[PendingCall] = []
        self.problem: GatewayError | None = None
        """Set it to have the next call refused."""

    async def submit(self, call: Call, *, again: bool = False) -> PendingCall:
        if self.problem is not None:
            raise self.problem
        return self.open(call)

    def open(self, call: Call, *, timeout: float = 300.0) -> PendingCall:
        pending = PendingCall(call, backend="b", own_name=call.name, timeout=timeout)
        pending.sent(self.carrier, len(self.pending_calls) + 1)
        self.pending_calls.append(pending)
        return pending

    def release(self, pending: PendingCall, reason: str = "") -> None:
        self.released.append(pending)
        pending.close(reason)


class Asked:
    """A legacy backend's request, and how it was settled."""

    def __init__(self, method: str = ROOTS, **params: Any) -> None:
        self.reply: bytes | Failure | None = None
        self.ask = ServerRequest(method, {name: jsonrpc.raw(value) for name, value in params.items()}, self.settle)

    def settle(self, reply: bytes | Failure) -> None:
        assert self.reply is None, "settled twice"
        self.reply = reply

    @property
    def result(self) -> Any:
        assert isinstance(self.reply, bytes), self.reply
        return json.loads(self.reply)

    @property
    def refusal(self) -> Failure:
        assert isinstance(self.reply, Failure), self.reply
        return self.reply


def make_caller(era: Era, **fields: Any) -> Caller:
    version = "2026-07-28" if era is Era.MODERN else "2025-11-25"
    return Caller(**{"era": era, "version": version, "capabilities": CAN, **fields})


def make_call(era: Era, *, token: Any = None, caller: Caller | None = None, **params: Any) -> Call:
    spans = {"name": msgspec.Raw(b'"x"')} | {name: jsonrpc.raw(value) for name, value in params.items()}
    caller = caller or make_caller(era)
    return Call(method="tools/call", name="x", params=spans, meta={}, caller=caller, progress_token=token)


def open_flow(era: Era, lines: Lines, *, timeout: float = 300.0, **kwargs: Any) -> tuple[CallStream, PendingCall]:
    pending = lines.open(make_call(era, **kwargs), timeout=timeout)
    return CallStream(lines, pending), pending  # type: ignore[arg-type] - replaces a router


def done(text: str = "done", era: Era = Era.MODERN) -> Complete:
    return Complete(json.dumps({"content": [{"type": "text", "text": text}]}).encode(), era)


def required(requests: dict[str, Any] | None = None, **members: Any) -> InputRequired:
    body = {"resultType": "input_required", **members}
    if requests is not None:
        body["inputRequests"] = {
            key: {"method": method, "params": params} for key, (method, params) in requests.items()
        }
    return InputRequired(json.dumps(body).encode())
