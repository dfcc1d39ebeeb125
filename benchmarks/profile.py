"""Question: where do the microseconds of a call go?

Method: the gateway runs with a sampler in it (`profiled.py`; production code does not depend on it) before one stdlib
echo backend (or, with `--backend`, the tests' own small HTTP server), with 16 calls in flight; each sample of CPU time
counts for the file of the innermost function. A row's time is its share of the samples, times the CPU time of the
gateway's process per call, so that the rows add up to it. Further output: a flame graph (`--svg
FILE`) and the stacks in the folded form that other tools read (`--folded FILE`). Unit: microseconds of CPU time.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from benchmarks import profiled
from benchmarks.flame import draw_flame
from benchmarks.processes import Failed, backend, config_file, config_of, gateway_command, load, serving, serving_peer
from benchmarks.table import Claim, Figure, Table

MANY = 16
NAMES = {"stdio": "stdlib echo on pipes", "http": "small HTTP server", "sse": "small SSE server"}
SERVER, CLIENT = "HTTP: sockets, parsing, framing", "backend: HTTP client"  # both on `gateway/httpd/wire.py`
CLIENT_CODE = ("gateway/backends/http/", "gateway/http_client/", "httpx", "httpcore")
ROWS = {
    SERVER: ("gateway/httpd/", "hypercorn/"),
    "frontends: routing, checks, sessions": ("gateway/frontends/", "gateway/access", "gateway/admin"),
    "lines over pipes": ("gateway/frontends/stdio.py", "gateway/lines.py"),
    "envelopes and eras": ("gateway/jsonrpc.py", "gateway/eras/", "gateway/calls.py", "msgspec/"),
    "router and catalog": ("gateway/router.py", "gateway/catalog/", "benchmarks/"),
    "supervisor: queue, limits, history": ("gateway/supervisor/",),
    "backend: conversation and pipe": ("gateway/backends/",),
    CLIENT: CLIENT_CODE,
    "logs and metrics": ("gateway/telemetry", "gateway/metrics", "logging/"),
    "trio: scheduler and waiting": ("trio/_core/",),
    "trio: streams, sockets, the rest": ("trio/",),
    "all else": ("",),
}
"""What -> the prefixes of file names; the longest match decides."""


def add_arguments(parser):
    parser.add_argument("what", choices=["call"])
    parser.add_argument("--frontend", choices=["http", "stdio"], default="http")
    parser.add_argument("--era", choices=["legacy", "modern"], default="legacy", help="of the client")
    parser.add_argument("--backend", choices=["stdio", "http", "sse"], default="stdio", help="its transport")
    parser.add_argument("--seconds", type=float, help="of load (10; quick: 3)")
    parser.add_argument("--svg", metavar="FILE", help="the flame graph (profile-call-FRONTEND.svg)")
    parser.add_argument("--folded", metavar="FILE", help="the stacks, a line each")


def run(options):
    found = take(options)
    stacks = [([*trim(names)], seen) for names, seen in found["stacks"]]
    per_call = found["cpu"] / found["calls"]
    rows = add_up(found["stacks"], per_call)
    backend_name = NAMES[options.backend]
    title = f"A call over {options.frontend} ({options.era}), {MANY} under way, {backend_name}: {per_call * 1e6:.0f} us"
    drawn = Path(options.svg or f"profile-call-{options.frontend}.svg")
    drawn.write_text(draw_flame(stacks, title), encoding="utf-8")
    if options.folded:
        lines = "".join(f"{';'.join(names)} {seen}\n" for names, seen in stacks)
        Path(options.folded).write_text(lines, encoding="utf-8")
    kernel = found["system"] / (found["user"] + found["system"])
    said = (
        f"{sum(seen for _names, seen in stacks):,} samples in {found['calls']:,} calls; {kernel:.0%} of the CPU time is"
        f" the kernel's, within the rows that call it\nflame graph: {drawn}"
    )
    claims = [Claim(f"CPU time of the gateway for a call over {options.frontend}", Figure.of([per_call]), "us", 1e6)]
    return claims, ([Table(["where", "us a call", "share"], rows, title), said], found | {"rows": rows})


def take(options):
    """Load the gateway and let it end; return the output of its sampler."""
    seconds = options.seconds or (3.0 if options.quick else 10.0)
    call = {"era": options.era, "seconds": seconds, "tool": "echo.echo"}
    with (
        tempfile.TemporaryDirectory() as folder,
        configured(options.backend) as described,
        config_file(described) as config,
    ):
        target = Path(folder, "profile.json")
        os.environ[profiled.TO] = str(target)
        try:
            if options.frontend == "stdio":
                command = gateway_command(config, "stdio", "benchmarks.profiled")
                load(kind="stdio", command=command, window=MANY, **call)
            else:
                with serving(gateway_command(config, "streamable-http", "benchmarks.profiled")) as gateway:
                    gateway.wait_ready(1)
                    load(kind="http", port=gateway.port, connections=MANY, **call)
        finally:
            del os.environ[profiled.TO]
        found = json.loads(target.read_text(encoding="utf-8"))
    if "error" in found:
        raise Failed(found["error"])
    return found


@contextmanager
def configured(transport):
    """Yield a config with the one backend; a remote one lasts for the block."""
    if transport == "stdio":
        yield config_of({"echo": backend()})
        return
    with serving_peer("--server", "modern" if transport == "http" else "sse") as peer:
        kind = {"type": "sse"} if transport == "sse" else {}
        yield {"mcpServers": {"echo": {"url": f"http://127.0.0.1:{peer.port}/mcp", **kind}}}


def trim(names):
    """Return a stack without the frames common to all (interpreter start, trio's entry)."""
    inner = [i for i, name in enumerate(names) if name.startswith("trio/_core/_run.py:unrolled_run")]
    return names[inner[0] :] if inner else names


def row_of(names):
    """Return the row of a stack: that of the innermost function in a package.

    Other modules (json, ssl) count for it.
    """
    for name in reversed(names):
        fitting = [(len(start), row) for row, starts in ROWS.items() for start in starts if name.startswith(start)]
        longest, row = max(fitting)
        if longest:
            return CLIENT if row == SERVER and any(one.startswith(CLIENT_CODE) for one in names) else row
    return "all else"


def add_up(stacks, per_call):
    whole = sum(seen for _names, seen in stacks)
    sums = dict.fromkeys(ROWS, 0)
    for names, seen in stacks:
        sums[row_of(names)] += seen
    rows = [[row, f"{seen / whole * per_call * 1e6:.1f}", f"{seen / whole:.1%}"] for row, seen in sums.items() if seen]
    return [*rows, ["all", f"{per_call * 1e6:.1f}", "100.0%"]]
