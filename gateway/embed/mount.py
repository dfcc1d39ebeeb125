"""Routes for the gateway in the FastAPI or Starlette application of another program.

It uses plain routes, since a `Mount` would answer `POST /mcp` with a redirect, and CORS around each of them, since an
application that has started accepts no more middleware. A route leads to a `SwappableApp`: a remount swaps the
application that it calls. Routes are added, and removed, in one step.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, Final, cast

from gateway.access.keys import credential_in, digest_of, repeated_header, repeated_text
from gateway.access.refusal import Refusal
from gateway.embed.bridge import answer
from gateway.embed.errors import MountError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.frontends.http.exchange import Receive, Scope, Send
    from gateway.frontends.http.mcp_app import Paths

    AsgiApp = Any

CORS_METHODS: Final = ("GET", "POST", "DELETE")
CORS_EXPOSED: Final = ("Mcp-Session-Id", "WWW-Authenticate")
PREFLIGHT_FOR: Final = 600
"""Seconds for which a browser may cache a preflight response."""
CHALLENGE: Final = (b"www-authenticate", b"Bearer")
JSON: Final = (b"content-type", b"application/json")


class SwappableApp:
    """The application of a route; `app` is the current target, None while there is none."""

    def __init__(self, app: AsgiApp) -> None:
        self.app: AsgiApp | None = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request to the current application."""
        if self.app is None:
            await answer(send, 503)
        else:
            await self.app(scope, receive, send)


class KeyCheck:
    """Requires the key as `Authorization: Bearer KEY` or `X-API-Key: KEY`; others get 401."""

    def __init__(self, app: AsgiApp, key: str) -> None:
        self._app = app
        self._digest = digest_of(key.encode("utf-8"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check the request before reading its body.

        Headers have the same precedence as in the HTTP frontends.
        """
        headers: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in scope["headers"]]
        if repeated := repeated_header(headers):
            body = Refusal(400, "repeated_header", repeated_text(repeated)).encode()
            await answer(send, 400, JSON, body=body)
        elif hmac.compare_digest(
            digest_of(credential_in(dict(headers))), self._digest
        ):  # digests of equal length reveal nothing
            await self._app(scope, receive, send)
        else:
            await answer(send, 401, CHALLENGE)


def guarded(app: AsgiApp, *, key: str | None, origins: Sequence[str]) -> AsgiApp:
    """Wrap the application in the key check, if any, and in CORS for these origins."""
    if key is not None:
        app = KeyCheck(app, key)
    if not origins:
        return app
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_methods=list(CORS_METHODS),
        allow_headers=["*"],  # each tool may have header parameters of its own
        expose_headers=list(CORS_EXPOSED),
        max_age=PREFLIGHT_FOR,
    )


class MountedRoutes:
    """The routes of an application that lead to one swappable application."""

    def __init__(self, app: object, paths: Paths) -> None:
        """Check the application without changing it.

        Raises:
            MountError: it is not a FastAPI or Starlette application, or already uses one of the paths.
        """
        self.app = app
        routes: object = getattr(getattr(app, "router", None), "routes", None)
        if not isinstance(routes, list):
            text = f"the application must be FastAPI's or Starlette's, not {type(app).__name__}"
            raise MountError(text)
        self._routes = cast("list[object]", routes)
        self._mine: list[object] = []
        taken = {str(getattr(route, "path", "")).rstrip("/") for route in self._routes}
        for path in paths.all():
            if not path.startswith("/") or path == "/":
                text = f"a path must begin with '/' and name something, not {path!r}"
                raise MountError(text)
            if path.rstrip("/") in taken:
                text = f"the application has a route {path!r} already; choose another path"
                raise MountError(text)
        self._paths = paths

    def open(self, swappable: SwappableApp) -> None:
        """Insert the routes before all others, so that a catch-all route cannot hide them."""
        from starlette.routing import Route

        bare = [path.rstrip("/") for path in self._paths.all()]
        self._mine = [Route(path, swappable, include_in_schema=False) for one in bare for path in (one, one + "/")]
        self._routes[:0] = self._mine

    def close(self) -> None:
        """Remove the routes. Idempotent."""
        mine = set(map(id, self._mine))
        self._routes[:] = [route for route in self._routes if id(route) not in mine]
