"""Requests generated from the OpenAPI document: declared answers only, no server error, no effect.

The gateway serves real HTTP from a thread of its own, over an opener of fakes, whatever the made-up configs say.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, Phase, given, seed, settings

from gateway.access.table import Access
from gateway.admin.access import AdminAccess
from gateway.admin.http import make_admin_app
from gateway.admin.servers import Management
from gateway.config import Config, ServerConfig
from gateway.config.access import NO_ACCESS, AccessKey, AccessSettings
from gateway.frontends.http.host_policy import HostPolicy
from gateway.frontends.http.listen_address import ListenAddress
from gateway.frontends.http.mcp_app import McpApp, Paths
from gateway.frontends.http.server import HttpFrontend
from gateway.frontends.modern.request_state import RequestStateCodec
from gateway.frontends.modern.suspended_calls import SuspendedCalls
from gateway.frontends.request_handler import RequestHandler
from gateway.reload.reloader import Reloader
from gateway.reload.source import ConfigSource
from gateway.router import Router
from gateway.supervisor.fleet import Fleet
from tests.support.fakes import SOON, FakeBackend, make_listing

if TYPE_CHECKING:
    from collections.abc import Generator

schemathesis = pytest.importorskip("schemathesis", reason="a tool of the extra `dev`")

TOKEN = "a-token-for-the-tests"
EXAMPLES = 12
"""Requests for each operation: two hundred in all, in a few seconds."""
STREAMS = {"/events", "/servers/{name}/stderr"}
OPEN = {"/livez", "/readyz", "/health"}
ACCESS = AccessSettings(keys=(AccessKey(name="alice", hash="sha256:" + "0" * 64),))


class Server:
    """A gateway of fakes behind real HTTP."""

    def __init__(self, access: AccessSettings | None) -> None:
        self.url = ""
        self._access = access
        self.listening = threading.Event()
        self.opened: list[str] = []
        self._stop: Any = None

    def run(self) -> None:
        trio.run(self._serve)

    def stop(self) -> None:
        self._stop()

    def _open(self, config: ServerConfig, listener: Any, **_: Any) -> Any:
        self.opened.append(config.name)
        return FakeBackend(make_listing("x"))(config, listener)

    async def _serve(self) -> None:
        closing = trio.Event()
        self._stop = partial(trio.from_thread.run_sync, closing.set, trio_token=trio.lowlevel.current_trio_token())
        servers = {name: ServerConfig(name=name, command="x") for name in ("a", "0")}
        config = Config(servers, access=self._access)
        fleet = Fleet(config, self._open)
        router = Router(fleet)
        reloader = Reloader(ConfigSource(None, environ={}, given=config), fleet)
        management = Management(router, reloader, transport="http", draining=closing.is_set, closing=closing)
        app = make_admin_app(management, AdminAccess("token", host="127.0.0.1", token=TOKEN))
        answers = RequestHandler(router, "0", SuspendedCalls(RequestStateCodec([])))
        access, policy = Access(NO_ACCESS), HostPolicy("127.0.0.1")
        mcp = McpApp(answers, access, Paths(sse=None), policy=policy, closing=closing)
        frontend = HttpFrontend(mcp, others=app, closing=closing)
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            await nursery.start(partial(reloader.run, watching=False))
            (url,) = await nursery.start(frontend.run, ListenAddress(port=0).open())
            self.url = url.removesuffix("/mcp")
            self.listening.set()
            await closing.wait()
            reloader.stop()
            fleet.stop()


@contextmanager
def serving(access: AccessSettings | None) -> Generator[Server]:
    server = Server(access)
    thread = threading.Thread(target=server.run, name="gateway of fakes")
    thread.start()
    try:
        assert server.listening.wait(SOON)
        yield server
    finally:
        server.stop()
        thread.join(SOON)
        assert not thread.is_alive()


@pytest.mark.parametrize("access", [None, ACCESS], ids=["without access", "with access"])
@pytest.mark.parametrize("token", [TOKEN, None], ids=["with the token", "without"])
@pytest.mark.filterwarnings("default")  # of the tool's own dependencies
def test_no_request_gets_an_undeclared_answer(token: str | None, access: AccessSettings | None) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    statuses: set[int] = set()
    with serving(access) as server:
        schema = schemathesis.openapi.from_url(
            f"{server.url}/openapi.json", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        tried: set[str] = set()
        for result in schema.get_all_operations():
            operation = result.ok()
            if operation.path in STREAMS:
                continue
            tried.add(operation.path)

            @seed(1)
            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def check(case: Any) -> None:
                answer = case.call(headers=headers)
                statuses.add(answer.status_code)
                if token is None and access is not None and case.operation.path not in OPEN:
                    assert answer.status_code == 401
                # The rules of a config are more than a schema can say, so that 422 may be the right answer.
                case.validate_response(answer, excluded_checks=[schemathesis.checks.positive_data_acceptance])

            check()
    assert {"/servers", "/servers/{name}", "/reload"} <= tried
    assert (401 in statuses) is (token is None)
    if token is None:
        assert set(server.opened) == {"a", "0"}  # forbidden changes had no effect
