"""The results on stdout: tables in colour on a terminal, Markdown elsewhere, or JSON."""

from __future__ import annotations

import json
import sys

from benchmarks.plots import Plot
from benchmarks.table import Table, claims_table, parts


def report(question, machine, claims, *, details=None, as_json=False):
    """Print everything: the machine, the details, the claims."""
    if as_json:
        data = {"question": question, "machine": machine, "claims": [claim.data() for claim in claims]}
        print(json.dumps(data | {"details": details[1] if details else None}, indent=2))
        return
    pieces = [piece for piece in parts(details[0]) if not isinstance(piece, Plot)] if details else []
    pieces.append(claims_table(claims))
    heading = "\n".join(f"{key}: {value}" for key, value in machine.items())
    if sys.stdout.isatty():
        show_rich(question, heading, pieces)
    else:
        print("\n\n".join([f"# {question}\n{heading}", *map(str, pieces)]))


def show_rich(question, heading, pieces):
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console()
    console.rule(question)
    console.print(Text(heading, style="dim"))
    for piece in pieces:
        if not isinstance(piece, Table):
            console.print(Text(str(piece)))
            continue
        table = RichTable(title=piece.title or None, title_justify="left", box=box.SIMPLE_HEAD)
        for name in piece.header:
            table.add_column(Text(str(name)))
        for row in piece.rows:
            style = "red" if row[-1] == "MISSED" else ""
            table.add_row(*(Text(str(cell)) for cell in row), style=style)
        console.print(table)
