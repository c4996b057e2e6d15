"""The ladder of fidelity: what is done to a cut network before it is scored, from nothing to a repair of every layer.

Every rung costs more and ranks candidates better; what each needs of the dense network is collected at its first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch import nn

from autoprune.data.base import Data, Inputs, batch_size_of, concatenate, first_samples, to_device
from autoprune.memory import Halving
from autoprune.precision import device_of
from autoprune.recalibrate import recalibrate
from autoprune.recovery.compensate import compensate
from autoprune.recovery.repair import Targets, record, repair
from autoprune.search_spaces import SearchSpace
from autoprune.search_spaces.moments import Moments, collect_moments
from autoprune.search_spaces.types import Candidate

RUNGS = ("slice", "recalibrate", "compensate", "repair")
"""Each does what it says; "compensate" recalibrates as well, "repair" starts from compensated weights."""

MEMORY = 2 * 2**30
"""Bytes of activations that a repair may hold: it runs all its samples at once, fewer where they are large."""


class Ladder:
    """Recovers subnets of one space.

    Args:
        space: its dense model is left as it is.
        data: gives the calibration samples, from the training split.
        samples: how many.
        importance: criterion by which the subnets were cut.
        classifies: whether the network returns class scores.
        precision: of the recalibration, "fp32" or "bf16"; all else is float32.
    """

    def __init__(
        self,
        space: SearchSpace,
        data: Data,
        *,
        samples: int,
        importance: str = "l2",
        classifies: bool = False,
        precision: str = "fp32",
    ) -> None:
        self.space, self.data, self.samples = space, data, samples
        self.importance, self.classifies, self.precision = importance, classifies, precision

    def recover(self, subnet: nn.Module, candidate: Candidate, rung: str) -> None:
        """Change `subnet`, the network of `candidate`, in place; it owns its parameters from "compensate" on."""
        if rung == "slice":
            return
        if rung != "recalibrate":
            kept = self.space.kept(candidate, self.importance)
            compensate(self.space, subnet, kept, self.moments)
            if rung == "repair":
                repair(subnet, kept, self.targets)
                return  # the statistics of the norms are part of what the layers were fitted to
        recalibrate(subnet, self.inputs, precision=self.precision)

    @cached_property
    def inputs(self) -> list[Inputs]:
        """The calibration samples in batches."""
        return self.data.calibration(self.samples)

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Second moments of the dense network."""
        halving = Halving()
        return halving(lambda: collect_moments(self.space, halving.all_parts(self.inputs)))

    @cached_property
    def targets(self) -> Targets:
        """What the dense network computes; on as many samples as `MEMORY` allows."""
        args, kwargs = self.space.example_inputs
        example = batch_size_of((*args, *kwargs.values()))
        per_sample = max(1, self.space.costs(self.space.dense).peak_bytes // example)
        one = _one_batch(self.inputs, max(1, MEMORY // per_sample))
        return record(self.space.model, to_device(one, device_of(self.space.model)), classifies=self.classifies)


def _one_batch(batches: Sequence[Inputs], limit: int) -> Inputs:
    parts = []
    for batch in batches:
        parts.append(first_samples(batch, limit))
        limit -= batch_size_of(parts[-1])
        if limit <= 0:
            break
    return concatenate(parts)
