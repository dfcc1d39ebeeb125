"""Tracing as the environment asks for it, with and without the SDK."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.gateway_process import ROOT

TRY = """
import os, sys
import gateway.app
from gateway.tracing.opening import open_configured
with open_configured(os.environ) as tracing:
    print(tracing is not None, any(name.startswith("opentelemetry.sdk") for name in sys.modules))
"""
WITHOUT_SDK = "import sys; sys.modules['opentelemetry.sdk'] = None\n"
ADDRESS = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_METRICS_EXPORTER": "none"}


@pytest.mark.parametrize(
    ("before", "environ", "printed", "warning"),
    [
        ("", {}, "False False", ""),
        ("", ADDRESS, "True True", ""),
        (WITHOUT_SDK, ADDRESS, "False True", "install the extra: trio-mcp-gateway[otel]"),
    ],
)
def test_sdk_is_imported_only_if_needed(before: str, environ: dict[str, str], printed: str, warning: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", before + TRY], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == printed
    assert warning in done.stderr
