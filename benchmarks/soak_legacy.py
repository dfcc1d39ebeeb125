"""Legacy soak clients: sessions with two calls in flight, ended or abandoned, then reopened.

A server request may arrive on any stream of the session, and is answered immediately, late, twice or never; an
unanswered call is cancelled, and nothing may arrive after that. A disconnect is not a cancellation: some clients fetch
their answer later.
"""

from __future__ import annotations

import json
from collections import Counter
from contextlib import aclosing
from random import Random

import trio

from benchmarks.soak_client import BREAKAGES, CAN, ODDITIES, WITHIN, Client, is_stream, nonce_of, receive
from tests.support.wire import make_notification, make_request


class Reading:
    """One stream of a legacy client, and its messages."""

    def __init__(self, client, request_id, token=None):
        self.client, self.request_id, self.token = client, request_id, token
        self.answer = None
        self.steps = []
        self.last_event_id = None

    def take(self, message, event_id):
        self.last_event_id = event_id or self.last_event_id
        if message is None:
            return
        method = message.get("method")
        if method is not None and "id" in message:
            self.client.asked(message)
        elif method == "notifications/progress":
            if message["params"]["progressToken"] != self.token:
                self.client.fail("misdirected", f"progress of {message['params']} on the stream of {self.token}")
            self.steps.append(message["params"]["progress"])
        elif method is None and message["id"] != self.request_id:
            self.client.fail("misdirected", f"{message} on the stream of request {self.request_id}")
        elif method is None and self.answer is not None:
            self.client.fail("doubled", f"{self.answer}, then {message}")
        elif method is None:
            self.answer = message


class LegacyClient(Client):
    """Runs one session after the other: two tasks call, further ones answer server requests."""

    era = "legacy"

    async def run(self, until):
        while trio.current_time() < until:
            try:
                await self.live(until)
            except BREAKAGES + ODDITIES as exc:
                self.fail("unexpected", f"a session: {exc!r}")

    async def live(self, until):
        self.open_asks, self.sent = {}, Counter()
        with trio.fail_after(WITHIN):
            await self.http.initialize(capabilities=CAN)
        self.tally.done["legacy initialize"] += 1
        async with trio.open_nursery() as self.nursery:
            standing = await self.nursery.start(self.stand) if self.random.random() < 0.3 else None
            async with trio.open_nursery() as workers:
                for steps in (self.main_steps(), self.side_steps()):
                    workers.start_soon(self.work, steps, Random(self.random.getrandbits(64)), until)
            if standing:
                standing.cancel()
        await self.step({self.step_count: 1}, self.random)
        last = {self.step_delete: 2, self.step_delete_under_way: 2, self.step_abandon: 1}
        if self.open_asks and not self.tally.patient:  # a session with a call in flight is not idle
            del last[self.step_abandon]
        await self.step(last, self.random)

    def main_steps(self):
        return {
            self.step_echo: 4,
            self.step_ask: 4,
            self.step_ask_never: 1,
            self.step_cancel: 2,
            self.step_resume: 1,
            self.step_hang_up: 1,
            self.step_hang_up_asked: 0.3,
        }

    def side_steps(self):
        return {self.step_echo: 4, self.step_sleep: 2, self.step_progress: 1}

    async def work(self, steps, random, until):
        for _ in range(random.randint(8, 40)):
            if trio.current_time() >= until:
                return
            await self.step(steps, random)
            await self.think(random)

    # -- the wire ------------------------------------------------------------------------------------------------------

    def make_call(self, tool, arguments, **meta):
        """Return a call's message, counted as sent."""
        self.http.last_id += 1
        self.sent[tool] += 1
        params = {"name": tool, "arguments": arguments} | ({"_meta": meta} if meta else {})
        return make_request(self.http.last_id, "tools/call", params)

    async def call(self, tool, arguments, **meta):
        message = self.make_call(tool, arguments, **meta)
        reading = Reading(self, message["id"], meta.get("progressToken"))
        async with self.http.stream(message) as exchange:
            await receive(exchange, reading.take)
        return reading

    async def cancel(self, message):
        response = await self.http.post(make_notification("notifications/cancelled", {"requestId": message["id"]}))
        assert response.status == 202, response

    def asked(self, message):
        """Handle a server request, on whichever stream of the session it arrived."""
        asked = self.open_asks.pop(nonce_of(message), None)
        if asked is None or message["method"] != asked.method:
            self.fail("misasked", f"{message} is not its own, or came twice")
            return
        asked.seen.set()
        if asked.how != "never":
            self.nursery.start_soon(self.reply, message["id"], asked, self.random.uniform(0.3, 1.5))

    async def reply(self, request_id, asked, delay):
        if asked.how == "late":
            await trio.sleep(delay)
        for _ in range(2 if asked.how == "twice" else 1):
            try:
                response = await self.http.post({"jsonrpc": "2.0", "id": request_id, "result": asked.answer})
            except BREAKAGES as exc:
                self.fail("unexpected", f"answering {asked.nonce}: {exc!r}")
                return
            if response.status != 202:
                self.fail("unexpected", f"the answer {asked.nonce} got {response}")

    async def stand(self, *, task_status):
        """Read the session's own stream, on which no answer may ever arrive."""
        reading = Reading(self, None)
        with trio.CancelScope() as scope:
            async with self.http.open_get_stream() as exchange:
                task_status.started(scope)
                try:
                    await receive(exchange, reading.take)
                except BREAKAGES as exc:
                    self.fail("unexpected", f"the session's own stream: {exc!r}")
                else:
                    self.fail("unexpected", "the session's own stream ended before the session")

    # -- steps ---------------------------------------------------------------------------------------------------------

    async def step_echo(self, random):
        nonce, tool = self.nonce(), random.choice(("own.echo", "shared.echo"))
        self.judge((await self.call(tool, {"text": nonce})).answer, nonce, tool)

    async def step_sleep(self, random):
        nonce, tool = self.nonce(), random.choice(("own.sleep", "shared.sleep"))
        arguments = {"seconds": random.uniform(0.01, 0.6), "text": nonce}
        self.judge((await self.call(tool, arguments)).answer, nonce, tool)

    async def step_progress(self, random):
        tool, count = random.choice(("own.progress", "shared.progress")), random.randint(1, 9)
        reading = await self.call(tool, {"n": count}, progressToken=self.nonce())
        self.judge(reading.answer, f"{count} steps", tool)
        if reading.steps != list(range(1, count + 1)):
            self.fail("lost", f"of {count} progress notifications came {reading.steps}")

    async def step_ask(self, random):
        asked = self.make_asks(random, random.choice(("right", "right", "late", "twice")))
        self.judge_asked((await self.call("own.ask", self.expect(asked))).answer, asked, "ask")

    def expect(self, asked):
        self.open_asks |= {one.nonce: one for one in asked.values()}
        return {"requests": {key: one.request for key, one in asked.items()}}

    async def step_ask_never(self, random):
        asked = self.make_asks(random, "never")
        message = self.make_call("own.ask", self.expect(asked))
        reading = Reading(self, message["id"])

        async def withdraw():
            for one in asked.values():
                await one.seen.wait()
            await self.cancel(message)

        async with self.http.stream(message) as exchange, trio.open_nursery() as nursery:
            nursery.start_soon(withdraw)
            await receive(exchange, reading.take)
        if reading.answer is not None:
            self.fail("unexpected", f"after its cancel came {reading.answer}")

    async def step_cancel(self, random):
        message = self.make_call(random.choice(("own.sleep", "shared.sleep")), {"seconds": 20, "text": "cancelled"})
        reading = Reading(self, message["id"])
        async with self.http.stream(message) as exchange:
            await trio.sleep(random.uniform(0, 0.4))
            await self.cancel(message)
            await receive(exchange, reading.take)
        if reading.answer is not None:
            self.fail("unexpected", f"after its cancel came {reading.answer}")

    async def step_hang_up(self, random):
        """Disconnect from a call, which does not cancel it; never fetch its answer."""
        tool = random.choice(("own.sleep", "shared.sleep"))
        async with self.http.stream(self.make_call(tool, {"seconds": 0.5, "text": "nobody's"})):
            await trio.sleep(random.uniform(0, 0.2))

    async def step_hang_up_asked(self, random):
        """Disconnect during a server request, for good."""
        asked = self.make_asks(random, "never")
        async with self.http.stream(self.make_call("own.ask", self.expect(asked))):
            await trio.sleep(random.uniform(0, 0.2))
        for one in asked.values():
            self.open_asks[one.nonce] = one  # it may still arrive, on another stream

    async def step_resume(self, random):
        """Disconnect and fetch the answer on another connection."""
        nonce, tool = self.nonce(), random.choice(("own.sleep", "shared.sleep"))
        message = self.make_call(tool, {"seconds": random.uniform(0.4, 1), "text": nonce})
        reading = Reading(self, message["id"])
        async with self.http.stream(message) as exchange:
            if is_stream(exchange):
                async with aclosing(exchange.events()) as events:
                    async for event in events:
                        reading.take(json.loads(event.data) if event.data else None, event.id)
                        if event.id is not None:
                            break
            else:  # on a busy machine the answer may come before the stream
                await receive(exchange, reading.take)
        if reading.answer is None:
            await trio.sleep(random.uniform(0, 1))
            async with self.http.open_get_stream(reading.last_event_id) as exchange:
                await receive(exchange, reading.take)
        self.judge(reading.answer, nonce, f"{tool}, resumed")

    async def step_count(self, _random):
        """Check that the backend has run nothing more often than it was called."""
        counts = (await self.call("own.count", {})).answer["result"]["structuredContent"]
        for tool, count in counts.items():
            if count > self.sent[f"own.{tool}"]:
                self.fail("doubled", f"{tool} ran {count} times of {self.sent[f'own.{tool}']}")

    async def step_delete(self, _random):
        assert (await self.http.delete_session()).status == 200
        response = await self.http.post(make_request(1, "ping"))
        assert response.status == 404, response

    async def step_delete_under_way(self, random):
        """End the session while a call is in flight, which must end too."""
        self.expect(asked := self.make_asks(random, "never"))
        requests = {key: one.request for key, one in asked.items()}
        tool, arguments = random.choice((("own.ask", {"requests": requests}), ("shared.sleep", {"seconds": 20})))
        message = self.make_call(tool, arguments)
        reading = Reading(self, message["id"])
        async with self.http.stream(message) as exchange:
            assert (await self.http.delete_session()).status == 200
            await receive(exchange, reading.take)
        if reading.answer is not None and "result" in reading.answer:
            self.fail("unexpected", f"after the session's end came {reading.answer}")

    async def step_abandon(self, _random):
        """Abandon the session."""
