"""One pair of gateways for the whole suite: the same backends behind both frontends."""

from __future__ import annotations

import pytest

from tests.contract.support import FAST, SHUTDOWN_GRACE, check_leaks, open_gateways
from tests.support.gateway_process import echo_backend, faulty_backend

EXTRA = {"restart": FAST, "shutdown_grace": SHUTDOWN_GRACE}
CONFIG = {
    "mcpServers": {
        "legacy": echo_backend("--tools", 2) | EXTRA,
        "modern": echo_backend("--era", "modern", "--tools", 2) | EXTRA,
        "odd": faulty_backend("odd_result", "--variant", "plain") | EXTRA,
        "odd_modern": faulty_backend("odd_result", "--variant", "plain", "--era", "modern") | EXTRA,
        "doubled": faulty_backend("odd_result", "--variant", "duplicate") | EXTRA,
        "bare": faulty_backend("odd_result", "--variant", "missing_content") | EXTRA,
        "error": faulty_backend("error_result") | EXTRA,
        "late": faulty_backend("progress_after_result") | EXTRA,
        "changing": faulty_backend("list_changed") | EXTRA,
        "changing_modern": faulty_backend("list_changed", "--era", "modern") | EXTRA,
    },
    "gateway": {"name": "office", "start_grace": 15, "keep_alive_interval": 0.15, "list_change_delay": 0.05},
}


@pytest.fixture(scope="package")
def gateways():
    with open_gateways(CONFIG, ("stdio", "streamable-http,sse")) as found:
        yield found


leak_check = pytest.fixture(autouse=True)(check_leaks)
