"""`python -m tests.contract.bridge_table`: run the bridge matrix and write its table into the documentation.

Nothing is written unless every cell has passed. `--print` shows the table instead.
"""

from __future__ import annotations

import argparse
import sys

import pytest

from tests.contract import bridge
from tests.support.gateway_process import ROOT

MATRIX = ROOT / "tests" / "contract" / "test_bridge.py"
PAGE_TEST = f"{MATRIX.relative_to(ROOT)}::test_the_documented_table_matches_this_run"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bin/bridge-table", description=__doc__)
    parser.add_argument("--print", action="store_true", help="show the table; change no file")
    options = parser.parse_args()
    status = pytest.main([str(MATRIX), "--real=servers", "--deselect", PAGE_TEST, "-q", "--rootdir", str(ROOT)])
    if status != 0 or not bridge.is_complete():
        print("bin/bridge-table: not every cell has passed; nothing is written", file=sys.stderr)
        return 1
    if options.print:
        print(bridge.render())
        return 0
    text = bridge.PAGE.read_text(encoding="utf-8")
    bridge.PAGE.write_text(bridge.put_in_page(text, bridge.render()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
