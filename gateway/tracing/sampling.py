"""Which traces are recorded: the samplers that `OTEL_TRACES_SAMPLER` names.

The decision is made before anything is recorded, so a request that is not sampled costs no more than new ids.
"""

from __future__ import annotations

from typing import Final

from gateway.tracing.trace_context import RANDOM, SAMPLED, TraceContext, new_id

RATIOS: Final = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
"""The share of traces that each sampler records; None: the one in `OTEL_TRACES_SAMPLER_ARG`."""
PARENT_BASED: Final = "parentbased_"
DEFAULT: Final = "parentbased_always_on"


class Sampler:
    """Records a share of all traces.

    With `by_parent`, a trace that was begun elsewhere is recorded if it is recorded there.
    """

    def __init__(self, ratio: float = 1.0, *, by_parent: bool = True) -> None:
        self._bound = round(ratio * 2**64)
        self._by_parent = by_parent

    @classmethod
    def named(cls, name: str, argument: str) -> Sampler:
        """Return the sampler of this name. Raises ValueError."""
        by_parent = name.startswith(PARENT_BASED)
        base = name.removeprefix(PARENT_BASED)
        if base not in RATIOS:
            text = f"unknown sampler {name!r}"
            raise ValueError(text)
        ratio = RATIOS[base]
        if ratio is None:
            ratio = float(argument or 1)
            if not 0 <= ratio <= 1:
                text = f"not a share of all traces: {argument!r}"
                raise ValueError(text)
        return cls(ratio, by_parent=by_parent)

    def begin(self, parent: TraceContext | None) -> TraceContext:
        """Return the context of a new span."""
        if parent is not None:
            sampled = parent.is_sampled if self._by_parent else self._takes(parent.trace_id)
            return parent.child(sampled=sampled)
        trace_id = new_id(16)
        return TraceContext(trace_id, new_id(8), RANDOM | (SAMPLED if self._takes(trace_id) else 0))

    def _takes(self, trace_id: str) -> bool:
        return int(trace_id[16:], 16) < self._bound
