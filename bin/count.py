"""Count the reader's burden: sizes, fragments, import cycles, one call's path.

`bin/check` runs it as a gate: it fails when a figure exceeds its entry in `CEILINGS`, and a ceiling may only fall. The
static figures come from the syntax trees. The path of a call is measured: a gateway with one stdio backend serves one
keep-alive HTTP connection, and `sys.setprofile` records each function of `gateway/` that one `tools/call` enters.
"""

from __future__ import annotations

import argparse
import ast
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gateway"
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
START_TIMEOUT = 20.0  # seconds for the measured gateway to listen
WARM_UP_CALLS = 30  # the first calls fill caches
SAMPLES = 7  # the smallest is reported: a timer that fires during a call only adds entries

CEILINGS = {"single-caller private helpers (%)": 12.2, "called there, not passed on (%)": 8.2, "import cycles": 0}


@dataclass(frozen=True)
class Source:
    """One module: its dotted name, text and syntax tree."""

    name: str
    text: str
    tree: ast.Module


def read_sources() -> dict[str, Source]:
    """Read every module of the package, by dotted name."""
    sources: dict[str, Source] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text(encoding="utf-8")
        sources[name] = Source(name, text, ast.parse(text))
    return sources


def code_lines(source: Source) -> int:
    """Count the lines that hold code: no blank line, no comment, no docstring."""
    prose: set[int] = set()
    for node in ast.walk(source.tree):
        for child in getattr(node, "body", []) if isinstance(getattr(node, "body", None), list) else []:
            # A bare string is a docstring of the module, class, function or attribute around it.
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                prose.update(range(child.lineno, (child.end_lineno or child.lineno) + 1))
    lines: set[int] = set()
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - prose)


def function_sizes(source: Source) -> list[int]:
    """Return the length in lines of each function, its signature and docstring included."""
    return [
        (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(source.tree)
        if isinstance(node, FUNCTIONS)
    ]


def single_caller_helpers(source: Source) -> list[str]:
    """Return the private functions of a module that it mentions exactly once elsewhere."""
    defined = {
        node.name
        for node in ast.walk(source.tree)
        if isinstance(node, FUNCTIONS) and node.name.startswith("_") and not node.name.startswith("__")
    }
    uses: Counter[str] = Counter()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name):
            uses[node.id] += 1
        elif isinstance(node, ast.Attribute):
            uses[node.attr] += 1
    return sorted(name for name in defined if uses[name] == 1)


def called_once(source: Source, helpers: list[str]) -> int:
    """Count the helpers whose one mention is a call.

    The others are tasks, callbacks, and readers in annotations.
    """
    functions = [node.func for node in ast.walk(source.tree) if isinstance(node, ast.Call)]
    names = {node.id for node in functions if isinstance(node, ast.Name)}
    names |= {node.attr for node in functions if isinstance(node, ast.Attribute)}
    return len(names.intersection(helpers))


def import_graph(sources: dict[str, Source]) -> dict[str, set[str]]:
    """Map each module to the modules of the package that it imports, type-checking imports included."""
    graph: dict[str, set[str]] = {}
    for name, source in sources.items():
        found: set[str] = set()
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {
                    whole if (whole := f"{node.module}.{alias.name}") in sources else node.module
                    for alias in node.names
                }
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = {each for each in found if each in sources and each != name}
    return graph


def import_cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in graph[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                cycles.append(sorted(component))

    for name in graph:
        if name not in index:
            visit(name)
    return cycles


ECHO_SERVER = """
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message:
        continue
    method = message["method"]
    if method == "initialize":
        info = {"name": "echo", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": info}
    elif method == "tools/list":
        result = {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        result = {"content": [{"type": "text", "text": "hello"}]}
    else:
        result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


def serve_recorded(arguments: list[str]) -> None:
    """Run `mcp-gateway`; SIGUSR1 starts a recording of the functions entered, SIGUSR2 prints and ends it."""
    import trio

    from gateway.cli import main

    entered: Counter[tuple[str, str]] = Counter()
    steps = [0]
    base = str(PACKAGE) + os.sep

    def record(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(base):
            entered[frame.f_code.co_filename[len(base) :], frame.f_code.co_qualname] += 1

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            if "run_sync_soon" not in task.name:  # trio's own task, which the signals below wake
                steps[0] += 1

    instrument = Steps()

    def start(_number: int, _frame: FrameType | None) -> None:
        entered.clear()
        steps[0] = 0
        trio.lowlevel.add_instrument(instrument)
        sys.setprofile(record)

    def stop(_number: int, _frame: FrameType | None) -> None:
        sys.setprofile(None)
        trio.lowlevel.remove_instrument(instrument)
        report = {"entered": [[*key, count] for key, count in entered.items()], "steps": steps[0]}
        os.write(2, b"recorded " + json.dumps(report).encode() + b"\n")

    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, stop)
    sys.exit(main(arguments))


@dataclass(frozen=True)
class CallPath:
    """The path of one call: functions entered (distinct), entries in all, files, and task steps."""

    functions: int
    entries: int
    files: int
    steps: int
    names: tuple[str, ...]


def measure_call() -> CallPath:
    """Record the functions that one `tools/call` over HTTP to a stdio backend enters."""
    with tempfile.TemporaryDirectory() as folder:
        server = Path(folder, "echo.py")
        server.write_text(ECHO_SERVER, encoding="utf-8")
        config = Path(folder, "config.json")
        config.write_text(
            json.dumps({"mcpServers": {"echo": {"command": sys.executable, "args": [str(server)], "era": "legacy"}}}),
            encoding="utf-8",
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-P", __file__, "--serve", f"--config={config}", "--transport=http", f"--port={port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "MCP_GATEWAY_STATE_DIR": str(Path(folder, "state")), "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
        )
        try:
            return _measure(process, port)
        finally:
            process.terminate()
            process.wait(START_TIMEOUT)


def _measure(process: subprocess.Popen[bytes], port: int) -> CallPath:
    connection = _connect(port)
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}

    def post(method: str, params: dict[str, object] | None, request_id: int | None) -> dict[str, object]:
        message: dict[str, object] = {"jsonrpc": "2.0", "method": method}
        if request_id is not None:
            message["id"] = request_id
        if params is not None:
            message["params"] = params
        connection.request("POST", "/mcp", json.dumps(message), headers)
        response = connection.getresponse()
        body = response.read()
        if session := response.getheader("Mcp-Session-Id"):
            headers["Mcp-Session-Id"] = session
        return json.loads(body) if body else {}

    hello = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "count", "version": "1"}}
    post("initialize", hello, 0)
    post("notifications/initialized", None, None)
    call: dict[str, object] = {"name": "echo.echo", "arguments": {}}
    for number in range(WARM_UP_CALLS):
        answer = post("tools/call", call, number + 1)
        if "result" not in answer:
            sys.exit(f"bin/count: the measured gateway answered {answer}")
    paths: list[CallPath] = []
    for number in range(SAMPLES):
        process.send_signal(signal.SIGUSR1)
        post("ping", None, 500 + number)  # the signal has been handled when this is answered
        process.send_signal(signal.SIGUSR1)  # start again, from an idle connection
        time.sleep(0.05)
        post("tools/call", call, 1000 + number)
        process.send_signal(signal.SIGUSR2)
        lines = iter(process.stderr or ())
        line = next((line for line in lines if line.startswith(b"recorded ")), None)
        if line is None:
            sys.exit("bin/count: the measured gateway ended")
        report = json.loads(line.removeprefix(b"recorded "))
        entered = [(file, name, count) for file, name, count in report["entered"]]
        paths.append(
            CallPath(
                functions=len(entered),
                entries=sum(count for _, _, count in entered),
                files=len({file for file, _, _ in entered}),
                steps=report["steps"],
                names=tuple(f"{file}:{name} x{count}" for file, name, count in entered),
            )
        )
    return min(paths, key=lambda path: path.entries)


def _connect(port: int) -> http.client.HTTPConnection:
    end = time.monotonic() + START_TIMEOUT
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT)
        try:
            connection.connect()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return connection


def main() -> int:
    """Print the table; return 1 where a figure exceeds its ceiling."""
    if sys.argv[1:2] == ["--serve"]:
        serve_recorded(["serve", *sys.argv[2:]])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", action="store_true", help="list the helpers, the cycles and the path by name")
    parser.add_argument("--static", action="store_true", help="leave out the measured path of a call")
    options = parser.parse_args()
    sources = read_sources()
    helpers = {name: single_caller_helpers(source) for name, source in sources.items()}
    sizes = [size for source in sources.values() for size in function_sizes(source)]
    single = sum(map(len, helpers.values()))
    cycles = import_cycles(import_graph(sources))
    figures: dict[str, float] = {
        "files": len(sources),
        "code lines": sum(code_lines(source) for source in sources.values()),
        "functions": len(sizes),
        "lines of a function, mean": round(sum(sizes) / len(sizes), 1),
        "lines of a function, maximum": max(sizes),
        "single-caller private helpers (%)": round(100 * single / len(sizes), 1),
        "called there, not passed on (%)": round(
            100 * sum(called_once(sources[name], found) for name, found in helpers.items()) / len(sizes), 1
        ),
        "import cycles": len(cycles),
    }
    path = None if options.static else measure_call()
    if path is not None:
        figures |= {
            "functions entered by one HTTP call": path.functions,
            "entries of them": path.entries,
            "files they are in": path.files,
            "task steps": path.steps,
        }
    width = max(map(len, figures))
    for name, figure in figures.items():
        print(f"{name:{width}}  {figure:g}")
    if options.names:
        print(*(f"{module}: {', '.join(names)}" for module, names in helpers.items() if names), sep="\n")
        print(*cycles, sep="\n")
        print(*(path.names if path is not None else ()), sep="\n")
    exceeded = [name for name, limit in CEILINGS.items() if figures.get(name, 0) > limit]
    for name in exceeded:
        print(f"bin/count: {name} is {figures[name]:g}, above the ceiling of {CEILINGS[name]:g}", file=sys.stderr)
    return 1 if exceeded else 0


if __name__ == "__main__":
    sys.exit(main())
