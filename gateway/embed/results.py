"""Results of calls and lists for programs: the SDK's types, or explicit errors.

Importing this module imports `mcp_types` (0.15 s), which only programs that call tools need.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mcp_types import CallToolResult, Tool
from pydantic import ValidationError

from gateway import surrogates
from gateway.calls import Complete, Failure
from gateway.embed.errors import CallFailed, CallTimeout
from gateway.errors import BackendError, BackendTooSlow, GatewayError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.calls import Outcome

log = logging.getLogger("gateway.embed")


def failure(what: str, problem: GatewayError) -> CallFailed | CallTimeout:
    """Return the error for a failed call or list, which `what` describes."""
    reason = problem.reason if isinstance(problem, BackendError) else str(problem)
    kind = CallTimeout if isinstance(problem, BackendTooSlow) else CallFailed
    return kind(f"{what}: {reason}")


def tool_result(what: str, outcome: Outcome | None) -> CallToolResult:
    """Return a tool call's result; one with `isError` is one too.

    Raises:
        CallTimeout, CallFailed: there is none, or it is invalid.
    """
    match outcome:
        case Complete():
            try:
                # The SDK's types reject lone surrogates, from text cut inside an emoji; they become U+FFFD.
                return CallToolResult.model_validate_json(surrogates.without_lone_surrogates(outcome.whole()))
            except ValidationError as exc:
                text = f"{what}: its result is invalid: {_first_line(exc)}"
                raise CallFailed(text) from None
        case Failure():
            text = f"{what}: {outcome.message} (code {outcome.code})"
            raise CallFailed(text)
        case GatewayError():
            raise failure(what, outcome) from outcome
        case None:
            text = f"{what}: it was cancelled"
            raise CallFailed(text)
        case _:
            text = f"{what}: it requires input, which programs cannot give"
            raise CallFailed(text)


def tool_list(raws: Iterable[bytes]) -> list[Tool]:
    """Return the tools of a list; omit and log entries invalid for the SDK's type."""
    found: list[Tool] = []
    for raw in raws:
        try:
            found.append(Tool.model_validate_json(raw))
        except ValidationError as exc:
            log.warning("a tool was left out of a list: %s", _first_line(exc), extra={"event": "entry_left_out"})
    return found


def _first_line(exc: ValidationError) -> str:
    first = exc.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
