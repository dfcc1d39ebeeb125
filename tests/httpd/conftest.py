"""One certificate for all tests of the package."""

from __future__ import annotations

import pytest

from tests.support.certificates import tls_settings


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tls_settings(tmp_path_factory.mktemp("tls"))
