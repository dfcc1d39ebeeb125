"""One tree of errors, named by whose fault they are.

`ConfigError` is the operator's, `BackendError` the backend's, `RequestError` the client's. Nothing here knows
JSON-RPC codes: they differ by era, and one function in `gateway.eras.errors` maps this tree to the wire.

Each class has a `code`: its name for programs, which never changes when a class or a message does. Clients see it as
`error.data.reason`, operators in metrics, in the audit, in the log, in the management API and in `--json` output.
README lists them all ("Error codes").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, cast

from gateway.masking import SECRETS

if TYPE_CHECKING:
    from collections.abc import Sequence


MAX_REASON: Final = 2_000
"""Characters of a peer's words in an error or a warning, which are kept, logged, and sent to clients."""


class GatewayError(Exception):
    """Any failure that the gateway itself found and can explain."""

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
        """The same as the readers have written them; those about one field know which (`config.findings.Line`)."""
        self.warnings = tuple(warnings)
        """What is only odd, in the same form: a misspelled key may be why another is missing."""


class BackendError(GatewayError):
    """A backend did not do what it should; the client sees -32603 with the backend's name in `data`.

    The reason often repeats what the backend has said, so it is cut and secrets are masked in it here, whatever raises
    the error. `retry_after` is the time in seconds after which the backend asks to be called again, where it says so.
    """

    code: ClassVar[str] = "backend_error"

    def __init__(self, backend: str, reason: str, *, retry_after: float | None = None) -> None:
        reason = SECRETS.mask_briefly(reason, MAX_REASON)
        super().__init__(f"backend {backend!r} {reason}")
        self.backend = backend
        self.reason = reason
        self.retry_after = retry_after


class BackendUnavailable(BackendError):
    """The backend is not there now (stopped, failed, draining), so the call was not sent."""

    code: ClassVar[str] = "backend_unavailable"


class IllegalTransition(AssertionError):
    """A bug: a lifecycle was to take a step that its transition table does not have."""


class ServerDisabled(BackendError):
    """The config, or the management API, has disabled the server that the name belongs to."""

    code: ClassVar[str] = "server_disabled"

    def __init__(self, backend: str, reason: str = "is disabled") -> None:
        super().__init__(backend, reason)
        self.args = (f"server {backend!r} {self.reason}",)


class Suspect(NamedTuple):
    """A call that a backend's process had when it died."""

    call: int
    """The call's number in this run."""
    name: str
    """What the backend calls the thing."""
    origin: str
    """Whose call it is, as `gateway.calls.Caller.origin` has it."""


class BackendExited(BackendError):
    """The backend went away while it had the call; whether the call took effect is unknown.

    `suspects` are the calls that may have made its process die, the last one sent first; empty where no process died.
    """

    code: ClassVar[str] = "backend_exited"

    def __init__(self, backend: str, reason: str, suspects: Sequence[Suspect] = ()) -> None:
        super().__init__(backend, reason)
        self.suspects = tuple(suspects)


class BackendTooSlow(BackendError):
    """The backend did not answer within the call's deadline; it was told to cancel."""

    code: ClassVar[str] = "backend_timeout"


class BackendProtocol(BackendError):
    """The backend answered with something that is no valid answer."""

    code: ClassVar[str] = "backend_protocol"

    status: int = 0
    """The HTTP status of the answer; 0 where there is none."""
    body: bytes = b""
    """The body of that answer, as far as it was read."""


class BackendUnfit(BackendProtocol):
    """The backend does not do what its config says of it, so that another start would fail like this one.

    `reason` names the option that the operator has to change.
    """

    code: ClassVar[str] = "backend_unfit"


class UnknownServer(GatewayError):
    """The config has no server of this name."""

    code: ClassVar[str] = "unknown_server"


class RequestError(GatewayError):
    """The client asked for something that cannot be done as asked. What it sent may be in the text, which is cut."""

    code: ClassVar[str] = "request_error"

    def __init__(self, message: str) -> None:
        super().__init__(message if len(message) <= MAX_REASON else f"{message[:MAX_REASON]}...")


class UnknownName(RequestError):
    """No backend offers this tool, prompt or resource; the client sees -32602, for a resource with its URI as data."""

    code: ClassVar[str] = "unknown_name"

    def __init__(self, message: str, *, uri: str | None = None) -> None:
        super().__init__(message)
        self.uri = uri


class UnknownMethod(RequestError):
    """The method is not served; the client sees -32601 (and HTTP 404 in the modern era)."""

    code: ClassVar[str] = "unknown_method"


class InvalidParams(RequestError):
    """The parameters do not have the form that the method demands; the client sees -32602."""

    code: ClassVar[str] = "invalid_params"


class Denied(RequestError):
    """The caller may not do this; the client sees the same answer as for an unknown name."""

    code: ClassVar[str] = "denied"


class Revoked(Denied):
    """The client's key was taken away while it asked; the call is cut off."""

    code: ClassVar[str] = "revoked"

    def __init__(self) -> None:
        super().__init__("the key that this was asked with was taken away")


class Busy(RequestError):
    """The backend's bounded queue, or the gateway's own limit, is full; the client may try again.

    `retry_after` is in how many seconds, where that is known.
    """

    code: ClassVar[str] = "busy"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GatewayLoop(RequestError):
    """The client is reached through this very gateway, or through too many others."""

    code: ClassVar[str] = "gateway_loop"


class ShuttingDown(RequestError):
    """The gateway is draining and takes no new calls."""

    code: ClassVar[str] = "shutting_down"


def code_of(problem: BaseException | None) -> str:
    """Return the code for the end of a start or session; None is an end without an error."""
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
