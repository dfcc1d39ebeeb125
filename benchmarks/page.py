"""The report: one self-contained HTML page with the tables and plots of all questions.

`keep` writes DIR/QUESTION.json and then DIR/index.html again from all of them, so that several runs make one page.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from html import escape
from pathlib import Path

from benchmarks.plots import Plot, draw
from benchmarks.table import Table, claims_table, parts

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; font-size: 14px; }
caption { text-align: left; font-weight: 600; padding: .3em 0; }
th, td { text-align: left; padding: .25em .8em .25em 0; border-bottom: 1px solid #8884; vertical-align: top; }
pre { white-space: pre-wrap; font: inherit; color: #777; max-width: 75ch; }
.missed { color: #d1242f; font-weight: 600; } .reached { color: #1a7f37; }
nav a { margin-right: 1em; } svg { display: block; margin: 1em 0; max-width: 100%; height: auto; }
"""


def keep(directory, question, module, described, claims, details):
    """Add a question's results to the report; return the page's path."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    pieces = [dump_piece(piece) for piece in parts(details[0])] if details else []
    found = {
        "question": question,
        "asks": (module.__doc__ or "").strip(),
        "machine": described,
        "claims": dump_piece(claims_table(claims)),
        "pieces": pieces,
        "data": details[1] if details else None,
    }
    Path(directory, f"{question}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    page = directory / "index.html"
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(directory.glob("*.json"))]
    page.write_text(render_page(kept), encoding="utf-8")
    return page


def dump_piece(piece):
    if isinstance(piece, Table):
        return {"kind": "table", "title": piece.title, "header": piece.header, "rows": piece.rows}
    if isinstance(piece, Plot):
        return {"kind": "plot", **asdict(piece)}
    return {"kind": "text", "text": str(piece)}


def render_page(kept):
    links = "".join(f'<a href="#{escape(one["question"])}">{escape(one["question"])}</a>' for one in kept)
    body = "".join(render_question(one) for one in kept)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>MCP gateway: benchmarks</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>MCP gateway: benchmarks</h1><nav>{links}</nav>{body}</body></html>\n"
    )


def render_question(found):
    name = escape(found["question"])
    machine = render_table("Measured on", [], [[key, value] for key, value in found["machine"].items()])
    pieces = "".join(render_piece(piece) for piece in [found["claims"], *found["pieces"]])
    return f'<section id="{name}"><h2>{name}</h2><pre>{escape(found["asks"])}</pre>{pieces}{machine}</section>'


def render_piece(piece):
    match piece["kind"]:
        case "table":
            return render_table(piece["title"], piece["header"], piece["rows"])
        case "plot":
            return draw(Plot(**{key: value for key, value in piece.items() if key != "kind"}))
        case _:
            return f"<pre>{escape(piece['text'])}</pre>"


def render_table(title, header, rows):
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    lines = "".join("<tr>" + "".join(map(render_cell, row)) + "</tr>" for row in rows)
    caption = f"<caption>{escape(title)}</caption>" if title else ""
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>"


def render_cell(cell):
    words = escape(str(cell))
    kind = {"MISSED": ' class="missed"', "reached": ' class="reached"'}.get(words, "")
    return f"<td{kind}>{words}</td>"
