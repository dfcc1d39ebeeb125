"""The owner of the backends alone: its limit, if other processes served HTTP.

`python -m benchmarks.owner SPEC` has router, supervisor and a stdio backend in one process, without a frontend, and
`window` tasks that call one after the other for `seconds`; the result is the load generator's, as JSON. The CPU time of
a call is the process's own, so its inverse is the rate at which one core would be full.
"""

from __future__ import annotations

import json
import sys
import time

import trio

from benchmarks.answers import FIRST_ID, TEXT, WrongAnswer
from benchmarks.clock import ClosedLoop, now

WINDOWS = (1, 16, 64)


async def drive(spec):
    from gateway.embed.connections import NO_REQUESTS, make_call
    from gateway.embed.native import PROGRAM, open_gateway

    command, *args = spec["command"]
    ids = iter(range(FIRST_ID, 10 * FIRST_ID))
    begun = []
    async with open_gateway({"mcpServers": {"echo": {"command": command, "args": args}}}) as gateway:
        router = gateway.router

        async def call():
            text = TEXT % next(ids)
            pending = await router.submit(make_call("echo.echo", "echo.echo", {"text": text}, PROGRAM))
            try:
                outcome = await pending.wait_outcome(NO_REQUESTS)
            finally:
                router.release(pending)
            if text.encode() not in bytes(outcome.result):
                raise WrongAnswer(f"{text!r} got {bytes(outcome.result)[:300]!r}")

        async def repeat(clock):
            while True:
                sent = now()
                await call()
                at = now()
                if at >= clock.begin and not begun:
                    begun.append(time.process_time())
                if not clock.add(sent, at):
                    return

        await call()  # the backend is ready
        clock = ClosedLoop(spec["seconds"])
        async with trio.open_nursery() as nursery:
            for _ in range(spec["window"]):
                nursery.start_soon(repeat, clock)
        spent = time.process_time() - begun[0]
    result = clock.result()
    return result | {"cpu_per_call": spent / result["calls"]}


def measure(rounds, seconds, run):
    """Window -> results of the rounds; `run(SPEC)` starts this module with it."""
    from benchmarks.processes import backend

    results = {}
    for _ in range(rounds):
        for window in WINDOWS:
            results.setdefault(window, []).append(run({"command": backend(), "window": window, "seconds": seconds}))
    return results


if __name__ == "__main__":
    print(json.dumps(trio.run(drive, json.loads(sys.argv[1]))))
