"""The Typer application, built from the command tables: help, usage errors and shell completion.

A plainly valid command line never gets here (`gateway.cli.flags`). Typer only parses; values are passed on as text, so
that both parsers give the same results.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.main import get_command

import gateway
from gateway.cli.flags import PROGRAM, Command, Flag
from gateway.cli.output import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Chosen = tuple[Command, dict[str, Any]]


def read_with_typer(commands: Iterable[Command], words: Sequence[str]) -> Chosen | int:
    """Return the command and its values, or the exit code after Typer's own output.

    Raises:
        UsageError: the command line is wrong.
    """
    chosen: list[Chosen] = []
    application = get_command(make_app(commands, chosen))
    try:
        code = application.main(list(words), prog_name=PROGRAM, standalone_mode=False)
    except typer.TyperException as exc:
        context = getattr(exc, "ctx", None)
        path = PROGRAM if context is None else context.command_path
        problem = "no COMMAND was given" if not words else exc.format_message().rstrip(".")
        raise UsageError(" ".join(problem.split()), f"{path} --help") from None
    except typer.Abort:
        return 1
    return chosen[0] if chosen else int(code or 0)


def make_app(commands: Iterable[Command], chosen: list[Chosen]) -> typer.Typer:
    """Return the application; it stores the parsed command in `chosen` without running it."""
    app = typer.Typer(
        name=PROGRAM,
        help="Many MCP servers behind one endpoint.",
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode=None if os.environ.get("NO_COLOR") else "rich",  # boxes are drawn only with colour
    )
    app.callback()(_root)
    for command in commands:
        app.command(command.name, help=_sentence(command.help), epilog=command.epilog or None)(
            _function(command, chosen)
        )
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {gateway.__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    """Many MCP servers behind one endpoint."""


def _function(command: Command, chosen: list[Chosen]) -> Callable[..., None]:
    """Return a command for Typer: a function with a parameter for each flag."""

    def take(**given: Any) -> None:
        raw = {key: value for key, value in given.items() if not (value is None or value is False or value in ((), []))}
        chosen.append((command, raw))

    parameters = [_parameter(flag) for flag in command.flags]
    take.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] - functions may have one
    take.__annotations__ = {one.name: one.annotation for one in parameters}
    return take


def _parameter(flag: Flag) -> inspect.Parameter:
    # Required ones last, since Python allows no default before them; all are passed by keyword.
    default: Any = inspect.Parameter.empty if flag.required else ([] if flag.many else False if flag.switch else None)
    kind = bool if flag.switch else list[str] if flag.many else str if flag.required else str | None
    info: Any
    if flag.is_option:
        metavar = "|".join(flag.choices) or flag.metavar
        if flag.switch:
            metavar = " "  # without it Typer shows <bool>, as if it took a value
        info = typer.Option(flag.name, help=_help(flag), metavar=metavar, show_default=False, **_offers(flag))
    else:
        info = typer.Argument(help=_help(flag), metavar=flag.name, show_default=False, **_offers(flag))
    return inspect.Parameter(
        flag.key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def _offers(flag: Flag) -> dict[str, Any]:
    if flag.complete is None and not flag.choices:
        return {}

    def offer(ctx: typer.Context, incomplete: str) -> list[str]:
        found = flag.choices if flag.complete is None else flag.complete(ctx.params)
        return [each for each in found if each.startswith(incomplete)]

    return {"autocompletion": offer}


def _help(flag: Flag) -> str:
    text = _sentence(flag.help)
    if flag.default is None or flag.switch or "default" in text:
        return text
    return f"{text} (default {flag.default})"


def _sentence(text: str) -> str:
    """Return the text capitalized, with Rich's markup escaped."""
    return text[:1].upper() + text[1:].replace("[", "\\[")
