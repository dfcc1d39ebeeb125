"""`python -m tests.interop.ahead PART`: install the packages of one part's real peers.

The tests install what they miss, so that this only saves time, and a failure is left to them to report. What a part
needs besides, such as packages of the operating system, is installed here and nowhere else.
"""

from __future__ import annotations

import sys

from tests.conformance import suite
from tests.contract import bridge
from tests.interop import conftest
from tests.interop.cached import InstallError, chosen

INSTALLERS = {
    "clients": [conftest.install_clients, conftest.install_agents, bridge.install],
    "conformance": [lambda: suite.install(suite.NEXT)],
    "servers": [conftest.install_apps, conftest.install_axe, conftest.install_stateful_servers, bridge.install],
}


def main() -> None:
    chosen.choose(sys.argv[1])
    try:
        for part in sorted(chosen.parts):
            for install in INSTALLERS[part]:
                install()
    except InstallError as error:
        print(f"not installed ahead of the tests: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()
