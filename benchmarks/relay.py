"""A relay that only copies bytes, on trio: `python -m benchmarks.relay COMMAND...` runs the command between its pipes.

What it adds to a call is what nothing in the middle can do without: two more processes wake, and one more trio loop
reads and writes twice. The gateway is held against it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import trio

MOST = 65_536  # bytes of one read: what a pipe holds


async def copy(source, sink):
    while True:
        await trio.lowlevel.wait_readable(source)
        data = os.read(source, MOST)
        if not data:
            return
        os.write(sink, data)


async def relay(process):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(copy, process.stdout.fileno(), 1)
        await copy(0, process.stdin.fileno())
        process.stdin.close()


if __name__ == "__main__":
    with subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        trio.run(relay, child)
