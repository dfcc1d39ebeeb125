"""The documentation of the public API: every argument, unit, result and error."""

from __future__ import annotations

import builtins
import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

import gateway
from gateway.embed import errors as embed_errors
from gateway.errors import GatewayError

if TYPE_CHECKING:
    from collections.abc import Callable

PAGE = (Path(__file__).parents[2] / "docs" / "pages" / "reference" / "python-api.md").read_text(encoding="utf-8")
INTERNAL = {
    "ProxyManager": {"acquire_session", "release_session", "call_held", "list_held"},
    "EmbeddedGateway": {"open_asgi_frontends", "adopt", "offer", "run"},
}
"""Methods for other modules of this package."""
RAISES_NOTHING = {
    "ProxyManager.reload",
    "ProxyManager.get_server_status",
    "ProxyManager.get_all_servers",
    "ProxyManager.get_servers_config",
    "ProxyManager.close_all_connections",
    "ProxyManager.shutdown",
    "EmbeddedGateway.list_tools",
    "EmbeddedGateway.status",
    "EmbeddedGateway.stop",
}
MADE_ELSEWHERE = {"Closed"}
"""Errors that no method raises by itself: they come as the cause of another, or from an object that has ended."""


class Documented(NamedTuple):
    """The sections of a docstring."""

    summary: str
    arguments: dict[str, str]
    returns: str
    raises: dict[str, str]


def read(function: Callable[..., object]) -> Documented:
    text = inspect.cleandoc(function.__doc__ or "")
    parts = re.split(r"^(Args|Returns|Yields|Raises):\n", text, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return Documented(
        parts[0], _entries(found.get("Args", "")), found.get("Returns", found.get("Yields", "")).strip(),
        _entries(found.get("Raises", "")),
    )  # fmt: skip


def _entries(section: str) -> dict[str, str]:
    return dict(re.findall(r"^    \**(\w+): (.*(?:\n     .*)*)", section, re.MULTILINE))


def public() -> dict[str, Callable[..., object]]:
    """Return every public function and method, by name."""
    found: dict[str, Callable[..., object]] = {}
    for path in re.findall(r"^::: ([\w.]+)$", PAGE, re.MULTILINE):
        module, _, name = path.rpartition(".")
        thing = getattr(importlib.import_module(module), name)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            found |= {
                f"{name}.{member}": method
                for member, method in vars(thing).items()
                if inspect.isfunction(method) and not member.startswith("_") and member not in INTERNAL.get(name, ())
            }
        elif inspect.isfunction(thing):
            found[name] = thing
    return found


PUBLIC = public()
functions = pytest.mark.parametrize("name", PUBLIC)


def test_the_page_names_what_the_package_exports() -> None:
    for name in set(gateway.__all__) - {"__version__"}:
        assert re.search(rf"^::: gateway\.{name}$|\.{name}` is another name", PAGE, re.MULTILINE), name
    assert {name.partition(".")[0] for name in PUBLIC} >= {"ProxyManager", "EmbeddedGateway", "Client", "open_gateway"}


@pytest.mark.parametrize("name", [name for name in PUBLIC if "." in name])
def test_the_page_lists_every_public_method(name: str) -> None:
    assert re.search(rf"\b{name.partition('.')[2]}\b", PAGE)


@functions
def test_every_argument_is_described(name: str) -> None:
    parameters = [parameter for parameter in inspect.signature(PUBLIC[name]).parameters if parameter != "self"]
    documented = read(PUBLIC[name]).arguments
    assert list(documented) == parameters
    assert all(text[0].isupper() or text[0] == "`" for text in documented.values())


@functions
def test_every_time_has_its_unit(name: str) -> None:
    documented = read(PUBLIC[name]).arguments
    for parameter in inspect.signature(PUBLIC[name]).parameters.values():
        if "float" in str(parameter.annotation):
            unit = "Milliseconds" if parameter.name.endswith("_ms") else "Seconds"
            assert documented[parameter.name].startswith(unit)


@functions
def test_every_result_is_described(name: str) -> None:
    annotation = inspect.signature(PUBLIC[name]).return_annotation
    assert bool(read(PUBLIC[name]).returns) == (str(annotation) != "None")


@functions
def test_every_error_is_described(name: str) -> None:
    documented = read(PUBLIC[name])
    assert bool(documented.raises) == (name not in RAISES_NOTHING)
    for error, text in documented.raises.items():
        cls = getattr(embed_errors, error, None) or getattr(gateway.errors, error, None) or getattr(builtins, error)
        kinds = [base.__name__ for base in cls.__mro__[1:] if base.__module__ == "builtins"]
        built_in = next(kind for kind in kinds if kind not in {"GatewayError", "LookupError", "OSError"})
        if issubclass(cls, GatewayError) and built_in != "Exception":
            assert re.search(rf"\((an?) {built_in}\)", text), "name the built-in error that programs may catch"


def test_public_errors_are_documented_where_raised() -> None:
    raised = {error for function in PUBLIC.values() for error in read(function).raises}
    raised |= set(read(gateway.ProxyManager).raises)
    own = {
        name
        for name, cls in vars(embed_errors).items()
        if inspect.isclass(cls) and cls.__module__ == embed_errors.__name__
    }
    assert own - raised == MADE_ELSEWHERE


def test_the_constructor_is_described() -> None:
    parameters = list(inspect.signature(gateway.ProxyManager).parameters)
    assert list(read(gateway.ProxyManager).arguments) == parameters


def test_the_reader_sees_what_is_there() -> None:
    def example(first: int, second: float) -> None:
        """Do it.

        Args:
            first: The first
                thing.
            second: Seconds.

        Raises:
            KeyError: Never.
        """

    found = read(example)
    assert list(found.arguments) == ["first", "second"]
    assert list(found.raises) == ["KeyError"]
    assert not found.returns
