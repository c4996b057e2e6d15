"""Proof of shapes: every group is cut by one unit and the model run before it is offered.

A network whose Python code holds a size (``view(n, 768)``, an assertion on the width) raises or returns another
shape. The groups to blame are found by the module in which it failed, and stay whole. That the numbers are right too
is `verify`'s matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoprune.search_spaces import surgery
from autoprune.search_spaces.runs import Traced
from autoprune.search_spaces.tracer import ModulePaths, module_paths, plain_kernels, tensors

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class Failure:
    """Where the cut model failed, which module had finished last, and the model's own words."""

    module: str
    finished: str
    message: str


def failing_groups(space: SearchSpace, traced: Traced) -> dict[int, Failure]:
    """Groups that the model does not run without; empty where all can be cut together."""
    everything = range(len(space.groups))
    failing: dict[int, Failure] = {}
    while True:
        left = [i for i in everything if i not in failing]
        failure = _try(space, traced, left) if left else None
        if failure is None:
            return failing
        for suspects in _suspects(space, left, failure):
            alone = (
                {suspects[0]: failure}  # nobody else there: too careful where the cause is elsewhere, never wrong
                if len(suspects) == 1
                else {i: f for i in suspects if (f := _try(space, traced, [i]))}
            )
            failing |= alone
            if alone:
                break
        else:  # they fail only together
            failing |= dict.fromkeys(suspects, failure)


def _suspects(space: SearchSpace, left: Sequence[int], failure: Failure) -> Iterator[list[int]]:
    """Who may be to blame, the likeliest first: what came out of the last module, what the failing one holds, all."""
    for module in (failure.finished, failure.module):
        near = [i for i in left if _touches(space, i, module)]
        if module and near:
            yield near
    yield list(left)


def _try(space: SearchSpace, traced: Traced, cut: Iterable[int]) -> Failure | None:
    """Cut the last unit of each of these groups and run."""
    chosen = set(cut)
    kept = [np.arange(g.num_units - (i in chosen)) for i, g in enumerate(space.groups)]
    paths = ModulePaths()
    try:
        model = surgery.cut(traced.model, space.kept_indices(kept), share=True).eval()
        with plain_kernels(), torch.no_grad(), module_paths(model, paths):
            shapes = [tuple(t.shape) for t in tensors(model(*traced.args, **traced.kwargs))]
    except Exception as error:  # the model's own words are kept and reported
        return Failure(paths.running[-1], paths.finished, str(error).strip().partition("\n")[0])
    if shapes != traced.output_shapes:
        return Failure("", "", f"the outputs become {shapes} instead of {traced.output_shapes}")
    return None


def _touches(space: SearchSpace, index: int, module: str) -> bool:
    """Does the group cut a parameter of this module or of one inside it?"""
    prefix = f"{module}." if module else ""
    return any(name.startswith(prefix) for name in space.tensors_of(index))
