"""The audit log: one line per call, with caller, target, duration, outcome, sizes.

The fleet, the router and access control report to it from their own tasks; it formats a line and queues it for the log
or a file (`gateway.telemetry.line_file`). A suspended call is one line, written when it ends.
"""

from __future__ import annotations

import contextlib
import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from gateway import jsonrpc
from gateway.calls import Complete, Failure, InputRequired
from gateway.config.limits import RateLimit
from gateway.eras.errors import to_wire
from gateway.errors import BackendExited
from gateway.masking import SECRETS
from gateway.rates import LogRate
from gateway.renamed import with_former_fields
from gateway.telemetry import now_iso
from gateway.telemetry.formats import encode_line
from gateway.telemetry.line_file import LineFile

if TYPE_CHECKING:
    from gateway.calls import Call, Outcome
    from gateway.config import AuditSettings
    from gateway.errors import GatewayError
    from gateway.inflight.pending import PendingCall
    from gateway.supervisor.fleet import Fleet
    from gateway.supervisor.supervisor import Supervisor

MAX_NAME: Final = 200
"""Maximum length of a name from a client."""
ADMIN: Final = "admin"
"""The principal of the management API."""
MAX_KNOWN_CLIENT: Final = 1_024
"""Limit in bytes for caching a client's `clientInfo`; a longer one may differ each time."""
DENIED: Final = RateLimit(per_second=1.0, burst=30)
"""Rate of lines for refused requests: clients without a key must not fill the disk. The next line counts the rest."""
MAX_ARGUMENTS: Final = 65_536
"""Limit for a call's arguments in a line; of larger ones only the size is recorded."""
_TOOL_ERROR: Final = b'"isError"'

log = logging.getLogger("gateway.audit")


class _Client(msgspec.Struct):
    name: str = ""


class _Result(msgspec.Struct):
    isError: bool = False  # ruff: ignore[mixed-case-variable-in-class-scope] - the wire's name


_clients = msgspec.json.Decoder(_Client)
_results = msgspec.json.Decoder(_Result)


class Audit:
    """Records calls according to the present settings; None records nothing and costs nothing."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._settings: AuditSettings | None = None
        self._file: LineFile | None = None
        self._nursery: trio.Nursery | None = None
        self._writing: trio.CancelScope | None = None
        self._lost = 0
        self._denials = LogRate(DENIED)

    @property
    def dropped(self) -> int:
        """Total number of lines dropped before they reached a file."""
        return self._lost + (0 if self._file is None else self._file.dropped)

    def apply(self, settings: AuditSettings | None) -> None:
        """Apply new settings. Active calls are recorded by the settings in effect when they end."""
        old, self._settings = self._settings, settings
        if settings is None:
            self._fleet.unobserve(self._observe)
        elif old is None:
            self._fleet.observe(self._observe)
        if settings is not None and settings.file is None:
            log.setLevel(logging.INFO)  # always on, whatever the level of other loggers
        path = None if settings is None else settings.file
        if path == (None if self._file is None else self._file.path):
            return
        if self._file is not None:
            self._lost += self._file.dropped
        if self._writing is not None:
            self._writing.cancel(reason="the audit destination has changed")
        self._file = None if path is None else LineFile(path, note_lost=_lost)
        self._start()

    def _start(self) -> None:
        if self._file is not None and self._nursery is not None:
            self._writing = trio.CancelScope()
            self._nursery.start_soon(self._write, self._file, self._writing)

    async def _write(self, file: LineFile, scope: trio.CancelScope) -> None:
        with scope:
            await file.run()

    def reopen(self) -> None:
        """Reopen the file."""
        if self._file is not None:
            self._file.reopen()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Write lines until cancelled, then write the remaining ones."""
        async with trio.open_nursery() as self._nursery:
            self._start()
            task_status.started()
            await trio.sleep_forever()

    # Called by the fleet, the router and the access control.

    def _observe(self, _supervisor: Supervisor, pending: PendingCall | None, seconds: float) -> None:
        if pending is not None:
            outcome = pending.outcome
            word, code, reason = _ending(pending.call, outcome)
            size, crash = 0, None
            if isinstance(outcome, Complete):
                size = outcome.size
            elif isinstance(outcome, InputRequired):
                size = len(outcome.result)
            elif isinstance(outcome, Failure):
                size = len(outcome.data or b"")
            elif isinstance(outcome, BackendExited) and outcome.suspects:  # the last call sent is the prime suspect
                crash = "suspect" if outcome.suspects[0].call == pending.number else "in flight"
            self._record(pending.call, pending.number, pending.backend, seconds, word, code, reason, size, crash)

    def note_refused(self, call: Call, backend: str, seconds: float, problem: GatewayError | None) -> None:
        """Record a call that never reached a queue; without a problem, its client cancelled it."""
        if self._settings is None:
            return
        _, code, reason = _ending(call, problem)
        self._record(call, None, backend, seconds, "cancelled" if problem is None else "refused", code, reason, 0)

    def note_cancelled(self, pending: PendingCall) -> None:
        """Record that the management API cancels a call, whose own line follows at its end."""
        if self._settings is None:
            return
        line: dict[str, object] = {
            "call": pending.number,
            "principal": ADMIN,
            "method": "calls/cancel",
            "name": (pending.call.known_as or pending.call.name)[:MAX_NAME],
            "backend": pending.backend,
            "ms": round((trio.current_time() - pending.opened_at) * 1000, 3),
            "outcome": "answered",
        }
        self._put(f"call {pending.number} is cancelled by {ADMIN}", line)

    def note_denied(
        self, status: int, code: str, text: str, principal: str | None, address: str | None, path: str
    ) -> None:
        """Record a refused request: status, code, reason, principal, address and path."""
        if self._settings is None:
            return
        if not self._denials.allows():
            return
        text = SECRETS.mask(text)
        line: dict[str, object] = {
            "outcome": "denied",
            "code": status,
            "reason": code,
            "detail": text,
            "principal": principal,
            "address": address,
            "path": path[:MAX_NAME],
            "suppressed": self._denials.pop_suppressed() or None,
        }
        self._put(f"{status}: {text}", with_former_fields("audit", line))

    def _record(
        self,
        call: Call,
        number: int | None,
        backend: str,
        seconds: float,
        outcome: str,
        code: int | None,
        reason: str | None,
        size: int,
        crash: str | None = None,
    ) -> None:
        settings = self._settings
        if settings is None:
            return
        caller = call.caller
        line: dict[str, object] = {
            "call": number,
            "session": caller.label,
            "principal": caller.principal,
            "client": _client_name(bytes(caller.client_info)),
            "method": call.method,
            "name": (call.known_as or call.name)[:MAX_NAME],
            "backend": backend,
            "ms": round(seconds * 1000, 3),
            "outcome": outcome,
            "code": code,
            "reason": reason,
            "crash": crash,
            "bytes_in": sum(len(memoryview(span)) for span in call.params.values()),
            "bytes_out": size,
            **({} if call.trace is None else call.trace.ids),
        }
        if settings.arguments:
            arguments = call.params.get("arguments", jsonrpc.ABSENT)
            size_in = len(memoryview(arguments))
            if size_in > MAX_ARGUMENTS:
                line["arguments"] = f"({size_in} bytes)"
            elif size_in:
                line["arguments"] = msgspec.Raw(jsonrpc.one_line(bytes(arguments)))
        self._put(f"{line['name'] or call.method} {outcome}", line)

    def _put(self, text: str, line: dict[str, object]) -> None:
        line = {key: value for key, value in line.items() if value is not None}
        if self._file is not None:
            self._file.put(encode_line({"time": now_iso(), **line}).encode())
            return
        # `log.info` without the search for its caller on the stack, two thirds of its cost.
        record = logging.LogRecord(log.name, logging.INFO, __file__, 0, text, (), None)
        record.__dict__["fields"] = line
        log.handle(record)


def _lost(count: int) -> bytes:
    return jsonrpc.encode({"time": now_iso(), "dropped": count})


def _ending(call: Call, outcome: Outcome | None) -> tuple[str, int | None, str | None]:
    """Return an outcome's word, the client's error code, and the gateway's error."""
    match outcome:
        case None:
            return "cancelled", None, None
        case Complete():
            is_error = False
            if _TOOL_ERROR in outcome.result:  # rare
                with contextlib.suppress(*jsonrpc.UNDECODABLE):
                    is_error = jsonrpc.read(_results, outcome.result).isError
            return ("tool_error" if is_error else "answered"), None, None
        case InputRequired():
            return "input_required", None, None
        case Failure():
            return "error", outcome.code, None
        case _:
            return "failed", to_wire(outcome, call.caller.era, call).code, outcome.code


def _client_name(client_info: bytes) -> str | None:
    return (_known_client_name if len(client_info) <= MAX_KNOWN_CLIENT else _known_client_name.__wrapped__)(client_info)


@lru_cache(maxsize=1024)
def _known_client_name(client_info: bytes) -> str | None:
    try:
        return jsonrpc.read(_clients, client_info).name[:MAX_NAME] or None
    except jsonrpc.UNDECODABLE:
        return None
