"""Project rules beyond the linters, checked on the syntax trees of gateway/ and others.

A waiver is a comment `# house: REASON` on the first line of what it excuses (not for size: a ceiling is a ceiling).
`MAX_WAIVERS` may only fall. Each rule is tried on snippets that break it and on snippets that keep it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).parent.parent
MAX_WAIVERS = 0
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60  # the ceiling; 40 is the wish
MAX_SUMMARY_WORDS = 15  # of a docstring's first line, which must be understood without the code
MIN_REASON = 10  # characters; a shorter one explains nothing
WAIVER = "# house:"

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
TIMED_SCOPES = {"move_on_after", "move_on_at", "fail_after", "fail_at"}
CHANNELS = {"open_memory_channel", "create_memory_object_stream"}
NURSERY_OPENERS = {"open_nursery", "create_task_group"}
ENVIRONMENT = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
TOO_WIDE = {"Exception", "BaseException", "ExceptionGroup", "BaseExceptionGroup", "Cancelled"}


@dataclass(frozen=True)
class Finding:
    line: int
    rule: str
    waivable: bool = True


class Module:
    """One parsed file, with the way up from each node."""

    def __init__(self, text: str, name: str = "snippet") -> None:
        self.name = name
        self.text = text
        self.tree = ast.parse(text)
        self.parents = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}
        self.infinite = {
            target.id
            for node in self.tree.body
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and _is_inf(node.value, set())
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }

    def around(self, node: ast.AST) -> Iterator[Function]:
        """The functions that lexically contain `node`, innermost first."""
        up: ast.AST | None = node
        while up is not None:
            up = self.parents.get(up)
            if isinstance(up, FUNCTIONS):
                yield up

    def endless(self, value: ast.expr | None) -> bool:
        return value is not None and _is_inf(value, self.infinite)

    def waivers(self) -> dict[int, str]:
        """Line -> reason of each waiver."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {
            token.start[0]: token.string.partition(WAIVER)[2].strip()
            for token in tokens
            if token.type == tokenize.COMMENT and WAIVER in token.string
        }


def _is_inf(value: ast.expr, names: set[str]) -> bool:
    """`math.inf`, `inf`, `float("inf")`, `None`, or one of the module's own `names` for it."""
    if isinstance(value, ast.Call) and _name(value.func) == "float" and value.args:
        word = value.args[0]
        return isinstance(word, ast.Constant) and str(word.value).lower().lstrip("+") in {"inf", "infinity"}
    nothing = isinstance(value, ast.Constant) and value.value is None  # anyio's word for no deadline
    return nothing or _name(value) == "inf" or (isinstance(value, ast.Name) and value.id in names)


def _name(node: ast.AST) -> str:
    """The last part of a dotted name; `open_memory_channel[int]` counts without its subscript."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(value=value):
            return _name(value)
        case _:
            return ""


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def _keyword(call: ast.Call, *names: str) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg in names), None)


def _limit(call: ast.Call) -> ast.expr | None:
    """The deadline that a scope is opened with, if any."""
    named = _keyword(call, "deadline", "relative_deadline", "seconds", "delay")
    return named or (call.args[0] if call.args and _name(call.func) in TIMED_SCOPES else None)


def shields(module: Module) -> Iterator[Finding]:
    """A shield without a deadline: its block can hang forever and cannot be stopped."""
    rule = "a shield without a deadline"
    for node in ast.walk(module.tree):
        match node:
            case ast.Call():
                shield = _keyword(node, "shield")
                limit = _limit(node)
                if shield and not _is_false(shield) and (limit is None or module.endless(limit)):
                    yield Finding(node.lineno, rule)
            case ast.Assign(targets=[ast.Attribute(attr="shield", value=scope)], value=value) if not _is_false(value):
                if not _has_deadline(module, node, ast.unparse(scope)):
                    yield Finding(node.lineno, rule)
            case _:
                pass


def _has_deadline(module: Module, node: ast.AST, scope: str) -> bool:
    """Whether the scope named `scope` got a deadline in the function around `node`."""
    for function in list(module.around(node))[:1]:
        for each in ast.walk(function):
            match each:
                case ast.withitem(context_expr=ast.Call() as call, optional_vars=ast.expr() as target):
                    opened = ast.unparse(target)
                case ast.Assign(targets=[target], value=ast.Call() as call):
                    opened = ast.unparse(target)
                case _:
                    call, opened = None, ""
            if call and opened == scope and _limit(call) and not module.endless(_limit(call)):
                return True
            match each:
                case ast.Assign(targets=[ast.Attribute(attr="deadline" | "relative_deadline", value=owner)]):
                    if ast.unparse(owner) == scope and not module.endless(each.value):
                        return True
                case _:
                    pass
    return False


def channels(module: Module) -> Iterator[Finding]:
    """A channel without a size: memory grows as long as the reader is slower."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _name(node.func) in CHANNELS:
            size = _keyword(node, "max_buffer_size") or (node.args[0] if node.args else None)
            if module.endless(size):
                yield Finding(node.lineno, "an unbounded channel")


def nurseries(module: Module) -> Iterator[Finding]:
    """A task in a borrowed nursery: it outlives its starter, unknown to its owner.

    Own is: a nursery opened by `async with` in the same function or in one that lexically contains it, and
    `self.nursery` or `self.<something>_nursery`, whose object opened it. All others have another owner, a parameter
    first of all. Many things have a `start`: it counts where the receiver is called or annotated as a nursery.
    """
    for node in ast.walk(module.tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)):
            continue
        starts = node.attr == "start_soon" or (node.attr == "start" and _is_nursery(module, node))
        if starts and not _is_own_nursery(module, node):
            yield Finding(node.lineno, "a task in a borrowed nursery")


def _is_nursery(module: Module, use: ast.Attribute) -> bool:
    name = _name(use.value)
    annotated = {
        argument.arg
        for function in module.around(use)
        for argument in _parameters(function)
        if argument.annotation and re.search(r"\b(Nursery|TaskGroup)\b", ast.unparse(argument.annotation))
    }
    return name.endswith("nursery") or name in annotated


def _parameters(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def _is_own_nursery(module: Module, use: ast.Attribute) -> bool:
    match use.value:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name.endswith("nursery")
        case ast.Name(id=name):
            for function in module.around(use):
                if name in _opened_in(function):
                    return True
                if name in {argument.arg for argument in _parameters(function)}:
                    return False  # a parameter of this name hides the outer one
    return False


def _opened_in(function: Function) -> set[str]:
    return {
        item.optional_vars.id
        for node in ast.walk(function)
        if isinstance(node, ast.AsyncWith)
        for item in node.items
        if isinstance(item.optional_vars, ast.Name)
        and isinstance(item.context_expr, ast.Call)
        and _name(item.context_expr.func) in NURSERY_OPENERS
    }


def system_tasks(module: Module) -> Iterator[Finding]:
    """A system task has no owner, and its crash reaches no code that could act."""
    for node in ast.walk(module.tree):
        imported = isinstance(node, ast.ImportFrom) and any(each.name == "spawn_system_task" for each in node.names)
        if imported or (isinstance(node, ast.Attribute) and node.attr == "spawn_system_task"):
            yield Finding(node.lineno, "a system task")


def suppressions(module: Module) -> Iterator[Finding]:
    """`suppress` of everything hides bugs; of `Cancelled`, it breaks cancellation."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and _name(node.func) == "suppress":
            named = {_name(part) for argument in node.args for part in ast.walk(argument)}
            if named & TOO_WIDE:
                yield Finding(node.lineno, "suppress() of everything")


def sizes(module: Module) -> Iterator[Finding]:
    """Code too long to be read in one go hides what it does."""
    lines = len(module.text.splitlines())
    if lines > MAX_MODULE_LINES:
        yield Finding(1, f"a module of {lines} lines (ceiling {MAX_MODULE_LINES})", waivable=False)
    for node in ast.walk(module.tree):
        if isinstance(node, FUNCTIONS) and node.end_lineno is not None:
            long = node.end_lineno - node.lineno + 1
            if long > MAX_FUNCTION_LINES:
                yield Finding(
                    node.lineno, f"{node.name}() of {long} lines (ceiling {MAX_FUNCTION_LINES})", waivable=False
                )


def docstrings(module: Module) -> Iterator[Finding]:
    """A public module says first what it is for."""
    private = module.name.startswith("_") and not module.name.startswith("__")
    if not private and not ast.get_docstring(module.tree):
        yield Finding(1, "a public module without docstring", waivable=False)


RULES: list[Callable[[Module], Iterator[Finding]]] = [
    shields,
    channels,
    nurseries,
    system_tasks,
    suppressions,
    sizes,
    docstrings,
]


def judge(module: Module) -> list[str]:
    """Return the problems of `module`: unexcused findings, and waivers that excuse nothing."""
    waivers = module.waivers()
    used: set[int] = set()
    wrong: list[str] = []
    for finding in (finding for rule in RULES for finding in rule(module)):
        if finding.waivable and finding.line in waivers:
            used.add(finding.line)
        else:
            wrong.append(f"{module.name}:{finding.line}: {finding.rule}")
    for line, reason in waivers.items():
        if line not in used:
            wrong.append(f"{module.name}:{line}: a waiver that excuses nothing")
        if len(reason) < MIN_REASON:
            wrong.append(f"{module.name}:{line}: a waiver without a reason")
    return wrong


def gateway_modules() -> list[Path]:
    return sorted((ROOT / "gateway").rglob("*.py"))


def count_problem(found: int, allowed: int) -> str:
    """Return the problem with the number of waivers, or nothing."""
    if found > allowed:
        return f"{found} waivers, {allowed} allowed: fix the code instead"
    return f"{found} waivers, {allowed} allowed: lower MAX_WAIVERS to {found}" if found < allowed else ""


def test_there_is_something_to_judge() -> None:
    assert ROOT / "gateway" / "errors.py" in gateway_modules()


@pytest.mark.parametrize("path", gateway_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_project_rules(path: Path) -> None:
    wrong = judge(Module(path.read_text(encoding="utf-8"), path.name))
    assert not wrong, f"in {path.relative_to(ROOT)}:\n" + "\n".join(wrong)


def imported_tests(tree: ast.Module) -> set[str]:
    """The test modules that a module of the tests imports."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                imported |= {name.name for name in names}
            case ast.ImportFrom(module=str(module), names=names):
                imported |= {module, *(f"{module}.{name.name}" for name in names)}
            case _:
                pass
    return {name for name in imported if any(part.startswith("test_") for part in name.split("."))}


@pytest.mark.parametrize(
    ("text", "imported"),
    [
        ("import tests.admin.test_http", {"tests.admin.test_http"}),
        ("from tests.admin import support, test_http", {"tests.admin.test_http"}),
        ("def f():\n    from tests.admin.test_http import ask", {"tests.admin.test_http", "tests.admin.test_http.ask"}),
        ("import trio.testing\nfrom tests.support.fakes import settle", set[str]()),
    ],
)
def test_imported_tests_are_recognised(text: str, imported: set[str]) -> None:
    assert imported_tests(ast.parse(text)) == imported


WALL_CLOCK = {
    "access/tokens.py": "expiry of clients' tokens",
    "backends/opening.py": "age of an era record",
    "cli/doctor.py": "age of an era record",
    "frontends/modern/request_state.py": "age of a state that another process may have sealed",
    "http_client/body.py": "a date in Retry-After, without a field Date",
    "httpd/exchange.py": "the field Date",
    "oauth_client/ledger.py": "expiry of a token",
    "oauth_client/token_store.py": "time of a login",
    "telemetry/logs.py": "times that are shown",
    "tracing/durations.py": "start of the interval of a metric",
    "tracing/exporting.py": "time of a metric",
    "tracing/spans.py": "times of spans and their events",
}
"""The modules that read the wall clock, which may jump by hours; all else is measured by monotonic clocks."""


def test_no_duration_is_measured_by_the_wall_clock() -> None:
    found = {
        path.relative_to(ROOT / "gateway").as_posix()
        for path in (ROOT / "gateway").rglob("*.py")
        if re.search(r"\b(time\.time(_ns)?|datetime\.now)\b", path.read_text(encoding="utf-8"))
    }
    assert found == set(WALL_CLOCK)


def test_no_test_imports_another_test() -> None:
    modules = sorted((ROOT / "tests").rglob("*.py"))
    imported = {path: imported_tests(ast.parse(path.read_text(encoding="utf-8"))) for path in modules}
    assert modules
    assert {str(path.relative_to(ROOT)): names for path, names in imported.items() if names} == {}


def long_summaries(text: str) -> list[str]:
    """Return the first lines of docstrings that exceed `MAX_SUMMARY_WORDS`."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.ClassDef, *FUNCTIONS))]
    summaries = [(ast.get_docstring(node) or "").partition("\n")[0] for node in nodes]
    return [summary for summary in summaries if len(summary.split()) > MAX_SUMMARY_WORDS]


def test_the_first_line_of_a_docstring_is_short() -> None:
    words = " ".join(["word"] * MAX_SUMMARY_WORDS)
    assert long_summaries(f'"""{words}\n\nmore {words}"""\nclass A:\n    """{words} more"""') == [f"{words} more"]
    paths = [path for folder in ("gateway", "benchmarks", "bin", "tests") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path.relative_to(ROOT)): long_summaries(path.read_text(encoding="utf-8")) for path in paths}
    assert {path: summaries for path, summaries in found.items() if summaries} == {}


def unknown_constants(texts: dict[str, str]) -> dict[str, set[str]]:
    """Return constants that docstrings and comments name in backquotes, but no module has."""
    known = {
        name for text in texts.values() for name in re.findall(r"^\s*([A-Z][A-Z0-9_]{3,})\b.* = ", text, re.MULTILINE)
    }
    known |= ENVIRONMENT | {
        name for text in texts.values() for name in re.findall(r"[\"']([A-Z][A-Z0-9_]{3,})[\"']", text)
    }
    named = {path: set(re.findall(r"`([A-Z][A-Z0-9_]{3,})`", text)) for path, text in texts.items()}
    return {path: names - known for path, names in named.items() if names - known}


def test_docstrings_name_constants_that_exist() -> None:
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in gateway_modules()}
    assert unknown_constants(texts) == {}
    assert unknown_constants({
        "a": "# at most `MOST_CALLS`\nMOST_CALLS: Final = 3",
        "b": "# `LEAST_CALLS`, `MOST_CALLS`",
    }) == {"b": {"LEAST_CALLS"}}


def test_waivers_only_fall() -> None:
    found = sum(len(Module(path.read_text(encoding="utf-8")).waivers()) for path in gateway_modules())
    assert not count_problem(found, MAX_WAIVERS)


def rules_broken(body: str) -> set[str]:
    return {rule.__name__ for rule in RULES if list(rule(Module(f'"""A snippet."""\n{body}')))}


BAD = {
    "shields": [
        "with trio.CancelScope(shield=True): ...",
        "with CancelScope(shield=flag): ...",
        "with trio.CancelScope(deadline=math.inf, shield=True): ...",
        "with trio.move_on_after(math.inf, shield=True): ...",
        "with anyio.fail_after(None, shield=True): ...",
        "def f(scope):\n    scope.shield = True",
        "def f():\n    with trio.CancelScope() as scope:\n        scope.shield = True",
        "def f():\n    with trio.move_on_after(1) as other, trio.CancelScope() as scope:\n        scope.shield = True",
        "nursery.cancel_scope.shield = True",
    ],
    "channels": [
        "trio.open_memory_channel(math.inf)",
        "open_memory_channel[int](float('inf'))",
        "trio.open_memory_channel[int](max_buffer_size=inf)",
        "ENDLESS = math.inf\nanyio.create_memory_object_stream(ENDLESS)",
    ],
    "nurseries": [
        "async def f(nursery):\n    nursery.start_soon(g)",
        "async def f(nursery):\n    await nursery.start(g)",
        "async def f(tg):\n    tg.start_soon(g)",
        "async def f(faces: trio.Nursery):\n    await faces.start(g)",
        "async def f(*, tasks: 'TaskGroup'):\n    await tasks.start(g)",
        "async def f(other):\n    other.nursery.start_soon(g)",
        "class A:\n    async def f(self):\n        self.app.nursery.start_soon(g)",
        "async def f(nursery):\n    spawn = nursery.start_soon",
        (
            "async def f():\n    async with trio.open_nursery() as nursery:\n"
            "        def g(nursery):\n            nursery.start_soon(h)"
        ),
        (
            "async def f():\n    async with trio.open_nursery() as own:\n        ...\n"
            "async def g():\n    own.start_soon(h)"
        ),
    ],
    "system_tasks": ["trio.lowlevel.spawn_system_task(f)", "from trio.lowlevel import spawn_system_task"],
    "suppressions": [
        "with contextlib.suppress(Exception): ...",
        "with suppress(OSError, BaseException): ...",
        "with suppress(*(ValueError, builtins.Exception)): ...",
        "with suppress(trio.Cancelled): ...",
    ],
    "sizes": ["x = 1\n" * MAX_MODULE_LINES, "async def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES],
}
GOOD = [
    "with trio.move_on_after(2, shield=True): ...",
    "with anyio.fail_after(delay=2, shield=True): ...",
    "with trio.CancelScope(deadline=trio.current_time() + 2, shield=True): ...",
    "with trio.CancelScope(relative_deadline=2, shield=True): ...",
    "with trio.CancelScope(shield=False): ...",
    "def f():\n    with trio.move_on_after(2) as scope:\n        scope.shield = True",
    "def f():\n    with trio.CancelScope() as scope:\n        scope.deadline = 2\n        scope.shield = True",
    "def f(scope):\n    scope.shield = False",
    "trio.open_memory_channel(0)",
    "SIZE = 8\ntrio.open_memory_channel[int](SIZE)",
    "async def f():\n    async with trio.open_nursery() as nursery:\n        await nursery.start(h)",
    (
        "async def f():\n    async with trio.open_nursery() as nursery:\n"
        "        async def accept():\n            nursery.start_soon(g)"
    ),
    "class A:\n    async def f(self):\n        self._call_nursery.start_soon(g)",
    "thread.start()",
    "def f(thread: Thread):\n    thread.start()",
    "with suppress(OSError, trio.BrokenResourceError): ...",
    "x = 1\n" * (MAX_MODULE_LINES - 1),
    "async def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1),
]


@pytest.mark.parametrize(("rule", "body"), [(rule, body) for rule, bodies in BAD.items() for body in bodies])
def test_a_rule_finds_violations(rule: str, body: str) -> None:
    assert rules_broken(body) == {rule}


@pytest.mark.parametrize("body", GOOD)
def test_the_rules_accept_good_code(body: str) -> None:
    assert rules_broken(body) == set()


@pytest.mark.parametrize(("name", "wrong"), [("app.py", 1), ("__init__.py", 1), ("_part.py", 0)])
def test_a_public_module_needs_a_docstring(name: str, wrong: int) -> None:
    assert len(judge(Module("x = 1\n", name))) == wrong


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("trio.open_memory_channel(math.inf)  # house: the reader is never slower", []),
        ("trio.open_memory_channel(math.inf)  # house: no", ["a waiver without a reason"]),
        ("trio.open_memory_channel(9)  # house: the reader is never slower", ["a waiver that excuses nothing"]),
        ("x = '# house: not a comment'", []),
        ("trio.open_memory_channel(math.inf)  # the reader is never slower", ["an unbounded channel"]),
    ],
)
def test_a_waiver_has_a_reason_and_a_use(line: str, wrong: list[str]) -> None:
    assert judge(Module(f'"""A snippet."""\n{line}\n', "x.py")) == [f"x.py:2: {each}" for each in wrong]


def test_the_number_of_waivers_is_exact() -> None:
    assert [bool(count_problem(found, 2)) for found in (1, 2, 3)] == [True, False, True]
