"""Sequential repair: layers in forward order are fitted by ridge regression to what the dense network computed there.

One forward pass of the cut network over the calibration samples. When a layer is reached, its inputs are those of the
network as repaired so far; its weights are solved for and written, and the pass goes on with them. The targets, the
dense network's pre-activations at sampled places, are recorded once per study.

- *Error feedback*: where an output joins a residual stream, it is fitted to bring the stream to its dense value, so
  that it corrects what earlier layers left there. A batch norm between (evaluation mode) is inverted.
- *What the clamp hides costs nothing*: behind a ReLU, two values below zero are equal. After the plain fit, such
  targets are replaced by the fit's own predictions and it is solved again (majorisation: the error never rises).
- *The last layer* of a classifier is then fitted to the dense network's probabilities (`classifier`).
- *Held-out*: the ridge and the number of those steps are what is best on samples that the fit did not see; a layer
  whose error there does not fall keeps its weights.

Sources: layer-wise least squares with inputs of the pruned network, He et al. 2017, arXiv:1707.06168, sec. 3.2; the
error behind the ReLU, Zhang et al. 2016, arXiv:1505.06798, sec. 3.1 (there solved by a penalty, for decompositions).
Differs: ridge towards the present weights, the clamp by majorisation, feedback by fitting the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.data.base import Inputs, batch_size_of, first_samples, forward
from autoprune.recovery.classifier import fit_classifier
from autoprune.recovery.fit import Goal, Repaired, first_held_out, fit
from autoprune.recovery.surroundings import Behind, Key, Surroundings
from autoprune.running import logits_of
from autoprune.search_spaces.layers import Call, Layer, LayerWatch, watching
from autoprune.search_spaces.runs import without_own_storage
from autoprune.search_spaces.surgery import Kept, named_tensors

ROWS = (8_192, 32_768)
ROWS_PER_INPUT = 64
MAX_VALUES = 2**26
"""Places that a layer is fitted on: so many for each unknown of an output, within the limits, and no more than hold
`MAX_VALUES` inputs (256 MiB).
"""

MIN_ROWS = 10
"""A layer with fewer is left as it is: there is nothing to hold out."""

MAX_INPUTS = 9_216
"""Unknowns of one output from which on a layer is left as it is: the normal matrix is of their square."""


@dataclass
class Target:
    """What the dense network computed at sampled rows of a layer.

    Attributes:
        rows: [R], ascending: all rows of a sample stand together.
        num_rows: how many there are; another number in the subnet says that they are made of units (heads, say).
        values: its outputs [R, outputs].
        total: the sum that they join [R, outputs], where there is one.
        is_output: whether they are what the network returns.
    """

    layer: Layer
    behind: Behind
    rows: Tensor
    num_rows: int
    values: Tensor
    total: Tensor | None = None
    is_output: bool = False


@dataclass(frozen=True)
class Targets:
    """Targets by number of the op, and the one batch of inputs that they belong to."""

    inputs: Inputs
    layers: Mapping[int, Target]


def record(dense: nn.Module, inputs: Inputs, *, classifies: bool = False) -> Targets:
    """Run the dense network on `inputs`, one batch, and keep samples of what its layers compute.

    Args:
        classifies: whether the network returns class scores.
    """
    model = without_own_storage(dense).eval()
    seen, few = Surroundings(model), first_samples(inputs, 2)
    watching(seen, model, lambda: forward(model, few))
    recorder = _Recorder(model, batch_size_of(inputs), {index: seen.behind(index) for index in seen.once()})
    output = watching(recorder, model, lambda: forward(model, inputs))
    if classifies:
        recorder.mark_output(logits_of(output))
    return Targets(inputs, recorder.targets)


def repair(subnet: nn.Module, kept: Kept, targets: Targets) -> dict[str, Repaired]:
    """Fit the layers of `subnet` in place; it is left in evaluation mode.

    Args:
        subnet: owns its parameters.
        kept: what the cut kept of every tensor, as `space.kept` gives it.

    Returns:
        By name of the weight, for every layer that was fitted.
    """
    watch = _Repair(subnet.eval(), kept, targets)
    watching(watch, subnet, lambda: forward(subnet, targets.inputs))
    return watch.found


def sampled_rows(call: Call, num_samples: int) -> Tensor:
    """Rows of a layer's output, as many of every sample, ascending; the same ones at every call."""
    per_sample, rest = divmod(call.num_rows, num_samples)
    if rest or not per_sample:  # rows are not those of samples: windows that were moved into the batch, say
        per_sample, num_samples = call.num_rows, 1
    limit = min(max(ROWS[0], ROWS_PER_INPUT * call.num_inputs), ROWS[1])
    limit = min(limit, MAX_VALUES // (call.layer.groups * call.num_inputs))
    wanted = max(1, limit // num_samples)
    first = torch.arange(num_samples).unsqueeze(1) * per_sample
    if wanted >= per_sample:
        rows = first + torch.arange(per_sample)
    else:  # with replacement: repeats are few, and do no harm
        generator = torch.Generator().manual_seed(call.index)
        rows = first + torch.randint(per_sample, (num_samples, wanted), generator=generator).sort(1).values
    return rows.reshape(-1).to(call.x.device)


class _Recorder(LayerWatch):
    def __init__(self, model: nn.Module, num_samples: int, wanted: Mapping[int, Behind]) -> None:
        super().__init__(model)
        self.targets: dict[int, Target] = {}
        self._num_samples, self._wanted = num_samples, wanted
        self._joining: dict[int, list[tuple[Call, Target]]] = {}

    def on_layer(self, call: Call) -> Any:
        out = call.run()
        behind = self._wanted.get(call.index)
        if behind is not None and call.num_inputs <= MAX_INPUTS:
            rows = sampled_rows(call, self._num_samples)
            target = self.targets[call.index] = Target(call.layer, behind, rows, call.num_rows, call.outputs(out, rows))
            if behind.total is not None:
                self._joining.setdefault(behind.total, []).append((call, target))
        return out

    def mark_output(self, scores: Tensor) -> None:
        """Note which layer made these scores, the last thing that the network did."""
        if self.targets:
            target = self.targets[max(self.targets)]
            if scores.dim() == 2 and torch.equal(target.values, scores):
                target.is_output = True

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        for call, target in self._joining.pop(self.index, ()):
            if call.fits(out, target.values.shape[1]):
                target.total = call.outputs(out, target.rows)
        return out


class _Repair(LayerWatch):
    def __init__(self, subnet: nn.Module, kept: Kept, targets: Targets) -> None:
        super().__init__(subnet)
        self.found: dict[str, Repaired] = {}
        self._kept, self._targets, self._tensors = kept, targets.layers, named_tensors(subnet)
        known = (t.behind for t in targets.layers.values() if t.behind.is_known)
        self._wanted = {behind.other for behind in known}
        self._values: dict[Key, Tensor] = {}

    def on_layer(self, call: Call) -> Any:
        target = self._targets.get(call.index)
        if target is not None and self._fits(call, target):
            self._fit(call, target)
        return self._noted(call.run())

    def on_op(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self._noted(func(*args, **kwargs))

    def _noted(self, out: Any) -> Any:
        for position, tensor in enumerate(out if isinstance(out, tuple | list) else (out,)):
            if (self.index, position) in self._wanted:
                self._values[self.index, position] = tensor
        return out

    @staticmethod
    def _fits(call: Call, target: Target) -> bool:
        """Is this still the call that the target was recorded of, and are there samples to fit it on?"""
        same = target.layer.name == call.layer.name and target.num_rows == call.num_rows
        return same and len(target.rows) >= MIN_ROWS

    def _fit(self, call: Call, target: Target) -> None:
        layer = call.layer  # not that of the dense network: a depthwise convolution has fewer groups now
        weight = self._tensors[layer.name]
        bias = None if layer.bias is None else self._tensors[layer.bias]
        dtype = torch.promote_types(weight.dtype, torch.float32)  # no solver works in half precision
        goal = self._goal(call, target, dtype)
        x = call.windows(target.rows).to(dtype)  # [g, R, D]
        old = layer.matrix(weight).flatten(2).to(dtype)  # [g, O, D]
        if bias is not None:
            x = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2)
            old = torch.cat([old, bias.to(dtype).reshape(layer.groups, -1, 1)], 2)
        new, self.found[layer.name] = fit(x, old, goal)
        if target.is_output:
            new = fit_classifier(x[0], new[0], target.values.to(dtype), first_held_out(len(target.rows))).unsqueeze(0)
        if bias is not None:
            bias.copy_(new[..., -1].reshape(-1))
            new = new[..., :-1]
        weight.copy_(layer.shaped(new, weight))

    def _goal(self, call: Call, target: Target, dtype: torch.dtype) -> Goal:
        """What the kept outputs should be, and what of them is seen behind norm, sum and clamp."""
        layer, behind = call.layer, target.behind
        outputs = self._kept.get(layer.name, (None, None))[1 - layer.in_dim]
        kept = slice(None) if outputs is None else torch.as_tensor(outputs, device=target.values.device)
        values = target.values[:, kept].to(dtype)
        scale, base = values.new_ones(values.shape[1]), torch.zeros_like(values)
        if behind.norm is not None:
            scale, shift = behind.norm.affine(self._tensors)
            base += shift
        if target.total is not None:
            total = target.total[:, kept].to(dtype)
            base = total - values * scale  # what is added in the dense network, and here if nothing else is known
            here = self._values.pop(behind.other, None) if behind.is_known and behind.other is not None else None
            if here is not None and call.fits(here, values.shape[1]):
                base = call.outputs(here, target.rows).to(dtype)
                if behind.norm is not None:
                    base = base + shift
                wanted = (total - base) / scale
                values = torch.where(scale.abs() > 1e-6, wanted, values)
        by_group = (len(values), layer.groups, -1)
        clamp = None if behind.low is None and behind.high is None else (behind.low, behind.high)
        if behind.total is not None and target.total is None:
            clamp = None  # something is added that cannot be seen
        return Goal(
            values.reshape(by_group).movedim(1, 0),
            scale.reshape(layer.groups, 1, -1),
            base.reshape(by_group).movedim(1, 0),
            clamp,
        )
