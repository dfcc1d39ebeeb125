"""Modern clients of the soak: requests without a session, where a disconnect is a cancellation.

A server request arrives as the result of a suspended call; the retry brings the answer, some come twice with the same
state, and some never.
"""

from __future__ import annotations

import json

import trio

from benchmarks.soak_client import CAN, WITHIN, Client, nonce_of
from tests.support.wire import modern_params


class ModernClient(Client):
    """Requests without a session; a server request suspends the call until a retry."""

    era = "modern"
    max_forgotten = 8

    async def run(self, until):
        steps = {
            self.step_echo: 8,
            self.step_sleep: 3,
            self.step_hang_up: 3,
            self.step_own_echo: 0.5,
            self.step_ask: 1,
            self.step_forget: 0.1,
        }
        while trio.current_time() < until:
            await self.step(steps, self.random)
            await self.think(self.random)

    async def request(self, tool, arguments, **further):
        """Return the one response of the request."""
        params = {"name": tool, "arguments": arguments, **further}
        params = modern_params(params, capabilities=CAN)
        message, headers = self.http.modern_request("tools/call", params)
        response = await self.http.send("POST", json.dumps(message).encode(), headers=headers, within=WITHIN)
        messages = [one for one in response.messages() if "method" not in one]
        if len(messages) != 1 or messages[0]["id"] != message["id"]:
            self.fail("doubled" if len(messages) > 1 else "lost", f"{tool}: {messages}")
        return messages[0]

    async def step_echo(self, _random):
        nonce = self.nonce()
        self.judge(await self.request("shared.echo", {"text": nonce}), nonce, "shared.echo")

    async def step_own_echo(self, _random):
        nonce = self.nonce()
        self.judge(await self.request("own.echo", {"text": nonce}), nonce, "own.echo")

    async def step_sleep(self, random):
        arguments = {"seconds": random.uniform(0.01, 0.6), "text": self.nonce()}
        self.judge(await self.request("shared.sleep", arguments), arguments["text"], "shared.sleep")

    async def step_hang_up(self, random):
        """Disconnect, which is a cancellation."""
        tool = random.choices(("shared.sleep", "own.sleep"), (9, 1))[0]
        params = {"name": tool, "arguments": {"seconds": 20}}
        with trio.move_on_after(random.uniform(0.05, 0.8)):
            async with self.http.stream_modern("tools/call", params) as exchange:
                message = await exchange.next_sse(within=WITHIN)
                self.fail("unexpected", f"{message.data} for a call that sleeps")

    async def ask(self, asked):
        """Have the call suspended; return its arguments and `requestState`, and the answers that it needs."""
        arguments = {"requests": {key: one.request for key, one in asked.items()}}
        result = (await self.request("own.ask", arguments))["result"]
        mine = {one.nonce: one for one in asked.values()}
        answers = {}
        for key, wanted in result["inputRequests"].items():
            found = mine.pop(nonce_of(wanted), None)
            if found is None or found.method != wanted["method"]:
                self.fail("misasked", f"{wanted} is not its own, or came twice")
            else:
                answers[key] = found.answer
        return arguments, result["requestState"], answers, mine

    async def step_ask(self, random):
        asked = self.make_asks(random, "right")
        arguments, state, answers, missing = await self.ask(asked)
        await trio.sleep(random.choice((0, 0.2, 1)))
        answer = await self.request("own.ask", arguments, requestState=state, inputResponses=answers)
        if missing and answer["result"].get("resultType") == "input_required":  # requested one by one
            result = answer["result"]
            answers = {key: missing.pop(nonce_of(one)).answer for key, one in result["inputRequests"].items()}
            further = {"requestState": result["requestState"], "inputResponses": answers}
            answer = await self.request("own.ask", arguments, **further)
        self.judge_asked(answer, asked, "ask")
        if random.random() < 0.3:
            again = await self.request("own.ask", arguments, requestState=state, inputResponses=answers)
            if "error" not in again:
                self.fail("doubled", f"a call that was resumed before: {again}")

    async def step_forget(self, random):
        """Never return with the answer."""
        if self.tally.patient and self.tally.forgotten < self.max_forgotten:
            self.tally.forgotten += 1
            await self.ask(self.make_asks(random, "never"))
