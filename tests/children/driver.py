"""A gateway reduced to its children: one per temper; reports JSON, stops at EOF.

Run as a program by the tests that kill it: `driver.py MARK TEMPER...`.
"""

import json
import os
import sys

import trio

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", ".."))

from gateway.processes.guard import ChildGuard, open_guard
from tests.children.support import QUICK, ready_child


async def keep(temper: str, mark: str, guard: ChildGuard, *, task_status: trio.TaskStatus[None]) -> None:
    async with ready_child(temper, mark, guard=guard, grace=QUICK):
        task_status.started()
        await trio.sleep_forever()


async def main(mark: str, tempers: list[str]) -> None:
    async with open_guard(subreaper=True) as guard, trio.open_nursery() as nursery:
        async with trio.open_nursery() as starting:
            for temper in tempers:
                starting.start_soon(nursery.start, keep, temper, mark, guard)
        print(json.dumps({"sentinel": guard.sentinel_pid}), flush=True)
        while await trio.lowlevel.FdStream(os.dup(0)).receive_some(100):
            pass
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, sys.argv[1].removeprefix("mark="), sys.argv[2:])
