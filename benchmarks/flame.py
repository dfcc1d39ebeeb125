"""A flame graph as one SVG: a box per function, above its caller's.

Its width is its share of the samples.
"""

from __future__ import annotations

import zlib
from html import escape

WIDTH, ROW, TOP = 1200, 17, 40
LEAST = 0.4  # pixels; narrower boxes are left out
LETTER = 6.6  # pixels
HUES = {"gateway": 210, "trio": 30, "h11": 280, "hypercorn": 280, "msgspec": 120, "benchmarks": 0}
STYLE = "rect{stroke:#fff;stroke-width:.5} text{font:11px ui-monospace,monospace;fill:#111;pointer-events:none}"


class Box:
    """A function and its callees, with its samples."""

    def __init__(self, name):
        self.name, self.seen, self.inside = name, 0, {}

    def add(self, stack, seen):
        self.seen += seen
        if stack:
            self.inside.setdefault(stack[0], Box(stack[0])).add(stack[1:], seen)

    def depth(self):
        return 1 + max((box.depth() for box in self.inside.values()), default=0)


def draw_flame(stacks, title):
    """`stacks` are (names, samples) with the outermost function first."""
    root = Box("all")
    for names, seen in stacks:
        root.add(list(names), seen)
    height = TOP + root.depth() * ROW + 10
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f'<style>{STYLE}</style><rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="22" style="font-size:14px">{escape(title)}</text>',
    ]
    draw_box(root, 0.0, 0, root.seen, height - 10 - ROW, out)
    return "".join([*out, "</svg>\n"])


def draw_box(box, x, level, whole, bottom, out):
    width = box.seen / whole * WIDTH
    if width < LEAST:
        return
    y = bottom - level * ROW
    label = escape(f"{box.name}: {box.seen / whole:.1%} ({box.seen} samples)")
    fitting = box.name.rpartition(":")[2][: max(0, int((width - 6) / LETTER))]
    words = f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(fitting)}</text>' if len(fitting) > 2 else ""
    out.append(
        f'<g><title>{label}</title><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROW}"'
        f' fill="{color(box.name)}"/>{words}</g>'
    )
    for inner in sorted(box.inside.values(), key=lambda one: one.name):
        draw_box(inner, x, level + 1, whole, bottom, out)
        x += inner.seen / whole * WIDTH


def color(name):
    hue = HUES.get(name.partition("/")[0], 60)
    light = 70 + zlib.crc32(name.encode()) % 16
    return f"hsl({hue},65%,{light}%)"
