"""Question: what load can your own setup carry?

`python -m benchmarks --config FILE --tool NAME [--args JSON]`

Method: the gateway runs with your config, over stdio and over HTTP; NAME is a tool's name as the gateway lists it, and
it is called with the given arguments repeatedly: make sure that this is harmless. The server that owns it is called
directly too, by the same client, alternating. Start: from exec to the first answered `initialize`, and until all
servers are ready. List: whole `tools/list`. An answer is right if it is a result without `isError`. Ratios and
differences are taken within a round. Units: calls/s, ms, s.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

from benchmarks import progress
from benchmarks.processes import (
    Failed,
    config_file,
    gateway_command,
    load,
    serving,
)
from benchmarks.startup import time_initialize
from benchmarks.table import Claim, Figure, Table, differences, ratios

MANY = 16


def add_arguments(parser):
    parser.add_argument("--config", required=True, metavar="FILE", help="the gateway's config")
    parser.add_argument("--tool", required=True, metavar="NAME", help="a tool, as the gateway names it")
    parser.add_argument("--args", default="{}", metavar="JSON", help="its arguments ({})")
    parser.add_argument("--rounds", type=int, help="rounds (5; quick: 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (2; quick: 0.4)")


def run(options):
    rounds = options.rounds or (1 if options.quick else 5)
    seconds = options.seconds or (0.4 if options.quick else 2.0)
    path = Path(options.config).resolve()
    server, own_name = find_owner(path, options.tool)
    results, starts = {}, []
    progress.plan(rounds * 6 + 1)
    with ExitStack() as stack:
        copy = stack.enter_context(config_file(json.loads(path.read_text(encoding="utf-8"))))
        state = stack.enter_context(config_file({})).parent  # for the gateway that is restarted repeatedly
        gateway = stack.enter_context(serving(gateway_command(copy, "streamable-http")))
        ready = gateway.wait_ready(count_of(path))
        stdio = [word if word != str(copy.parent / "state") else str(state) for word in gateway_command(copy, "stdio")]
        steps = make_steps(server, own_name, gateway.port, stdio, options)
        for _ in range(rounds):
            starts.append(time_initialize(stdio))
            for name, spec in steps.items():
                results.setdefault(name, []).append(load(seconds=seconds, **spec))
        lists = load(kind="list", port=gateway.port, era="modern", tools=None, count=10 * rounds, warm_up=1)
    return make_claims(results, starts, ready, lists), make_details(results, lists)


def find_owner(path, tool):
    """Return the server that a public tool name belongs to, and the tool's own name."""
    from gateway.config import load_config

    config = load_config(path, environ=os.environ)
    for server in config.servers.values():
        prefix = server.effective_namespace + config.gateway.separator if server.effective_namespace else ""
        if tool.startswith(prefix) and not server.disabled:
            return server, tool[len(prefix) :]
    raise Failed(
        f"no server of {path} offers a tool {tool!r}: its name begins with the server's, {list(config.servers)}"
    )


def count_of(path):
    from gateway.config import load_config

    servers = load_config(path, environ=os.environ).servers.values()
    return sum(1 for server in servers if not server.disabled and server.start == "eager")


def make_steps(server, own_name, port, stdio, options):
    """Map (who, calls in flight) to a spec; direct only without a login."""
    call = {"check": "any", "arguments": json.loads(options.args), "era": "legacy"}
    steps = {}
    for calls in (1, MANY):
        if server.command is not None:
            direct = {"kind": "stdio", "command": [server.command, *server.args], "window": calls}
            direct |= {"env": dict(server.env), "cwd": server.cwd and str(server.cwd)}
            steps["direct", calls] = call | direct | {"tool": own_name}
        elif server.type != "sse":
            direct = {"kind": "http", "url": server.url, "headers": dict(server.headers), "connections": calls}
            steps["direct", calls] = call | direct | {"tool": own_name}
        steps["gateway stdio", calls] = call | {
            "kind": "stdio", "command": stdio, "window": calls, "tool": options.tool,
        }  # fmt: skip
        steps["gateway HTTP", calls] = call | {"kind": "http", "port": port, "connections": calls, "tool": options.tool}
    return steps


def make_claims(results, starts, ready, lists):
    claims = []
    for frontend in ("gateway stdio", "gateway HTTP"):
        for calls, key, combine, unit, scale, words in (
            (1, "p50", differences, "ms", 1e3, "added p50 over direct, one at a time"),
            (MANY, "per_second", ratios, "ratio", 1.0, f"calls/s over direct, {MANY} under way"),
        ):
            if ("direct", calls) in results:
                pair = ([one[key] for one in results[who, calls]] for who in (frontend, "direct"))
                claims.append(Claim(f"{frontend}: {words}", combine(*pair), unit, scale))
    return [
        *claims,
        Claim(f"tools/list of {lists['tools']} tools: p50", Figure.of([lists["p50"]]), "ms", 1e3),
        Claim("exec of the gateway to its first answered initialize", Figure.of(starts), "s"),
        Claim("exec of the gateway until all servers are ready", Figure.of([ready]), "s"),
    ]


def make_details(results, lists):
    rows, data = [], [{"lists": lists}]
    for (who, calls), measured in results.items():
        figures = {key: Figure.of([result[key] for result in measured]) for key in ("per_second", "p50", "p99")}
        shown = [figures["per_second"].show(1, 0), figures["p50"].show(1e3, 3), figures["p99"].show(1e3, 3)]
        rows.append([who, calls, *shown])
        data.append({"who": who, "under_way": calls, "rounds": measured})
    return [Table(["who", "under way", "calls/s", "p50 ms", "p99 ms"], rows)], data
