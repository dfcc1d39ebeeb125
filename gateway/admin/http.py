"""The management API as an ASGI app, which `app` passes to the HTTP frontend.

Routed by Starlette, which is imported only if the gateway serves HTTP. Every response is JSON, errors too. Cheap checks
come first: access, then the content type, then the body.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gateway import jsonrpc
from gateway.admin import documents as doc
from gateway.admin.access import HINT, AdminAccess
from gateway.admin.console_files import CONSOLE, serve_console
from gateway.admin.metrics import Metrics
from gateway.admin.operations import OPERATIONS
from gateway.admin.request import Refused, Request
from gateway.errors import Busy, ConfigError, GatewayError, ShuttingDown, UnknownServer
from gateway.frontends.http.exchange import ClientGone, Exchange
from gateway.frontends.http.view_routing import without_slash
from gateway.reload.reloader import NotChangeable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.admin.openapi import Operation
    from gateway.admin.servers import Management
    from gateway.frontends.http.exchange import Receive, Scope, Send

MAX_NAME: Final = 200
"""Maximum length of a server's name in an error."""
_INVALID: Final = "Invalid server configuration."


def make_admin_app(management: Management, access: AdminAccess, operations: Iterable[Operation] = OPERATIONS) -> Any:
    """Return the ASGI app; with `--admin off`, only two probes and a bare `/health`."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Route

    async def not_found(_request: object, _exc: Exception) -> Response:  # noqa: RUF029 - Starlette's form
        return Response(jsonrpc.encode(doc.Problem("Not Found")), 404, media_type="application/json")

    metrics = Metrics(management)
    endpoints: dict[str, dict[str, Endpoint]] = {}
    for operation in operations:
        if access.mode != "off" or operation.access == "open":
            endpoint = Endpoint(operation, management, access, metrics)
            endpoints.setdefault(operation.path, {})[operation.method] = endpoint
    app = Starlette(
        # Without `methods`, a route calls the ASGI app directly, which then dispatches on the method.
        routes=[Route(path, Methods(by_method)) for path, by_method in endpoints.items()],
        exception_handlers={404: not_found},
    )
    app.router.redirect_slashes = False

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        """Ignore a trailing slash: not every client follows a redirect."""
        if scope["type"] == "http":
            if access.mode != "off" and (scope["path"] + "/").startswith(f"{CONSOLE}/"):
                await serve_console(Exchange(scope, receive, send))
                return
            scope = {**scope, "path": without_slash(scope["path"])}
        await app(scope, receive, send)

    return serve


class Methods:
    """Dispatches the requests for one path to the endpoint of their method."""

    def __init__(self, endpoints: dict[str, Endpoint]) -> None:
        self._endpoints = endpoints
        self._allow = ", ".join(sorted({*endpoints, *(["HEAD"] if "GET" in endpoints else [])}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        endpoint = self._endpoints.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if endpoint is None:
            problem = doc.Problem("Method Not Allowed", hint=f"this path allows {self._allow}")
            await Exchange(scope, receive, send).json(405, jsonrpc.encode(problem), (b"allow", self._allow.encode()))
        else:
            await endpoint(scope, receive, send)


class Endpoint:
    """One operation: checks access and input, then calls its handler."""

    def __init__(self, operation: Operation, management: Management, access: AdminAccess, metrics: Metrics) -> None:
        self._operation = operation
        self._management = management
        self._access = access
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        exchange = Exchange(scope, receive, send)
        request = Request(exchange, self._management, self._access, self._metrics)
        operation, headers = self._operation, exchange.headers
        may = {"open": lambda: True, "read": request.may_read, "change": request.may_change}[operation.access]
        try:  # refused before the body is read
            if not may():
                wrong = b"authorization" in headers
                error = "The admin token is wrong." if wrong else "The admin token is required."
                raise Refused(401, doc.Problem(error, hint=HINT), (b"www-authenticate", b"Bearer"))
            if operation.access == "change" and operation.method == "POST":
                given = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
                # Without a token a web page could send a simple request in the sense of CORS.
                needs_one = operation.takes_config or self._access.mode == "open"
                if (given or needs_one) and given != b"application/json":
                    raise Refused(415, doc.Problem("The Content-Type must be application/json."))
            await operation.handle(request)
        except Refused as exc:
            await exchange.json(exc.status, jsonrpc.encode(exc.problem), *exc.headers)
        except GatewayError as exc:
            refused = refusal(exc)
            await exchange.json(refused.status, jsonrpc.encode(refused.problem), *refused.headers)
        except ClientGone:
            return


def refusal(problem: GatewayError) -> Refused:
    """Return the status and problem for an error; the only place with this mapping."""
    match problem:
        case ConfigError():
            return Refused(422, doc.Problem(_INVALID, problem.code, details=[str(line) for line in problem.problems]))
        case UnknownServer():
            return Refused(404, doc.Problem(str(problem)[:MAX_NAME], problem.code))
        case NotChangeable():
            return Refused(409, doc.Problem(str(problem), problem.code))
        case Busy() | ShuttingDown():
            return Refused(503, doc.Problem(str(problem), problem.code), (b"retry-after", b"1"))
        case _:
            return Refused(500, doc.Problem(str(problem), problem.code))
