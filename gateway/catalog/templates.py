"""URI templates (RFC 6570): how well one fits a URI. Enough to find an owner, which then decides. Pure."""

from __future__ import annotations


def template_weight(template: str, uri: str) -> int:
    """How well a URI template fits: its number of literal characters, or -1 if they do not occur in order.

    Linear in the URI's length, so that a hostile template costs nothing; enough to find an owner, which then decides.
    """
    first, *rest = template.split("{")
    if not uri.startswith(first):
        return -1
    literals = [piece.partition("}")[2] for piece in rest]
    if not literals:
        return len(first) if uri == first else -1
    position, weight = len(first), len(first)
    for literal in literals[:-1]:
        position = uri.find(literal, position)
        if position < 0:
            return -1
        position += len(literal)
        weight += len(literal)
    last = literals[-1]
    if not uri.endswith(last) or len(uri) - len(last) < position:
        return -1
    return weight + len(last)
