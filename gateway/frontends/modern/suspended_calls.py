"""Suspended calls: a legacy backend's request reaches a modern client by ending its own.

2026-07-28 basic/patterns/mrtr: the call stays in flight at its backend while the client gets `input_required` and a
`requestState`; the retry, on any connection, brings the answers and waits on. A suspended call is resumed at most once
per token, never run again, bounded in number per principal and in time; when it expires it is cancelled at its backend.
`SuspendedCalls` owns their streams; `run` is the task that lets them expire.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import trio

from gateway import jsonrpc
from gateway.calls import ServerRequest, Withdrawn
from gateway.eras import asks
from gateway.errors import InvalidParams

if TYPE_CHECKING:
    from gateway.calls import Call, Outcome
    from gateway.frontends.call_stream import CallStream
    from gateway.frontends.modern.request_state import RequestStateCodec

MAX_PARKED: Final = 1_024
"""Suspended calls in all; each holds a pending call of some kilobytes and a slot at its backend."""
MAX_PARKED_EACH: Final = 32
"""Suspended calls of one principal; anonymous clients together count as one. Each holds one of its backend's slots
(`max_concurrency`, 64 by default), so they must not be able to use all of them."""
PARKED_FOR: Final = 300.0
"""Seconds that a suspended call waits for its client, which may have to ask a person."""
GATHER_TURNS: Final = 12
"""Steps of the loop for which the first request waits for others, and each of those for more, so that requests sent
together arrive in one round. Not a time: a timer cannot be shorter than 1 ms."""


class SuspendedCall:
    """One call that waits for its client."""

    __slots__ = ("asks", "expires", "flow", "principal")

    def __init__(self, flow: CallStream, open_asks: dict[str, ServerRequest]) -> None:
        self.flow = flow
        self.asks = open_asks
        self.principal = flow.call.caller.principal
        self.expires = trio.current_time() + PARKED_FOR


class SuspendedCalls:
    """All suspended calls."""

    def __init__(self, sealer: RequestStateCodec, *, max_calls: int = MAX_PARKED) -> None:
        self.sealer = sealer
        self._max_calls = max_calls
        self._parked: dict[str, SuspendedCall] = {}
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._parked)

    async def park(self, flow: CallStream, first: ServerRequest) -> bytes | Outcome | None:
        """Suspend a call whose backend sent a request; return the `input_required` result for the client.

        If the call ends while further requests are gathered, return its outcome; return None to continue with the
        stream, because the limit was reached and the requests were refused, or because the backend withdrew them.
        """
        gathered = [first]
        while not isinstance(item := await self._next_of_round(flow), bool):
            if isinstance(item, ServerRequest):
                gathered.append(item)
            elif isinstance(item, Withdrawn):
                gathered = [ask for ask in gathered if ask is not item.ask]
            else:
                return item
        # Keys are unique in the life of a call: a late answer must not be taken for one to a later request.
        open_asks = {f"input-{flow.number_ask()}": ask for ask in gathered}
        return self._suspend(flow, open_asks) if open_asks else None

    async def _next_of_round(self, flow: CallStream) -> ServerRequest | Withdrawn | Outcome | bool | None:
        """Return another request, a withdrawn one, or the outcome; False if none is due.

        Notifications are kept.
        """
        for _ in range(GATHER_TURNS):
            with trio.move_on_after(0):  # events that have already arrived
                return await flow.next_but_notices()
        return False

    def _suspend(self, flow: CallStream, open_asks: dict[str, ServerRequest]) -> bytes | None:
        key = secrets.token_urlsafe(16)
        entry = SuspendedCall(flow, open_asks)
        mine = sum(1 for each in self._parked.values() if each.principal == entry.principal)
        if len(self._parked) >= self._max_calls or mine >= MAX_PARKED_EACH:
            for ask in open_asks.values():
                ask.refuse(jsonrpc.INTERNAL_ERROR, "too many calls wait for input of their clients")
            return None
        self._parked[key] = entry
        flow.acquire()
        self._changed.set()
        wanted = {
            name: {"method": ask.method, "params": asks.for_modern_client(ask.params)}
            for name, ask in open_asks.items()
            if not ask.settled
        }
        state = self.sealer.encode(flow.call, parked=key)
        return jsonrpc.encode({"resultType": "input_required", "inputRequests": wanted, "requestState": state})

    def resume(self, key: str, retry: Call) -> CallStream | bytes:
        """Resume a suspended call: return its stream, or `input_required` again if an answer is missing.

        Raises:
            InvalidParams: the call is not suspended (resumed before, expired, or ended), or an answer is invalid.
        """
        entry = self._parked.get(key)
        if entry is None:
            text = "params.requestState belongs to a call that has ended or was resumed before; it is not run again"
            raise InvalidParams(text)
        text = "params.inputResponses must be an object of objects"
        try:
            responses = jsonrpc.decode_object(retry.params.get("inputResponses", jsonrpc.ABSENT))
        except ValueError:
            raise InvalidParams(text) from None
        if not all(bytes(response).startswith(b"{") for response in responses.values()):
            raise InvalidParams(text)
        del self._parked[key]
        for name, ask in list(entry.asks.items()):
            if name in responses:
                ask.answer(bytes(responses[name]))
        left = {name: ask for name, ask in entry.asks.items() if not ask.settled}
        entry.flow.resume(retry)
        return (self._suspend(entry.flow, left) if left else None) or entry.flow

    async def run(self) -> None:
        """Let suspended calls expire; runs until cancelled."""
        while True:
            self._changed = trio.Event()
            next_expiry = min((entry.expires for entry in self._parked.values()), default=float("inf"))
            with trio.move_on_at(next_expiry):
                await self._changed.wait()
            now = trio.current_time()
            for key, entry in list(self._parked.items()):
                if entry.expires <= now:  # if the backend has answered meanwhile, the outcome is kept for the client
                    self._end(key, "the client did not return with its input")

    def close_of(self, principal: str) -> None:
        """End every suspended call of a principal whose access was revoked."""
        for key, entry in list(self._parked.items()):
            if entry.principal == principal:
                self._end(key, "the client's access was revoked")

    def close_all(self) -> None:
        """End every suspended call: no retry can arrive."""
        for key in list(self._parked):
            self._end(key, "the gateway is shutting down")

    def _end(self, key: str, reason: str) -> None:
        entry = self._parked.pop(key)
        entry.flow.close(reason)
