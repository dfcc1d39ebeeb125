"""Question: how does this gateway compare with its alternatives?

Method: every gateway runs before a stdio backend of its own, the same program for all: the stdlib echo, which shows the
cost of the gateway itself, and a server on the SDK, as users have. Each round calls every gateway in turn with 16
connections, over every transport that it has (sessions over streamable HTTP, the stateless 2026-07-28, SSE), and this
gateway over all three; where there are sessions, also one session on all connections, the best case of gateways that
start a backend for each. Every answer is checked against its request: a gateway that answers wrongly is shown as wrong,
one that does not start with its error. Bounds: the backend driven directly over its pipes with 16 calls in flight, and
a bare app on stock Hypercorn. Ratios are this gateway's calls a second over the peer's, over the same transport, within
a round; median and range are reported. Peers are installed from the package registries into .cache, pinned.

With `--lifetimes`: the number of five children that are alive 8 s after the end of their gateway; see `lives`.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from subprocess import TimeoutExpired

from benchmarks import oracle, progress
from benchmarks.answers import NONE_IN_TIME, WrongAnswer
from benchmarks.peers import lives
from benchmarks.peers.own import OWN
from benchmarks.peers.peer import LEGACY_HTTP, SPELLED
from benchmarks.peers.roster import choose
from benchmarks.peers.running import running
from benchmarks.processes import Failed, backend, load, serving_bare
from benchmarks.table import Claim, Figure, ratios, render

MANY = 16  # connections, or calls under way
BACKENDS = {"echo": "stdlib echo", "sdk": "SDK server"}
PATIENCE = 20.0  # seconds for those that answer no call in the measured time
ONE_SESSION = ("http", "legacy", "one session")
SPELLED_HERE = SPELLED | {ONE_SESSION: "HTTP, one session"}
BARE, DIRECT = "bare app on Hypercorn", "backend directly, over its pipes"


def add_arguments(parser):
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="peers whose name contains it")
    parser.add_argument("--rounds", type=int, help="rounds (3; quick: 1)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (2; quick: 0.5)")
    parser.add_argument("--backend", choices=["echo", "sdk", "both"], default="both", help="the program behind them")
    parser.add_argument("--lifetimes", action="store_true", help="not their speed: the children that outlive them")


def run(options):
    peers = choose(options.only)
    if options.lifetimes:
        return lives.run(peers, options)
    kinds = list(BACKENDS) if options.backend == "both" else [options.backend]
    found = {kind: measure(peers, kind, options) for kind in kinds}
    return make_claims(peers, found), make_details(found)


def measure(peers, kind, options):
    """(who, transport) -> a result a round; or a text that names the problem."""
    rounds = options.rounds or (1 if options.quick else 3)
    seconds = options.seconds or (0.5 if options.quick else 2.0)
    mark = f"peers-{secrets.token_hex(8)}"
    command = marked_backend(kind, mark)
    steps, results = {}, {}
    with oracle.subreaper(), ExitStack() as stack:
        bare = stack.enter_context(serving_bare())
        steps[BARE, LEGACY_HTTP] = {"kind": "http", "era": "legacy", "port": bare.port, "connections": MANY}
        steps[BARE, LEGACY_HTTP] |= {"tool": OWN.tool, "check": "constant"}
        steps[DIRECT, None] = {"kind": "stdio", "era": "legacy", "command": command, "window": MANY, "tool": "echo"}
        for peer in peers:
            start(stack, peer, f"{mark}-{len(steps)}", kind, steps, results)
        for number in range(rounds):
            progress.step(f"{BACKENDS[kind]}: round {number + 1} of {rounds}")
            for step, spec in steps.items():
                if not isinstance(results.get(step), str):
                    measure_step(step, spec, seconds, results)
    return results


def start(stack, peer, mark, kind, steps, results):
    """Add the steps of a peer that works; for one that does not, its problem."""
    progress.step(f"{BACKENDS[kind]}: starting {peer.name}")
    try:
        started = stack.enter_context(running(peer, marked_backend(kind, mark), mark))
    except (Failed, OSError) as error:
        results.update({(peer.name, frontend): f"does not start: {error}" for frontend in peer.frontends})
        return
    for frontend in peer.frontends:
        try:
            started.wait_working(frontend)
        except (WrongAnswer, ValueError, OSError) as error:
            results[peer.name, frontend] = verdict(f"{type(error).__name__}: {error}")
        else:
            steps[peer.name, frontend] = started.spec(frontend, connections=MANY, headers=list(peer.headers))
            if frontend == LEGACY_HTTP:
                steps[peer.name, ONE_SESSION] = steps[peer.name, frontend] | {"one_session": True}


def measure_step(step, spec, seconds, results):
    for patience in (seconds, PATIENCE):
        try:
            results.setdefault(step, []).append(load(seconds=patience, **spec))
        except (Failed, TimeoutExpired) as error:
            last = str(error).strip().splitlines()[-1].removeprefix("benchmarks.answers.")
            if NONE_IN_TIME not in last or patience == PATIENCE:
                results[step] = verdict(last)
                return
        else:
            return


def verdict(error):
    """Return the table's text for a peer without a figure."""
    return f"no answer in {PATIENCE:.0f} s" if NONE_IN_TIME in error else f"wrong: {error}"


def marked_backend(kind, mark):
    """Return the backend's command with a mark that changes nothing: -X takes any name."""
    python, *rest = backend(kind)
    return [python, "-X", f"mark={mark}", *rest]


# -- results -----------------------------------------------------------------------------------------------------------


def over(found, peer, frontend):
    """Return this gateway's calls a second over the peer's; None without a figure."""
    own, theirs = found.get((OWN.name, frontend)), found.get((peer.name, frontend))
    if not isinstance(own, list) or not isinstance(theirs, list):
        return None
    return ratios(*([result["per_second"] for result in results] for results in (own, theirs)))


def make_claims(peers, found):
    """Return the claims; targets are for the stdlib echo and a peer's first transport."""
    claims = []
    for kind, results in found.items():
        for peer in peers:
            for number, frontend in enumerate([*peer.frontends, ONE_SESSION]):
                ratio = None if peer is OWN else over(results, peer, frontend)
                if ratio is not None:
                    least = peer.least if kind == "echo" and number == 0 else None
                    what = f"calls/s over {peer.name}, {SPELLED_HERE[frontend]}, {BACKENDS[kind]}"
                    claims.append(Claim(what, ratio, "ratio", least=least))
    return claims


HEADER = ["who", "spoken", "calls/s", "p50 ms", "p99 ms", "this gateway over it"]


def make_details(found):
    tables, data = [], []
    for kind, results in found.items():
        rows = [make_row(results, who, frontend, measured) for (who, frontend), measured in results.items()]
        tables.append(f"Backend: {BACKENDS[kind]}; {MANY} connections\n\n" + render(HEADER, rows))
        data += [
            {"backend": kind, "who": who, "spoken": SPELLED_HERE.get(frontend, "stdio"), "found": measured}
            for (who, frontend), measured in results.items()
        ]
    return "\n\n".join(tables), data


def make_row(results, who, frontend, measured):
    spoken = SPELLED_HERE.get(frontend, "stdio")
    if isinstance(measured, str):
        return [who, spoken, one_cell(measured), "", "", ""]
    figures = {key: Figure.of([result[key] for result in measured]) for key in ("per_second", "p50", "p99")}
    own = results.get((OWN.name, frontend))
    ratio = ""
    if who != OWN.name and isinstance(own, list):
        ratio = ratios([result["per_second"] for result in own], [result["per_second"] for result in measured]).show()
    shown = (figures["per_second"].show(1, 0), figures["p50"].show(1e3), figures["p99"].show(1e3))
    return [who, spoken, *shown, ratio]


def one_cell(text, most=160):
    """Return a text that fits a cell of a Markdown table."""
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= most else text[: most - 3] + "..."
