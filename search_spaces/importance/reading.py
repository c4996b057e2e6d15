"""Where units are read: the tensors and weights at which an op sums over them, found from labels alone.

A unit's activation is what the next layer gets: behind norm, nonlinearity and residual sum, whatever the modules are
called. So a place is looked up where an op *reads* the units (`Tracer.reads`: a convolution, a matrix product, a mean
over channels), and from there back through ops that only move, pool or average positions to the last tensor that was
computed. For conv -> batch norm -> relu -> pool -> conv that is the output of the relu; for a residual stream every sum
that a layer reads; for attention the output of each head; for a pre-norm transformer the output of the norm. An op
without a rule reads all it is given; recurrent layers are spelled out, as the trace on the meta device sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.search_spaces import surgery
from autoprune.search_spaces.importance.base import Place, group_sums
from autoprune.search_spaces.labels import Field
from autoprune.search_spaces.rules import find_rule, norm, shape, spatial, windows
from autoprune.search_spaces.runs import without_own_storage
from autoprune.search_spaces.tracer import Tracer, run, tensors
from autoprune.search_spaces.types import FloatArray, IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace

Measure: TypeAlias = Callable[[Tensor, int], "tuple[Tensor, int] | None"]
"""(tensor [*positions, *rest], how many dimensions are positions) -> sums [*positions] and how many values each sums.

None: it does not apply to such a tensor.
"""

_SOURCES = "_autoprune_sources"
_COMPUTED = "_autoprune_computed"
_FROM_WEIGHTS = "_autoprune_from_weights"


class ReadingTracer(Tracer):
    """Runs one batch; notes which weights read units, and measures the activations that are read.

    Attributes:
        reading_atoms: atoms of weights at the dimensions that were summed over.
        measured: (group, name of the place) -> sums per unit [U], number of values in each.
    """

    def __init__(self, space: SearchSpace, model: nn.Module, measure: Measure | None = None) -> None:
        parameters = space.parameter_labels()
        super().__init__(parameters.ties, parameters, surgery.named_tensors(model))
        self.space = space
        self.measure = measure
        self.reading_atoms: list[IntArray] = []
        self.measured: dict[tuple[int, str], tuple[FloatArray, int]] = {}
        self._seen: set[tuple[int, str]] = set()
        self._computed_in: dict[str, int] = {}

    def reads(self, tensor: Tensor, summed: Field | None) -> None:
        """Called by rules, before the outputs of the running op are marked."""
        if summed is None:
            return
        if self._from_weights(tensor):
            self.reading_atoms.append(summed.atoms.ravel())
        elif self.measure is not None:
            groups = set(np.unique(self.space.units_at(summed.atoms)[0]).tolist()) - {-1}
            for source in self._sources(tensor):
                self._measure(source, groups)

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = list(tensors((args, kwargs or {})))
        from_weights = bool(given) and all(map(self._from_weights, given))
        sources = tuple({id(s): s for t in given for s in self._sources(t)}.values()) if _moves(func) else ()
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tensors(out):
            if id(tensor) in self.names:
                continue
            setattr(tensor, _FROM_WEIGHTS, from_weights)
            setattr(tensor, _SOURCES, sources)
            if not sources and self.labels(tensor):
                setattr(tensor, _COMPUTED, self._next_name())
        return out

    def _measure(self, source: Tensor, groups: set[int]) -> None:
        """Measure a tensor once in a run for each of `groups`."""
        place: str | None = getattr(source, _COMPUTED, None)
        missing = {g for g in groups if (g, place) not in self._seen}
        if place is None or not missing or self.measure is None:
            return
        for f in self.labels(source):
            group, unit = (a.ravel() for a in self.space.units_at(f.atoms))
            here = missing & set(np.unique(group).tolist())
            if not here:
                continue
            self._seen |= {(g, place) for g in here}
            rest = [d for d in range(source.dim()) if d not in f.dims]
            found = self.measure(source.permute(*f.dims, *rest), len(f.dims))
            if found is None:
                continue
            sums = found[0].double().cpu().numpy().ravel()
            for g in sorted(here):
                mine = np.where(group == g, unit, -1)
                num_units = self.space.groups[g].num_units
                positions = int(np.count_nonzero(mine >= 0)) // num_units  # the same for all units of a group
                self.measured[g, place] = group_sums(sums, mine, num_units), found[1] * positions

    def _next_name(self) -> str:
        """Name of the next computed tensor: module and number, the same for batches of every size."""
        module = self.paths.running[-1]
        self._computed_in[module] = self._computed_in.get(module, 0) + 1
        return f"{module}:{self._computed_in[module]}"

    def _from_weights(self, tensor: Tensor) -> bool:
        return id(tensor) in self.names or bool(getattr(tensor, _FROM_WEIGHTS, False))

    def _sources(self, tensor: Tensor) -> tuple[Tensor, ...]:
        if self._from_weights(tensor):
            return ()
        return getattr(tensor, _SOURCES, ()) or (tensor,)


def _moves(func: Any) -> bool:
    """Does the op only move, pool or average positions?"""
    rule = find_rule(func)
    return rule is not None and (
        rule.__module__ in (shape.__name__, spatial.__name__, windows.__name__) or rule in (norm.total, norm.statistic)
    )


def reading_places(space: SearchSpace) -> list[Place]:
    """Dimensions of parameters that multiply units and sum over them: input channels, columns of linear layers.

    Found in one run on the example inputs.
    """
    model = without_own_storage(space.model).eval()
    return space.places_of(read(space, model, *space.example_inputs).reading_atoms)


def read(
    space: SearchSpace,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    measure: Measure | None = None,
) -> ReadingTracer:
    """Run `model`, a copy of the space's, on one batch."""
    tracer = ReadingTracer(space, model, measure)
    run(tracer, model, args, kwargs)
    if any("mkldnn_rnn" in op for op in tracer.trace.unknown_ops):
        tracer = ReadingTracer(space, model, measure)
        with torch.backends.mkldnn.flags(enabled=False):
            run(tracer, model, args, kwargs)
    return tracer
