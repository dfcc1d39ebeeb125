"""The current step of the measurement, on stderr if that is a terminal."""

from __future__ import annotations

import contextlib
import sys

_shown = []  # the bar and its task, while one is shown


@contextlib.contextmanager
def shown(question):
    """Show question, step and time on a line, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        _shown.append((bar, bar.add_task(question, total=None), question))
        try:
            yield
        finally:
            _shown.pop()


def plan(steps):
    """Set the number of steps."""
    for bar, task, _question in _shown:
        bar.update(task, total=steps)


def step(what):
    """Set the current step; the previous one is done."""
    for bar, task, question in _shown:
        if (before := bar.tasks[0].fields.get("began")) is not None:
            bar.advance(task)
        bar.update(task, description=f"{question}: {what}", began=before or what)
