"""Run a script in a process whose spans are exported: `traced.py SERVICE SCRIPT ARGUMENT...`.

Where to is in the `OTEL_*` variables. The Python SDK of MCP then makes spans of what it sends and serves.
"""

from __future__ import annotations

import runpy
import sys

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if __name__ == "__main__":
    _, service, script, *arguments = sys.argv
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
