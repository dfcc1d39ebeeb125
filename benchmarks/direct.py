"""The baseline for starting: a program that starts many echo servers together.

`python -m benchmarks.direct COUNT [--list]`: a trio program with one task per child: start it, `initialize`, and with
`--list` also `notifications/initialized` and `tools/list`, as a gateway must before it can offer anything. It prints
the seconds that this took, then ends all children.
"""

from __future__ import annotations

import json
import subprocess
import sys

import trio

from benchmarks.processes import backend
from benchmarks.wire import encode, initialize_params, make_message

WITHIN = 120.0  # seconds for all of them


async def use_one(command, count, listing, ready, over):
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        await ask(process, make_message("initialize", initialize_params(), "legacy", 1))
        if listing:
            await process.stdin.send_all(encode(make_message("notifications/initialized", {}, "legacy")) + b"\n")
            await ask(process, make_message("tools/list", {}, "legacy", 2))
        ready.append(process.pid)
        if len(ready) == count:
            over.set()
        await over.wait()
        await process.stdin.aclose()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def ask(process, message):
    await process.stdin.send_all(encode(message) + b"\n")
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some()
        if not data:
            raise EOFError("a child closed its stdout")
        line += data
    if json.loads(line)["id"] != message["id"] or b'"result"' not in line:
        raise ValueError(f"wrong answer: {line[:200]!r}")


async def main(count, listing):
    ready, over, begin = [], trio.Event(), trio.current_time()
    with trio.fail_after(WITHIN):
        async with trio.open_nursery() as nursery:
            for i in range(count):
                command = backend("echo", "--plain", "--tools", 20, "--name", f"b{i:03}")
                nursery.start_soon(use_one, command, count, listing, ready, over)
            await over.wait()
            print(trio.current_time() - begin, flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), "--list" in sys.argv)
