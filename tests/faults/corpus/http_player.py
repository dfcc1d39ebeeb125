"""The rules of `player.py` over streamable HTTP and over SSE.

`HttpPlayer(rules)` and `SsePlayer(rules)` are handlers for `tests.peers.http_peer.open_peer`, whose peer remembers all
requests. A rule fits as in `player.py`; further conditions:
  http       the HTTP method; "POST" if left out
  header     {name: value}: the request has these headers (names in lower case, null: it has none of that name)
What happens then, over streamable HTTP:
  status     of the response, 200 if left out
  headers    further headers, with `_` for `-`
  type       the content type, "application/json" if left out
  body       a message as in `say`, "" for no body
  say        a list of messages, sent as events of an event stream instead of a body
  raw        text sent in place of an HTTP response
  behave     true: the well-behaved answer follows, with `headers`
  then       "cut" (the connection is closed without a proper end), "hang" (nothing more is sent until the client goes)
Over SSE `status`, `type` and `body` are the response to the POST (202 if left out), the items of `say` go to the event
stream of the GET, and `then: "cut"` ends that stream.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from tests.faults.corpus.player import answer, choose, spell
from tests.peers.http_peer import JSON, SseServer

if TYPE_CHECKING:
    from tests.peers.http_peer import Reply, Request


def _select(rules: list[dict[str, Any]], request: Request, played: list[int]) -> dict[str, Any] | None:
    """The rule for a request; `played` counts how often each rule was used."""
    fitting = [rule if _fits_http(rule, request) else {"method": "(none)"} for rule in rules]
    return choose(fitting, request.message, played)


def _fits_http(rule: dict[str, Any], request: Request) -> bool:
    if rule.get("http", "POST") != request.method:
        return False
    return all(request.headers.get(name) == value for name, value in rule.get("header", {}).items())


class HttpPlayer:
    """A streamable HTTP server without sessions."""

    def __init__(self, rules: list[dict[str, Any]]) -> None:
        self.rules = rules
        self.played = [0] * len(rules)

    async def __call__(self, request: Request, reply: Reply) -> None:
        rule = _select(self.rules, request, self.played)
        if rule is None:
            await self.behave(request, reply)
            return
        headers = rule.get("headers", {})
        if "raw" in rule:
            await reply.stream.send_all(spell(rule["raw"], request.message).encode())
        elif "say" in rule:
            await reply.begin(**headers)
            for said in rule["say"]:
                await reply.event(spell(said, request.message))
        elif "body" in rule or "status" in rule:
            body = spell(rule.get("body", ""), request.message).encode()
            await reply.send(rule.get("status", 200), body, rule.get("type", JSON), **headers)
        if rule.get("behave"):
            await self.behave(request, reply, **headers)
        await self._end(rule.get("then"), reply)

    async def _end(self, then: str | None, reply: Reply) -> None:
        if then == "cut":
            await reply.cut()
        elif then == "hang":
            await reply.hung_up(math.inf)

    async def behave(self, request: Request, reply: Reply, **headers: str) -> None:
        """Answer as a well-behaved legacy server does."""
        if request.method != "POST":
            await reply.send(200 if request.method == "DELETE" else 405)
        elif (usual := answer(request.message)) is not None:
            await reply.send(200, json.dumps(usual).encode(), **headers)


class SsePlayer(SseServer):
    """A server of the HTTP+SSE transport."""

    def __init__(self, rules: list[dict[str, Any]]) -> None:
        super().__init__()
        self.rules = rules
        self.played = [0] * len(rules)

    async def __call__(self, request: Request, reply: Reply) -> None:
        is_message = request.method == "POST" and request.target == self.endpoint
        rule = _select(self.rules, request, self.played) if is_message else None
        if rule is None:
            if is_message:
                await reply.send(202, b"Accepted", "text/plain")
                if (usual := answer(request.message)) is not None:
                    await self.say(usual)
            else:
                await super().__call__(request, reply)
            return
        body = spell(rule.get("body", ""), request.message).encode()
        await reply.send(rule.get("status", 202), body, rule.get("type", JSON))
        assert self.stream is not None
        for said in rule.get("say", ()):
            await self.stream.event(spell(said, request.message), event="message")
        if rule.get("behave") and (usual := answer(request.message)) is not None:
            await self.say(usual)
        if rule.get("then") == "cut":
            await self.stream.stream.aclose()
