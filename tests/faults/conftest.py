"""Gateways shared between the tests of this package, whose backends come and go."""

from __future__ import annotations

import pytest

from tests.contract.support import check_leaks

leak_check = pytest.fixture(autouse=True)(check_leaks)
