"""The `OTEL_*` variables that the gateway reads; the exporters read their own.

Only the values are read here, without the SDK: a gateway whose environment has none of them must not import it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from gateway.tracing.sampling import DEFAULT, Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
OTLP: Final = "otlp"
NONE: Final = "none"

MAX_VALUE: Final = 1e9
"""Milliseconds, spans: an infinite number is neither a size nor a time to wait."""

log = logging.getLogger("gateway.tracing")


class TracingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is exported, and when. Times are seconds."""

    traces: bool = False
    metrics: bool = False
    sampler: str = DEFAULT
    sampler_argument: str = ""
    max_queue: int = 2_048
    max_batch: int = 512
    span_interval: float = 5.0
    metric_interval: float = 60.0

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> TracingSettings:
        """Read the variables. Without an endpoint, or an exporter by name, nothing is exported."""

        def number(name: str, default: float) -> float:
            try:
                value = float(environ.get(name) or default)
            except ValueError:
                value = 0.0
            if not 1 <= value <= MAX_VALUE:  # nor NaN
                log.warning("%s is not a number from 1 to %g; using %g", name, MAX_VALUE, default)
                return default
            return value

        def exports(signal: str) -> bool:
            named = environ.get(f"OTEL_{signal}_EXPORTER", "")
            if named and named not in {OTLP, NONE}:
                log.warning("OTEL_%s_EXPORTER=%s is not supported; the gateway exports over OTLP only", signal, named)
            is_addressed = bool(environ.get(ENDPOINT) or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))
            return named == OTLP or (is_addressed and not named)

        if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
            return cls()
        max_queue = int(number("OTEL_BSP_MAX_QUEUE_SIZE", 2_048))
        return cls(
            traces=exports("TRACES"),
            metrics=exports("METRICS"),
            sampler=environ.get("OTEL_TRACES_SAMPLER") or DEFAULT,
            sampler_argument=environ.get("OTEL_TRACES_SAMPLER_ARG", ""),
            max_queue=max_queue,
            max_batch=min(int(number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)), max_queue),
            span_interval=number("OTEL_BSP_SCHEDULE_DELAY", 5_000) / 1_000,
            metric_interval=number("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1_000,
        )

    def make_sampler(self) -> Sampler:
        """Return the sampler; the default one if the variables name none that the gateway knows."""
        try:
            return Sampler.named(self.sampler, self.sampler_argument)
        except ValueError as exc:
            log.warning("OTEL_TRACES_SAMPLER: %s; using %s", exc, DEFAULT)
            return Sampler()
