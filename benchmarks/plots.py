"""Plots as SVG, without a library: lines over a linear or logarithmic axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 680, 320
LEFT, RIGHT, TOP, BOTTOM = 70, 170, 34, 48  # margins; the legend is on the right
COLORS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df", "#bf8700", "#0a7ea4", "#cf5f9f", "#57606a")
TICKS = 5
MOST_MARKED = 40  # points of a series; more of them form a curve without marks
HEAD = (
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    ' font-family="system-ui, sans-serif" font-size="12" fill="currentColor" role="img">'
)


@dataclass(frozen=True)
class Plot:
    """One plot. `series`: name -> [(x, y), ...]; `x_names` replaces numbers below the axis."""

    title: str
    x: str
    y: str
    series: dict
    x_log: bool = False
    y_log: bool = False
    x_names: dict | None = None

    def __str__(self):
        return ""  # a terminal has the tables


class Axis:
    """A mapping of numbers to pixels; a logarithmic axis omits values up to 0."""

    def __init__(self, values, begin, end, log):
        self.log, self.begin, self.end = log, begin, end
        low, high = (min(values), max(values)) if values else (0.0, 1.0)
        if log:
            low, high = math.log10(low), math.log10(high)
        else:
            low = min(low, 0.0)
        self.low, self.high = low, high if high > low else low + 1.0

    def at(self, value):
        scaled = math.log10(value) if self.log else value
        return self.begin + (scaled - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self):
        if self.log:
            first, last = math.ceil(self.low - 1e-9), math.floor(self.high + 1e-9)
            if last > first:
                return [10.0**power for power in range(first, last + 1)]
            return [10.0**self.low, 10.0**self.high]
        step = nice((self.high - self.low) / TICKS)
        return [step * i for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def nice(step):
    """Return the next number up of 1, 2, 5, 10, ..."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * 0.999)


def number(value):
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e4 else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def text(x, y, words, anchor="middle", **more):
    attributes = "".join(f' {name.replace("_", "-")}="{value}"' for name, value in more.items())
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{attributes}>{escape(str(words))}</text>'


def draw(plot):
    """Return the plot as a self-contained SVG element."""
    series = {
        name: [(x, y) for x, y in points if (x > 0 or not plot.x_log) and (y > 0 or not plot.y_log)]
        for name, points in plot.series.items()
    }
    points = [point for one in series.values() for point in one]
    across = Axis([x for x, _y in points], LEFT, WIDTH - RIGHT, plot.x_log)
    up = Axis([y for _x, y in points], HEIGHT - BOTTOM, TOP, plot.y_log)
    out = [
        HEAD,
        f"<title>{escape(plot.title)}</title>",
        text(LEFT, 18, plot.title, "start", font_weight="600"),
        *draw_axes(plot, across, up),
    ]
    for i, (name, its_points) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        spots = [(across.at(x), up.at(y)) for x, y in its_points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (x, y), value in zip(spots, its_points, strict=True) if len(spots) <= MOST_MARKED else ():
            label = escape(f"{name}: {number(value[0])} {plot.x}, {number(value[1])} {plot.y}")
            out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{label}</title></circle>')
        y = TOP + 8 + 18 * i
        out.extend((
            f'<rect x="{WIDTH - RIGHT + 14}" y="{y - 8}" width="12" height="4" fill="{color}"/>',
            text(WIDTH - RIGHT + 32, y - 2, name, "start"),
        ))
    return "".join([*out, "</svg>"])


def draw_axes(plot, across, up):
    bottom = HEIGHT - BOTTOM
    faint = 'stroke="currentColor" stroke-opacity="0.15"'
    for value in up.ticks():
        y = up.at(value)
        yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" {faint}/>'
        yield text(LEFT - 8, y + 4, number(value), "end")
    names = plot.x_names or {value: number(value) for value in across.ticks()}
    for value, name in names.items():
        yield text(across.at(float(value)), bottom + 18, name)
    yield f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}" stroke="currentColor"/>'
    yield text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, plot.x)
    yield text(0, 0, plot.y, transform=f"translate(16,{(TOP + bottom) / 2}) rotate(-90)")


def percentiles(title, results, unit=1e3):
    """Plot latency by percentile, name -> result, with equal steps from 90 to 99.9 %."""
    names, series = {}, {}
    for name, result in results.items():
        series[name] = points = []
        for share, seconds in result["quantiles"]:
            if share >= 1:
                continue
            place = -math.log10(1 - share)
            names[place] = f"{share * 100:g}"
            points.append((place, seconds * unit))
    names = {place: word for place, word in names.items() if word in {"50", "90", "99", "99.9"}}
    return Plot(title, "percentile", "ms", series, y_log=True, x_names=names)
