"""The management API beside the MCP endpoint, as an ASGI app that `app` hands to the HTTP face.

Routed by Starlette, which is imported only when the gateway serves HTTP at all. Every answer is JSON, errors too.
Refusals come first and cost nothing: access, then the content type, then the body.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gateway import jsonrpc, surrogates
from gateway.admin import documents as doc
from gateway.admin.access import HINT, AdminAccess
from gateway.admin.events import serve_events
from gateway.admin.metrics import CONTENT_TYPE, Metrics
from gateway.admin.openapi import OPERATIONS, Operation, openapi_document
from gateway.errors import Busy, ConfigError, GatewayError, ShuttingDown
from gateway.frontends.http.exchange import UNCOMPRESSED, ClientGone, Exchange, compressed, explain_compressed
from gateway.frontends.http.view_routing import without_slash
from gateway.reload.reloader import NotChangeable, UnknownServer
from gateway.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    import msgspec

    from gateway.admin.servers import Management
    from gateway.frontends.http.exchange import Receive, Scope, Send

    Handler = Callable[[Exchange], Awaitable[tuple[int, msgspec.Struct]]]

MAX_NAME: Final = 200
"""Characters of a server's name that an error repeats."""
_INVALID: Final = "Invalid server configuration."


class Refused(Exception):
    """The request is answered with this."""

    def __init__(self, status: int, problem: doc.Problem, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(problem.error)
        self.status = status
        self.problem = problem
        self.headers = headers


def make_admin_app(management: Management, access: AdminAccess) -> Any:
    """The ASGI app; with `--admin off` only the two probes and a bare `/health` are there."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def not_found(_request: object, _exc: Exception) -> Response:  # noqa: RUF029, ASYNC124 - Starlette's form
        return Response(jsonrpc.encode(doc.Problem("Not Found")), 404, media_type="application/json")

    metrics = Metrics(management)
    operations = [one for one in OPERATIONS if access.mode != "off" or one.access == "open"]
    endpoints: dict[str, dict[str, Endpoint]] = {}
    for one in operations:
        endpoints.setdefault(one.path, {})[one.method] = Endpoint(one, management, access, metrics)
    app = Starlette(
        # Made without `methods`, a route takes an ASGI app as it is, which then tells the methods apart itself.
        routes=[Route(path, Methods(by_method)) for path, by_method in endpoints.items()],
        exception_handlers={404: not_found},
    )
    app.router.redirect_slashes = False

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a path with a slash at its end as the one without: not every client follows a redirect."""
        if scope["type"] == "http":
            scope = {**scope, "path": without_slash(scope["path"])}
        await app(scope, receive, send)

    return serve


class Methods:
    """One path: hands a request to the endpoint of its method."""

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self._endpoints = endpoints
        self._allow = ", ".join(sorted({*endpoints, *(["HEAD"] if "GET" in endpoints else [])}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        endpoint = self._endpoints.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if endpoint is None:
            problem = doc.Problem("Method Not Allowed", hint=f"this path takes {self._allow}")
            await Exchange(scope, receive, send).json(405, jsonrpc.encode(problem), (b"allow", self._allow.encode()))
        else:
            await endpoint(scope, receive, send)


class Endpoint:
    """One operation: checks who asks and what they send, then has it done."""

    def __init__(self, operation: Operation, management: Management, access: AdminAccess, metrics: Metrics) -> None:
        self._operation = operation
        self._management = management
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        exchange = Exchange(scope, receive, send)
        try:
            self._check(exchange)
            if self._operation.name == "read_events" and exchange.method == "GET":
                may_read = partial(self._may_read, exchange.headers)
                await serve_events(exchange, self._management.feed, self._management.closing, may_read)
                return
            if self._operation.name == "read_metrics":
                await exchange.text(await self._metrics.text(), CONTENT_TYPE)
                return
            status, answer = await self._handle(exchange, scope.get("path_params", {}).get("name", ""))
            await exchange.json(status, jsonrpc.encode(answer))
        except Refused as exc:
            await exchange.json(exc.status, jsonrpc.encode(exc.problem), *exc.headers)
        except GatewayError as exc:
            refused = _refusal(exc)
            await exchange.json(refused.status, jsonrpc.encode(refused.problem), *refused.headers)
        except ClientGone:
            return

    def _may_read(self, headers: Mapping[bytes, bytes]) -> bool:
        return self._access.may_read(headers, guarded=self._management.is_guarded)

    def _check(self, exchange: Exchange) -> None:
        access, headers = self._operation.access, exchange.headers
        if access == "change":
            may = self._access.may_change(headers, guarded=self._management.is_guarded)
        else:
            may = access == "open" or self._may_read(headers)
        if not may:
            wrong = b"authorization" in headers
            error = "The admin token is wrong." if wrong else "This needs the admin token."
            raise Refused(401, doc.Problem(error, hint=HINT), (b"www-authenticate", b"Bearer"))
        if self._operation.name == "add_servers" and (encoding := compressed(exchange)) is not None:
            raise Refused(415, doc.Problem(explain_compressed(encoding)), UNCOMPRESSED)
        if access == "change" and exchange.method == "POST":
            given = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            # Without a token a web page could send what browsers call a simple request.
            needs_one = self._operation.name == "add_servers" or self._access.mode == "open"
            if (given or needs_one) and given != b"application/json":
                raise Refused(415, doc.Problem("The Content-Type must be application/json."))

    async def _handle(self, exchange: Exchange, name: str) -> tuple[int, Any]:
        management, operation = self._management, self._operation.name
        match operation:
            case "livez":
                return 200, doc.Probe("ok")
            case "readyz":
                ready = management.is_ready()
                return (200, doc.Probe("ready")) if ready else (503, doc.Probe("not ready"))
            case "health":
                health = management.health()
                details = self._access.mode != "off" and self._may_read(exchange.headers)
                return 200, health if details else doc.Probe(health.status)
            case "show_openapi":
                return 200, openapi_document(VERSION)
            case "add_servers":
                body = await exchange.read_body(management.max_body)
                if body is None:
                    raise Refused(413, doc.Problem(f"The body is larger than {management.max_body} bytes."))
                return 200, await management.add(parse_body(body))
            case "list_servers" | "list_tools" | "show_tree":
                make: Callable[[], msgspec.Struct] = getattr(management, operation)
                return 200, make()
            case "show_server":
                return 200, management.show_server(name)
            case _:
                return 200, await self._change(operation, name)

    async def _change(self, operation: str, name: str) -> msgspec.Struct:
        management = self._management
        do: dict[str, Callable[[], Awaitable[msgspec.Struct]]] = {
            "remove_server": partial(management.remove, name),
            "restart_server": partial(management.restart, name),
            "enable_server": partial(management.switch, name, disabled=False),
            "disable_server": partial(management.switch, name, disabled=True),
            "reload": management.reload,
        }
        return await do[operation]()


def parse_body(body: bytes) -> bytes:
    """The body of `POST /servers` without a byte order mark, if it is JSON at all."""
    import json

    body = surrogates.without_bom(body)
    try:
        json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise Refused(400, doc.Problem(f"Invalid JSON payload: {exc}")) from None
    return body


def _refusal(problem: GatewayError) -> Refused:
    """The one place where an error becomes a status."""
    match problem:
        case ConfigError():
            return Refused(422, doc.Problem(_INVALID, details=[str(line) for line in problem.problems]))
        case UnknownServer():
            return Refused(404, doc.Problem(str(problem)[:MAX_NAME]))
        case NotChangeable():
            return Refused(409, doc.Problem(str(problem)))
        case Busy() | ShuttingDown():
            return Refused(503, doc.Problem(str(problem)), (b"retry-after", b"1"))
        case _:
            return Refused(500, doc.Problem(str(problem)))
