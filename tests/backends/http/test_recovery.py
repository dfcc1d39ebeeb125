"""Servers that lose their sessions, over streamable HTTP and SSE: detection and recovery."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import msgspec
import pytest
import trio

from gateway.backends.http.recovery import RENEW_INTERVAL, TIMING, Recovery, Standing, Verdict, judge
from gateway.backends.http.streamable import StreamableSession
from gateway.backends.session.handshake import ServerIntroduction
from gateway.backends.session.session_state import DesiredState
from gateway.budget import Budget
from gateway.calls import Complete, Era, Failure
from gateway.errors import BackendError, BackendExited, BackendProtocol
from gateway.http_client.client import open_http_client
from tests.faults.corpus.sessions import LOSSES, UNRELATED, Loss
from tests.peers.http_peer import LegacyServer, ModernServer, Reply, Request, SseServer, open_peer, text
from tests.support.http_sessions import HOP, Received, call, make_config, open_session, outcome, start_call, text_of

if TYPE_CHECKING:
    from trio.testing import MockClock

pytestmark = pytest.mark.leak_check
ALL = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
BY_NAME = {loss.name: loss for loss in LOSSES}


async def say(reply: Reply, loss: Loss) -> None:
    """Refuse a request as this row says."""
    number = reply.request.message.get("id") if reply.request.body else None
    body = loss.body.replace("ID", "null" if number is None else str(number))
    await reply.send(loss.status, body.encode(), loss.kind)


async def refuse_as(loss: Loss, _request: Request, reply: Reply) -> None:
    await say(reply, loss)


class Forgetful(LegacyServer):
    """Refuses all but `initialize`, as its row says, while it does not know the session."""

    def __init__(self, loss: Loss, *, sessions: bool = True) -> None:
        super().__init__(sessions=sessions)
        self.loss = loss
        self.lost = False
        self.ran: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    async def __call__(self, request: Request, reply: Reply) -> None:
        known = f"session-{self.session}" if self.sessions else None
        if request.rpc in {"initialize", "server/discover"}:
            await super().__call__(request, reply)
        elif self.lost or request.headers.get("mcp-session-id") != known:
            self.refused[request.params.get("arguments", {}).get("text", request.rpc)] += 1
            await say(reply, self.loss)
        else:
            await super().__call__(request, reply)

    async def on_initialize(self, request: Request, reply: Reply) -> None:
        self.lost = False
        await super().on_initialize(request, reply)

    async def on_tools_call(self, request: Request, reply: Reply) -> None:
        self.ran[request.params["arguments"]["text"]] += 1
        await super().on_tools_call(request, reply)


def check_end(found: Any, loss: Loss) -> None:
    """Check that a call that was not repeated ends with the server's answer."""
    if loss.code is None:
        assert isinstance(found, BackendProtocol), found
    else:
        assert isinstance(found, Failure), found
        assert found.code == loss.code
        assert found.message in loss.body or (found.data or b"").decode() in loss.body


# -- streamable HTTP ---------------------------------------------------------------------------------------------------


@ALL
async def test_a_lost_session_is_replaced(loss: Loss) -> None:
    server = Forgetful(loss)
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert text_of(await call(session, "echo", {"text": "before"})) == "before"
        server.lost = True
        found = await call(session, "echo", {"text": "refused"})
        if loss.repeated:
            assert text_of(found) == "refused"
        else:
            check_end(found, loss)
        assert text_of(await call(session, "echo", {"text": "next"})) == "next"
        assert server.ran == {"before": 1, "next": 1} | ({"refused": 1} if loss.repeated else {})
        assert server.refused["refused"] == 1
        assert len(peer.all("initialize")) == 2


@ALL
async def test_sixteen_calls_share_one_new_session(loss: Loss) -> None:
    server, names = Forgetful(loss), [f"call {number}" for number in range(16)]
    async with open_peer(server) as peer, open_session(peer.url, max_concurrency=32) as session:
        server.lost = True
        pending_calls = [start_call(session, "echo", {"text": name}) for name in names]
        found = [await outcome(pending) for pending in pending_calls]
        for name, end in zip(names, found, strict=True):
            if isinstance(end, Complete):
                assert server.ran[name] == 1
            else:
                assert not loss.repeated
                check_end(end, loss)
            assert server.refused[name] + server.ran[name] <= 2
        assert len(peer.all("initialize")) <= 2
        assert text_of(await call(session, "echo", {"text": "next"})) == "next"
        assert len(peer.all("initialize")) == 2


@pytest.mark.parametrize("loss", UNRELATED, ids=lambda loss: loss.name)
async def test_unrelated_errors_cause_no_session_probe(loss: Loss) -> None:
    server = LegacyServer()

    server.on["tools/call"] = partial(refuse_as, loss)
    async with open_peer(server) as peer, open_session(peer.url) as session:
        check_end(await call(session), loss)
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "next"})) == "next"
        assert (len(peer.all("initialize")), len(peer.all("ping"))) == (1, 0)


@ALL
async def test_a_session_that_answers_the_probe_is_kept(loss: Loss) -> None:
    """One tool's failure sounds like a lost session; others must not be affected."""
    server = LegacyServer()

    async def refuse(request: Request, reply: Reply) -> None:
        if request.params["arguments"].get("text") == "bad":
            await say(reply, loss)
        else:
            await server.on_tools_call(request, reply)

    server.on["tools/call"] = refuse
    async with open_peer(server) as peer, open_session(peer.url) as session:
        for _ in range(5):
            found = await call(session, "echo", {"text": "bad"})
            assert not isinstance(found, Complete)
            assert text_of(await call(session, "echo", {"text": "good"})) == "good"
        # What the transport refused costs one new session, in which it is refused as well; then it is known.
        assert len(peer.all("initialize")) == 1 + loss.repeated
        bad = [request for request in peer.all("tools/call") if request.params["arguments"]["text"] == "bad"]
        assert len(bad) == 5 + loss.repeated


@pytest.mark.parametrize("name", ["400-not-initialized", "200-session-not-found", "500-page"])
@pytest.mark.parametrize("ping", [-32601, -32000])
async def test_servers_without_ping_are_probed_by_tools_list(name: str, ping: int) -> None:
    server = Forgetful(BY_NAME[name])

    async def no_ping(request: Request, reply: Reply) -> None:
        await reply.error(ping, "ping?")

    async def bad(request: Request, reply: Reply) -> None:
        await reply.error(-32001, "Session not found")

    server.on |= {"ping": no_ping, "tools/call": bad}
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert isinstance(await call(session, "echo", {"text": "x"}), Failure)
        assert isinstance(await call(session, "echo", {"text": "x"}), Failure)
        assert len(peer.all("initialize")) == 1
        del server.on["tools/call"]
        server.lost = True
        await call(session, "echo", {"text": "y"})
        await peer.received("initialize", 2)
        assert text_of(await call(session, "echo", {"text": "z"})) == "z"


@pytest.mark.parametrize("name", ["404-empty", "400-text", "200-session-not-found", "500-page"])
async def test_a_new_session_leaves_running_calls_alone(name: str) -> None:
    server, started, go_on = Forgetful(BY_NAME[name]), trio.Event(), trio.Event()

    async def slow(request: Request, reply: Reply) -> None:
        if request.params["arguments"]["text"] == "slow":
            server.ran["slow"] += 1
            started.set()
            await reply.begin()
            await go_on.wait()
            await reply.answer_event(text("slow"))
        else:
            await server.on_tools_call(request, reply)

    server.on["tools/call"] = slow
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending = start_call(session, "echo", {"text": "slow"})
        await started.wait()
        server.lost = True
        await call(session, "echo", {"text": "x"})
        await peer.received("initialize", 2)
        assert text_of(await call(session, "echo", {"text": "y"})) == "y"
        go_on.set()
        assert text_of(await outcome(pending)) == "slow"
        assert server.ran["slow"] == 1


@pytest.mark.parametrize("name", ["404-empty", "400-no-valid-session", "410-text", "422-detail", "500-page"])
async def test_a_refused_get_stream_detects_the_loss(name: str) -> None:
    server, listener = Forgetful(BY_NAME[name]), Received()
    opened, cut = trio.Event(), trio.Event()

    async def stream(request: Request, reply: Reply) -> None:
        await reply.begin()
        await reply.raw(b": open\n\n")
        opened.set()
        if request.headers["mcp-session-id"] == "session-1":
            await cut.wait()
        else:
            await reply.hung_up()

    server.on["GET"] = stream
    async with open_peer(server) as peer, open_session(peer.url, listener=listener):
        await opened.wait()
        server.lost = True
        cut.set()
        await peer.received("initialize", 2)
        while peer.all("GET")[-1].headers["mcp-session-id"] != "session-2":
            await peer.received("GET", len(peer.all("GET")) + 1)


@pytest.mark.parametrize("name", ["404-empty", "400-no-valid-session", "410-text", "422-detail", "500-page"])
async def test_a_notification_that_is_refused_finds_the_loss(name: str) -> None:
    server, started = Forgetful(BY_NAME[name]), trio.Event()

    async def hang(request: Request, reply: Reply) -> None:
        started.set()
        await reply.hung_up()

    server.on["tools/call"] = hang
    async with open_peer(server) as peer, open_session(peer.url) as session:
        pending = start_call(session, "echo", {"text": "x"})
        await started.wait()
        server.lost = True
        pending.close("changed my mind")
        await peer.received("initialize", 2)
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "y"})) == "y"
        assert len(peer.all("notifications/cancelled")) >= 1


@pytest.mark.parametrize("name", ["404-empty", "400-no-valid-session", "410-text", "422-detail"])
async def test_a_new_session_receives_the_subscriptions(name: str) -> None:
    server = Forgetful(BY_NAME[name])

    async def hello(request: Request, reply: Reply) -> None:
        server.session += 1
        server.lost = False
        result = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}, "logging": {}, "resources": {"subscribe": True}},
            "serverInfo": {"name": "peer", "version": "1"},
        }
        await reply.result(result, mcp_session_id=f"session-{server.session}")

    async def fine(request: Request, reply: Reply) -> None:
        await reply.result({})

    server.on |= {"initialize": hello, "resources/subscribe": fine, "logging/setLevel": fine}
    async with open_peer(server) as peer, open_session(peer.url) as session:
        server.lost = True
        session.upkeep.set_desired(DesiredState(log_level="debug", uris=frozenset({"file:///x"})))
        await peer.received("initialize", 2)
        last = ""
        while last != "session-2":
            last = (await peer.received("resources/subscribe", len(peer.all("resources/subscribe")) or 1)).headers[
                "mcp-session-id"
            ]
        assert len(peer.all("initialize")) == 2


@ALL
async def test_the_modern_era_has_no_session_to_lose(loss: Loss) -> None:
    server = ModernServer()

    server.on["tools/call"] = partial(refuse_as, loss)
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert session.greeting.era is Era.MODERN
        for number in (1, 2):
            assert not isinstance(await call(session), Complete)
            assert len(peer.all("tools/call")) == number
        server.on.clear()
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert peer.all("initialize") == peer.all("ping") == []


@ALL
async def test_servers_without_session_ids_may_require_initialize_again(loss: Loss) -> None:
    server = Forgetful(loss, sessions=False)
    async with open_peer(server) as peer, open_session(peer.url) as session:
        server.lost = True
        check = await call(session, "echo", {"text": "refused"})
        assert not isinstance(check, Complete)
        assert text_of(await call(session, "echo", {"text": "next"})) == "next"
        assert server.ran == {"next": 1}
        assert len(peer.all("initialize")) == 2


async def test_an_outage_is_not_a_lost_session() -> None:
    """While the server answers only 503, the session is kept and calls get the errors."""
    server = Forgetful(BY_NAME["503-text"])

    async def down(request: Request, reply: Reply) -> None:
        await say(reply, server.loss)

    async with open_peer(server) as peer, open_session(peer.url) as session:
        server.lost, server.on["initialize"] = True, down
        for _ in range(3):
            check_end(await call(session, "echo", {"text": "x"}), server.loss)
        server.lost = False
        assert text_of(await call(session, "echo", {"text": "y"})) == "y"
        assert len(peer.all("tools/call")) == 4


async def test_a_refused_session_without_replacement_is_closed() -> None:
    server = Forgetful(BY_NAME["404-empty"])

    async def down(request: Request, reply: Reply) -> None:
        await say(reply, server.loss)

    async def use() -> None:
        async with open_session(peer.url) as session:
            server.lost, server.on["initialize"] = True, down
            assert isinstance(await call(session, "echo", {"text": "x"}), BackendExited)
            await trio.sleep_forever()

    async with open_peer(server) as peer:
        with pytest.raises(BackendExited, match="forgotten the session"):
            await use()


OLD = "2025-03-26"


@pytest.mark.parametrize("sse", [False, True])
async def test_a_new_session_reuses_the_working_version(sse: bool) -> None:
    server = ForgetfulSse(BY_NAME["404-empty"]) if sse else Forgetful(BY_NAME["404-empty"])

    async def greet(request: Request, reply: Reply) -> None:
        if isinstance(server, Forgetful):
            await server.on_initialize(request, reply)
        else:
            await reply.send(202)
            await server.answer(request)

    async def greet_old(request: Request, reply: Reply) -> None:
        if request.params["protocolVersion"] == OLD:
            await greet(request, reply)
            return
        if isinstance(server, Forgetful):
            await reply.error(-32602, "Unsupported protocol version", data={"supported": [OLD]})
        else:
            error = {"code": -32602, "message": "Unsupported protocol version", "data": {"supported": [OLD]}}
            await reply.send(202)
            await server.say({"jsonrpc": "2.0", "id": request.message["id"], "error": error})

    server.on["initialize"] = greet_old
    fields = {"transport": "sse" if sse else "streamable-http"}
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, **fields) as session:
        before = len(peer.all("initialize"))
        if isinstance(server, ForgetfulSse):
            server.known = "none"
        else:
            server.lost = True
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        asked = [request.params["protocolVersion"] for request in peer.all("initialize")]
        assert before == 2
        assert asked[before - 1 :] == [OLD, OLD]


@pytest.mark.parametrize("declared", [{"tools": {}}, {}])
async def test_tools_are_listed_before_a_session_is_replaced(declared: dict[str, object]) -> None:
    server = LegacyServer(sessions=False)

    async def greet(request: Request, reply: Reply) -> None:
        info = {"name": "peer", "version": "1"}
        await reply.result({"protocolVersion": "2025-06-18", "capabilities": declared, "serverInfo": info})

    async def refuse(request: Request, reply: Reply) -> None:
        if request.rpc == "ping":
            await reply.error(-32601, "Method not found")
        else:
            await reply.error(-32603, "Session not found")

    server.on |= {"initialize": greet, "ping": refuse, "tools/call": refuse}
    async with open_peer(server) as peer, open_session(peer.url) as session:
        listed = len(peer.all("tools/list"))
        assert isinstance(await call(session), Failure)
        await peer.received("tools/list", listed + 1)
        assert len(peer.all("initialize")) == 1


@pytest.mark.parametrize("name", ["404-empty", "400-not-initialized", "410-text", "422-detail"])
async def test_a_session_may_be_lost_before_it_lists(name: str) -> None:
    server, first = Forgetful(BY_NAME[name]), True

    async def forget(request: Request, reply: Reply) -> None:
        nonlocal first
        server.lost, first = first, False
        await reply.send(202)

    server.on["notifications/initialized"] = forget
    async with open_peer(server) as peer, open_session(peer.url) as session:
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert len(peer.all("initialize")) == 2


@pytest.mark.parametrize("name", ["404-empty", "400-not-initialized", "200-session-not-found", "500-page"])
async def test_a_refusing_server_gets_at_most_two_initializes(name: str) -> None:
    server = Forgetful(BY_NAME[name])

    async def forget(request: Request, reply: Reply) -> None:
        await server.on_initialize(request, reply)
        server.lost = len(peer.all("initialize")) > 1

    server.on["initialize"] = forget
    async with open_peer(server) as peer, open_session(peer.url) as session:
        server.lost = True
        for _ in range(20):
            pending = start_call(session, "echo", {"text": "x"})
            pending.deadline = trio.current_time() + 0.2
            assert not isinstance(await outcome(pending), Complete)
        assert len(peer.all("initialize")) == 2


@pytest.mark.parametrize("name", ["404-empty", "400-not-initialized", "410-text", "422-detail"])
async def test_a_late_era_probe_refusal_is_harmless(name: str) -> None:
    server, received = LegacyServer(sessions=False), Received()
    greeted, refused = trio.Event(), trio.Event()

    async def refuse(request: Request, reply: Reply) -> None:
        await greeted.wait()
        await say(reply, BY_NAME[name])
        refused.set()

    async def greet(request: Request, reply: Reply) -> None:
        await reply.begin(mcp_session_id="one")
        greeted.set()
        await refused.wait()
        await reply.event({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})
        await received.change()  # so the refusal, sent earlier, has been received too
        info = {"name": "peer", "version": "1"}
        await reply.answer_event({"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info})
        await reply.end()

    server.on |= {"server/discover": refuse, "initialize": greet}
    fields = {"listener": received, "probe_timeout": 0.05}
    async with open_peer(server) as peer, open_session(peer.url, **fields) as session:
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert (len(peer.all("initialize")), len(peer.all("ping"))) == (1, 0)


async def test_nothing_is_lost_before_the_handshake() -> None:
    config = make_config("http://127.0.0.1:9/mcp")
    async with open_http_client(config) as http:
        session = StreamableSession(config, http, Received(), HOP, TIMING, Budget(2**30))
        assert not session.is_stateful
        for era in Era:
            session.conversation.hop = msgspec.structs.replace(HOP, era=era)
            session._adopt(ServerIntroduction(era=era, version="2025-11-25", capabilities={}))
            assert session.is_stateful is (era is Era.LEGACY)


# -- SSE ---------------------------------------------------------------------------------------------------------------


class ForgetfulSse(SseServer):
    """Refuses POSTs of unknown sessions as its row says, though the stream stays open."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        self.streams = 0
        self.known = ""
        self.open_streams: set[int] = set()
        self.ran: Counter[str] = Counter()
        self.by_number: dict[str, Reply] = {}

    async def __call__(self, request: Request, reply: Reply) -> None:
        if request.method == "GET":
            await self.on_get(request, reply)
        elif request.target != self.known:
            await say(reply, self.loss)
        else:
            self.stream = self.by_number[request.target]
            handler = self.on.get(request.rpc)
            if handler is not None:
                await handler(request, reply)
                return
            await reply.send(202, b"Accepted", "text/plain")
            if request.rpc == "tools/call":
                self.ran[request.params["arguments"]["text"]] += 1
            if request.rpc == "ping":
                await self.say({"jsonrpc": "2.0", "id": request.message["id"], "result": {}})
            await self.answer(request)

    async def on_get(self, request: Request, reply: Reply) -> None:
        self.streams += 1
        number = self.streams
        self.known = f"/messages?sessionId=s{number}"
        self.by_number[self.known] = reply
        await reply.begin()
        await reply.event(self.known, event="endpoint")
        self.open_streams.add(number)
        try:
            await reply.hung_up(600)
        finally:
            self.open_streams.discard(number)


POSTED = [loss for loss in LOSSES if loss.status >= 400]


@pytest.mark.parametrize("loss", POSTED, ids=lambda loss: loss.name)
async def test_sse_a_refused_post_opens_a_new_stream(loss: Loss) -> None:
    server = ForgetfulSse(loss)
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        assert text_of(await call(session, "echo", {"text": "before"})) == "before"
        server.known = "none"
        found = await call(session, "echo", {"text": "refused"})
        if loss.repeated:
            assert text_of(found) == "refused"
        else:
            check_end(found, loss)
        assert text_of(await call(session, "echo", {"text": "next"})) == "next"
        assert server.ran == {"before": 1, "next": 1} | ({"refused": 1} if loss.repeated else {})
        assert server.streams == 2
        await peer.wait(lambda: server.open_streams == {2})


@pytest.mark.parametrize("loss", POSTED, ids=lambda loss: loss.name)
async def test_sse_sixteen_calls_share_one_new_stream(loss: Loss) -> None:
    server, names = ForgetfulSse(loss), [f"call {number}" for number in range(16)]
    fields = {"transport": "sse", "max_concurrency": 32}
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, **fields) as session:
        server.known = "none"
        pending_calls = [start_call(session, "echo", {"text": name}) for name in names]
        for name, pending in zip(names, pending_calls, strict=True):
            found = await outcome(pending)
            if isinstance(found, Complete):
                assert server.ran[name] == 1
            else:
                assert not loss.repeated
                check_end(found, loss)
        assert text_of(await call(session, "echo", {"text": "next"})) == "next"
        assert server.streams == 2


@pytest.mark.parametrize("code", [-32001, -32002, -32603])
async def test_sse_a_stream_error_may_mean_a_loss(code: int) -> None:
    server = ForgetfulSse(BY_NAME["404-empty"])
    fails = True

    async def fail(request: Request, reply: Reply) -> None:
        await reply.send(202)
        if fails:
            error = {"code": code, "message": "Session not found"}
            await server.say({"jsonrpc": "2.0", "id": request.message["id"], "error": error})
        else:
            await server.answer(request)

    server.on |= {"tools/call": fail, "ping": fail, "tools/list": fail}
    fails = False
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        fails = True
        found = await call(session)
        assert isinstance(found, Failure)
        assert (found.code, found.message) == (code, "Session not found")
        await peer.received("initialize", 2)
        fails = False
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert server.streams == 2


@pytest.mark.parametrize("answers", [True, False])
async def test_sse_the_old_stream_still_delivers_pending_answers(answers: bool) -> None:
    server = ForgetfulSse(BY_NAME["400-text"])
    slow: list[Request] = []
    accepted = trio.Event()

    async def accept(request: Request, reply: Reply) -> None:
        await reply.send(202)
        if request.params["arguments"]["text"] == "slow":
            slow.append(request)
            accepted.set()
        else:
            await server.answer(request)

    server.on["tools/call"] = accept
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        pending = start_call(session, "echo", {"text": "slow"})
        await accepted.wait()
        server.known = "none"
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        assert server.open_streams == {1, 2}
        first = server.by_number["/messages?sessionId=s1"]
        if answers:
            await first.event({"jsonrpc": "2.0", "id": slow[0].message["id"], "result": text("late")})
            assert text_of(await outcome(pending)) == "late"
        else:
            await first.stream.aclose()
            assert isinstance(await outcome(pending), BackendExited)
        assert text_of(await call(session, "echo", {"text": "y"})) == "y"
        assert len(slow) == 1
        await peer.wait(lambda: 1 not in server.open_streams)


async def test_sse_a_cancelled_call_releases_the_old_stream() -> None:
    server, started = ForgetfulSse(BY_NAME["404-empty"]), trio.Event()

    async def swallow(request: Request, reply: Reply) -> None:
        await reply.send(202)
        started.set()
        if request.params["arguments"]["text"] != "slow":
            await server.answer(request)

    server.on["tools/call"] = swallow
    async with open_peer(server, path="/sse") as peer, open_session(peer.url, transport="sse") as session:
        pending = start_call(session, "echo", {"text": "slow"})
        await started.wait()
        server.known = "none"
        assert text_of(await call(session, "echo", {"text": "x"})) == "x"
        pending.close()
        await peer.wait(lambda: server.open_streams == {2})


# -- timing, on a virtual clock ----------------------------------------------------------------------------------------


class Session:
    """Implements `Renewable`: answers probes and renewals as configured, and records when."""

    def __init__(self) -> None:
        self.is_initialized = self.is_stateful = self.has_id = True
        self.refuses = True
        self.fails: BackendError | None = None
        self.renewals: list[float] = []
        self.probes: list[float] = []
        self.recovery = Recovery(self)

    async def probe(self) -> bool:
        self.probes.append(trio.current_time())
        await trio.sleep(0.1)
        return self.refuses

    async def renew(self) -> None:
        self.renewals.append(trio.current_time())
        await trio.sleep(0.1)
        if self.fails is not None:
            raise self.fails

    def give_up(self, how: str) -> NoReturn:
        raise BackendExited("b", how)


async def test_new_sessions_are_ten_seconds_apart(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.recovery.run)
        for _ in range(200):  # something refuses a call every 0.1 s, and the probe too
            session.recovery.suspect()
            await trio.sleep(0.05)
            session.recovery.refused(session.recovery.generation, "echo", is_call=True)
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    gaps = [after - before for before, after in zip(session.renewals, session.renewals[1:], strict=False)]
    assert len(session.renewals) in {2, 3}
    assert min(gaps) >= RENEW_INTERVAL


async def test_a_call_refused_again_soon_waits(autojump_clock: MockClock) -> None:
    session = Session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.recovery.run)
        for wanted in (0.1, RENEW_INTERVAL + 0.1):
            assert session.recovery.refused(session.recovery.generation, "echo", is_call=True)
            await session.recovery.admitted("tools/call", is_call=True)
            assert trio.current_time() == pytest.approx(wanted, abs=0.01) if wanted < 1 else True
        assert session.renewals[1] - session.renewals[0] == pytest.approx(RENEW_INTERVAL)
        nursery.cancel_scope.cancel()


async def test_a_late_old_refusal_leaves_the_new_session(autojump_clock: MockClock) -> None:
    session = Session()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.recovery.run)
        assert session.recovery.refused(0, "echo", is_call=True)
        await session.recovery.admitted("tools/call", is_call=True)
        assert session.recovery.refused(0, "echo", is_call=True)
        assert session.recovery.standing is Standing.VALID
        await trio.sleep(10 * RENEW_INTERVAL)
        assert len(session.renewals) == 1
        nursery.cancel_scope.cancel()


async def test_ordinary_errors_resembling_a_loss_cause_no_delay(autojump_clock: MockClock) -> None:
    session = Session()
    session.refuses = False
    waits: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.recovery.run)
        for _ in range(250):  # a tool whose usual error sounds like a lost session
            session.recovery.suspect()
            began = trio.current_time()
            await session.recovery.admitted("tools/call", is_call=True)
            waits.append(trio.current_time() - began)
            await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert sum(1 for wait in waits if wait) == 1
    assert len(session.probes) <= 26
    assert max(waits) < 0.2
    assert session.renewals == []


async def test_connection_failures_are_probed_only_after_the_handshake(autojump_clock: MockClock) -> None:
    session = Session()
    session.refuses = False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.recovery.run)
        for session.is_initialized, probes in ((False, 0), (True, 1)):
            session.recovery.doubt()
            await trio.sleep(RENEW_INTERVAL)
            assert len(session.probes) == probes
        nursery.cancel_scope.cancel()


async def test_waiting_calls_follow_the_session_state(autojump_clock: MockClock) -> None:
    session = Session()
    held: dict[tuple[str, str, bool], bool] = {}
    for standing in Standing:
        session.recovery.standing = standing
        for method, is_call in (("initialize", False), ("tools/list", False), ("tools/call", True)):
            with trio.move_on_after(1) as scope:
                await session.recovery.admitted(method, is_call=is_call)
            held[standing.name, method, is_call] = scope.cancelled_caught
    assert {key for key, waits in held.items() if waits} == {
        ("DOUBTED", "tools/call", True), ("LOST", "tools/call", True), ("LOST", "tools/list", False),
    }  # fmt: skip


async def test_a_failed_renewal_ends_only_lost_sessions(autojump_clock: MockClock) -> None:
    session = Session()
    session.fails = BackendProtocol("b", "answered initialize with HTTP 503")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.recovery.run)
        session.recovery.suspect()
        await session.recovery.admitted("tools/call", is_call=True)
        assert session.recovery.generation == 0
        nursery.cancel_scope.cancel()
    session.recovery.refused(0, "echo", is_call=True)
    with pytest.raises(BackendExited, match="answered initialize with HTTP 503"):
        await session.recovery.run()


def test_illegal_steps_are_a_bug() -> None:
    session = Session()
    session.recovery._to(Standing.LOST)
    with pytest.raises(RuntimeError, match="may not be followed"):
        session.recovery._to(Standing.DOUBTED)


@pytest.mark.parametrize("status", range(200, 600))
def test_answered_or_possibly_executed_requests_are_never_repeated(status: int) -> None:
    """Only four statuses refuse a request, and its own answer only like the SDKs' 404."""
    refusing = status in {400, 404, 410, 422}
    assert (judge(status, None, "", answered=False) is Verdict.REFUSED) is refusing
    for code in (-32000, -32001, -32002, -32600, -32601, -32602, -32603, 0, 1):
        expected = status == 404 and code in {-32000, -32001, -32600}
        assert (judge(status, code, "session", answered=True) is Verdict.REFUSED) is expected
    if status >= 500:
        assert judge(status, -32603, "x", answered=True) is Verdict.DOUBTFUL
