"""The `OTEL_*` variables that the gateway reads."""

from __future__ import annotations

import pytest

from gateway.tracing.settings import TracingSettings

ADDRESS = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("environ", "traces", "metrics"),
    [
        ({}, False, False),
        ({"OTEL_SERVICE_NAME": "x"}, False, False),
        (ADDRESS, True, True),
        (ADDRESS | {"OTEL_SDK_DISABLED": "TRUE"}, False, False),
        (ADDRESS | {"OTEL_TRACES_EXPORTER": "none"}, False, True),
        (ADDRESS | {"OTEL_METRICS_EXPORTER": "none"}, True, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9"}, True, False),
        ({"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:9"}, False, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True, False),
    ],
)
def test_what_is_exported(environ: dict[str, str], *, traces: bool, metrics: bool) -> None:
    settings = TracingSettings.of(environ)
    assert (settings.traces, settings.metrics) == (traces, metrics)


@pytest.mark.parametrize(
    ("environ", "warning"),
    [
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "x"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "inf"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "nan"}, "OTEL_BSP_MAX_QUEUE_SIZE"),
        ({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "0.5"}, "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "-1"}, "OTEL_BSP_SCHEDULE_DELAY"),
        ({"OTEL_BSP_SCHEDULE_DELAY": "1e300"}, "OTEL_BSP_SCHEDULE_DELAY"),
        ({"OTEL_TRACES_SAMPLER": "jaeger_remote"}, "OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER=zipkin"),
    ],
)
def test_wrong_values_warn_and_have_no_effect(
    environ: dict[str, str], warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = TracingSettings.of(environ)
    settings.make_sampler()
    assert warning in caplog.text
    assert (settings.max_queue, settings.max_batch, settings.span_interval) == (2_048, 512, 5.0)
    assert not settings.traces


def test_a_batch_fits_into_the_queue() -> None:
    assert TracingSettings.of({"OTEL_BSP_MAX_QUEUE_SIZE": "10"}).max_batch == 10
