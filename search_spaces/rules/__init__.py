"""Rules: how labels pass through each ATen op. One op family per module; `apply_rule` finds the rule for a call.

A rule reads the labels of the op's inputs, says through `Ties` what must be united or stay, and labels the outputs.
An op without a rule pins everything it touches: sometimes too careful, never wrong.
"""

from __future__ import annotations

from typing import Any

import torch

from autoprune.search_spaces.rules import contraction, elementwise, index, norm, shape, spatial, windows
from autoprune.search_spaces.rules.registry import ALWAYS, RULES, Rule
from autoprune.search_spaces.tracer import Tracer, tensors

__all__ = ["apply_rule", "contraction", "elementwise", "index", "norm", "shape", "spatial", "windows"]


def find_rule(func: torch._ops.OpOverload) -> Rule | None:
    """The rule of an op, or of the op that it is the in-place form of; ops tagged pointwise share one rule."""
    name = func.overloadpacket.__name__
    rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if rule is None and torch.Tag.pointwise in func.tags:
        rule = elementwise.pointwise
    return rule


def apply_rule(tracer: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> bool:
    """Apply the rule; False where there is none and labelled inputs were pinned for it."""
    inputs = list(tensors((args, kwargs)))
    tracer.use(inputs)
    rule = find_rule(func)
    if rule not in ALWAYS and not any(map(tracer.labels, inputs)):
        return True  # nothing prunable comes in: outputs are constants
    if rule is not None:
        rule(tracer, args, kwargs, out)
        return True
    for tensor in inputs:
        for f in tracer.labels(tensor):
            tracer.reads(tensor, f)
        tracer.ties.pin_fields(tracer.labels(tensor), f"no rule for {func}")
    for tensor in tensors(out):
        tracer.assign(tensor, ())
    return False
