"""`python -m tests.interop.ahead`: installs the public packages that the suite wants, while the gates run.

The tests install what they miss, so that this only saves time, and a failure is left to them to report.
"""

from __future__ import annotations

import sys

from tests.conformance import suite
from tests.contract import bridge
from tests.interop import conftest
from tests.interop.cached import InstallError, is_offline


def main() -> None:
    if is_offline():
        return
    try:
        conftest.install()
        suite.install(suite.NEXT)
        bridge.install()
    except InstallError as error:
        print(f"not installed ahead of the tests: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
