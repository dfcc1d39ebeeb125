"""Medians, spreads, ratios, and their tables; `show` prints them, `page` puts them into a report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """The median of some rounds, and their range."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values):
        return cls(median(values), min(values), max(values))

    def show(self, scale=1.0, digits=2):
        value, low, high = (f"{number * scale:,.{digits}f}" for number in (self.value, self.low, self.high))
        return value if low == high else f"{value} ({low} to {high})"


def ratios(above, below):
    """Return the ratios round by round, so that a slow round does not count."""
    return Figure.of([a / b for a, b in zip(above, below, strict=True)])


def differences(whole, part):
    """Return the differences round by round."""
    return Figure.of([a - b for a, b in zip(whole, part, strict=True)])


@dataclass(frozen=True)
class Claim:
    """One figure, and its target: at least `least` or at most `most`, if any."""

    what: str
    figure: Figure
    unit: str = ""
    scale: float = 1.0
    least: float | None = None
    most: float | None = None

    @property
    def reached(self):
        value = self.figure.value * self.scale
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def wanted(self):
        if self.least is not None:
            return f">= {self.least:g}"
        return "" if self.most is None else f"<= {self.most:g}"

    def row(self):
        verdict = ("reached" if self.reached else "MISSED") if self.wanted else ""
        return [self.what, self.figure.show(self.scale), self.unit, self.wanted, verdict]

    def data(self):
        return asdict(self) | {"reached": self.reached}


def render(header, rows):
    """Return a Markdown table whose columns are also aligned on a terminal."""
    rows = [header, *rows]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(header))]
    lines = [
        "| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


@dataclass(frozen=True)
class Table:
    """A table with a title; as text it is Markdown."""

    header: list
    rows: list
    title: str = ""

    def __str__(self):
        return (f"{self.title}\n\n" if self.title else "") + render(self.header, self.rows)


CLAIMS = ["what", "figure (rounds)", "unit", "wanted", ""]


def claims_table(claims):
    return Table(CLAIMS, [claim.row() for claim in claims])


def parts(shown):
    """The output of a module: texts, tables, plots. A text may contain Markdown tables."""
    if not isinstance(shown, str):
        return [piece for one in shown for piece in (parts(one) if isinstance(one, str) else [one])]
    pieces = []
    for is_table, lines in _runs(shown.splitlines()):
        if is_table:
            rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
            pieces.append(Table(rows[0], rows[2:]))
        elif text := "\n".join(lines).strip():
            pieces.append(text)
    return pieces


def _runs(lines):
    runs = []
    for line in lines:
        is_table = line.startswith("|")
        if not runs or runs[-1][0] is not is_table:
            runs.append((is_table, []))
        runs[-1][1].append(line)
    return runs
