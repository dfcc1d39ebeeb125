"""Errors for embedding programs, which are also the corresponding built-in errors.

Each is both a `GatewayError` and the corresponding built-in error, so that a program can distinguish them without
imports.
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
    """The given configuration is invalid; `problems` names the server and the field in each line."""


class InvalidTools(ConfigError, ValueError):
    """The given tools cannot be offered; `problems` has one line each. Nothing was changed."""

    code: ClassVar[str] = "invalid_tools"


class UnknownServer(errors.UnknownServer, KeyError):
    """The program names a server that is not in its configuration."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show it in quotes


class NotInitialized(GatewayError, RuntimeError):
    """The server's configuration is wrong or disabled, as recorded when the configuration was read."""

    code: ClassVar[str] = "not_initialized"


class CallFailed(GatewayError, RuntimeError):
    """A call or list failed; the message names tool and server, the cause is chained."""

    code: ClassVar[str] = "call_failed"


class CallTimeout(GatewayError, TimeoutError):
    """A call or list timed out; the backend was sent a cancellation."""

    code: ClassVar[str] = "call_timeout"


class MountError(GatewayError, RuntimeError):
    """The application cannot serve the gateway and was not changed."""

    code: ClassVar[str] = "mount_failed"


class Closed(GatewayError, RuntimeError):
    """The gateway was closed during a call, or ended because of a logged bug."""

    code: ClassVar[str] = "closed"


@contextmanager
def log_failure(what: str) -> Generator[None]:
    """Log and raise the block's failure, as MountError unless it is a `GatewayError`."""
    try:
        yield
    except GatewayError as exc:
        log.error("%s: %s", what, exc)
        raise
    except Exception as exc:
        log.exception("%s", what)
        text = f"{what}: {exc}"
        raise MountError(text) from exc
