"""Asking an idle backend whether it still lives.

Only an idle one: while calls are under way their own deadlines show whether it works, and many servers do one thing at
a time, so that a silent one may just be busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway.errors import BackendError, BackendTooSlow

if TYPE_CHECKING:
    from gateway.backends.session import Session
    from gateway.config import ServerConfig


async def keep_asking(session: Session, config: ServerConfig, interval: float) -> None:
    """Ask every `interval` seconds, until cancelled.

    Any answer is a sign of life, an error as well. Raises:
        BackendTooSlow: there was none, within `connect_timeout` and while nothing else was under way.
    """
    while True:
        await trio.sleep(interval)
        if session.in_flight:
            continue
        outcome = await session.upkeep.ask_alive(timeout=config.connect_timeout)
        if isinstance(outcome, BackendTooSlow) and not session.in_flight:
            raise BackendTooSlow(config.name, f"did not answer a ping within {config.connect_timeout:g} s")
        if isinstance(outcome, BackendError) and not isinstance(outcome, BackendTooSlow):
            return  # the session is ending by itself
