"""Opening the login page: through the client whose call needs it, or a local browser.

`oauth.browser` selects one of them (`gateway.config.oauth.OAuthSettings`). If neither works, the login fails with the
command to run. Nothing here waits for the result, which the `RedirectListener` receives.
"""

from __future__ import annotations

import logging
import os
import sys
import uuid
import webbrowser
from typing import TYPE_CHECKING, ClassVar, Final

import trio

from gateway import jsonrpc
from gateway.calls import Failure, ServerRequest
from gateway.eras import asks
from gateway.errors import BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import msgspec

    from gateway.config import ServerConfig
    from gateway.inflight.pending import PendingCall
    from gateway.oauth_client.redirect_listener import RedirectListener

OPEN_WAIT: Final = 10.0
"""Seconds for the command that opens a browser; one that is still running then counts as showing the page."""
OPEN_PAUSE: Final = 60.0
"""Minimum seconds between opening two login pages for one backend."""

log = logging.getLogger("gateway.backend")


class LoginRequired(BackendUnavailable):
    """The backend requires an interactive login; the message has the command."""

    code: ClassVar[str] = "login_required"

    def __init__(self, backend: str, why: str = "") -> None:
        super().__init__(backend, f"needs a login: run `mcp-gateway login {backend}`" + (f" ({why})" if why else ""))


def can_open() -> bool:
    """Return whether a browser would be visible. Without a display some take over the terminal."""
    if sys.platform in {"win32", "darwin"} or os.environ.get("BROWSER"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


async def open_page(url: str) -> bool:
    """Open a page in the default browser; return whether that apparently worked."""
    with trio.move_on_after(OPEN_WAIT):
        # May be abandoned: some browsers' commands run until the browser is closed.
        return await trio.to_thread.run_sync(webbrowser.open, url, abandon_on_cancel=True)
    return True


class LoginPrompt:
    """The enabled ways to open one backend's login page."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        can_open: Callable[[], bool] = can_open,
        open_page: Callable[[str], Awaitable[bool]] = open_page,
    ) -> None:
        self._name = config.name
        self._mode = config.oauth.browser if config.oauth is not None else "print"
        self._can_open = can_open
        self._open_page = open_page
        self._opened_at: float | None = None

    def passable(self, pending_calls: Sequence[PendingCall]) -> bool:
        """Return whether a way is available with these calls waiting."""
        return self._may_open(prompted=bool(pending_calls)) or (
            self._elicits and any(_askable(one) for one in pending_calls)
        )

    @property
    def _elicits(self) -> bool:
        return self._mode in {"auto", "elicit"}

    def _may_open(self, *, prompted: bool) -> bool:
        """Return whether a page may be opened; without a waiting call, once per run."""
        if self._mode not in {"auto", "open"} or not self._can_open():
            return False
        return self._opened_at is None or (prompted and trio.current_time() >= self._opened_at + OPEN_PAUSE)

    async def show(self, url: str, listener: RedirectListener, pending_calls: Sequence[PendingCall]) -> None:
        """Show the page to the user.

        Raises:
            LoginRequired: no way is available.
        """
        if self._elicits and elicit(self._name, url, listener, [one for one in pending_calls if _askable(one)]):
            return
        if self._may_open(prompted=bool(pending_calls)):
            self._opened_at = trio.current_time()
            log.warning("backend %r needs a login: opened its page in the browser", self._name)
            if await self._open_page(url):
                return
        raise LoginRequired(self._name)


def _params(backend: str, url: str) -> dict[str, msgspec.Raw]:
    return {
        "mode": jsonrpc.raw("url"),
        "message": jsonrpc.raw(f"The server {backend!r} behind this gateway needs you to log in."),
        "url": jsonrpc.raw(url),
        "elicitationId": jsonrpc.raw(str(uuid.uuid4())),
    }


def _askable(pending: PendingCall) -> bool:
    """Return whether this call's client supports URL elicitation (2026-07-28 client/elicitation, "URL mode")."""
    missing = asks.missing_capability(pending.call.caller, asks.ELICITATION, _params("", ""))
    return missing is None and not pending.over


def elicit(backend: str, url: str, listener: RedirectListener, pending_calls: Sequence[PendingCall]) -> bool:
    """Ask the first of these calls' clients to open the page.

    If that call ends without an answer, ask the next one.

    Returns False if no client can be asked. A client that declines ends the login.
    """
    left = list(pending_calls)

    def ask_next() -> bool:
        pending = next((one for one in left if not one.over), None)
        if pending is None:
            return False
        del left[: left.index(pending) + 1]
        ask = ServerRequest(asks.ELICITATION, _params(backend, url), settle)
        listener.on_settled = lambda: pending.withdraw_ask(ask)
        pending.ask(ask)
        return True

    def settle(reply: bytes | Failure) -> None:
        if isinstance(reply, Failure):
            if not ask_next():
                listener.refuse(f"the client could not be asked: {reply.message}")
            return
        try:
            action = jsonrpc.decode_string(jsonrpc.decode_object(reply)["action"])
        except (KeyError, ValueError):
            action = ""
        if action != "accept":
            listener.refuse("the client declined")

    return ask_next()
