"""The state machine of a pending call.

    ───> QUEUED <──────────────────────> SENT        each of these three ───> DONE
           ^                              ^                              ───> CANCELLED
           └────> WAITING_FOR_CLIENT <────┘

A call is QUEUED when the supervisor of its backend accepts it, and SENT when a session carries its request. It is
WAITING_FOR_CLIENT while a server request is open at its client, whether or not the call has been sent: a backend may
ask for a login before it can take calls. The last answer returns the call to the state before. A SENT call is QUEUED
again only if another attempt is permitted.

DONE and CANCELLED are final: the first of them wins. DONE has an outcome: from the backend, or an error of the gateway.
CANCELLED has none, and its client gets no response.

`PendingCall` has one method that changes the state; a transition that is not in the table raises `IllegalTransition`.
"""

from __future__ import annotations

import enum
from typing import Final


class CallState(enum.StrEnum):
    """The progress of a pending call."""

    QUEUED = "queued"
    SENT = "sent"
    WAITING_FOR_CLIENT = "waiting for the client"
    DONE = "done"
    CANCELLED = "cancelled"


FINAL: Final = frozenset({CallState.DONE, CallState.CANCELLED})

TRANSITIONS: Final[dict[CallState, frozenset[CallState]]] = {
    CallState.QUEUED: FINAL | {CallState.SENT, CallState.WAITING_FOR_CLIENT},
    CallState.SENT: FINAL | {CallState.QUEUED, CallState.WAITING_FOR_CLIENT},
    CallState.WAITING_FOR_CLIENT: FINAL | {CallState.QUEUED, CallState.SENT},
    CallState.DONE: frozenset(),
    CallState.CANCELLED: frozenset(),
}
