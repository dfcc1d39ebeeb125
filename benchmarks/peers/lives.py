"""The children that outlive their gateway, peers included.

Method: a gateway is started before one child of the zoo, a client calls the child through it, and only the gateway gets
SIGTERM or SIGKILL. Counted are the processes with the child's mark that are alive 8 s later, longer than any grace
period; then they are ended. The children: well behaved; ignoring SIGTERM and the end of stdin; one with a grandchild
that keeps the pipes; one with a daemon (double fork, setsid); a shell that spawns a shell.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from benchmarks import oracle, progress
from benchmarks.answers import WrongAnswer
from benchmarks.callers import SseCaller
from benchmarks.endings import ZOO_SERVER
from benchmarks.peers.own import OWN
from benchmarks.peers.peer import SSE
from benchmarks.peers.running import POLL, WORK_WITHIN, running
from benchmarks.processes import Failed
from benchmarks.questions import make_question
from benchmarks.table import Claim, Figure, render
from benchmarks.wire import Connection, make_message

CHILDREN = {
    "echo": "well behaved",
    "ignores_term": "deaf",
    "grandchild_pipes": "grandchild",
    "daemon": "daemon",
    "shell": "shell",
}
ENDINGS = {"SIGTERM": signal.SIGTERM, "SIGKILL": signal.SIGKILL}
JOBS = 6  # gateways at once: most of the time is waiting
GRACE = 8.0  # seconds until a living process counts


def run(peers, options):
    rounds = options.rounds or 1
    peers = list({peer.pins or peer.name: peer for peer in reversed(peers)}.values())[::-1]  # one of each package
    cells = [(peer, ending, child) for peer in peers for ending in ENDINGS for child in CHILDREN]
    left = {}
    with ProcessPoolExecutor(JOBS) as pool:
        for peer in peers:
            peer.install()
        futures = {pool.submit(run_cell, *cell): cell for cell in cells * rounds}
        for future, (peer, ending, child) in futures.items():
            left.setdefault((peer.name, ending), {}).setdefault(child, []).append(future.result())
            progress.step(f"{peer.name}, {ending}, {child}: {future.result()}")
    own = [alive for (name, _), found in left.items() if name == OWN.name for each in found.values() for alive in each]
    worst = max(alive if isinstance(alive, int) else -1 for alive in own)
    claims = [Claim("children that outlive this gateway", Figure.of([worst]), most=0)]
    return claims, make_details(peers, left)


def run_cell(peer, ending, child):
    """Return the number of processes alive after the grace, or a text without one."""
    mark = f"lives-{secrets.token_hex(8)}"
    command = [sys.executable, "-I", "-S", "-E", str(ZOO_SERVER), child, mark]
    with oracle.subreaper():
        try:
            with running(peer, command, mark) as started:
                client = open_session(started)
                wait_child(mark, started.process.pid)
                os.kill(started.process.pid, ENDINGS[ending])
                _, left = oracle.wait_gone(partial(family, mark, started.process.pid), time.monotonic() + GRACE)
                del client  # until here its stream kept the session
                return len(oracle.still(left))
        except (Failed, OSError) as error:
            return str(error)


def family(mark, gateway):
    """Return the processes with the mark, except the gateway, which may have it too."""
    return {pid: start for pid, start in oracle.marked(mark).items() if pid != gateway}


def open_session(started):
    """Connect a client that lists the tools, which starts a child even per session."""
    frontend = next(iter(started.peer.frontends))
    spec, until = started.spec(frontend), time.monotonic() + WORK_WITHIN
    while True:
        try:
            if frontend == SSE:
                return SseCaller(spec, make_question(spec))
            connection = Connection.at(spec["url"], spec["era"])
            connection.open()
            connection.post(make_message("tools/list", {}, spec["era"], 1))
        except (WrongAnswer, OSError) as error:
            if time.monotonic() > until:
                raise Failed(f"no session: {error}") from error
            time.sleep(POLL)
        else:
            return connection


def wait_child(mark, gateway):
    until = time.monotonic() + WORK_WITHIN
    while not (found := family(mark, gateway)):
        if time.monotonic() > until:
            raise Failed("no child was started")
        time.sleep(POLL)
    return found


def make_details(peers, left):
    rows = []
    for peer in peers:
        for ending in ENDINGS:
            found = left[peer.name, ending]
            cells = [
                " to ".join(dict.fromkeys(str(alive) for alive in sorted(found[child], key=str))) for child in CHILDREN
            ]
            rows.append([peer.name, ending, *cells])
    table = render(["gateway", "ended by", *CHILDREN.values()], rows)
    data = [{"who": name, "ending": ending, "alive": found} for (name, ending), found in left.items()]
    return f"Processes alive {GRACE:.0f} s after the gateway was ended\n\n{table}", data
