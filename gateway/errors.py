"""The error hierarchy, named by the responsible party.

`ConfigError` is the operator's, `BackendError` the backend's, `RequestError` the client's. Nothing here knows
JSON-RPC codes: they differ by era, and one function in `gateway.eras.errors` maps this tree to the wire.

Each class has a `code`: its name for programs, which never changes when a class or a message does. Clients see it as
`error.data.reason`, operators in metrics, in the audit, in the log, in the management API and in `--json` output.
`CODES` has them all, with what to do; the documentation shows it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, cast

from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_REASON: Final = 2_000
"""Maximum length of a peer's text in errors and warnings, since these are stored, logged and sent to clients."""


class GatewayError(Exception):
    """A failure that the gateway detected and can explain."""

    code: ClassVar[str] = "gateway_error"


class ConfigError(GatewayError):
    """The configuration is wrong; the operator must change it.

    `problems` holds every problem found, one readable line each, naming the server and the field.
    """

    code: ClassVar[str] = "invalid_config"

    def __init__(self, problems: Sequence[str], warnings: Sequence[str] = ()) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(str(line) for line in problems)  # exactly `str`: encoders refuse subclasses
        self.lines = tuple(problems)
        """The problems as written by the readers; a problem with one field names it (`config.findings.Line`)."""
        self.warnings = tuple(warnings)
        """Warnings in the same form: a misspelled key may explain a missing one."""


class BackendError(GatewayError):
    """A failure of a backend; the client sees -32603, with its name in `data`.

    The reason often quotes the backend, so it is truncated and its secrets are masked here, wherever the error is
    raised. `retry_after` is the backend's requested delay in seconds, if any.
    """

    code: ClassVar[str] = "backend_error"

    def __init__(self, backend: str, reason: str, *, retry_after: float | None = None) -> None:
        reason = SECRETS.mask_briefly(reason, MAX_REASON)
        super().__init__(f"backend {backend!r} {reason}")
        self.backend = backend
        self.reason = reason
        self.retry_after = retry_after


class BackendUnavailable(BackendError):
    """The backend is unavailable (stopped, failed, draining), so the call was not sent."""

    code: ClassVar[str] = "backend_unavailable"


class IllegalTransition(AssertionError):
    """A bug: a transition that is not in the lifecycle's table."""


class ServerDisabled(BackendError):
    """The config, or the management API, has disabled the server that the name belongs to."""

    code: ClassVar[str] = "server_disabled"

    def __init__(self, backend: str, reason: str = "is disabled") -> None:
        super().__init__(backend, reason)
        self.args = (f"server {backend!r} {self.reason}",)


class Suspect(NamedTuple):
    """A call in flight when the backend's process died."""

    call: int
    """The call's number in this run."""
    name: str
    """The target under the backend's own name."""
    origin: str
    """The caller, as in `gateway.calls.Caller.origin`."""


class BackendExited(BackendError):
    """The backend ended with the call in flight; whether the call took effect is unknown.

    `suspects` are the calls that may have crashed its process, latest first; empty if no process died.
    """

    code: ClassVar[str] = "backend_exited"

    def __init__(self, backend: str, reason: str, suspects: Sequence[Suspect] = ()) -> None:
        super().__init__(backend, reason)
        self.suspects = tuple(suspects)


class BackendTooSlow(BackendError):
    """The backend did not answer within the call's deadline and was sent a cancellation."""

    code: ClassVar[str] = "backend_timeout"


class BuffersFull(BackendError):
    """The gateway could not keep the backend's response, since its buffers are full (`max_buffered_bytes`)."""

    code: ClassVar[str] = "buffers_full"

    def __init__(
        self, backend: str, reason: str = "answered, but the gateway's buffers are full (max_buffered_bytes)"
    ) -> None:
        super().__init__(backend, reason)


class BackendProtocol(BackendError):
    """The backend sent an invalid response."""

    code: ClassVar[str] = "backend_protocol"

    status: int = 0
    """The HTTP status of the response; 0 if there is none."""
    body: bytes = b""
    """The body of the response, as far as it was read."""


class BackendUnfit(BackendProtocol):
    """The backend contradicts its config, so a restart would fail in the same way.

    `reason` names the option that the operator has to change.
    """

    code: ClassVar[str] = "backend_unfit"


class UnknownServer(GatewayError):
    """The config has no server of this name."""

    code: ClassVar[str] = "unknown_server"


class RequestError(GatewayError):
    """The client's request cannot be served. The text may quote the request and is truncated."""

    code: ClassVar[str] = "request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= MAX_REASON else f"{message[:MAX_REASON]}...")


class UnknownName(RequestError):
    """No backend offers this tool, prompt or resource; the client sees -32602.

    For a resource, the error's data has the URI.
    """

    code: ClassVar[str] = "unknown_name"

    def __init__(self, message: str, *, uri: str | None = None) -> None:
        super().__init__(message)
        self.uri = uri


class UnknownMethod(RequestError):
    """The method is not served; the client sees -32601, and modern ones HTTP 404."""

    code: ClassVar[str] = "unknown_method"


class InvalidParams(RequestError):
    """The parameters are invalid for the method; the client sees -32602."""

    code: ClassVar[str] = "invalid_params"


class Denied(RequestError):
    """The caller lacks access; the client sees the same answer as for an unknown name."""

    code: ClassVar[str] = "denied"


class Revoked(Denied):
    """The client's key was revoked during the call, which is cancelled."""

    code: ClassVar[str] = "revoked"

    def __init__(self) -> None:
        super().__init__("the API key has been revoked")


class CancelledByAdmin(RequestError):
    """The call was cancelled over the management API."""

    code: ClassVar[str] = "cancelled_by_admin"


class Busy(RequestError):
    """The backend's queue or a limit of the gateway is full; the client may retry.

    `retry_after` is the delay in seconds, if known.
    """

    code: ClassVar[str] = "busy"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GatewayLoop(RequestError):
    """The client connects through this same gateway, or through too many others."""

    code: ClassVar[str] = "gateway_loop"


class ShuttingDown(RequestError):
    """The gateway is draining and takes no new calls."""

    code: ClassVar[str] = "shutting_down"


class Meaning(NamedTuple):
    """The meaning of an error code and what to do about it."""

    when: str
    remedy: str


CODES: Final = {
    "backend_unavailable": Meaning(
        "the backend is stopped, failed, draining or unreachable; the call was not sent",
        "retry later; see `last_error` in `/health`",
    ),
    "backend_exited": Meaning(
        "the backend exited or closed the connection with the call in flight",
        "check whether the call took effect before you repeat it",
    ),
    "backend_timeout": Meaning(
        "the backend missed the deadline and was sent a cancellation; for a start: `connect_timeout`",
        "raise `call_timeout` or `connect_timeout`",
    ),
    "backend_protocol": Meaning("the backend sent an invalid answer", "report it to the author of the server"),
    "backend_unfit": Meaning(
        "the backend contradicts its config",
        "change the option that the message names",
    ),
    "backend_http_error": Meaning(
        "a remote server answered with an HTTP status but no MCP response",
        "see the status in the message; wait for `retryAfterMs` if present",
    ),
    "backend_refused": Meaning(
        "the backend refused a subscription with its own error, which the client sees",
        "follow its message",
    ),
    "login_required": Meaning("the backend requires an interactive login", "run `mcp-gateway login NAME`"),
    "server_disabled": Meaning(
        "the config or `mcp-gateway disable` has disabled the server",
        "run `mcp-gateway enable NAME`, or change the config",
    ),
    "unknown_name": Meaning("no backend offers this tool, prompt or resource", "list the names again"),
    "unknown_method": Meaning("the method is not served", "do not send it"),
    "invalid_params": Meaning("the parameters are invalid for the method", "fix the request"),
    "denied": Meaning(
        "the key may not use this name; the client sees the same answer as for `unknown_name`",
        "see `access` and `views`",
    ),
    "revoked": Meaning("the key was revoked while it was in use", "get a new key"),
    "cancelled_by_admin": Meaning(
        "the call was cancelled over the management API, also at the backend",
        "ask the gateway's operator before you repeat it",
    ),
    "busy": Meaning(
        "a queue is full, a rate or concurrency limit is reached, or too many bytes are buffered",
        "retry, after `retryAfterMs` if present",
    ),
    "buffers_full": Meaning(
        "the backend's response was dropped, because the gateway's buffers are full",
        "check whether the call took effect before you repeat it; raise `max_buffered_bytes`",
    ),
    "gateway_loop": Meaning(
        "the client connects through this gateway itself, or through more than three gateways",
        "remove one of the servers that the message names",
    ),
    "shutting_down": Meaning("the gateway is draining", "retry when the gateway is running again"),
    "gateway_restarted": Meaning(
        "the gateway started by `connect` ended with the request in flight and was restarted",
        "check whether the call took effect before you repeat it",
    ),
    "duplicate_id": Meaning("the client uses the id of a request that is still in flight", "use another id"),
    "unsupported_version": Meaning(
        "the request declares a protocol version that the gateway does not speak",
        "use one of `data.supported`",
    ),
    "header_mismatch": Meaning("the HTTP headers do not match the body", "fix the client"),
    "missing_credentials": Meaning("the request has no key or token", "send `Authorization: Bearer KEY`"),
    "invalid_token": Meaning("the key or token is invalid", "get a new one"),
    "insufficient_scope": Meaning("the token lacks a scope", "request the scopes named in the challenge"),
    "view_not_allowed": Meaning("the key is not for this view", "use a view of the key"),
    "unknown_host": Meaning("the `Host` is not an allowed name of this gateway", "add it to `access.allow_hosts`"),
    "unknown_origin": Meaning("the `Origin` is not an allowed web page", "add it to `access.allow_origins`"),
    "repeated_header": Meaning("a header that decides access appears twice", "send it once"),
    "authority_unavailable": Meaning(
        "the authorization server cannot be reached, so the token was not checked",
        "retry after `Retry-After`",
    ),
    "invalid_config": Meaning("the config is wrong", "fix what each line names"),
    "unknown_server": Meaning("the config has no server of this name", "see `GET /servers`"),
    "not_changeable": Meaning(
        "the server can only be changed in the file or program that configures it", "change it there"
    ),
    "listen_failed": Meaning("the address cannot be bound", "change the option that the message names"),
    "insecure_listen": Meaning(
        "the gateway would be open to a network without credentials",
        "configure `access`, or use `--insecure`",
    ),
    "command_failed": Meaning("a command failed", "follow the hint"),
    "invalid_usage": Meaning("the command line is wrong", "see `mcp-gateway COMMAND --help`"),
    "processes_left": Meaning("`doctor`: processes of the server outlive it", "fix the server"),
    "invalid_tools": Meaning("Python API: the given tools cannot be offered", "fix what each line names"),
    "not_initialized": Meaning("Python API: the server is disabled or its config is wrong", "see `get_server_status`"),
    "call_failed": Meaning("Python API: a call or a list failed; `__cause__` has the error", "see the cause"),
    "call_timeout": Meaning("Python API: the call or list took too long", "raise the timeout"),
    "mount_failed": Meaning("Python API: the application cannot mount the gateway", "change what the message names"),
    "closed": Meaning("Python API: the gateway was closed during the call", "open another gateway"),
}
"""Every code visible to clients, operators and programs, including those of refusals and of `doctor`."""


def code_of(problem: BaseException | None) -> str:
    """Return the code of the error that ended a start or session, if any."""
    match problem:
        case GatewayError():
            return problem.code
        case None:
            return BackendExited.code
        case OSError():
            return BackendUnavailable.code
        case _:  # a start that took longer than connect_timeout
            return BackendTooSlow.code


def first_in_group(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in a group, however deep."""
    first = group.exceptions[0]
    return (
        first_in_group(cast("BaseExceptionGroup[BaseException]", first))
        if isinstance(first, BaseExceptionGroup)
        else first
    )
