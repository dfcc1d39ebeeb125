"""The long soak, `bin/bench soak --minutes N`: does anything grow?

The clients of the ordinary soak run beside those of `soak_paths`, so that both eras, HTTP and SSE clients, and backends
over pipes, HTTP and SSE take part, with reloads, crashes, large results, logins and clients that vanish. Memory,
descriptors, tasks, threads and processes are sampled; a slope above its margin of error (`trend`) fails the run.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import ExitStack
from functools import partial
from random import Random
from statistics import fmean

import trio

from benchmarks import progress, reload, trend
from benchmarks.plots import Plot
from benchmarks.processes import Failed, backend, config_file, gateway_command, serving, serving_peer
from benchmarks.resources import descendants, threads
from benchmarks.soak_client import BREAKAGES, MISTAKES, WORDS, Tally
from benchmarks.soak_legacy import LegacyClient
from benchmarks.soak_modern import ModernClient
from benchmarks.soak_paths import Crasher, LoginClient, PathClient, SseClient
from benchmarks.table import Claim, Figure, Table
from tests.peers.oauth_peer import open_oauth_peer

CLIENTS = 16  # of the ordinary soak and of the paths, together
SAMPLES = 300  # of one run, but not more than one a second
SAMPLE_WITHIN = 20.0  # seconds until the gateway has reported its own figures
IDLE = 10.0  # seconds until an abandoned session ends; other load may stall the clients for less than that
SHORTEST = 2  # minutes
PLOTTED = 60  # points of a series
LONGEST_PAUSE = 8.0  # seconds between two reloads, at most
EAGER = 7  # backends that are ready without a client
UNITS = {
    "RSS": ("MB", 1e-6),
    "descriptors": ("", 1.0),
    "tasks": ("", 1.0),
    "threads": ("", 1.0),
    "processes": ("", 1.0),
}


def run(options, make_config):
    """Claims, and the details as (pieces, data). `make_config(clients)` is the ordinary soak's."""
    if options.minutes < SHORTEST:
        raise SystemExit(f"--minutes must be at least {SHORTEST}, or there are too few samples")
    clients = options.clients or CLIENTS
    tally = Tally(patient=True)
    samples = trio.run(partial(measure, options.minutes * 60, clients, options.seed, tally, make_config(clients)))
    return make_claims(tally, samples, options.minutes, clients), make_details(tally, samples, options.seed)


async def measure(seconds, clients, seed, tally, base):
    """Return the samples: name -> [(seconds, value), ...]."""
    async with open_oauth_peer() as login_peer:
        with ExitStack() as stack:
            remote = stack.enter_context(serving([sys.executable, "-m", "benchmarks.http_echo"]))
            sse = stack.enter_context(serving_peer("--server", "sse"))
            make_config = partial(config_with, base, remote.port, sse.port, login_peer.url)
            path = stack.enter_context(config_file(make_config(0)))
            command = gateway_command(path, "streamable-http,sse", "benchmarks.reporting")
            gateway = stack.enter_context(serving([*command, "--no-watch", "--admin-token", reload.TOKEN]))
            await trio.to_thread.run_sync(gateway.wait_ready, EAGER)
            changes = reload.Changes(gateway, path, Random(seed), tally, make_config, longest_pause=LONGEST_PAUSE)
            url = f"http://127.0.0.1:{gateway.port}/mcp"
            until = trio.current_time() + seconds
            async with trio.open_nursery() as nursery:
                async with trio.open_nursery() as busy:
                    nursery.start_soon(change_forever, changes)
                    busy.start_soon(LoginClient("login", url, seed, tally, login_peer).run, until)
                    for client in make_clients(clients, url, seed, tally):
                        busy.start_soon(client.run, until)
                    samples = await sample(gateway, until, max(1.0, seconds / SAMPLES))
                nursery.cancel_scope.cancel()
    return samples


def config_with(base, http_port, sse_port, login_url, number):
    """Return the config of one reload: unchanged, changing and temporary servers."""
    config = json.loads(json.dumps(base))
    config["gateway"]["session_idle_timeout"] = IDLE
    servers = config["mcpServers"]
    changing = reload.make_config(number)["mcpServers"]
    servers |= {name: changing[name] for name in ("change", "come") if name in changing}
    command, *args = backend()
    servers["large"] = {"command": command, "args": args}
    servers["fragile"] = {"command": command, "args": args, "restart": {"healthy_after": 0.3}, "crash_limit": False}
    servers["remote"] = {"url": f"http://127.0.0.1:{http_port}/mcp"}
    servers["sse"] = {"url": f"http://127.0.0.1:{sse_port}/mcp", "type": "sse"}
    login = {"grant": "client_credentials", "client_id": "robot", "client_secret": "s3cr3t"}
    servers["locked"] = {"url": login_url, "era": "legacy", "oauth": login}
    return config


def make_clients(count, url, seed, tally):
    yield SseClient("sse", url, seed, tally)
    yield Crasher("crasher", url, seed, tally, era="modern")
    for number in range(count):
        name = f"client-{number}"
        match number % 5:
            case 0 | 1:
                yield LegacyClient(name, url, seed, tally)
            case 2:
                yield ModernClient(name, url, seed, tally)
            case 3:
                yield PathClient(name, url, seed, tally, era="legacy")
            case _:
                yield PathClient(name, url, seed, tally, era="modern")


async def change_forever(changes):
    while True:
        try:
            await changes.make(20)
        except BREAKAGES as exc:
            changes.tally.fail("unexpected", f"a reload: {exc!r}")


async def sample(gateway, until, interval):
    """Sample the gateway's resources until that time."""
    began, samples = trio.current_time(), {name: [] for name in UNITS}
    while trio.current_time() < until:
        reported = await report(gateway)
        at = trio.current_time() - began
        found = {
            "RSS": reported["rss"],
            "descriptors": reported["fds"],
            "tasks": reported["tasks"],
            "threads": len(threads(gateway.pid)),
            "processes": len(descendants(gateway.pid)),
        }
        for name, value in found.items():
            samples[name].append((at, value))
        progress.step(f"minute {at / 60:.0f}")
        await trio.sleep(interval)
    return samples


async def report(gateway):
    """Return the figures that the gateway writes to stderr at SIGUSR2."""
    seen = os.fstat(gateway.errors.fileno()).st_size
    gateway.process.send_signal(signal.SIGUSR2)
    with trio.move_on_after(SAMPLE_WITHIN):
        while gateway.process.poll() is None:
            text = os.pread(gateway.errors.fileno(), 1 << 20, seen).decode(errors="replace")
            _, found, rest = text.partition("\nstatistics ")
            if found and "\n" in rest:
                return json.loads(rest.partition("\n")[0])
            await trio.sleep(0.05)
    raise Failed(f"the gateway does not report, exit status {gateway.process.poll()}:\n{gateway.stderr()[-4000:]}")


def make_claims(tally, samples, minutes, clients):
    claims = [Claim(f"steps that clients took, {clients} clients, {minutes:g} min", Figure.of([tally.done.total()]))]
    claims += [Claim(WORDS[mistake], Figure.of([tally.mistakes[mistake]]), most=0) for mistake in MISTAKES]
    for name, points in samples.items():
        unit, scale = UNITS[name]
        found = trend.fit([(at / 3600, value * scale) for at, value in points])
        figure = Figure(found.slope, found.slope - found.margin, found.slope + found.margin)
        claims.append(Claim(f"slope of {name}, with its error", figure, f"{unit}/h", most=found.margin))
    return claims


def thin(points):
    """Return the means of successive points, at most `PLOTTED` of them."""
    size = -(-len(points) // PLOTTED)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [tuple(fmean(point[index] for point in group) for index in (0, 1)) for group in groups]


def make_details(tally, samples, seed):
    rows = [[name, count] for name, count in sorted(tally.done.items())]
    series = {
        f"{name} {unit}".strip(): [(at / 60, value * scale) for at, value in thin(samples[name])]
        for name, (unit, scale) in UNITS.items()
    }
    pieces = [
        Table([f"done, with seed {seed}", "times"], rows),
        *tally.reported,
        Plot("The gateway's resources during a soak", "minutes", "MB, or number", series),
    ]
    return pieces, {"seed": seed, "done": tally.done, "wrong": tally.reported, "samples": samples}
