"""The fit of one layer: ridge regression towards the present weights, seen through what stands behind the layer.

Letters as in `search_spaces.layers`: g groups, R rows, D unknowns, O outputs a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""In units of the mean diagonal of the normal matrix."""

HELD_OUT = 0.2
"""Share of the samples that decides."""

STEPS = 10
"""At most so many fits behind a clamp."""


@dataclass(frozen=True)
class Repaired:
    """Mean squared error of a layer on the held-out samples, in units of its target's mean square, before and after."""

    before: float
    after: float


@dataclass(frozen=True)
class Goal:
    """``clamp(scale * y + base)`` should be that of `values`.

    Attributes:
        values: [g, R, O].
        scale: [g, 1, O].
        base: [g, R, O].
        clamp: lowest and highest value, None where there is no such limit.
    """

    values: Tensor
    scale: Tensor
    base: Tensor
    clamp: tuple[float | None, float | None] | None

    def __getitem__(self, rows: slice) -> Goal:
        """Some of the rows."""
        return Goal(self.values[:, rows], self.scale, self.base[:, rows], self.clamp)

    def seen(self, y: Tensor) -> Tensor:
        """What the next layer gets."""
        z = self.scale * y + self.base
        return z if self.clamp is None else z.clamp(*self.clamp)

    def error(self, y: Tensor) -> float:
        """Mean square of the difference."""
        return float((self.seen(y) - self.seen(self.values)).square().mean())

    def wanted(self, y: Tensor) -> Tensor:
        """The values, but `y` where both are beyond the same limit: nobody sees the difference."""
        if self.clamp is None:
            return self.values
        low, high = self.clamp
        z, own = self.scale * y + self.base, self.scale * self.values + self.base
        hidden = torch.zeros_like(z, dtype=torch.bool)
        if low is not None:
            hidden |= (z <= low) & (own <= low)
        if high is not None:
            hidden |= (z >= high) & (own >= high)
        return torch.where(hidden, y, self.values)


def fit(x: Tensor, old: Tensor, goal: Goal) -> tuple[Tensor, Repaired]:
    """Weights that are best on the last rows of those that ridge regression towards `old` finds on the others.

    Args:
        x: inputs [g, R, D].
        old: weights [g, O, D].

    Returns:
        The weights, `old` where nothing is better, and the errors.
    """
    cut = first_held_out(x.shape[1])
    inside, held = x[:, :cut], x[:, cut:]
    fitted, unseen = goal[:cut], goal[cut:]
    normal = inside.mT @ inside
    start = inside @ old.mT
    scale = max(float(unseen.seen(unseen.values).square().mean()), 1e-30)
    before = unseen.error(held @ old.mT)
    best, least = old, before
    right = inside.mT @ (fitted.values - start)
    for factor in _factors(normal):
        new = old + torch.cholesky_solve(right, factor).mT
        error = unseen.error(held @ new.mT)
        if error < least:
            best, least, solver = new, error, factor
    if best is not old and goal.clamp is not None:
        for _ in range(STEPS):
            step = torch.cholesky_solve(inside.mT @ (fitted.wanted(inside @ best.mT) - start), solver)
            error = unseen.error(held @ (old + step.mT).mT)
            if error >= least:
                break
            best, least = old + step.mT, error
    return best, Repaired(before / scale, least / scale)


def first_held_out(num_rows: int) -> int:
    """Where the held-out rows begin."""
    return round(num_rows * (1 - HELD_OUT))


def _factors(normal: Tensor) -> Iterator[Tensor]:
    """Cholesky factors [g, D, D] of the normal matrices with each ridge; one that fails is left out."""
    diagonal = normal.diagonal(dim1=1, dim2=2)
    mean = diagonal.mean(1, keepdim=True).clamp(min=1e-12)
    for ridge in RIDGES:
        factor, info = torch.linalg.cholesky_ex(normal + torch.diag_embed((ridge * mean).expand_as(diagonal)))
        if not info.any():
            yield factor
