"""Question: does every answer reach its own client, once, and is nothing left?

Method: many concurrent clients of one gateway over HTTP, before a stdio server with a process for each client
(`session: client`), and a shared one. Most clients are legacy sessions with two calls in flight, every fifth sends
modern requests; from random streams with a fixed seed they call, cancel, disconnect, resume, get requests (elicitation,
sampling) and answer immediately, late, twice or never, end their sessions or abandon them, and begin again. Every text
is unique. Counted are messages that arrived in the wrong place, not at all, or twice; and the gateway's resources when
all have gone, less those after a short run before. Exits with status 1 if anything was wrong, whatever the options.

With `--minutes N`: does anything grow? Clients over HTTP and SSE, in both eras, before backends over pipes, HTTP and
SSE, with reloads, crashes, large results, logins, suspended calls and clients that vanish. Memory, file descriptors,
tasks, threads and processes of the gateway are sampled some 300 times, each time after a garbage collection. Of each
series the first sixth is discarded and the rest divided into 20 blocks; a line is fitted to the means of the blocks.
Its standard error is corrected for the correlation of neighbouring blocks, and a slope of more than 3.3 standard errors
fails the run (about one clean run in a hundred does, more if the blocks correlate strongly). The plot goes into
`--report`. The stdio frontend, which has a process of its own for one client, takes no part.
"""

from __future__ import annotations

import trio

from benchmarks import soak_long
from benchmarks.memory import read_status
from benchmarks.processes import backend, config_file, config_of, gateway_command, serving
from benchmarks.resources import hold, settle
from benchmarks.soak_client import MISTAKES, WORDS, Tally
from benchmarks.soak_legacy import LegacyClient
from benchmarks.soak_modern import ModernClient
from benchmarks.table import Claim, Figure, render

IDLE = 2.0  # seconds after which an abandoned session ends
WARM = 1.0  # seconds of the run before
MODERN = 5  # one client in this many
GROWTH = 30  # MB of memory that may stay: buffers and fragmentation
DEFAULT_SEED = 20260728


def add_arguments(parser):
    parser.add_argument("--seconds", type=float, help="seconds of traffic (60; quick: 5)")
    parser.add_argument("--minutes", type=float, metavar="N", help="a long soak, which looks for growth (at least 2)")
    parser.add_argument("--clients", type=int, help="clients at once (50; quick: 10; with --minutes: 16)")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED, help="of what the clients do (%(default)s)")


def run(options):
    if options.minutes:
        return soak_long.run(options, make_config)
    seconds = options.seconds or (5.0 if options.quick else 60.0)
    clients = options.clients or (10 if options.quick else 50)
    with config_file(make_config(clients)) as path, serving(gateway_command(path, "streamable-http")) as gateway:
        gateway.wait_ready(2)
        at_rest = hold(gateway)
        traffic(gateway, min(clients, 10), WARM, seed=0, patient=False)
        settle(gateway, {name: at_rest[name] for name in ("processes", "calls in flight")})
        before = hold(gateway)
        memory = read_status(gateway.pid)["VmRSS"]
        tally = traffic(gateway, clients, seconds, seed=options.seed, patient=not options.quick)
        busy = read_status(gateway.pid)["VmRSS"]
        after, settled = settle(gateway, before)
        grown = read_status(gateway.pid)["VmRSS"] - memory
    claims = make_claims(tally, before, after, size=f"{clients} clients, {seconds:g} s")
    claims += [
        Claim("RSS: growth when all have gone", Figure.of([grown]), "MB", 1e-6, most=GROWTH),
        Claim("RSS: growth at the end of the traffic", Figure.of([busy - memory]), "MB", 1e-6),
        Claim("until all was gone", Figure.of([settled]), "s"),
    ]
    rows = [[name, count] for name, count in sorted(tally.done.items())]
    data = {"seed": options.seed, "done": tally.done, "wrong": tally.reported, "before": before, "after": after}
    text = render([f"done, with seed {options.seed}", "times"], rows)
    return claims, ("\n".join([text, *(["", *tally.reported] if tally.reported else [])]), data)


def fatal(claims):
    """Return whether any promise was broken; none of them is about speed."""
    return not all(claim.reached for claim in claims)


def make_config(clients):
    config = config_of({"own": backend("bridge"), "shared": backend()})
    config["mcpServers"]["own"] |= {
        "session": "client",
        "max_client_sessions": 10 * clients,  # abandoned ones stay for a while
        "shutdown_grace": 2,
    }
    config["mcpServers"]["shared"] |= {"max_concurrency": 10 * clients, "queue_size": 20 * clients}
    config["gateway"] = {"session_idle_timeout": IDLE, "sse_after": 0.15, "max_sessions": 20 * clients}
    return config


def traffic(gateway, clients, seconds, *, seed, patient):
    """Run the clients; return their steps and mistakes."""
    tally = Tally(patient=patient)
    url = f"http://127.0.0.1:{gateway.port}/mcp"

    async def main():
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for number in range(clients):
                kind = ModernClient if number % MODERN == MODERN - 1 else LegacyClient
                nursery.start_soon(kind(f"client-{number}", url, seed, tally).run, until)

    trio.run(main)
    return tally


def make_claims(tally, before, after, *, size):
    claims = [Claim(f"steps that clients took, {size}", Figure.of([sum(tally.done.values())]))]
    claims += [Claim(WORDS[mistake], Figure.of([tally.mistakes[mistake]]), most=0) for mistake in MISTAKES]
    for name, count in after.items():
        claims.append(Claim(f"left behind: {name}", Figure.of([max(0, count - before[name])]), most=0))
    return claims
