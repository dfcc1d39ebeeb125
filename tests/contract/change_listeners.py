"""Where a client receives list changes: a pipe, a GET stream, or a listen request."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager

import trio

from tests.support.gateway_process import ANSWER_WITHIN, META

CHANGED = "notifications/tools/list_changed"


@asynccontextmanager
async def open_listener(client):
    """Open the stream on which this client receives changes."""
    if client.modern:
        async with client.open_call("subscriptions/listen", {"notifications": {"toolsListChanged": True}}) as call:
            yield await ListenListener(client, call).open()
    elif client.frontend == "http":
        async with client.http.open_get_stream() as exchange:
            yield StreamListener(exchange)
    else:
        await client.request("ping")
        client.stdio.arrived.clear()  # notifications of earlier tests
        yield PipeListener(client)


class PipeListener:
    def __init__(self, client):
        self.client = client
        self.subscription = None

    async def next(self):
        return await self.client.stdio.notification(CHANGED)

    async def assert_quiet(self):
        # Longer than the gateway waits before it announces, and before it reads a list again.
        await self.client.call("legacy.sleep", {"seconds": 0.45})
        assert [one for one in self.client.stdio.arrived if one.get("method") == CHANGED] == []


class StreamListener:
    """An SSE stream; two comments in a row are more silence than any announcement takes."""

    def __init__(self, exchange):
        self.exchange = exchange
        self.subscription = None

    async def next(self):
        return (await self.exchange.next_sse()).json()

    async def assert_quiet(self):
        comments = 0
        with trio.fail_after(ANSWER_WITHIN):
            async with aclosing(self.exchange.events()) as events:
                async for event in events:
                    assert not event.data, f"not quiet: {event.data}"
                    comments += 1
                    if comments == 3:
                        return


class ListenListener:
    def __init__(self, client, call):
        self.client, self.call = client, call
        self.subscription = call.id

    async def open(self):
        if self.client.frontend == "stdio":
            stdio = self.client.stdio
            first = await stdio.notification("notifications/subscriptions/acknowledged")
            while first["params"]["_meta"][META + "subscriptionId"] != self.call.id:
                first = await stdio.notification("notifications/subscriptions/acknowledged")
        else:
            first = await self.call.next()
        assert first["params"]["notifications"] == {"toolsListChanged": True}
        assert first["params"]["_meta"] == {META + "subscriptionId": self.call.id}
        return self

    async def next(self):
        if self.client.frontend == "http":
            return await self.call.next()
        return await self.client.stdio.wait_for(self.is_mine, 15)

    def is_mine(self, message):
        meta = message.get("params", {}).get("_meta", {})
        return message.get("method") == CHANGED and meta.get(META + "subscriptionId") == self.call.id

    async def assert_quiet(self):
        if self.client.frontend == "http":
            await StreamListener(self.call.exchange).assert_quiet()
            return
        await self.client.call("legacy.sleep", {"seconds": 0.45})
        assert [one for one in self.client.stdio.arrived if self.is_mine(one)] == []
        await self.call.cancel()
        await self.call.assert_unanswered()
