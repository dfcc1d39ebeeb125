"""Question: how much memory does the gateway take with many backends and tools?

Method: the gateway over HTTP before 100 echo backends of 20 tools each; VmRSS of the gateway's process alone, from
/proc, once all are ready, and again after 20 whole lists in each era. Unit: MB (1,000,000 bytes).
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.listing import add_size_arguments, many_backends
from benchmarks.processes import load, serving_gateway
from benchmarks.table import Claim, Figure, render


def add_arguments(parser):
    add_size_arguments(parser)


def run(options):
    commands = many_backends(options)
    with serving_gateway(commands) as gateway:
        gateway.wait_ready(len(commands))
        found = {"all ready": read_status(gateway.pid)}
        for era in ("legacy", "modern"):
            load(kind="list", port=gateway.port, era=era, tools=len(commands) * options.tools, count=20, warm_up=0)
        found["after 40 lists"] = read_status(gateway.pid)
    size = f"{len(commands)} x {options.tools} tools"
    claims = [
        Claim(f"RSS of the gateway, {size}, {when}", Figure.of([status["VmRSS"]]), "MB", 1e-6, most=80)
        for when, status in found.items()
    ]
    rows = [[when, *(f"{status[key] / 1e6:.1f}" for key in KEYS), status["Threads"]] for when, status in found.items()]
    return claims, (render(["when", *(f"{key} MB" for key in KEYS), "threads"], rows), found)


KEYS = ("VmRSS", "RssAnon", "RssFile", "VmHWM")


def read_status(pid):
    """Return bytes, and the number of threads."""
    pairs = [line.split() for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()]
    status = {pair[0].rstrip(":"): pair[1] for pair in pairs if len(pair) > 1}
    return {key: int(status[key]) * 1024 for key in KEYS} | {"Threads": int(status["Threads"])}
