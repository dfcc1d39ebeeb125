"""Error codes: one per class, all in one table, shown by every output."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import gateway
from gateway import errors
from gateway.access import refusal
from gateway.calls import Era
from gateway.cli import doctor
from gateway.cli.main import main
from gateway.embed import errors as embed_errors
from gateway.eras.errors import to_wire
from gateway.eras.requests import UnsupportedVersion
from gateway.frontends.resource_subscriptions import Refused
from gateway.relay import record

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(gateway.__file__).parent
INHERITED = {
    embed_errors.InvalidConfig: errors.ConfigError,
    embed_errors.UnknownServer: errors.UnknownServer,
}
"""Classes that share their parent's code: the same error under the built-in name that programs expect."""
NOT_RUN = {"gateway.__main__", "gateway.demo.servers"}
"""Modules that are programs."""


def all_errors(cls: type[errors.GatewayError] = errors.GatewayError) -> Iterator[type[errors.GatewayError]]:
    if cls is errors.GatewayError:
        for module in pkgutil.walk_packages([str(PACKAGE)], "gateway."):
            if module.name not in NOT_RUN:
                importlib.import_module(module.name)
    yield cls
    for sub in cls.__subclasses__():
        if sub.__module__.startswith("gateway."):
            yield from all_errors(sub)


CLASSES = sorted(set(all_errors()), key=lambda cls: (cls.__module__, cls.__name__))


REPEATING = [cls for cls in CLASSES if issubclass(cls, errors.RequestError) and cls not in {errors.Revoked, Refused}]


@pytest.mark.parametrize("cls", REPEATING, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
@pytest.mark.parametrize("era", Era)
def test_quoted_client_input_is_bounded(cls: type[errors.RequestError], era: Era) -> None:
    problem = cls("x" * 1_000_000)
    assert len(to_wire(problem, era).encode(1)) < errors.MAX_REASON + 500
    data = problem.data() if isinstance(problem, UnsupportedVersion) else b""
    assert len(data) < errors.MAX_REASON + 500


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_every_class_has_or_inherits_a_code(cls: type[errors.GatewayError]) -> None:
    if cls in INHERITED:
        assert "code" not in vars(cls)
        assert issubclass(cls, INHERITED[cls])
        assert cls.code == INHERITED[cls].code
    else:
        assert "code" in vars(cls), "give it a code, or name it in INHERITED"
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", cls.code)


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CLASSES if cls not in INHERITED]
    codes += [*refusal.CODES, doctor.PROCESSES_LEFT]
    assert len(codes) == len(set(codes))


def test_refusals_have_listed_codes() -> None:
    """A literal code of a `Refusal` is in `CODES`; others are an error's."""
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_refusal = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal"
            if is_refusal and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, int):
                code = node.args[1]
                if isinstance(code, ast.Constant):
                    used.add(str(code.value))
                elif isinstance(code, ast.Name):
                    assert code.id == "code", path
                else:
                    assert isinstance(code, ast.Attribute), path
                    assert code.attr == "code", path
    assert {*used, "missing_credentials"} == set(refusal.CODES)


def test_every_code_is_in_the_table() -> None:
    abstract = {errors.GatewayError.code, errors.BackendError.code, errors.RequestError.code}
    wanted = {cls.code for cls in CLASSES} - abstract | set(refusal.CODES) | {doctor.PROCESSES_LEFT, record.REASON}
    assert set(errors.CODES) == wanted


@pytest.mark.parametrize("era", Era)
@pytest.mark.parametrize(
    "problem",
    [
        errors.Busy("m"),
        errors.ShuttingDown("m"),
        errors.BackendError("b", "m"),
        errors.BackendUnavailable("b", "m"),
        errors.BackendExited("b", "m"),
        errors.BackendTooSlow("b", "m"),
        errors.BackendProtocol("b", "m"),
        errors.BackendUnfit("b", "m"),
        errors.ServerDisabled("b"),
        errors.RequestError("m"),
        errors.GatewayError("m"),
        errors.Revoked(),
    ],
    ids=lambda value: value.code if isinstance(value, errors.GatewayError) else str(value),
)
def test_the_wire_shows_the_code(problem: errors.GatewayError, era: Era) -> None:
    data = to_wire(problem, era).data
    assert data is not None
    assert json.loads(data)["reason"] == problem.code


@pytest.mark.parametrize("era", Era)
def test_denied_and_unknown_items_look_alike(era: Era) -> None:
    assert to_wire(errors.Denied("m"), era) == to_wire(errors.UnknownName("m"), era)


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (errors.BackendUnfit("b", "m"), "backend_unfit"),
        (FileNotFoundError("x"), "backend_unavailable"),
        (None, "backend_exited"),
        (RuntimeError(), "backend_timeout"),
    ],
)
def test_every_end_of_a_start_has_a_code(problem: BaseException | None, code: str) -> None:
    assert errors.code_of(problem) == code


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (["list"], 1, "command_failed"),
        (["reload"], 1, "command_failed"),
        (["doctor", "nowhere.json"], 2, "invalid_config"),
        (["call", "a.b", "--config", "nowhere.json"], 2, "invalid_config"),
        (["call", "a.b", "x=1", "--args", "{}"], 2, "invalid_usage"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_json_output_shows_the_code_of_a_failure(
    words: list[str],
    status: int,
    code: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCP_GATEWAY_STATE_DIR", str(tmp_path))
    assert main([*words, "--json"]) == status
    out, err = capsys.readouterr()
    found = json.loads(out)["error"]
    assert found["code"] == code
    assert f"error: {found['message']}\n" in err


WORDS = {"reason", "last_error", "message", "msg"}
"""Attributes that hold the text of an error."""
FOREIGN = {"config/text.py"}
"""Modules that must read the words of others: `json` tells its errors apart by their text only."""


def is_wording(node: ast.expr) -> bool:
    """Whether an expression is the text of an error or of a log record."""
    match node:
        case ast.Attribute(attr=name):
            return name in WORDS
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[ast.Name(id="exc" | "error" | "problem" | "outcome")]):
            return True
        case ast.Call(func=ast.Attribute(attr="getMessage")):
            return True
        case ast.Call(func=ast.Attribute(value=value, attr="lower" | "strip" | "casefold")):
            return is_wording(value)
    return False


def reads_wording(node: ast.AST) -> bool:
    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            compares = any(isinstance(op, ast.In | ast.NotIn | ast.Eq | ast.NotEq) for op in ops)
            return compares and any(map(is_wording, [left, *others]))
        case ast.Call(func=ast.Attribute(value=value, attr="startswith" | "endswith" | "find" | "index" | "count")):
            return is_wording(value)
        case ast.Call(func=ast.Attribute(attr="search" | "match" | "fullmatch" | "findall"), args=args):
            return any(map(is_wording, args))
    return False


@pytest.mark.parametrize(
    ("code", "reads"),
    [
        ('"left out" in str(exc)', True),
        ('record.getMessage().startswith("x")', True),
        ('"x" == problem.reason', True),
        ("_PATTERN.search(supervisor.last_error)", True),
        ('"x" in exc.reason.lower()', True),
        ("exc.code in CODES", False),
        ("name in found", False),
    ],
)
def test_the_wording_rule_detects_violations(code: str, reads: bool) -> None:
    assert any(map(reads_wording, ast.walk(ast.parse(code)))) is reads


def test_nothing_depends_on_the_wording_of_messages() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if reads_wording(node)
    ]
    assert {place.partition(":")[0] for place in found} == FOREIGN, found
