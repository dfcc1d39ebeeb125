"""Tracing as configured by the environment; without configuration, nothing is imported."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gateway.tracing.settings import TracingSettings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from gateway.tracing.spans import Tracing

log = logging.getLogger("gateway.tracing")


@contextmanager
def open_configured(environ: Mapping[str, str]) -> Generator[Tracing | None]:
    """Export spans and metrics while the context is open, if `OTEL_*` variables configure it.

    Leaving it takes at most `gateway.tracing.exporting.FLUSH_TIMEOUT` seconds.
    """
    settings = TracingSettings.of(environ)
    if not (settings.traces or settings.metrics):
        yield None
        return
    try:
        from gateway.tracing.exporting import open_tracing
    except ImportError as exc:
        text = "not tracing, though OTEL_* variables ask for it: %s; install the extra: trio-mcp-gateway[otel]"
        log.warning(text, exc, extra={"event": "tracing_off"})
        yield None
        return
    with open_tracing(settings) as tracing:
        yield tracing
