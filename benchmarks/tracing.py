"""Question: what does tracing cost?

Method: three gateways over HTTP before one stdlib echo each: without tracing; with 1 % of all traces sampled, as by
`parentbased_traceidratio`; with all of them. Both export to an OTLP receiver that decodes nothing. In each round one
after the other, in a different order each round, 16 connections, legacy, every answer checked. Ratios are taken within
a round, over the gateway without tracing; their median and range are reported, and the CPU time of the gateway's
process per call, the exporter's thread included. Spans that were dropped are counted: calls do not wait for the
exporter. Needs the extra `otel`.
"""

from __future__ import annotations

import http.client
import sys
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.costs import CONNECTIONS, count_calls
from benchmarks.processes import backend, config_file, config_of, cpu_seconds, gateway_command, load, serving
from benchmarks.table import Claim, Figure, ratios, render

OFF, FEW, ALL = "no tracing", "1 % of all traces", "all traces"
SHARES = {OFF: None, FEW: "0.01", ALL: "1"}
DROPPED = "mcp_gateway_spans_dropped_total"


def add_arguments(parser):
    parser.add_argument("--rounds", type=int, help="rounds (20; quick: 2)")
    parser.add_argument("--seconds", type=float, help="measured seconds of each step (0.8; quick: 0.4)")


def run(options):
    rounds = options.rounds or (2 if options.quick else 20)
    seconds = options.seconds or (0.4 if options.quick else 0.8)
    results = {name: [] for name in SHARES}
    with ExitStack() as stack:
        url = stack.enter_context(receiver())
        servers = {name: open_gateway(stack, share, url) for name, share in SHARES.items()}
        for number in range(rounds):
            first = number % len(servers)
            for name in (*list(servers)[first:], *list(servers)[:first]):
                results[name].append(measure(servers[name], seconds))
    return make_claims(results), make_details(results)


@contextmanager
def receiver():
    """Accept everything that is exported; give the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def open_gateway(stack, share, url):
    variables = []
    if share is not None:
        sampler = ("OTEL_TRACES_SAMPLER=parentbased_traceidratio", f"OTEL_TRACES_SAMPLER_ARG={share}")
        variables = [f"OTEL_EXPORTER_OTLP_ENDPOINT={url}", *sampler]
    path = stack.enter_context(config_file(config_of({"echo": backend()})))
    server = stack.enter_context(serving(["env", *variables, *gateway_command(path, "streamable-http")]))
    server.wait_ready(1)
    if "not tracing" in server.stderr():
        sys.exit("bin/bench tracing needs the extra otel: pip install 'trio-mcp-gateway[otel]'")
    return server


def measure(server, seconds):
    """Measure one step; `cpu_call` is the gateway's own."""
    calls, dropped, cpu = count_calls(server), count_dropped(server), cpu_seconds(server.pid)
    spec = {"kind": "http", "era": "legacy", "connections": CONNECTIONS, "port": server.port}
    found = load(**spec, tool="echo.echo", seconds=seconds)
    cpu = cpu_seconds(server.pid) - cpu
    made = count_calls(server) - calls
    return found | {
        "cpu_call": cpu / made,
        "dropped": (count_dropped(server) - dropped) / (2 * made),
    }


def count_dropped(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        return float(next(line for line in lines if line.startswith(DROPPED)).split()[1])
    finally:
        connection.close()


def make_claims(results):
    claims = []
    for name in (FEW, ALL):
        for key, what in (("per_second", "calls/s over"), ("cpu_call", "CPU of a call with")):
            pairs = [[found[key] for found in results[one]] for one in (name, OFF)]
            over = ratios(*pairs) if key == "per_second" else ratios(*reversed(pairs))
            text = f"{name}: {what} {OFF}" if key == "per_second" else f"{name}: {what} {OFF} over it"
            claims.append(Claim(text, over, "ratio", least=0.95))
    return claims


def make_details(results):
    rows = []
    for name, found in results.items():
        figures = {
            key: Figure.of([one[key] for one in found]) for key in ("per_second", "p50", "p99", "cpu_call", "dropped")
        }
        shown = [figures["per_second"].show(1, 0), *(figures[key].show(1e3, 3) for key in ("p50", "p99"))]
        rows.append([name, *shown, figures["cpu_call"].show(1e6, 0), figures["dropped"].show(100, 0)])
    data = [{"who": name, "rounds": found} for name, found in results.items()]
    return render(["who", "calls/s", "p50 ms", "p99 ms", "gateway CPU us a call", "spans dropped %"], rows), data
