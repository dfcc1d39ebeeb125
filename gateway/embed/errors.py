"""What programs that embed the gateway may catch: this project's errors under the built-in names that they expect.

Each is a `GatewayError` and at once the built-in error that says the same, so that a program need not import anything
to tell them apart.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from gateway import errors
from gateway.errors import ConfigError, GatewayError

if TYPE_CHECKING:
    from collections.abc import Generator

log = logging.getLogger("gateway.embed")


class InvalidConfig(ConfigError, ValueError):
    """The configuration handed in cannot be used; `problems` names the server and the field in each line."""


class InvalidTools(ConfigError, ValueError):
    """The tools handed in cannot be offered as described; `problems` has one line each. Nothing was changed."""

    code: ClassVar[str] = "invalid_tools"


class UnknownServer(errors.UnknownServer, KeyError):
    """The program names a server that its configuration does not have."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show it in quotes


class NotInitialized(GatewayError, RuntimeError):
    """The server's configuration is wrong or it is disabled, as was recorded when the configuration came in."""

    code: ClassVar[str] = "not_initialized"


class CallFailed(GatewayError, RuntimeError):
    """A call or a list could not be had; the message names the tool and the server, the cause is chained."""

    code: ClassVar[str] = "call_failed"


class CallTimeout(GatewayError, TimeoutError):
    """The same, because it took too long; the backend was told to cancel."""

    code: ClassVar[str] = "call_timeout"


class MountError(GatewayError, RuntimeError):
    """The application cannot serve the gateway; nothing was changed about it."""

    code: ClassVar[str] = "mount_failed"


class Closed(GatewayError, RuntimeError):
    """The gateway was closed while somebody waited for it, or has ended because of a bug, which is in the log."""

    code: ClassVar[str] = "closed"


@contextmanager
def log_failure(what: str) -> Generator[None]:
    """Log a failure of the block and raise it, as MountError where it is no error of this project."""
    try:
        yield
    except GatewayError as exc:
        log.error("%s: %s", what, exc)
        raise
    except Exception as exc:
        log.exception("%s", what)
        text = f"{what}: {exc}"
        raise MountError(text) from exc
